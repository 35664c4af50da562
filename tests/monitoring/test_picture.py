"""What a person sees of a run, and the command that shows it."""

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from monitored import HERE, NOW, every_two_seconds, line, picture, written

from jaxvlm import entry, monitor
from jaxvlm.monitoring.curve import curve
from jaxvlm.monitoring.health import State

RUNNING = {"state": "running", **HERE}
PAGE = Path(__file__).parents[2] / "docs" / "monitoring.md"


def test_a_run_under_way_shows_what_it_does(tmp_path):
    lines = every_two_seconds(40, token_accuracy=0.25)
    # The last line has no sample of the second source.
    lines[-2] |= {"loss/sqa3d": 1.25, "val_loss": 1.75, "val_exact_match": 0.125}
    folder = written(tmp_path, lines, **RUNNING)
    (folder / "checkpoints/40/meta").mkdir(parents=True)
    (folder / "checkpoints/40/meta/metadata").write_text('{"score": 0.5}')
    shown = picture(folder)
    for text in (
        "running", "update 40 of 100", "ETA 0:02:00", "loss 0.0500, token accuracy 0.250",
        "held out loss 1.7500, exact match 0.125", "median 2 s", "p10 2, p90 2, last 2",
        "(0.5 updates/s)", "90.0 samples/s", "16,000 tokens/s", "61.2 GiB", "language 5e-06",
        "scanqa 1.5000, sqa3d 1.2500", "newest 40, best by validation 40",
        "16 x NVIDIA H200 in 2 processes, the first on", "for 1:00:00",
    ):  # fmt: skip
        assert text in shown, text
    assert "MFU" not in shown and "left out" not in shown and "skipped" not in shown


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_every_line_is_as_wide_as_was_asked(tmp_path, width):
    lines = [each | {"val_loss": 1.0} for each in every_two_seconds(40)]
    shown = picture(written(tmp_path, lines, **RUNNING), width).splitlines()
    assert {len(text) for text in shown} == {width}


@pytest.mark.parametrize(("width", "height"), [(60, 32), (100, 24), (200, 24), (100, 40)])
def test_a_low_terminal_gets_low_curves(tmp_path, width, height):
    lines = [each | {"val_loss": 1.0} for each in every_two_seconds(40)]
    folder = written(tmp_path, lines, **RUNNING)
    assert len(picture(folder, width, height=height).splitlines()) <= height
    assert "update 40 of 100" in picture(folder, width, height=5)


def test_a_run_of_an_older_version_is_shown(tmp_path):
    old = {"loss": 2.0, "token_accuracy": 0.5, "schedule": 0.3, "updates_per_second": 0.5}
    folder = written(tmp_path, [{"step": step, **old} for step in (1, 2, 3)])
    shown = picture(folder)
    assert "update 3 of 100" in shown and "ETA 0:03:14" in shown
    (folder / "config.json").write_text("{")
    assert "update 3 " in picture(folder)


def test_damaged_lines_are_told(tmp_path):
    assert "1 damaged line ignored, first at line 2" in picture(
        written(tmp_path, [line(1), "{nonsense\n", line(2)])
    )
    assert "2 damaged lines ignored, first at line 1" in picture(written(tmp_path, ["{\n", "[]\n"]))


NAMES = """step time loss val_loss skipped updates_per_second eta_seconds samples_per_second mfu
memory_gib lr/a loss/b state reason host pid processes devices device started train max_steps
log_every token_accuracy lost_samples"""
names = st.sampled_from(NAMES.split())
numbers = st.integers() | st.floats() | st.sampled_from([10**400, 1e308, -1e308, 5e-324, 1.0, 3])
objects = st.dictionaries(names | st.text(), numbers | st.text() | st.none(), max_size=12)
lines_of_any_kind = st.tuples(st.integers(0, 10**15) | numbers, objects).map(
    lambda made: made[1] | {"step": made[0]}
)


