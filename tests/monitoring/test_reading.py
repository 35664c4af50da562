"""The files of a run are read while they are written, whatever stands in them."""

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from monitored import every_two_seconds, line, written

from jaxvlm.errors import UserError
from jaxvlm.monitoring.reading import MetricLines, RunFiles, parse_line


def appended(path, text):
    with path.open("ab") as file:
        file.write(text)


@given(st.binary(max_size=200) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.just("step"), inner),
).map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_no_line_can_break_the_reading(text):
    found = parse_line(text)
    assert found is None or found.step >= 0


def test_what_is_no_number_is_left_out_and_what_is_not_finite_is_named():
    text = '{"step": 3, "loss": NaN, "mfu": null, "host": "a", "memory_gib": 2, "skipped": true}'
    found = parse_line(text.encode())
    assert (found.values, found.bad, found.time) == ({"memory_gib": 2.0}, ("loss",), None)


@given(st.lists(st.integers(0, 9).map(lambda step: {"step": step}) | st.just("broken"), max_size=9),
       st.lists(st.integers(0, 200), max_size=6))  # fmt: skip
def test_reading_bit_by_bit_is_reading_whole(tmp_path_factory, lines, cuts):
    path = tmp_path_factory.mktemp("cut") / "metrics.jsonl"
    text = "".join(json.dumps(each) + "\n" for each in lines).encode()
    parts, done = MetricLines(path), 0
    for end in [*sorted(cuts), len(text)]:
        appended(path, text[done:end])
        done = max(done, end)
        parts.update()
    whole = MetricLines(path)
    whole.update()
    assert parts.lines == whole.lines
    assert (parts.damaged, parts.first_damaged) == (whole.damaged, whole.first_damaged)


def test_damaged_lines_are_counted_and_half_a_last_line_is_none(tmp_path):
    lines = [line(1, 2), "{nonsense\n", "[1]\n", '{"step": "x"}\n', "\n", line(2, 1), '{"step": 3']
    found = RunFiles(written(tmp_path, lines)).read()
    assert [each.step for each in found.lines] == [1, 2]
    assert (found.damaged, found.first_damaged) == (3, 2)
    appended(tmp_path / "metrics.jsonl", b"}\n")
    assert RunFiles(tmp_path).read().lines[-1].step == 3


def test_a_resumed_run_made_its_last_updates_again(tmp_path):
    lines = [line(1, 9), line(2, 8), line(3, 7, loss=9.0), line(2, 2), line(3, 1, loss=5.0)]
    found = RunFiles(written(tmp_path, lines)).read().lines
    assert [each.step for each in found] == [1, 2, 3] and found[-1].values["loss"] == 5.0


def test_only_what_is_new_is_read(tmp_path):
    files = RunFiles(written(tmp_path, every_two_seconds(1000)))
    before = files.read().lines
    appended(tmp_path / "metrics.jsonl", json.dumps(line(1001)).encode() + b"\n")
    after = files.read().lines
    assert len(after) == 1001
    assert all(a is b for a, b in zip(before, after, strict=False))


@pytest.mark.parametrize("count", [2, 5, 9])
@pytest.mark.parametrize("renamed", [True, False])
def test_a_file_that_was_written_anew_is_read_anew(tmp_path, count, renamed):
    path = written(tmp_path, every_two_seconds(5)) / "metrics.jsonl"
    lines = MetricLines(path)
    lines.update()
    anew = "".join(json.dumps(line(step, loss=7.0)) + "\n" for step in range(1, count + 1))
    if renamed:
        (tmp_path / "draft").write_text(anew)
        os.replace(tmp_path / "draft", path)
    else:
        path.write_text(anew)
    lines.update()
    assert [each.values["loss"] for each in lines.lines] == [7.0] * count


def test_a_file_that_goes_away_leaves_nothing(tmp_path):
    files = RunFiles(written(tmp_path, every_two_seconds(5)))
    assert len(files.read().lines) == 5
    (tmp_path / "metrics.jsonl").unlink()
    assert not files.read().lines


@pytest.mark.parametrize("given_as", ["", "logs", "metrics.jsonl"])
def test_the_folder_of_tensorboard_will_do(tmp_path, monkeypatch, given_as):
    written(tmp_path, every_two_seconds(3))
    (tmp_path / "logs").mkdir()
    assert len(RunFiles(tmp_path / given_as).read().lines) == 3
    if given_as != "metrics.jsonl":
        monkeypatch.chdir(tmp_path / given_as)
        assert len(RunFiles(tmp_path.__class__(".")).read().lines) == 3


def test_a_workdir_may_be_named_logs(tmp_path):
    assert len(RunFiles(written(tmp_path / "logs", every_two_seconds(3))).read().lines) == 3


def test_metrics_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(UserError, match=r"metrics.jsonl cannot be read: Is a directory"):
        RunFiles(tmp_path).read()


def test_whole_checkpoints_are_found_and_the_best_of_them(tmp_path):
    written(tmp_path, every_two_seconds(3))
    for name, score in (("20", 0.5), ("40", 0.4), ("60", None), ("80", float("nan"))):
        (tmp_path / f"checkpoints/{name}/meta").mkdir(parents=True)
        text = json.dumps({"score": score})
        (tmp_path / f"checkpoints/{name}/meta/metadata").write_text(text)
    (tmp_path / "checkpoints/100").mkdir()
    (tmp_path / "checkpoints/100.orbax-checkpoint-tmp/meta").mkdir(parents=True)
    found = RunFiles(tmp_path).read()
    assert (found.checkpoints, found.best) == ([20, 40, 60, 80], 20)
