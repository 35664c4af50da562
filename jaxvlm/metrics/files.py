"""Predictions scored from a file: `scored.jsonl` and `summary.json`."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from jaxvlm.console import say
from jaxvlm.errors import UserError
from jaxvlm.files import write_parts, write_text
from jaxvlm.metrics.lines import check_alike, check_ids, read_lines
from jaxvlm.metrics.scoring import Scores, score, summarize, without_values

SCORED, SUMMARY = "scored.jsonl", "summary.json"
PREDICTIONS, REPORT = "predictions.jsonl", "report.html"


def score_file(
    predictions: Path,
    output: Path,
    tokenizer: str,
    known: Mapping[str, Mapping] | None = None,
) -> dict:
    """Scores a file of predictions; of its lines only the answers are held together.

    Args:
      predictions: a line each, see `read_lines`.
      output: the folder of `scored.jsonl`, every line with its values, and of `summary.json`.
      tokenizer: "plain" or "ptb".
      known: fields by `question_id`, see `read_lines`; the file must answer all of them.

    Returns:
      The summary.

    Raises:
      UserError: a line that is none, questions and actions in one file, or a folder that cannot be
        written.
    """
    _spare_evaluation(output)
    if known is not None:
        check_ids(predictions, known)
    else:
        _say_repeated(predictions)
    check_alike(read_lines(predictions, known), predictions)
    say("scoring")
    scores = score(read_lines(predictions, known), tokenizer)
    summary = {**summarize(scores), "predictions": str(predictions)}
    try:
        output.mkdir(parents=True, exist_ok=True)
        write_scored(predictions, scores, output / SCORED, known)
        write_text(output / SUMMARY, json.dumps(summary, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"--output {output} cannot be written: {error.strerror}") from None
    return summary


def _spare_evaluation(output: Path) -> None:
    """Refuses a folder whose summary knows more than a file of predictions tells."""
    try:
        there = json.loads((output / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    if isinstance(there, dict) and "controls" in there:
        raise UserError(
            f"--output {output} holds an evaluation with its controls; give another folder"
        )


def _say_repeated(predictions: Path) -> None:
    """Warns of questions that are answered more than once."""
    often = Counter(
        (line["task"], str(line["question_id"]))
        for line in read_lines(predictions)
        if line.get("question_id") not in (None, "")
    )
    repeated = sum(count > 1 for count in often.values())
    if repeated:
        say(
            f"warning: {predictions} answers {repeated:,} questions more than once (by their "
            "question_id); each answer counts",
            warns=True,
        )


def write_scored(
    predictions: Path,
    scores: Scores,
    path: Path,
    known: Mapping[str, Mapping] | None = None,
) -> None:
    """Writes the lines of a file of predictions with the values of each; whole, or not at all."""

    def scored() -> Iterator[str]:
        for number, line in enumerate(read_lines(predictions, known)):
            del line["origin"]
            # Nor what another measure said of it before.
            line = {k: v for k, v in without_values(line).items() if k not in scores.values}
            yield json.dumps(line | scores.of(number)) + "\n"

    write_parts(path, scored())
