"""A split answered and scored: questions in, `predictions*.jsonl`, `summary.json`, page out.

Several processes share the image sets among them. Each writes files of its own, and needs nothing
of the others but the folder; the first one waits for their lines and joins them.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from jaxvlm.console import progress, say
from jaxvlm.data.record import Record, scene_of
from jaxvlm.data.sequence import set_key
from jaxvlm.data.sources import Chosen
from jaxvlm.errors import UserError
from jaxvlm.files import draft_of, write_text
from jaxvlm.generation.answer import Asked, Group, answers
from jaxvlm.generation.controls import other_scenes
from jaxvlm.generation.journal import Journal, in_order, places
from jaxvlm.generation.restore import Answerer
from jaxvlm.metrics.action_page import page as action_page
from jaxvlm.metrics.action_summary import with_comparisons
from jaxvlm.metrics.baselines import baselines
from jaxvlm.metrics.compare import differences, only
from jaxvlm.metrics.files import write_scored
from jaxvlm.metrics.guess import QuestionOnlyGuess
from jaxvlm.metrics.lines import kind_of, read_lines
from jaxvlm.metrics.report import page
from jaxvlm.metrics.scoring import score, summarize, without_values
from jaxvlm.metrics.summary import line_of, with_controls
from jaxvlm.shares import Share

REPORT, SUMMARY = "report.html", "summary.json"
_OWN, _IDENTITY = "", "identity"
# The way of asking that leaves out what is known of the cameras.
_NO_GEOMETRY = "no_geometry"
ANSWERS, ACTIONS = "answers", "actions"
# The figure by which a way of asking is compared with the controls.
_LED_BY = {ANSWERS: "em", ACTIONS: "center_50cm"}
_POLL_SECONDS = 2.0
_TOGETHER = 512


def of_task(records: Sequence[Record], task: str | None) -> Sequence[Record]:
    """The questions among records, or the instructions.

    Raises:
      UserError: there are none; or no task was named, and there are both.
    """
    found: dict[str, list[int]] = {ANSWERS: [], ACTIONS: []}
    for index in range(len(records)):
        found[ACTIONS if records[index].is_action else ANSWERS].append(index)
    if task is None and all(found.values()):
        raise UserError(
            f"the files hold {len(found[ANSWERS]):,} questions and {len(found[ACTIONS]):,} "
            "instructions, which have other figures: give --task answers or --task actions"
        )
    if task is None:
        return records
    if not found[task]:
        other = "an instruction" if task == ANSWERS else "a question"
        raise UserError(f"--task {task}: every record is {other}")
    return Chosen(records, found[task])


def predictions_name(way: str) -> str:
    """The file of the answers to questions asked in a way: as they are (""), or a control's."""
    return f"predictions.{way}.jsonl" if way else "predictions.jsonl"


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What is evaluated.

    Attributes:
      records: all of the files' of the task, parsed when they are asked for.
      task: "answers" or "actions".
      count: how many of them, from the first, are asked about.
      controls: whether the questions are also asked without picture and with others'.
      seed: of the scenes' exchange.
      output: the folder.
      share: this process's, of the image sets.
      identity: what the answers depend on, as a text; a folder's lines of another one are dropped.
    """

    records: Sequence[Record]
    task: str
    count: int
    controls: bool
    seed: int
    output: Path
    share: Share
    identity: str

    @functools.cached_property
    def _parts(self) -> Path:
        # Another evaluation's are another folder: no process need wait until they are gone.
        digest = hashlib.sha256(self.identity.encode()).hexdigest()
        return self.output / f"parts-{digest[:12]}"

    def paths(self, way: str) -> list[Path]:
        """The files of all processes, of any number, that ever answered in this way."""
        name = predictions_name(way)
        others = sorted(self._parts.glob(f"*/{name}")) if self._parts.is_dir() else []
        # What the first process has not cleared away yet may be of another evaluation.
        return [*([self.output / name] if self._stands() else []), *others]

    def _stands(self) -> bool:
        """Whether the lines in the folder are this evaluation's."""
        known = self.output / _IDENTITY
        return known.exists() and known.read_text(encoding="utf-8") == self.identity

    @property
    def folder(self) -> Path:
        """Where this process writes."""
        return self._parts / str(self.share.index) if self.share.index else self.output

    def own_path(self, way: str) -> Path:
        """This process's file."""
        return self.folder / predictions_name(way)

    @functools.cached_property
    def _shown(self) -> dict[str, list[int] | None]:
        """By way of asking, for each question the record whose images are shown."""
        own = list(range(self.count))
        if not self.controls:
            return {_OWN: own}
        # Of all records: which are shown does not depend on how many are asked about.
        scenes = [scene_of(self.records[index]) for index in range(len(self.records))]
        other = other_scenes(scenes, self.seed)
        found: dict[str, list[int] | None] = {_OWN: own, "no_image": None}
        found |= {"other_images": other[: self.count]} if other else {}
        return found | ({_NO_GEOMETRY: own} if self.task == ACTIONS else {})

    def image_sets(self) -> set[tuple[str, ...]]:
        """Those that are shown."""
        needed = {i for shown in self._shown.values() for i in shown or ()}
        return {self.records[index].images for index in needed}

    @property
    def ways(self) -> list[str]:
        """How the questions are asked."""
        return list(self._shown)

    def _named(self, lines: Iterable[dict], path: Path) -> Iterator[dict]:
        """The lines of a draft, under the name that it will have."""
        for line in lines:
            yield line | {"origin": f"{path}, question {line['question_id'] or line['index']}"}

    def _all(self) -> Iterator[Record]:
        return (self.records[index] for index in range(self.count))

    def begin(self) -> None:
        """Keeps the lines of a run that broke off, and drops those of another one.

        Raises:
          UserError: the folder cannot be written, or a record has no reference.
        """
        for record in self._all():
            if not record.answers:
                raise UserError(
                    f"{record.origin}: no answer to score against; python -m jaxvlm.predict "
                    "answers records without"
                )
        if self.share.index:
            return
        try:
            (self.output / SUMMARY).unlink(missing_ok=True)
            if not self._stands():
                if any(self.output.glob("predictions*.jsonl")):
                    say(f"the answers in {self.output} are of something else; they are replaced")
                for path in self.output.glob("predictions*.jsonl"):
                    path.unlink()
                for folder in set(self.output.glob("parts-*")) - {self._parts}:
                    shutil.rmtree(folder, ignore_errors=True)
                write_text(self.output / _IDENTITY, self.identity)
        except OSError as error:
            raise UserError(f"--output {self.output} cannot be written: {error.strerror}") from None

    def answer(self, answerer: Answerer) -> None:
        """Answers what this process has to and nobody has yet, and writes it as it comes."""
        # What was lost is asked again: its images may have been mended.
        done = {
            way: {at.index for path in self.paths(way) for at in places(path) if not at.lost}
            for way in self.ways
        }
        groups = self._groups(done)
        total = sum(len(asked) for _, asked in groups)
        known = sum(map(len, done.values()))
        ways = ", ".join(["as they are", *self.ways[1:]])
        say(
            f"{self.count:,} {'questions' if self.task == ANSWERS else 'instructions'}, asked "
            f"{len(self.ways)} times ({ways}): answering {total:,} with {answerer.checkpoint}"
            + (f"; {known:,} answers stand" if known else "")
        )
        if self.controls and "other_images" not in self.ways:
            say("all are of one scene: there are no other_images")
        with contextlib.ExitStack() as stack:
            journals = {way: stack.enter_context(Journal(self.own_path(way))) for way in self.ways}
            with progress("answering", total) as advance:
                for found in answers(answerer, self._asked(groups)):
                    way, index = found.key
                    if found.text is None:
                        say(f"warning: left out: {found.lost}", warns=True)
                        journals[way].write({"index": index, "lost": found.lost})
                    else:
                        line = line_of(index, self.records[index], found.text, found.box)
                        took = {
                            "tokens": found.tokens,
                            "ended": found.ended,
                            "seconds": round(found.seconds, 4),
                        }
                        journals[way].write(line | took)
                    advance()

    def _groups(self, done: dict[str, set[int]]) -> list[tuple]:
        """The record whose images are shown, and whether without geometry; and the questions.

        Those without picture stand together, with None instead.
        """
        # Controls may show sets of records that are not asked about.
        needed = sorted({i for shown in self._shown.values() for i in shown or ()})
        keys = {index: set_key(self.records[index]) for index in needed}
        by_set: dict[tuple | None, list[tuple[str, int]]] = {}
        first: dict[bytes, int] = {}
        for index, key in keys.items():
            first.setdefault(key, index)
        for way, shown in self._shown.items():
            for index in range(self.count):
                key = (keys[shown[index]], way == _NO_GEOMETRY) if shown else None
                by_set.setdefault(key, []).append((way, index))
        mine = list(by_set.items())
        found = []
        for number, (key, asked) in enumerate(mine):
            if key is None:
                asked = self.share.of(asked)
            elif not self.share.owns(number):
                continue
            left = [(way, index) for way, index in asked if index not in done[way]]
            shown = None if key is None else (first[key[0]], key[1])
            # Of some hundreds each, for they are read together.
            starts = range(0, len(left), _TOGETHER)
            found += [(shown, left[start : start + _TOGETHER]) for start in starts]
        return found

    def _asked(self, groups) -> Iterator[Group]:
        for shown, asked in groups:
            record = None if shown is None else self.records[shown[0]]
            if shown is not None and shown[1]:
                record = dataclasses.replace(record, geometry=None)
            yield Group(
                record,
                [Asked((way, index), index, self.records[index]) for way, index in asked],
            )

    def wait(self, seconds: float) -> None:
        """Waits until all processes' lines are there, as long as some come.

        Raises:
          UserError: none came for so long.
        """
        if self.share.whole:
            return
        before, since = -1, time.monotonic()
        read: dict[Path, tuple[int, set[int]]] = {}
        while True:
            missing = sum(self.count - len(self._there(way, read)) for way in self.ways)
            if not missing:
                return
            if missing != before:
                before, since = missing, time.monotonic()
                say(f"waiting for {missing:,} answers of the other processes")
            if time.monotonic() - since > seconds:
                raise UserError(
                    f"{missing:,} answers of the other processes are missing in {self.output}, and "
                    f"none came for {seconds:.0f} seconds; start them again (with the same update "
                    "as --checkpoint), or all in one process"
                )
            time.sleep(_POLL_SECONDS)

    def _there(self, way: str, read: dict[Path, tuple[int, set[int]]]) -> set[int]:
        """Whose answers stand; of each file only what is behind the place `read` is read."""
        found: set[int] = set()
        for path in self.paths(way):
            start, known = read.get(path, (0, set()))
            for place in places(path, start):
                known.add(place.index)
                start = place.end
            read[path] = start, known
            found |= known
        return {index for index in found if index < self.count}

    def _lost(self) -> set[int]:
        """Questions whose images could not be read, in one way of asking or another."""
        return {
            line["index"]
            for way in self.ways
            for line in in_order(self.paths(way))
            if "lost" in line and line["index"] < self.count
        }

    def finish(
        self, title: str, tokenizer: str, training: Iterable[Record] | None, identity: dict
    ) -> dict:
        """Puts all lines in order, scores them, and writes summary and page; returns the summary.

        Args:
          title: of the page.
          tokenizer: "plain" or "ptb".
          training: what is known beforehand, for what needs no picture; None to leave that out.
          identity: stands in the summary.

        Raises:
          UserError: there is nothing to score.
        """
        say("scoring")
        lost = self._lost()
        summaries, kept = {}, {}
        figure = _LED_BY[self.task]
        for way in self.ways:
            path = self.output / predictions_name(way)
            draft = draft_of(path)
            try:
                count = 0
                with draft.open("w", encoding="utf-8") as file:
                    for line in in_order(self.paths(way)):
                        # What one way has lost is left out of all, so that they can be compared.
                        if line["index"] < self.count and line["index"] not in lost:
                            file.write(json.dumps(without_values(line)) + "\n")
                            count += 1
                if count + len(lost) != self.count:
                    raise UserError(
                        f"{self.output} holds {count:,} of {self.count - len(lost):,} answers "
                        f"({predictions_name(way)}); were some removed? The same command asks again"
                    )
                if not count:
                    raise UserError(
                        f"the images of all {self.count:,} cannot be read, as warned above; mend "
                        "them, and the same command asks again"
                    )
                scores = score(self._named(read_lines(draft), path), tokenizer)
                write_scored(draft, scores, path)
            finally:
                draft.unlink(missing_ok=True)
            # Actions without boxes have no distances.
            figure = figure if figure in scores.values else "exact_match"
            summaries[way], kept[way] = summarize(scores), only(scores, [figure])
        shutil.rmtree(self._parts, ignore_errors=True)
        lines = functools.partial(read_lines, self.output / predictions_name(_OWN))
        own = summaries.pop(_OWN)
        if self.task == ACTIONS:
            say("measuring the training records' boxes, for the baselines")
            found = {} if training is None else baselines(training, self._all())
            summary = with_comparisons(own, summaries, found)
        else:
            summary = with_controls(own, summaries, training and _guess(training), lines())
        # How much better it is with the right pictures, question by question.
        summary["leads"] = {
            way: {figure: differences(kept[way], kept[_OWN])[figure]} for way in summaries
        }
        # Whose text was cut off at evaluation.max_new_tokens.
        summary |= {
            "lost": len(lost),
            "cut": sum(not line["ended"] for line in lines()),
            **identity,
        }
        if lost:
            summary["headline"] += f" ({len(lost):,} lost: their images cannot be read)"
        if self.task == ACTIONS:
            text = action_page(title, summary, lines, lambda line: self.records[line["index"]])
        else:
            text = page(title, summary, lines)
        write_text(self.output / REPORT, text)
        # Last: where it stands, everything stands.
        write_text(self.output / SUMMARY, json.dumps(summary, indent=2) + "\n")
        return summary


def _guess(training: Iterable[Record]) -> QuestionOnlyGuess:
    return QuestionOnlyGuess(
        (r.question, kind_of(r.question, r.kind, r.task), r.answer) for r in training
    )
