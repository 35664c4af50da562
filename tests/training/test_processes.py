"""Several processes that train one model."""

import json
import os
import re
import socket
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import tiny
from runs import logged
from waiting import until

from jaxvlm import entry, train

STOP_AFTER = Path(__file__).parent / "stop_after.py"
ROWS = ("train.rows_per_device=1", "train.save_every=100", "data.num_workers=0")


@pytest.fixture
def together(python):
    """Runs a command in two processes of two devices each; returns exit codes and outputs.

    `others` are arguments of the second one alone, which starts `late` seconds after the first.
    """

    def run(*arguments, others=(), late=0):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            place = f"127.0.0.1:{probe.getsockname()[1]}"
        flags = ("--coordinator", place, "--num_processes", 2, "--process_id")
        commands = ([*arguments, *flags, 0], [*arguments, *flags, 1, *others])
        started = [python(*commands[0], XLA_FLAGS=_devices(2))]
        time.sleep(late)
        started.append(python(*commands[1], XLA_FLAGS=_devices(2)))
        ended = [process.communicate(timeout=300) for process in started]
        return [process.returncode for process in started], ended

    return run


def _devices(count):
    return f"--xla_force_host_platform_device_count={count}"


@pytest.mark.slow
def test_two_processes_stop_as_one_and_one_goes_on(together, python, records, tmp_path):
    """The signal reaches the first process only."""
    work, straight = tmp_path / "run", tmp_path / "straight"
    codes, ended = together(STOP_AFTER, 2, *tiny.arguments(records, work, *ROWS))
    assert codes == [75, 75], ended
    assert "SIGTERM: the checkpoint of update" in ended[0][1]
    assert "a signal to another process: the checkpoint of update" in ended[1][1]
    # The first speaks for both.
    assert "Step 1/6" in ended[0][0]
    assert not [line for line in ended[1][0].splitlines() if "peer ranks" not in line]
    made = max(int(path.name) for path in (work / "checkpoints").iterdir())
    assert 2 <= made < 6 and [line["step"] for line in logged(work)] == list(range(1, made + 1))
    for folder in (work, straight):
        flags = tiny.arguments(records, folder, *ROWS)
        process = python(STOP_AFTER, 0, *flags, XLA_FLAGS=_devices(4))
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    # The same samples in every update, before and after.
    losses = [[line["loss"] for line in logged(folder)] for folder in (work, straight)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    meta = json.loads((work / "checkpoints" / "6" / "meta" / "metadata").read_text())
    assert meta["position"] == 24 and meta["processes"] == 1


@pytest.mark.slow
def test_two_processes_go_on_where_one_stopped(together, python, records, tmp_path):
    """With validation, a chosen update, a part of the model that is kept beside, in bfloat16."""
    first, work = tmp_path / "first", tmp_path / "run"
    held_out = ("data.val=()", "data.held_out=0.4", "train.eval_every=2", "seed=3")
    flags = tiny.arguments(records, first, *ROWS)
    process = python(STOP_AFTER, 0, *flags, XLA_FLAGS=_devices(4))
    assert process.wait(300) == 0, process.stderr.read()
    rules = "(('language/.*','frozen'),('vision/.*','frozen'),('.*','projector'))"
    changes = (*ROWS, *held_out, f"init_from={first}", f"parameters={rules}", "train.keep=3",
               "precision=bfloat16")  # fmt: skip
    command = (STOP_AFTER, 0, *tiny.arguments(records, work, *changes))
    codes, ended = together(*command)
    assert codes == [0, 0], ended
    assert (work / "frozen").is_dir()
    lines = logged(work)
    codes, ended = together(*command, "--resume_from", 4)
    assert codes == [0, 0], ended
    assert "the checkpoint of update 6 was moved to" in ended[0][0]
    assert logged(work)[:4] == lines[:4]
    for one, other in zip(logged(work), lines, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-6)
        assert one.get("val_loss", 0) == pytest.approx(other.get("val_loss", 0), rel=1e-6)
    assert [line["step"] for line in lines if "val_loss" in line] == [2, 4, 6]


@pytest.mark.slow
def test_a_stop_that_reaches_all_processes_and_their_workers_keeps_the_updates(
    together, records, tmp_path
):
    changes = ("train.max_steps=100000", "train.save_every=100000", "data.num_workers=1",
               "train.rows_per_device=1", "train.accumulation=8")  # fmt: skip
    work, ended = tmp_path / "run", []

    def end_all():
        until(lambda: (work / "metrics.jsonl").exists() and logged(work), 200)
        for one in psutil.Process().children(recursive=True):
            if one.is_running():
                one.terminate()
        ended.append(True)

    ending = threading.Thread(target=end_all)
    ending.start()
    codes, said = together(STOP_AFTER, 0, *tiny.arguments(records, work, *changes))
    ending.join()
    assert ended and codes == [75, 75], said
    made = int(re.search(r"the checkpoint of update (\d+) stands", said[0][1])[1])
    assert (work / "checkpoints" / str(made) / "meta").is_dir()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("other", "message"),
    [
        ("--config.seed=9", "process 1 does not have the same --config.seed as process 0"),
        ("--num_processes=3", "--num_processes 3, but process 0 was told 2"),
    ],
)
def test_processes_that_were_started_differently_are_refused(
    together, records, tmp_path, other, message
):
    flags = (STOP_AFTER, 0, *tiny.arguments(records, tmp_path / "run", *ROWS))
    codes, ended = together(*flags, others=[other])
    assert 2 in codes and 0 not in codes
    assert any(message in errors for _, errors in ended), ended
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.slow
def test_the_failure_of_one_process_ends_the_other_with_its_reason(together, records, tmp_path):
    """One that starts late is waited for."""
    began = time.monotonic()
    flags = tiny.arguments(records, tmp_path / "run", *ROWS)
    codes, ended = together(STOP_AFTER, "2:error", *flags, late=5)
    assert codes == [1, 1], ended
    assert "RuntimeError: the disk is gone" in ended[1][1]
    reason = "process 1 has failed: RuntimeError: the disk is gone"
    assert reason in ended[0][1]
    told = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (told["state"], told["reason"]) == ("failed", reason)
    assert time.monotonic() - began < 200


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_other(together, records, tmp_path):
    flags = tiny.arguments(records, tmp_path / "run", *ROWS)
    codes, ended = together(STOP_AFTER, "2:kill", *flags)
    assert codes[1] == -9 and codes[0] not in (0, 75), ended
    # The devices may notice first, or nobody but the coordinator.
    said = ended[0][1]
    assert "another process was killed, or cut off" in said or "heard of process 1 for" in said
    assert "Traceback" not in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("index", "message"),
    [(0, "not all 2 processes have come to"), (1, "nothing answers at")],
    ids=["the first", "another"],
)
def test_a_process_that_stays_alone_says_where_it_waited(python, records, tmp_path, index, message):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{probe.getsockname()[1]}"
    flags = ("--coordinator", place, "--num_processes", 2, "--process_id", index)
    arguments = tiny.arguments(records, tmp_path / "run")
    process = python("-m", "jaxvlm.train", *arguments, *flags, "--join_seconds", 4)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 2, errors
    assert message in errors and place in errors and "within 4 seconds" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--process_id", "0"], "belong together"),
        (
            ["--coordinator", "here:1", "--num_processes", "2", "--process_id", "2"],
            "--process_id 2: expected 0 to 1",
        ),
        (
            ["--coordinator", "here", "--num_processes", "2", "--process_id", "1"],
            "--coordinator here: expected host:port",
        ),
        (["--devices", "0"], "--devices 0: expected at least 1"),
        (["--join_seconds", "0"], "--join_seconds 0: expected 1 to 86400"),
        (["--devices", "16"], "--devices 16, but there are 1 cpu device(s) (process 0: 1)"),
    ],
)
def test_processes_that_cannot_be_are_refused(
    records, tmp_path, capsys, monkeypatch, given, message
):
    def end(code):
        raise SystemExit(code)

    monkeypatch.setattr(os, "_exit", end)
    flags = [*tiny.arguments(records, tmp_path), *given]
    with pytest.raises(SystemExit, match="2"):
        entry.run(train.parser(), train.main, flags)
    assert message in capsys.readouterr().err
