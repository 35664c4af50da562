"""The files of a run, read while they are written."""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path

from jaxvlm.errors import UserError

METRICS = "metrics.jsonl"


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of `metrics.jsonl`.

    Attributes:
      step: updates made.
      time: seconds since 1970; None in runs of versions that did not write it.
      values: its numbers, those that are finite.
      bad: names of those that are not.
    """

    step: int
    time: float | None
    values: Mapping[str, float]
    bad: tuple[str, ...] = ()


class MetricLines:
    """`metrics.jsonl`, of which only what is new is read.

    Attributes:
      lines: by step; of a step that was made again, the later.
      damaged: how many lines are not what they should be.
      first_damaged: the number of the first, from 1.
    """

    def __init__(self, path: Path):
        """Reads nothing yet."""
        self._path = path
        self._start()

    def _start(self) -> None:
        self.lines: dict[int, Line] = {}
        self.damaged, self.first_damaged = 0, None
        self._read, self._count, self._rest, self._file = 0, 0, b"", None

    def update(self) -> None:
        """Reads on; from the start where the file is another, or shorter than before."""
        try:
            found = self._path.stat()
        except OSError:
            self._start()
            return
        if self._file not in (None, found.st_ino) or found.st_size < self._read:
            self._start()
        self._file = found.st_ino
        with self._path.open("rb") as file:
            file.seek(self._read)
            new = file.read()
        self._read += len(new)
        # What stands behind the last end of line is not written yet.
        *whole, self._rest = (self._rest + new).split(b"\n")
        for line in whole:
            self._count += 1
            self._take(line)

    def _take(self, text: bytes) -> None:
        if not text.strip():
            return
        line = parse_line(text)
        if line is None:
            self.damaged += 1
            self.first_damaged = self.first_damaged or self._count
            return
        # A run that went on from before made these again.
        while self.lines and next(reversed(self.lines)) >= line.step:
            self.lines.popitem()
        self.lines[line.step] = line


def parse_line(text: bytes) -> Line | None:
    """What a line says, or None where it is damaged."""
    try:
        found = json.loads(text)
        step = found["step"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    if type(step) is not int or step < 0:
        return None
    numbers = {
        name: value
        for name, value in found.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and name != "step"
    }
    values = {name: float(value) for name, value in numbers.items() if _finite(value)}
    bad = tuple(name for name in numbers if name not in values)
    return Line(step, values.pop("time", None), values, bad)


def _finite(value: float) -> bool:
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


@dataclasses.dataclass(frozen=True)
class Run:
    """A run as its files show it.

    Attributes:
      folder: the workdir.
      lines: of `metrics.jsonl`, in order.
      damaged: lines that were left out.
      first_damaged: the number of the first of them.
      changed: when `metrics.jsonl` was last written, in seconds since 1970; None without.
      last: updates of the whole run, if known.
      status: of `status.json`; empty in older runs.
      checkpoints: updates whose checkpoints stand.
      best: the one of them that is best by validation, if any was validated.
    """

    folder: Path
    lines: list[Line]
    damaged: int
    first_damaged: int | None
    changed: float | None
    last: int | None
    status: Mapping
    checkpoints: list[int]
    best: int | None


class RunFiles:
    """The folder of a run."""

    def __init__(self, given: Path):
        """Takes the workdir, its `logs` folder, or its `metrics.jsonl`.

        Raises:
          UserError: there is no such folder.
        """
        folder = given.parent if given.name in (METRICS, "logs") else given
        if not folder.is_dir():
            raise UserError(
                f"--logdir {given}: there is no such folder; give the --workdir of a run, such as "
                "runs/stage1"
            )
        self.folder = folder
        self._metrics = MetricLines(folder / METRICS)

    def read(self) -> Run:
        """The run as it stands now."""
        metrics = self._metrics
        metrics.update()
        try:
            changed = (self.folder / METRICS).stat().st_mtime
        except OSError:
            changed = None
        train = _json(self.folder / "config.json").get("train")
        last = train.get("max_steps") if isinstance(train, dict) else None
        scores = _checkpoints(self.folder / "checkpoints")
        known = {step: score for step, score in scores.items() if score is not None}
        return Run(
            self.folder,
            list(metrics.lines.values()),
            metrics.damaged,
            metrics.first_damaged,
            changed,
            last if isinstance(last, int) else None,
            _json(self.folder / "status.json"),
            sorted(scores),
            max(known, key=lambda step: (known[step], step)) if known else None,
        )


def _json(path: Path) -> dict:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _checkpoints(folder: Path) -> dict[int, float | None]:
    """The updates of whole checkpoints, each with its score by validation."""
    try:
        names = [path.name for path in folder.iterdir()]
    except OSError:
        return {}
    found = {}
    for name in names:
        if name.isascii() and name.isdecimal() and (folder / name / "meta").is_dir():
            score = _json(folder / name / "meta" / "metadata").get("score")
            found[int(name)] = score if isinstance(score, int | float) else None
    return found
