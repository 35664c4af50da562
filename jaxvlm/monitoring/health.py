"""How a run does, in a word and its reason."""

import enum
import os
import socket
import statistics
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from jaxvlm.console import duration
from jaxvlm.monitoring.reading import Line, Run, Status

# Lines that are looked at: what was long ago does not count.
WINDOW = 500
# Silence that no healthy run keeps: so many seconds, and so many times its usual one.
_SILENT_SECONDS, _SILENT_TIMES = 120, 10
# A start that takes longer hangs.
_STARTING_SECONDS = 3600
# Updates that take so many times as long as before.
_SLOWER = 1.3
# Lines among which no update should have been skipped.
_SKIPPED_LINES = 10


class State(enum.Enum):
    """What a run does."""

    WAITING = "nothing yet"
    STARTING = "starting"
    RUNNING = "running"
    SLOWING = "slowing"
    STALLED = "stalled"
    SKIPPING = "NaN"
    FINISHED = "finished"
    STOPPED = "stopped"
    FAILED = "failed"
    CRASHED = "crashed"


class Health(NamedTuple):
    """A word, and why it is the right one."""

    state: State
    reason: str


def health(run: Run, now: float) -> Health:
    """Judges a run.

    Args:
      run: what its files show.
      now: seconds since 1970.
    """
    status, done = run.status, run.lines[-1].step if run.lines else 0
    if status.state == "failed":
        return Health(State.FAILED, status.reason or "without a reason")
    if status.state == "stopped":
        goes_on = "the same command goes on"
        why = status.reason if goes_on in status.reason else f"{status.reason}; {goes_on}"
        return Health(State.STOPPED, why.removeprefix("; "))
    # A run that says how it stands is believed: behind its last update it saves.
    told = status.state is not None
    if status.state == "finished" or (not told and run.last is not None and done >= run.last):
        return Health(State.FINISHED, f"all {done:,} updates are made")
    if status.state == "running" and _is_gone(status):
        return Health(
            State.CRASHED, f"process {status.pid} is gone without a word; the same command goes on"
        )
    if status.state == "running" and (not run.lines or _written(run) < (status.started or 0)):
        long = now - (status.started or now) > _STARTING_SECONDS
        return Health(State.STALLED if long else State.STARTING, _starting(run, now))
    if not run.lines:
        return Health(State.WAITING, "no metrics yet: no run has logged here")
    return _of_lines(run, now)


def _starting(run: Run, now: float) -> str:
    """What is to be said before a start has written a line."""
    since = ""
    if run.status.started is not None:
        since = f" since the start {duration(max(now - run.status.started, 0))} ago"
    every = f", and a line comes every {run.log_every:,} updates" if run.log_every else ""
    return f"no line{since}; compiling can take minutes{every}"


def _of_lines(run: Run, now: float) -> Health:
    silent, usual = max(now - _written(run), 0), _usual_silence(run)
    if silent > max(_SILENT_SECONDS, _SILENT_TIMES * usual):
        often = f", usually one every {_short(usual)}" if usual else ""
        return Health(State.STALLED, f"no line for {duration(silent)}{often}")
    skipping = _skipping(run.lines[-_SKIPPED_LINES:])
    if skipping:
        return Health(State.SKIPPING, skipping)
    times = step_seconds(run.lines)
    recent = times[-max(len(times) // 10, 5) :]
    before = times[: -len(recent)]
    if len(before) >= len(recent):
        now_, then = statistics.median(recent), statistics.median(before)
        if now_ > _SLOWER * then:
            return Health(State.SLOWING, f"{now_:.3g} s an update, {then:.3g} s before")
    return Health(State.RUNNING, f"the last line is {_short(round(silent))} old")


def _skipping(lines: Sequence[Line]) -> str:
    """What was not finite or skipped in some lines; empty where all is well."""
    for line in reversed(lines):
        if line.bad:
            return f"{', '.join(line.bad)} not finite at update {line.step:,}"
    skipped = [line for line in lines if line.values.get("skipped", 0) > 0]
    if not skipped:
        return ""
    count, last = sum(line.values["skipped"] for line in skipped), skipped[-1].step
    return (
        f"{count:,.0f} skipped in the last {len(lines)} lines, the latest by update {last:,}: loss "
        "or gradient not finite, or no label"
    )


def _is_gone(status: Status) -> bool:
    """Whether the run's process has ended, as far as can be known on this machine."""
    if status.host != socket.gethostname() or status.pid is None:
        return False
    try:
        os.kill(status.pid, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


def _written(run: Run) -> float:
    """When the last line was written, in seconds since 1970."""
    last = run.lines[-1]
    return last.time if last.time is not None else run.changed


def _usual_silence(run: Run) -> float:
    """Seconds that usually lie between lines; 0 where nothing tells."""
    apart = seconds_apart(run.lines)
    if apart:
        return statistics.median(apart)
    # One line, or none that says when: what the pace makes of it.
    times = step_seconds(run.lines)
    return statistics.median(times) * (run.log_every or 0) if times else 0.0


def seconds_apart(lines: Sequence[Line]) -> list[float]:
    """Seconds between the recent lines."""
    times = [line.time for line in lines[-WINDOW:] if line.time is not None]
    return [b - a for a, b in pairwise(times) if b > a]


def step_seconds(lines: Sequence[Line]) -> list[float]:
    """Seconds an update, of the recent lines."""
    paces = [line.values.get("updates_per_second", 0.0) for line in lines[-WINDOW:]]
    # Less than one in thirty years is no pace.
    return [1 / pace for pace in paces if pace > 1e-9]


def _short(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds < 99 else duration(seconds)
