"""How a run does, in a word and its reason."""

import enum
import os
import socket
import statistics
from itertools import pairwise
from typing import NamedTuple

from jaxvlm.monitoring.reading import Line, Run

# Lines that are looked at: what was long ago does not count.
WINDOW = 500
# Silence that no healthy run keeps: so many seconds, and so many times its usual one.
_SILENT_SECONDS, _SILENT_TIMES = 120, 10
# Updates that take so many times as long as before.
_SLOWER = 1.3


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
    told, why = run.status.get("state"), str(run.status.get("reason") or "")
    if told == "failed":
        return Health(State.FAILED, why or "without a reason")
    if told == "stopped":
        return Health(State.STOPPED, why or "the same command goes on")
    done = run.lines[-1].step if run.lines else 0
    if told == "finished" or (run.last is not None and done >= run.last):
        return Health(State.FINISHED, f"all {done:,} updates are made")
    if told == "running" and _is_dead(run.status):
        return Health(
            State.CRASHED,
            f"process {run.status['pid']} is gone without a word; the same command goes on",
        )
    if not run.lines:
        if told == "running":
            return Health(State.STARTING, "the first update is compiled and made")
        return Health(State.WAITING, "no metrics yet")
    return _of_lines(run, now)


def _of_lines(run: Run, now: float) -> Health:
    last = run.lines[-1]
    written = last.time if last.time is not None else run.changed
    apart = seconds_apart(run.lines)
    usual = statistics.median(apart) if apart else 0.0
    silent = now - written if written is not None else 0.0
    if silent > max(_SILENT_SECONDS, _SILENT_TIMES * usual):
        often = f", usually every {usual:,.0f}" if usual else ""
        return Health(State.STALLED, f"nothing for {silent:,.0f} seconds{often}")
    if last.bad or last.values.get("skipped"):
        what = f"{', '.join(last.bad)} not finite" if last.bad else "updates were skipped"
        return Health(State.SKIPPING, f"{what} at update {last.step:,}")
    times = step_seconds(run.lines)
    recent = times[-max(len(times) // 10, 5) :]
    before = times[: -len(recent)]
    if len(before) >= len(recent):
        now_, then = statistics.median(recent), statistics.median(before)
        if now_ > _SLOWER * then:
            return Health(State.SLOWING, f"{now_:.3g} seconds an update, {then:.3g} before")
    return Health(State.RUNNING, f"update {last.step:,} was logged {silent:,.0f} seconds ago")


def _is_dead(status) -> bool:
    """Whether the run's process is gone, as far as can be known here."""
    pid = status.get("pid")
    if status.get("host") != socket.gethostname() or type(pid) is not int or pid < 1:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


def seconds_apart(lines: list[Line]) -> list[float]:
    """Seconds between the recent lines."""
    times = [line.time for line in lines[-WINDOW:] if line.time is not None]
    return [b - a for a, b in pairwise(times) if b > a]


def step_seconds(lines: list[Line]) -> list[float]:
    """Seconds an update, of the recent lines."""
    paces = [line.values.get("updates_per_second", 0.0) for line in lines[-WINDOW:]]
    return [1 / pace for pace in paces if pace > 0]
