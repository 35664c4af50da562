"""How a run does has a word, and a reason that says what to think of it."""

import subprocess
import sys

import pytest
from monitored import HERE, NOW, every_two_seconds, line, state_of, written

from jaxvlm.monitoring.health import State

RUNNING = {"state": "running", **HERE}
FAR = {**RUNNING, "host": "far"}
FORTY = every_two_seconds(40)


@pytest.mark.parametrize(
    ("lines", "status", "state", "reason"),
    [
        ([], {}, State.WAITING, "no metrics yet"),
        ([], RUNNING, State.STARTING, "no line since the start 1:00:00 ago; compiling can take"),
        (FORTY, RUNNING, State.RUNNING, "last line is 0 s old"),
        (FORTY, FAR, State.RUNNING, "last line is 0 s old"),
        (every_two_seconds(9), {"state": "failed", "reason": "UserError: x"}, State.FAILED, "x"),
        (every_two_seconds(9), {"state": "stopped", "reason": "by SIGTERM"}, State.STOPPED,
         "by SIGTERM; the same command goes on"),
        (every_two_seconds(100), {"state": "finished"}, State.FINISHED, "all 100 updates"),
        # An older version, which says nothing.
        (every_two_seconds(100), {}, State.FINISHED, "all 100 updates"),
        # The last checkpoint is not written yet.
        (every_two_seconds(100), RUNNING, State.RUNNING, ""),
        # It went on an hour ago, with lines of long before.
        ([line(8, 9000), line(9, 8998)], RUNNING, State.STARTING, "no line since the start"),
        ([line(8, 502), line(9, 500)], FAR, State.STALLED, "no line for 0:08:20, usually one"),
        ([line(8, 1000), line(9, 500)], FAR, State.RUNNING, "0:08:20 old"),
        # A single line tells its pace.
        ([line(1, 500, updates_per_second=0.01)], FAR, State.RUNNING, "0:08:20 old"),
        ([line(1, 500, updates_per_second=0.1)], FAR, State.STALLED, "usually one every 10 s"),
        # The other machine's clock is ahead.
        ([line(1, -30)], FAR, State.RUNNING, "0 s old"),
        ([*FORTY, line(41, loss=float("nan"))], RUNNING, State.SKIPPING, "loss not finite at upd"),
        ([*FORTY, line(41, skipped=2), line(42)], RUNNING, State.SKIPPING, "2 skipped in the last"),
        ([line(1, 40, skipped=9), *(line(s, 30 - s) for s in range(2, 13))], RUNNING,
         State.RUNNING, ""),
        ([*FORTY, *(line(s, updates_per_second=0.1) for s in range(41, 47))], RUNNING,
         State.SLOWING, "10 s an update, 2 s before"),
        ([*FORTY, *(line(s, updates_per_second=0.4) for s in range(41, 47))], RUNNING,
         State.RUNNING, ""),
    ],
)  # fmt: skip
def test_health_has_a_word_and_its_reason(tmp_path, lines, status, state, reason):
    found = state_of(written(tmp_path, lines, **status))
    assert found.state is state and reason in found.reason, found


def test_a_process_that_is_gone_has_crashed_here_but_not_elsewhere(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for host, state in ((HERE["host"], State.CRASHED), ("far", State.RUNNING)):
        status = {**RUNNING, "pid": gone.pid, "host": host}
        assert state_of(written(tmp_path, FORTY, **status)).state is state


def test_a_run_of_an_older_version_is_judged_by_its_file(tmp_path):
    old = {"loss": 2.0, "token_accuracy": 0.5, "schedule": 0.3, "updates_per_second": 0.5}
    folder = written(tmp_path, [{"step": step, **old} for step in (1, 2, 3)])
    changed = (folder / "metrics.jsonl").stat().st_mtime
    assert state_of(folder, changed + 5).state is State.RUNNING
    assert state_of(folder, NOW).state is State.STALLED
