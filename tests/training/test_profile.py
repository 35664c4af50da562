"""`--profile N:M`: a trace of just these updates; and where compiled programs are kept."""

import gzip
import json

import jax
import pytest
import tiny

from jaxvlm import entry, train
from jaxvlm.training.compilation import keep_compiled


def run(records, workdir, *flags):
    """Trains from the command line; returns the exit code, None for success."""
    arguments = tiny.arguments(records, workdir, "train.max_steps=6", "train.save_every=3")
    try:
        entry.run(train.parser(), train.main, [str(a) for a in (*arguments, *flags)])
    except SystemExit as left:
        return left.code
    return None


@pytest.fixture
def leaves(monkeypatch):
    def leave(code):
        raise SystemExit(code)

    monkeypatch.setattr("os._exit", leave)


def test_a_trace_has_the_updates_that_were_asked_for(records, tmp_path, capsys):
    assert run(records, tmp_path / "run", "--profile", "3:4") is None
    assert "perfetto_trace.json.gz (open it at ui.perfetto.dev" in capsys.readouterr().out
    (file,) = (tmp_path / "run" / "profile").rglob("perfetto_trace.json.gz")
    events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    steps = [e["args"]["step_num"] for e in events if e.get("name") == "update"]
    assert sorted(map(int, steps)) == [3, 4]
    assert any(e.get("name") == "waiting for the batch" for e in events)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("4", "--profile 4: expected two updates as N:M"),
        ("4:3", "--profile 4:3: expected two updates as N:M"),
        ("0:1", "--profile 0:1: expected two updates as N:M"),
        ("5:7", "--profile 5:7: this run makes the updates 1 to 6"),
    ],
)
def test_updates_that_are_not_made_are_refused(flag, message, records, tmp_path, capsys, leaves):
    assert run(records, tmp_path / "run", "--profile", flag) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_compiled_programs_stay_in_the_workdir_unless_told_otherwise(tmp_path):
    told = jax.config.jax_compilation_cache_dir
    keep_compiled(tmp_path)
    assert jax.config.jax_compilation_cache_dir == told
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        keep_compiled(tmp_path)
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "compiled")
    finally:
        jax.config.update("jax_compilation_cache_dir", told)
