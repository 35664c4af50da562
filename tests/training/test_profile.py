"""`--profile N:M`: a trace of just these updates; and where compiled programs are kept."""

import gzip
import json
import subprocess
import sys

import jax
import pytest
import tiny

from jaxvlm import entry, train
from jaxvlm.training.compilation import keep_compiled
from jaxvlm.training.profile import Profile


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


@pytest.mark.parametrize("step", ["start_trace", "stop_trace"])
def test_training_goes_on_without_its_trace(step, records, tmp_path, capsys, monkeypatch, leaves):
    real = getattr(jax.profiler, step)

    def full(*given, **more):
        if step == "stop_trace":
            real()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(jax.profiler, step, full)
    assert run(records, tmp_path / "run", "--profile", "3:4") is None
    assert "warning: no trace in" in capsys.readouterr().err
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 6


def test_each_process_has_a_folder_for_its_trace(tmp_path, monkeypatch):
    assert Profile(tmp_path, range(1))._folder == tmp_path / "profile"
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    assert Profile(tmp_path, range(1))._folder == tmp_path / "profile" / "process_1"


def test_a_file_in_the_place_of_traces_is_refused(records, tmp_path, capsys, leaves):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "profile").touch()
    assert run(records, tmp_path / "run", "--profile", "3:4") == 2
    assert "profile is a file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("4", "--profile 4: expected two updates as N:M"),
        ("4:3", "--profile 4:3: expected two updates as N:M"),
        ("0:1", "--profile 0:1: expected two updates as N:M"),
        ("5:7", "--profile 5:7: this run makes the updates 1 to 6"),
        (f"1:{5000 * '9'}", "expected two updates as N:M"),
    ],
)
def test_updates_that_are_not_made_are_refused(flag, message, records, tmp_path, capsys, leaves):
    assert run(records, tmp_path / "run", "--profile", flag) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_refused_profile_leaves_the_checkpoints_of_a_run(records, tmp_path, capsys, leaves):
    workdir = tmp_path / "run"
    assert run(records, workdir) is None
    assert run(records, workdir, "--resume_from", "3", "--profile", "2:7") == 2
    assert "--profile 2:7: this run makes the updates 4 to 6" in capsys.readouterr().err
    assert (workdir / "checkpoints" / "6").is_dir()
    assert run(records, workdir, "--profile", "2:3") == 2
    assert "--profile 2:3: this run ended with update 6" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "message", "traces"),
    [("2:4", "goes on behind update 3: 4 to 4 are traced", 1),
     ("2:3", "goes on behind update 3: none is traced", 0)],
)  # fmt: skip
def test_the_same_command_goes_on_behind_its_trace(
    flag, message, traces, records, tmp_path, capsys, leaves
):
    """As a scheduler gives it again when a run was stopped."""
    workdir = tmp_path / "run"
    assert run(records, workdir) is None
    assert run(records, workdir, "--resume_from", "3", "--profile", flag) is None
    assert message in capsys.readouterr().err
    assert len(list(workdir.rglob("perfetto_trace.json.gz"))) == traces
    assert (workdir / "checkpoints" / "6").is_dir()


def test_compiled_programs_stay_in_the_workdir_unless_told_otherwise(tmp_path, monkeypatch):
    told = jax.config.jax_compilation_cache_dir
    keep_compiled(tmp_path)
    assert jax.config.jax_compilation_cache_dir == told

    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    program = """
import os, sys
from pathlib import Path
import jax
from jaxvlm.training.compilation import keep_compiled
jax.config.update("jax_log_compiles", True)
if sys.argv[2] == "readable":
    os.access = lambda path, mode: False
keep_compiled(Path(sys.argv[1]))
jax.jit(lambda x: x + 1)(1.0)
if sys.argv[2] == "readable":
    jax.jit(lambda x: x + 2)(1.0)
"""

    def compiled(place, how: str) -> tuple[set[str], str]:
        done = subprocess.run(
            [sys.executable, "-c", program, place, how], check=True, capture_output=True, text=True
        )
        folder = place / "compiled"
        return {path.name for path in folder.iterdir()} if folder.exists() else set(), done.stderr

    # It takes no second, and stays all the same.
    kept, _ = compiled(tmp_path, "writable")
    assert kept
    # What another made is read, and nothing written, which would be warned of for every program.
    found, said = compiled(tmp_path, "readable")
    assert found == kept and said.count("Persistent compilation cache hit") >= 1
    assert "Error writing" not in said
    (tmp_path / "other").mkdir()
    assert compiled(tmp_path / "other", "readable")[0] == set()
