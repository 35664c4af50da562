"""A run that is looked at: while it is written, when it has ended, and when something is wrong."""

import io
import json
import os
import socket
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from jaxvlm import entry, monitor
from jaxvlm.monitoring.curve import curve
from jaxvlm.monitoring.health import State, health
from jaxvlm.monitoring.reading import MetricLines, RunFiles, parse_line
from jaxvlm.monitoring.view import view

NOW = 1_800_000_000.0
OLD = {"loss": 2.0, "token_accuracy": 0.5, "schedule": 0.3, "updates_per_second": 0.5}


def line(step, seconds_ago=0.0, **values):
    new = {"lr/language": 5e-6, "loss/scanqa": 1.5, "samples_per_second": 90.0,
           "tokens_per_second": 16000.0, "mfu": None, "memory_gib": 61.25}  # fmt: skip
    made = {"step": step, "time": NOW - seconds_ago, "loss": 2.0 / step, "skipped": 0}
    return made | {"updates_per_second": 0.5} | new | values


def written(folder, lines, last=100, **status):
    folder.mkdir(exist_ok=True)
    text = "".join(each if isinstance(each, str) else json.dumps(each) + "\n" for each in lines)
    (folder / "metrics.jsonl").write_text(text)
    (folder / "config.json").write_text(json.dumps({"train": {"max_steps": last}}))
    if status:
        (folder / "status.json").write_text(json.dumps(status))
    return folder


def state_of(folder, now=NOW):
    return health(RunFiles(folder).read(), now)


def picture(folder, width=100, now=NOW):
    out = Console(file=io.StringIO(), width=width)
    out.print(view(RunFiles(folder).read(), now, width))
    return out.file.getvalue()


def every_two_seconds(count, **values):
    return [line(step, 2.0 * (count - step), **values) for step in range(1, count + 1)]


HERE = {"host": socket.gethostname(), "pid": os.getpid(), "devices": 16, "device": "NVIDIA H200",
        "processes": 2}  # fmt: skip


def test_a_run_under_way_shows_what_it_does(tmp_path):
    folder = written(tmp_path, every_two_seconds(40), state="running", **HERE)
    for step, score in ((20, 0.5), (40, 0.4)):
        (folder / f"checkpoints/{step}/meta").mkdir(parents=True)
        (folder / f"checkpoints/{step}/meta/metadata").write_text(json.dumps({"score": score}))
    (folder / "checkpoints/60.orbax-checkpoint-tmp").mkdir()
    shown = picture(folder)
    for text in (
        "running", "update 40 of 100", "ETA 0:02:00", "loss 0.0500", "median 2,", "90 samples/s",
        "16,000 tokens/s", "61.2 GiB", "language 5e-06", "scanqa 1.5000", "newest 40, best 20",
        "16 x NVIDIA H200, 2 process(es)",
    ):  # fmt: skip
        assert text in shown, text
    assert "MFU" not in shown and "left out" not in shown


@pytest.mark.parametrize("width", [60, 80, 100, 120])
def test_no_line_is_wider_than_the_terminal(tmp_path, width):
    folder = written(tmp_path, every_two_seconds(40), state="running", **HERE)
    lines = picture(folder, width).splitlines()
    assert {len(text) for text in lines} == {width}


@pytest.mark.parametrize(
    ("lines", "status", "state", "reason"),
    [
        ([], {}, State.WAITING, "no metrics yet"),
        ([], {"state": "running", **HERE}, State.STARTING, "compiled"),
        (every_two_seconds(40), {"state": "running", **HERE}, State.RUNNING, "update 40"),
        (every_two_seconds(100), {"state": "running", **HERE}, State.FINISHED, "all 100"),
        (every_two_seconds(9), {"state": "failed", "reason": "UserError: x"}, State.FAILED, "x"),
        (every_two_seconds(9), {"state": "stopped", "reason": "by SIGTERM"}, State.STOPPED, "by S"),
        # Judged by silence where another machine has the process.
        ([line(9, 500)], {"state": "running", **HERE, "host": "far"}, State.STALLED, "500 sec"),
        (every_two_seconds(9, loss=float("nan")), {}, State.SKIPPING, "loss not finite"),
        ([*every_two_seconds(9), line(10, skipped=1)], {}, State.SKIPPING, "were skipped"),
        ([*every_two_seconds(50), *(line(s, updates_per_second=0.1) for s in range(51, 57))], {},
         State.SLOWING, "10 seconds an update, 2 before"),
    ],
)  # fmt: skip
def test_health_has_a_word_and_its_reason(tmp_path, lines, status, state, reason):
    found = state_of(written(tmp_path, lines, **status))
    assert found.state is state and reason in found.reason


