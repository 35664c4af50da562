"""Work in processes: all of it is done, and what goes wrong ends it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from waiting import until

from jaxvlm.data.prep import workers
from jaxvlm.data.prep.workers import made_of
from jaxvlm.errors import UserError


def double(number: int) -> int:
    if number == 13:
        raise UserError("thirteen is no number")
    if number == 666:
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * number


@pytest.mark.parametrize("workers", [1, 2, 50])
def test_everything_is_made_once(workers):
    assert dict(made_of(double, range(7), workers)) == {i: 2 * i for i in range(7)}
    assert dict(made_of(double, [], workers)) == {}


def test_what_a_worker_says_is_said():
    with pytest.raises(UserError, match="thirteen"):
        dict(made_of(double, [1, 13, 2], 2))


def test_a_killed_worker_ends_the_work():
    with pytest.raises(UserError, match="a worker was killed"):
        dict(made_of(double, [1, 666, 2, 3], 2))


WORK = """
import os, pathlib, sys, time
from jaxvlm.data.prep.workers import made_of

def work(folder):
    pathlib.Path(folder, str(os.getpid())).touch()
    time.sleep(300)

if __name__ == "__main__":
    list(made_of(work, [sys.argv[1]] * 2, 2))
"""


def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    script, folder = tmp_path / "work.py", tmp_path / "pids"
    script.write_text(WORK)
    folder.mkdir()
    root = str(Path(workers.__file__).parents[3])
    parent = subprocess.Popen(
        [sys.executable, script, folder], env=os.environ | {"PYTHONPATH": root}
    )
    until(lambda: len(list(folder.iterdir())) == 2)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    pids = [int(path.name) for path in folder.iterdir()]
    # It fails where one goes on.
    until(lambda: not any(map(psutil.pid_exists, pids)), 60)
