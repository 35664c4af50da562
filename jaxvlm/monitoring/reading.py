"""The files of a run, read while they are written."""

import dataclasses
import functools
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxvlm.errors import UserError

METRICS = "metrics.jsonl"
# Bytes before the place where reading goes on, by which a file is known again.
_KNOWN_BY = 256
# Beyond these a number was not written by a run: updates, and seconds since 1970.
_MOST_STEPS, _LATEST = 10**15, 1e11


@dataclasses.dataclass(frozen=True, slots=True)
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
      lines: by step, rising; of a step that was made again, the later.
      damaged: how many lines are not what they should be.
      first_damaged: the number of the first, from 1.
      changed: when the file was last written, in seconds since 1970; 0 where there is none.
    """

    def __init__(self, path: Path):
        """Reads nothing yet."""
        self._path = path
        self._start()

    def _start(self) -> None:
        self.lines: list[Line] = []
        self.damaged, self.first_damaged, self.changed = 0, None, 0.0
        self._file, self._read, self._tail = None, 0, b""
        self._count, self._rest = 0, b""

    def update(self) -> None:
        """Reads on; from the start where the file is another, or was written anew.

        Raises:
          UserError: there is a file that cannot be read.
        """
        try:
            with self._path.open("rb") as file:
                found = os.fstat(file.fileno())
                file.seek(self._read - len(self._tail))
                if found.st_ino != self._file or file.read(len(self._tail)) != self._tail:
                    self._start()
                file.seek(self._read)
                new = file.read()
        except FileNotFoundError:
            self._start()
            return
        except OSError as error:
            raise UserError(f"{self._path} cannot be read: {error.strerror}") from None
        self._file, self.changed = found.st_ino, found.st_mtime
        self._read += len(new)
        self._tail = (self._tail + new)[-_KNOWN_BY:]
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
        while self.lines and self.lines[-1].step >= line.step:
            self.lines.pop()
        self.lines.append(line)


def parse_line(text: bytes) -> Line | None:
    """What a line says, or None where it is damaged."""
    try:
        found = json.loads(text)
        step = found["step"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    if type(step) is not int or not 0 <= step <= _MOST_STEPS:
        return None
    numbers = {
        _name(name): _number(value)
        for name, value in found.items()
        if type(value) in (int, float) and name != "step"
    }
    values = {name: value for name, value in numbers.items() if math.isfinite(value)}
    bad = tuple(name for name in numbers if name not in values)
    return Line(step, _moment(values.pop("time", None)), values, bad)


@dataclasses.dataclass(frozen=True)
class Status:
    """What `status.json` says; None, or empty text, is what it does not.

    Attributes:
      state: "running", "finished", "stopped" or "failed".
      reason: of a run that stopped or failed.
      host: the machine of its first process.
      pid: the number of that process.
      processes: how many.
      devices: how many, of all processes.
      device: their kind.
      started: seconds since 1970.
    """

    state: str | None = None
    reason: str = ""
    host: str = ""
    pid: int | None = None
    processes: int | None = None
    devices: int | None = None
    device: str = ""
    started: float | None = None


@dataclasses.dataclass(frozen=True)
class Run:
    """A run as its files show it.

    Attributes:
      folder: the workdir.
      lines: of `metrics.jsonl`, by step, rising.
      damaged: lines that were left out.
      first_damaged: the number of the first of them, from 1.
      changed: when `metrics.jsonl` was last written, in seconds since 1970; 0 without.
      last: updates of the whole run, if known.
      log_every: updates a line, if known.
      status: how it stands, by its own word.
      checkpoints: updates whose checkpoints stand, rising.
      best: the one of them that is best by validation, if any was validated.
    """

    folder: Path
    lines: Sequence[Line]
    damaged: int
    first_damaged: int | None
    changed: float
    last: int | None
    log_every: int | None
    status: Status
    checkpoints: Sequence[int]
    best: int | None


class RunFiles:
    """The folder of a run."""

    def __init__(self, given: Path):
        """Takes the workdir, its `logs` folder, or its `metrics.jsonl`.

        Raises:
          UserError: there is no such folder.
        """
        # `.` may be any of them.
        named = given.absolute().name
        inside = named == METRICS or (named == "logs" and not (given / METRICS).exists())
        folder = given.absolute().parent if inside else given
        if not folder.is_dir():
            raise UserError(
                f"--logdir {given} is no folder; give the --workdir of a run, such as runs/stage1"
            )
        runs = sorted(path.parent for path in folder.glob(f"*/{METRICS}"))
        if runs and not (folder / METRICS).exists():
            raise UserError(
                f"--logdir {given} is no run, but holds {', '.join(map(str, runs[:9]))}; give one"
            )
        self.folder = folder
        self._metrics = MetricLines(folder / METRICS)

    def read(self) -> Run:
        """The run as it stands now.

        Raises:
          UserError: `metrics.jsonl` cannot be read.
        """
        metrics = self._metrics
        metrics.update()
        train = _json(self.folder / "config.json").get("train")
        train = train if isinstance(train, dict) else {}
        scores = _checkpoints(self.folder / "checkpoints")
        known = {step: score for step, score in scores.items() if math.isfinite(score)}
        return Run(
            self.folder,
            tuple(metrics.lines),
            metrics.damaged,
            metrics.first_damaged,
            metrics.changed,
            _count(train.get("max_steps")),
            _count(train.get("log_every")),
            _status(_json(self.folder / "status.json")),
            sorted(scores),
            max(known, key=lambda step: (known[step], step)) if known else None,
        )


def _status(found: Mapping) -> Status:
    state = found.get("state")
    return Status(
        state if state in ("running", "finished", "stopped", "failed") else None,
        _text(found.get("reason")),
        _text(found.get("host")),
        _count(found.get("pid")),
        _count(found.get("processes")),
        _count(found.get("devices")),
        _text(found.get("device")),
        _moment(_number(found.get("started"))),
    )


def _json(path: Path) -> dict:
    """The object of a file; empty where it is missing, damaged, or no object."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _checkpoints(folder: Path) -> dict[int, float]:
    """The updates of whole checkpoints, each with its score by validation; NaN without one."""
    try:
        names = [path.name for path in folder.iterdir()]
    except OSError:
        return {}
    found = {}
    for name in names:
        if name.isascii() and name.isdecimal() and (folder / name / "meta").is_dir():
            found[int(name)] = _number(_json(folder / name / "meta" / "metadata").get("score"))
    return found


def _number(value: object) -> float:
    """A number of a file; NaN where it is none, infinite where it is too large."""
    if type(value) not in (int, float):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _moment(value: float | None) -> float | None:
    """Seconds since 1970, if they can be."""
    return value if value is not None and 0 < value < _LATEST else None


def _count(value: object) -> int | None:
    return value if type(value) is int and 0 < value <= _MOST_STEPS else None


def _text(value: object) -> str:
    return _clean(value) if isinstance(value, str) else ""


@functools.lru_cache(1024)
def _name(text: str) -> str:
    """A clean name: one for all the lines that have it, of which there may be many."""
    return _clean(text)


def _clean(text: str) -> str:
    """The text without what a terminal would obey, or could not show."""
    return "".join(each for each in text if each.isprintable())
