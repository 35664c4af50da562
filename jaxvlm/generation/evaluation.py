"""A split answered: questions in, lines of `predictions*.jsonl` out, in every way of asking.

Several processes share the image sets among them. Each writes files of its own, and needs nothing
of the others but the folder; the first one waits for their lines and joins them (finish.py).
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from jaxvlm.console import progress, say
from jaxvlm.errors import UserError
from jaxvlm.files import write_text
from jaxvlm.generation.answer import answers
from jaxvlm.generation.journal import Journal, in_order, places
from jaxvlm.generation.restore import Answerer
from jaxvlm.generation.ways import ANSWERS, AS_THEY_ARE, OTHER_IMAGES, WAYS, Ways
from jaxvlm.metrics.files import PREDICTIONS, REPORT, SUMMARY
from jaxvlm.metrics.summary import line_of
from jaxvlm.shares import Share

_IDENTITY, _FILES, _FINISHED = "identity", "files", "finished"
_PARTS = re.compile("parts-[0-9a-f]{12}")
_POLL_SECONDS = 2.0


def predictions_name(way: str) -> str:
    """The file of the answers to questions asked in a way: as they are (""), or a control's."""
    return f"predictions.{way}.jsonl" if way else PREDICTIONS


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The answers of an evaluation in their folder.

    Attributes:
      ways: what is asked.
      output: the folder.
      share: this process's, of the image sets.
      identity: what the answers depend on, as a text; a folder's lines of another one are dropped.
      files: that are asked about, as the user names them; a folder's lines of others are kept.
    """

    ways: Ways
    output: Path
    share: Share
    identity: str
    files: Sequence[str]

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

    def lines(self, way: str) -> Iterator[dict]:
        """The lines of all processes in the records' order, those lost too."""
        found = in_order(self.paths(way))
        return (line for line in found if line["index"] < self.ways.count)

    def clear(self) -> None:
        """Removes the processes' own files, when their lines are joined."""
        shutil.rmtree(self._parts, ignore_errors=True)

    def _stands(self) -> bool:
        """Whether the lines in the folder are this evaluation's."""
        known = self.output / _IDENTITY
        return known.exists() and known.read_bytes() == self.identity.encode()

    @property
    def folder(self) -> Path:
        """Where this process writes."""
        return self._parts / str(self.share.index) if self.share.index else self.output

    def own_path(self, way: str) -> Path:
        """This process's file."""
        return self.folder / predictions_name(way)

    def open(self) -> None:
        """Tells the first process that this one is at work again; before weights are read.

        Raises:
          UserError: the folder holds answers to the questions of other files.
        """
        self._spare_others()
        (self.folder / _FINISHED).unlink(missing_ok=True)

    def begin(self) -> None:
        """Keeps the lines of a run that broke off, and drops those of another one.

        Raises:
          UserError: the folder cannot be written, it holds answers of this evaluation to more
            questions, or a record has no reference.
        """
        for record in self.ways.asked():
            if not record.answers:
                raise UserError(
                    f"{record.origin}: no answer to score against; python -m jaxvlm.predict "
                    "answers records without"
                )
        if self.share.index:
            return
        self._spare_more()
        try:
            (self.output / SUMMARY).unlink(missing_ok=True)
            if not self._stands():
                stand = self._predictions()
                if stand:
                    say(f"the answers in {self.output} are of other weights, settings or records; "
                        "they are replaced")  # fmt: skip
                for path in stand:
                    path.unlink()
                for folder in set(self.output.glob("parts-*")) - {self._parts}:
                    if _PARTS.fullmatch(folder.name):
                        shutil.rmtree(folder, ignore_errors=True)
                write_text(self.output / _IDENTITY, self.identity)
            write_text(self.output / _FILES, json.dumps(self._named()))
        except OSError as error:
            raise UserError(f"--output {self.output} cannot be written: {error.strerror}") from None

    def _spare_others(self) -> None:
        """Refuses to replace answers to other files' questions; files may move."""
        stand = self._predictions()
        others = [self.output / name for name in (SUMMARY, REPORT)]
        stand += [path for path in others if path.exists()]
        if self._stands() or not stand:
            return
        if not (self.output / _IDENTITY).exists():
            raise UserError(
                f"--output {self.output} holds {stand[0].name}, which no evaluation has written; "
                "give another folder"
            )
        there = self._asked_before()
        if there and there != self._named():
            raise UserError(
                f"{self.output} holds the evaluation of {', '.join(there)}; give another --output "
                f"for that of {', '.join(self.files)}"
            )

    def _predictions(self) -> list[Path]:
        """The answers that stand in the folder, whosever they are."""
        found = (self.output / predictions_name(way) for way in WAYS)
        return [path for path in found if path.exists()]

    def _asked_before(self) -> list[str]:
        """The files whose questions the folder answers, as far as it tells."""
        try:
            there = json.loads((self.output / _FILES).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return []
        return [str(name) for name in there] if isinstance(there, list) else []

    def _named(self) -> list[str]:
        """The files, wherever the command is given."""
        return [str(Path(file).resolve()) for file in self.files]

    def _spare_more(self) -> None:
        """Refuses to leave answers out that stand."""
        stand = {at.index for path in self.paths(AS_THEY_ARE) for at in places(path)}
        more = sum(index >= self.ways.count for index in stand)
        if more:
            raise UserError(
                f"--output {self.output} holds answers to {len(stand):,} questions, and "
                f"--limit {self.ways.count} would drop {more:,} of them; give another --output"
            )

    def answer(self, answerer: Answerer) -> None:
        """Answers what this process has to and nobody has yet, and writes it as it comes."""
        # What was lost is asked again: its images may have been mended.
        done = {
            way: {at.index for path in self.paths(way) for at in places(path) if not at.lost}
            for way in self.ways
        }
        left = self.ways.places(done, self.share)
        total = sum(len(place.asked) for place in left)
        known = sum(map(len, done.values()))
        names = [way or "as they are" for way in self.ways]
        what = "questions" if self.ways.task == ANSWERS else "instructions"
        say(
            f"{self.ways.count:,} {what}, asked {len(names)} times ({', '.join(names)}): "
            f"answering {total:,} with {answerer.checkpoint}"
            + (f"; {known:,} answers stand" if known else "")
        )
        if self.ways.controls and OTHER_IMAGES not in names:
            say("all are of one scene: there are no other_images")
        with contextlib.ExitStack() as stack:
            journals = {way: stack.enter_context(Journal(self.own_path(way))) for way in self.ways}
            views = answerer.config.data.num_views
            with progress("answering", total) as advance:
                for found in answers(answerer, self.ways.groups(left)):
                    way, index = found.key
                    if found.text is None:
                        say(f"warning: left out: {found.lost}", warns=True)
                        journals[way].write({"index": index, "lost": found.lost})
                    else:
                        record = self.ways.records[index].first_views(views)
                        line = line_of(index, record, found.text, found.box)
                        took = {
                            "tokens": found.tokens,
                            "ended": found.ended,
                            "seconds": round(found.seconds, 4),
                        }
                        journals[way].write(line | took)
                    advance()
        if self.share.index:
            # The first process may have seen all lines already, and have cleared them away.
            with contextlib.suppress(FileNotFoundError):
                write_text(self.folder / _FINISHED, "")

    def wait(self, seconds: float) -> None:
        """Waits until all processes' lines are there, as long as some come.

        Raises:
          UserError: none came for so long.
        """
        if self.share.whole:
            return
        before, since = -1, time.monotonic()
        read: dict[Path, tuple[int, dict[int, bool]]] = {}
        while True:
            # What is lost may be asked again just now.
            finished = all(
                (self._parts / str(index) / _FINISHED).exists()
                for index in range(1, self.share.count)
            )
            missing = sum(
                self.ways.count - len(self._there(way, read, lost=finished)) for way in self.ways
            )
            if not missing:
                return
            if missing != before:
                before, since = missing, time.monotonic()
                say(f"waiting for {missing:,} answers of the other processes")
            if time.monotonic() - since > seconds:
                raise UserError(
                    f"{missing:,} answers of the other processes are missing in {self.output}, and "
                    f"none came for {seconds:.0f} seconds; start them again, with the same flags "
                    "(and the same update as --checkpoint), or all in one process"
                )
            time.sleep(_POLL_SECONDS)

    def _there(
        self, way: str, read: dict[Path, tuple[int, dict[int, bool]]], lost: bool
    ) -> set[int]:
        """Whose answers stand, or are lost; of each file only what is behind its place is read.

        Args:
          way: of asking.
          read: of each file the place, and of each question there whether its answer is lost.
          lost: those without an answer are there too.
        """
        found: set[int] = set()
        for path in self.paths(way):
            start, known = read.get(path, (0, {}))
            for place in places(path, start):
                known[place.index] = place.lost and known.get(place.index, True)
                start = place.end
            read[path] = start, known
            found |= {index for index, gone in known.items() if lost or not gone}
        return {index for index in found if index < self.ways.count}