@given(st.lists(lines_of_any_kind, max_size=6), objects, objects, st.booleans())
def test_no_content_breaks_the_picture(tmp_path_factory, lines, train, status, running):
    folder = written(tmp_path_factory.mktemp("run"), lines)
    (folder / "config.json").write_text(json.dumps({"train": train}))
    told = status | ({"state": "running"} if running else {})
    (folder / "status.json").write_text(json.dumps(told))
    shown = picture(folder, 80, height=30)
    # It can be written, and a terminal obeys none of it.
    assert shown.encode() and all(each.isprintable() for each in shown.split("\n"))


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=300),
       st.integers(20, 200), st.integers(3, 12))  # fmt: skip
def test_a_curve_has_its_size(ys, width, height):
    lines = curve(np.arange(len(ys), dtype=float), np.array(ys), width, height)
    assert len(lines) == height and max(map(len, lines)) <= max(width, 24)


def test_a_curve_has_no_gaps_and_its_ends_are_named():
    *rows, axis = curve(np.array([0.0, 9000.0]), np.array([8.0, 1.0]), 60, 9)
    assert rows[0].split()[0] == "8" and rows[-1].split()[0] == "1" and "4.5" in rows[4]
    dots = [row[9:].ljust(51) for row in rows]
    assert all(any(row[x] != " " for row in dots) for x in range(51))
    assert axis.split() == ["0", "update", "9,000"]


def seen(capsys, monkeypatch, *flags):
    def end(code):
        raise SystemExit(code)

    monkeypatch.setattr(os, "_exit", end)
    entry.run(monitor.parser(), monitor.main, [*map(str, flags)], configured=False)
    return capsys.readouterr().out


def test_once_is_a_picture_of_100_columns_without_control_codes(tmp_path, capsys, monkeypatch):
    written(tmp_path, every_two_seconds(5))
    shown = seen(capsys, monkeypatch, "--logdir", tmp_path)
    assert "update 5 of 100" in shown and "\x1b" not in shown
    assert {len(text) for text in shown.splitlines()} == {100}


def test_an_empty_folder_has_nothing_yet(tmp_path, capsys, monkeypatch):
    assert "no metrics yet" in seen(capsys, monkeypatch, "--logdir", tmp_path)


def test_watching_waits_for_a_run_and_ends_with_it(tmp_path, capsys, monkeypatch):
    steps = iter(range(1, 7))

    def work(seconds):
        assert seconds == 0.5
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(line(next(steps))) + "\n")
        (tmp_path / "config.json").write_text('{"train": {"max_steps": 6}}')

    monkeypatch.setattr(time, "sleep", work)
    shown = seen(capsys, monkeypatch, "--logdir", tmp_path, "--watch", "--every", "0.5")
    assert shown.count("all 6 updates are made") == 1 and "no metrics yet" not in shown


def test_ctrl_c_ends_watching_and_leaves_the_picture(tmp_path, capsys, monkeypatch):
    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupt)
    folder = written(tmp_path, [line(1, NOW - time.time())])
    assert "update 1 of 100" in seen(capsys, monkeypatch, "--logdir", folder, "--watch")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--logdir", "nowhere/at/all"], "--logdir nowhere/at/all is no folder"),
        (["--logdir", ".", "--every", "0"], "--every 0.0: expected a number of seconds above 0"),
        (["--logdir", ".", "--every", "nan"], "--every nan: expected a number"),
    ],
)
def test_wrong_flags_are_answered(capsys, monkeypatch, flags, message):
    with pytest.raises(SystemExit, match="2"):
        seen(capsys, monkeypatch, *flags)
    assert message in capsys.readouterr().err


def test_a_folder_of_runs_names_them(tmp_path, capsys, monkeypatch):
    for name in ("first", "second"):
        written(tmp_path / name, [line(1, 0)])
    with pytest.raises(SystemExit, match="2"):
        seen(capsys, monkeypatch, "--logdir", tmp_path)
    runs = f"{tmp_path / 'first'}, {tmp_path / 'second'}"
    assert f"{tmp_path} is no run, but holds {runs}; give one" in capsys.readouterr().err


def test_the_page_tells_what_every_word_means():
    text = PAGE.read_text(encoding="utf-8")
    assert all(f"| {state.value} | " in text for state in State)
