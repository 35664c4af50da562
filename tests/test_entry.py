"""What a user sees of a mistake: one line, exit code 2, no traceback."""

import subprocess
import sys

import pytest

from jaxvlm.entry import split_overrides

PROGRAM = """
import argparse, errno, threading, time
from jaxvlm import entry
from jaxvlm.errors import UserError

def main(flags):
    print(flags.name, flags.overrides)
    if flags.name == "user":
        # A library's thread that never ends must not keep the process alive.
        threading.Thread(target=time.sleep, args=(600,)).start()
        raise UserError("data.train names no file; set it")
    if flags.name == "stopped":
        raise KeyboardInterrupt
    if flags.name == "full":
        raise OSError(errno.ENOSPC, "No space left on device", "here/a.jsonl")
    if flags.name == "bug":
        raise ValueError("ours")

parser = argparse.ArgumentParser("jaxvlm.test")
parser.add_argument("--name")
parser.add_argument("--config")
entry.run(parser, main)
"""


def run(*arguments: str, program=("-c", PROGRAM)) -> subprocess.CompletedProcess:
    command = [sys.executable, *program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_a_users_mistake_is_one_line():
    done = run("--name", "user")
    assert done.returncode == 2
    assert done.stderr == "jaxvlm.test: error: data.train names no file; set it\n"
    assert done.stdout == "user []\n"


def test_a_full_disk_is_no_traceback():
    done = run("--name", "full")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "the disk is full (here/a.jsonl); make room and give the same command" in done.stderr


def test_a_mistake_of_ours_keeps_its_traceback():
    done = run("--name", "bug")
    assert done.returncode == 1 and "Traceback" in done.stderr


def test_an_interrupt_is_no_traceback():
    done = run("--name", "stopped")
    assert done.returncode == 130 and done.stderr == "interrupted\n"


def test_flags_are_not_abbreviated_and_overrides_go_through():
    assert "unrecognized arguments: --nam user; did you mean --name?" in run("--nam", "user").stderr
    said = run("--name", "user", "--confg.train.max_steps=3").stderr
    assert "did you mean --config.train.max_steps=3?" in said
    done = run("--config.seed=3", "--name", "fine", "--config.data.train", "a b.jsonl")
    assert done.returncode == 0
    assert done.stdout == "fine ['seed=3', 'data.train=a b.jsonl']\n"


@pytest.mark.parametrize(
    ("arguments", "rest", "overrides"),
    [
        (["--config", "a.py", "--config.seed=1"], ["--config", "a.py"], ["seed=1"]),
        (["--config.seed", "-1"], [], ["seed=-1"]),
        (["--config.seed", "--limit", "2"], ["--limit", "2"], ["seed"]),
        (["--config.text.template=a=b"], [], ["text.template=a=b"]),
    ],
)
def test_overrides_are_split_off(arguments, rest, overrides):
    assert split_overrides(arguments) == (rest, overrides)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "nowhere.py"], "'nowhere.py' does not exist"),
        (["--config", "configs/demo.py", "--config.train.max_step=3"], "did you mean 'max_steps'"),
        (["--config", "configs/demo.py", "--config.data.view_dropout=2"], "data.view_dropout=2"),
    ],
)
def test_training_refuses_before_it_starts(arguments, message, tmp_path):
    arguments += ["--workdir", str(tmp_path / "run")]
    done = run(*arguments, program=("-m", "jaxvlm.train"))
    assert done.returncode == 2 and message in done.stderr
    assert len(done.stderr.splitlines()) == 1 and "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
