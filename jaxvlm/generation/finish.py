"""Answers scored: `predictions*.jsonl` in order, `summary.json` and the page."""

import functools
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

from jaxvlm.console import progress, say
from jaxvlm.data.record import Record
from jaxvlm.errors import UserError
from jaxvlm.files import draft_of, write_text
from jaxvlm.generation.evaluation import Evaluation, predictions_name
from jaxvlm.generation.ways import ACTIONS, ANSWERS, AS_THEY_ARE, Ways
from jaxvlm.metrics.action_page import page as action_page
from jaxvlm.metrics.action_summary import with_comparisons
from jaxvlm.metrics.baselines import baselines
from jaxvlm.metrics.compare import differences, only
from jaxvlm.metrics.files import REPORT, SUMMARY, write_scored
from jaxvlm.metrics.guess import QuestionOnlyGuess
from jaxvlm.metrics.lines import kind_of, read_lines
from jaxvlm.metrics.report import page
from jaxvlm.metrics.scoring import Scores, score, summarize, without_values
from jaxvlm.metrics.summary import with_controls

# The figure by which a way of asking is compared with the controls.
_LED_BY = {ANSWERS: "em", ACTIONS: "center_50cm"}


def finish(
    made: Evaluation,
    title: str,
    tokenizer: str,
    training: Sequence[Record] | None,
    identity: dict,
) -> dict:
    """Puts all lines in order, scores them, and writes summary and page; returns the summary.

    Args:
      made: holds all answers.
      title: of the page.
      tokenizer: "plain" or "ptb".
      training: what is known beforehand, for what needs no picture; None to leave that out.
      identity: stands in the summary.

    Raises:
      UserError: there is nothing to score.
    """
    ways = made.ways
    # What one way has lost is left out of all, so that they can be compared.
    lost = {line["index"] for way in ways for line in made.lines(way) if "lost" in line}
    summaries, kept = {}, {}
    figure = _LED_BY[ways.task]
    for way in ways:
        say(f"scoring the answers {f'of {way}' if way else 'as they are'}")
        scores = _scored(made, way, lost, tokenizer)
        # Actions without boxes have no distances.
        figure = figure if figure in scores.values else "exact_match"
        summaries[way], kept[way] = summarize(scores), only(scores, [figure])
    made.clear()
    lines = functools.partial(read_lines, made.output / predictions_name(AS_THEY_ARE))
    own = summaries.pop(AS_THEY_ARE)
    if ways.task == ACTIONS:
        found = {} if training is None else _baselines(training, ways)
        summary = with_comparisons(own, summaries, found)
    else:
        summary = with_controls(own, summaries, training and _guess(training), lines())
    # How much better it is with the right pictures, question by question.
    summary["leads"] = {
        way: {figure: differences(kept[way], kept[AS_THEY_ARE])[figure]} for way in summaries
    }
    # Whose text was cut off at evaluation.max_new_tokens.
    summary |= {
        "lost": len(lost),
        "cut": sum(not line.get("ended", True) for line in lines()),
        **identity,
    }
    if lost:
        summary["headline"] += f" ({len(lost):,} lost: their images cannot be read)"
    if summary.get("left_out"):
        summary["headline"] += f" ({summary['left_out']:,} records left out: they fail checks)"
    if ways.task == ACTIONS:
        text = action_page(title, summary, lines, lambda line: ways.records[line["index"]])
    else:
        text = page(title, summary, lines)
    write_text(made.output / REPORT, text)
    # Last: where it stands, everything stands.
    write_text(made.output / SUMMARY, json.dumps(summary, indent=2) + "\n")
    return summary


def _scored(made: Evaluation, way: str, lost: Collection[int], tokenizer: str) -> Scores:
    """Joins the lines of a way, scores them and writes them with their values."""
    path = made.output / predictions_name(way)
    draft, count, due = draft_of(path), 0, made.ways.count - len(lost)
    try:
        with draft.open("w", encoding="utf-8") as file:
            for line in made.lines(way):
                if line["index"] not in lost:
                    file.write(json.dumps(without_values(line)) + "\n")
                    count += 1
        if count != due:
            raise UserError(
                f"{made.output} holds {count:,} of {due:,} answers ({path.name}); were some "
                "removed? The same command asks again"
            )
        if not count:
            raise UserError(
                f"the images of all {made.ways.count:,} cannot be read, as warned above; mend "
                "them, and the same command asks again"
            )
        # Of controls EM is compared.
        scores = score(_named(draft, path), tokenizer, with_meteor=way == AS_THEY_ARE)
        write_scored(draft, scores, path)
    finally:
        draft.unlink(missing_ok=True)
    return scores


def _named(draft: Path, path: Path) -> Iterator[dict]:
    """The lines of a draft, under the name that it will have."""
    for line in read_lines(draft):
        yield line | {"origin": f"{path}, question {line['question_id'] or line['index']}"}


def _baselines(training: Sequence[Record], ways: Ways) -> dict[str, dict]:
    """Those of `baselines`, while it is told how many records are read."""
    with progress("the baselines' training records", len(training)) as advance:

        def read() -> Iterator[Record]:
            for record in training:
                yield record
                advance()

        return baselines(read(), ways.asked())


def _guess(training: Iterable[Record]) -> QuestionOnlyGuess:
    return QuestionOnlyGuess(
        (r.question, kind_of(r.question, r.kind, r.task), r.answer)
        for r in training
        if not r.is_action
    )