def test_a_process_that_is_gone_has_crashed(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    folder = written(tmp_path, every_two_seconds(9), state="running", **{**HERE, "pid": gone.pid})
    assert state_of(folder).state is State.CRASHED


def test_a_run_of_an_older_version_is_read(tmp_path):
    folder = written(tmp_path, [{"step": step, **OLD} for step in (1, 2, 3)])
    now = (folder / "metrics.jsonl").stat().st_mtime + 5
    assert state_of(folder, now).state is State.RUNNING
    shown = picture(folder, now=now)
    assert "update 3 of 100" in shown and "ETA 0:03:14" in shown
    assert state_of(folder, now + 1000).state is State.STALLED


def test_broken_lines_are_counted_and_the_first_is_named(tmp_path):
    lines = [line(1, 2), "{nonsense\n", "[1]\n", '{"step": "x"}\n', line(2, 1), '{"step": 3']
    folder = written(tmp_path, lines)
    assert "3 damaged line(s) ignored, the first is line 2" in picture(folder)
    assert "update 2 of 100" in picture(folder)


def test_a_resumed_run_made_its_last_updates_again(tmp_path):
    lines = [line(1, 9), line(2, 8), line(3, 7, loss=9.0), line(2, 2), line(3, 1, loss=5.0)]
    found = RunFiles(written(tmp_path, lines)).read().lines
    assert [each.step for each in found] == [1, 2, 3] and found[-1].values["loss"] == 5.0


@pytest.mark.parametrize("given_as", ["", "logs", "metrics.jsonl"])
def test_the_folder_of_tensorboard_will_do(tmp_path, given_as):
    written(tmp_path, every_two_seconds(3))
    (tmp_path / "logs").mkdir()
    assert len(RunFiles(tmp_path / given_as).read().lines) == 3


@given(st.binary(max_size=200) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.just("step"), inner),
).map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_no_line_can_break_the_reading(text):
    found = parse_line(text)
    assert found is None or found.step >= 0


@given(st.lists(st.integers(0, 9).map(lambda step: {"step": step}) | st.just("broken"), max_size=9),
       st.lists(st.integers(0, 200), max_size=6))  # fmt: skip
def test_reading_bit_by_bit_is_reading_whole(tmp_path_factory, lines, cuts):
    path = tmp_path_factory.mktemp("cut") / "metrics.jsonl"
    text = "".join(json.dumps(each) + "\n" for each in lines).encode()
    parts = MetricLines(path)
    for end in [*sorted(cuts), len(text)]:
        path.write_bytes(text[:end]) if not path.exists() else _grow(path, text, end)
        parts.update()
    whole = MetricLines(path)
    whole.update()
    assert (parts.lines, parts.damaged) == (whole.lines, whole.damaged)
    assert parts.first_damaged == whole.first_damaged


def _grow(path, text, end):
    with path.open("ab") as file:
        file.write(text[path.stat().st_size : end])


def test_a_file_that_was_written_anew_is_read_anew(tmp_path):
    path = written(tmp_path, every_two_seconds(5)) / "metrics.jsonl"
    lines = MetricLines(path)
    lines.update()
    draft = tmp_path / "draft"
    draft.write_text("".join(json.dumps(line(step)) + "\n" for step in range(1, 9)))
    os.replace(draft, path)
    lines.update()
    assert list(lines.lines) == list(range(1, 9))


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=300), st.integers(20, 200))
def test_a_curve_has_its_size_and_its_ends(ys, width):
    lines = curve(list(range(len(ys))), ys, width, 8)
    assert len(lines) == 8 and max(map(len, lines)) <= max(width, 24)
    assert f"{max(ys):.3g}" in lines[0] and f"{min(ys):.3g}" in lines[-2]


def seen(capsys, monkeypatch, *flags):
    def end(code):
        raise SystemExit(code)

    monkeypatch.setattr(os, "_exit", end)
    entry.run(monitor.parser(), monitor.main, [*map(str, flags)], configured=False)
    return capsys.readouterr().out


def test_once_is_a_picture_without_control_codes(tmp_path, capsys, monkeypatch):
    written(tmp_path, every_two_seconds(5))
    shown = seen(capsys, monkeypatch, "--logdir", tmp_path)
    assert "update 5 of 100" in shown and "\x1b" not in shown


def test_an_empty_folder_has_nothing_yet(tmp_path, capsys, monkeypatch):
    assert "no metrics yet" in seen(capsys, monkeypatch, "--logdir", tmp_path)


def test_watching_ends_with_the_run(tmp_path, capsys, monkeypatch):
    folder = written(tmp_path, every_two_seconds(5), last=6)

    def work(seconds):
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(line(6)) + "\n")

    monkeypatch.setattr(time, "sleep", work)
    assert "all 6 updates are made" in seen(capsys, monkeypatch, "--logdir", folder, "--watch")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--logdir", "nowhere/at/all"], "--logdir nowhere/at/all: there is no such folder"),
        (["--logdir", ".", "--every", "0"], "--every 0.0: expected a number of seconds above 0"),
        (["--logdir", ".", "--every", "nan"], "--every nan: expected a number"),
    ],
)
def test_wrong_flags_are_answered(capsys, monkeypatch, flags, message):
    with pytest.raises(SystemExit, match="2"):
        seen(capsys, monkeypatch, *flags)
    assert message in capsys.readouterr().err


def test_a_long_run_is_read_quickly_enough_to_watch(tmp_path):
    """100,000 lines are read once; what follows costs what is new."""
    folder = written(tmp_path, [line(step, 2.0 * (100_000 - step)) for step in range(1, 100_001)])
    files = RunFiles(folder)
    files.read()
    size = (folder / "metrics.jsonl").stat().st_size
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(line(100_001)) + "\n")
    assert len(files.read().lines) == 100_001
    assert files._metrics._read == (folder / "metrics.jsonl").stat().st_size > size
