"""Runs that are asked to stop, meet numbers that are not finite, full disks, or nothing at all."""

import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import psutil
import pytest
import tiny
from runs import assert_same, final_params, logged
from waiting import until

from jaxvlm.errors import Requeue, UserError
from jaxvlm.training import checkpoints, loop
from jaxvlm.training.checkpoints import Checkpoints, read_meta
from jaxvlm.training.metric_log import MetricLog
from jaxvlm.training.optimizer import make_optimizer
from jaxvlm.training.state import new_state
from jaxvlm.training.step import make_steps

STOP_AFTER = Path(__file__).with_name("stop_after.py")


def at_update(step, what, monkeypatch):
    """Calls `what` when update `step` is made."""
    update = loop._Updates._update

    def watching(self, steps, sums, made):
        sums = update(self, steps, sums, made)
        if made + 1 == step:
            what()
        return sums

    monkeypatch.setattr(loop._Updates, "_update", watching)


def standing(workdir):
    return checkpoints.steps_in(workdir / "checkpoints")


@pytest.mark.parametrize(
    "name", ["SIGTERM", *(pytest.param(n, marks=pytest.mark.slow) for n in ("SIGUSR1", "SIGINT"))]
)
def test_a_run_that_is_asked_to_stop_saves_and_goes_on(
    toy, records, straight, tmp_path, monkeypatch, name
):  # fmt: skip
    config = tiny.config_for(records, train__save_every=100)
    number, handler = signal.Signals[name], signal.getsignal(signal.Signals[name])
    with monkeypatch.context() as patched:
        at_update(3, lambda: os.kill(os.getpid(), number), patched)
        stopped = KeyboardInterrupt if name == "SIGINT" else Requeue
        with pytest.raises(stopped, match=rf"{name}: the checkpoint of update 3 stands"):
            loop.train(config, tmp_path)
    assert standing(tmp_path) == [3] and signal.getsignal(number) == handler
    loop.train(config, tmp_path)
    assert_same(final_params(toy, tmp_path, 6), final_params(toy, straight, 6))
    assert [line["step"] for line in logged(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_a_stop_before_the_first_update_is_at_once(records, tmp_path, monkeypatch):
    prepare = loop.prepare

    def asked(*arguments, **named):
        os.kill(os.getpid(), signal.SIGTERM)
        return prepare(*arguments, **named)

    monkeypatch.setattr(loop, "prepare", asked)
    with pytest.raises(Requeue, match="SIGTERM: nothing is lost"):
        loop.train(tiny.config_for(records), tmp_path)
    assert standing(tmp_path) == []


@pytest.mark.slow
def test_a_process_that_is_asked_to_stop_asks_to_be_started_again(python, records, tmp_path):
    process = python(STOP_AFTER, 2, *tiny.arguments(records, tmp_path / "run"))
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 75, errors
    assert "stopped by SIGTERM: the checkpoint of update 2 stands; the same command" in errors
    assert "Traceback" not in errors


@pytest.mark.slow
def test_a_stop_that_reaches_the_workers_too_is_a_stop(python, records, tmp_path):
    flags = tiny.arguments(records, tmp_path / "run", "train.max_steps=100000",
                           "train.save_every=100000", "data.num_workers=1")  # fmt: skip
    process = python("-m", "jaxvlm.train", *flags)
    until(lambda: (tmp_path / "run" / "metrics.jsonl").exists() and logged(tmp_path / "run"))
    for one in [psutil.Process(process.pid), *psutil.Process(process.pid).children()]:
        one.terminate()
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 75, errors[-2000:]
    assert "stopped by SIGTERM" in errors and len(standing(tmp_path / "run")) == 1


def test_a_run_goes_on_from_a_chosen_update(toy, records, straight, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(straight, workdir)
    config = tiny.config_for(records)
    with pytest.raises(UserError, match=r"--resume_from 5: .*holds no such update, but 4, 6"):
        loop.train(config, workdir, resume_from=5)
    loop.train(config, workdir, resume_from=4)
    out = capsys.readouterr().out
    assert "the checkpoint of update 6 was moved to" in out and "after update 4" in out
    assert standing(workdir) == [4, 6]
    assert [path.name.split("-")[0] for path in (workdir / "set_aside").iterdir()] == ["6"]
    assert_same(final_params(toy, workdir, 6), final_params(toy, straight, 6))
    assert [line["step"] for line in logged(workdir)] == [1, 2, 3, 4, 5, 6]


# The storage library leaves its failed readings to the garbage collector, which complains.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_way_around_a_damaged_checkpoint_is_told_and_works(
    toy, records, straight, tmp_path
):  # fmt: skip
    workdir = tmp_path / "run"
    shutil.copytree(straight, workdir)
    shutil.rmtree(workdir / "checkpoints" / "6" / "optimizer")
    with pytest.raises(UserError) as told:
        loop.train(tiny.config_for(records), workdir)
    assert str(workdir / "checkpoints" / "6") in str(told.value)
    step = int(re.search(r"--resume_from (\d+)", str(told.value))[1])
    loop.train(tiny.config_for(records), workdir, resume_from=step)
    assert_same(final_params(toy, workdir, 6), final_params(toy, straight, 6))


def test_an_update_with_numbers_that_are_not_finite_changes_nothing_but_the_step(toy):
    optimizer = make_optimizer({p: toy.groups[p] for p in toy.trained}, toy.config.optimizer, 20)
    state = new_state({p: jnp.copy(v) for p, v in toy.trained.items()}, optimizer, toy.mesh)
    steps = make_steps(toy.model, optimizer, jnp.float32, "none", state)
    sums, skipped = steps.start(state.params), []
    batch = toy.batch()
    bad = {**batch, "geometry": np.full_like(batch["geometry"], np.nan)}
    empty = {**batch, "label_weights": np.zeros_like(batch["label_weights"])}
    for fed in (batch, bad, empty, batch):
        before = jax.tree.map(np.asarray, (state.params, state.optimizer))
        sums = steps.accumulate(state.params, toy.frozen, sums, fed, jax.random.key(0))
        state, metrics, sums = steps.update(state, sums)
        skipped.append(float(metrics["skipped"]))
        after = (state.params, state.optimizer)
        same = jax.tree.map(np.array_equal, before, after)
        assert all(jax.tree.leaves(same)) == bool(skipped[-1])
    assert skipped == [0, 1, 1, 0] and int(state.step) == 4


def test_skipped_updates_are_counted_and_saved_around(records, tmp_path, monkeypatch, capsys):
    config = tiny.config_for(records, train__save_every=1, train__keep=9)
    take, fed = loop.Feed.take, iter(range(100))

    def spoiled(self, computing=()):
        batch, lost = take(self, computing)
        if next(fed) in (2, 3):
            batch = {**batch, "geometry": batch["geometry"] * np.nan}
        return batch, lost

    monkeypatch.setattr(loop.Feed, "take", spoiled)
    loop.train(config, tmp_path)
    lines = logged(tmp_path)
    assert [line["skipped"] for line in lines] == [0, 0, 1, 1, 0, 0]
    assert [line["loss"] is None for line in lines] == [False, False, True, True, False, False]
    # Nothing is saved while updates are skipped.
    assert standing(tmp_path) == [1, 2, 5, 6]
    assert "1 updates skipped" in capsys.readouterr().out


def test_a_checkpoint_that_cannot_be_written_is_tried_again(
    toy, records, straight, tmp_path, monkeypatch, capsys
):  # fmt: skip
    save, broken = checkpoints.ocp.CheckpointManager.save, iter([True, True, False])
    monkeypatch.setattr(checkpoints, "_RETRY_SECONDS", 0)

    def full(self, step, *arguments, **named):
        if next(broken, False):
            raise OSError(28, "No space left on device")
        return save(self, step, *arguments, **named)

    monkeypatch.setattr(checkpoints.ocp.CheckpointManager, "save", full)
    loop.train(tiny.config_for(records), tmp_path)
    out = capsys.readouterr().out
    assert out.count("No space left on device") == 2 and "trying again" in out
    # Due after 2, written after 4.
    assert standing(tmp_path) == [4, 6]
    assert_same(final_params(toy, tmp_path, 6), final_params(toy, straight, 6))


def test_a_last_checkpoint_that_cannot_be_written_is_an_error(records, tmp_path, monkeypatch):
    def full(*arguments, **named):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints.ocp.CheckpointManager, "save", full)
    with pytest.raises(UserError, match="checkpoint of update 6 could not be written to"):
        loop.train(tiny.config_for(records), tmp_path)


_FULL = """
mount -t tmpfs -o size=6m none {disk} && mkdir {disk}/run
{command} &
training=$!
until [ -d {disk}/run/checkpoints/20 ]; do sleep 0.1; kill -0 $training || exit 9; done
dd if=/dev/zero of={disk}/filler bs=64k 2>/dev/null
dd if=/dev/zero of={disk}/rest bs=1 2>/dev/null
until grep -q "could not be written" {out}; do sleep 0.1; kill -0 $training || exit 8; done
ls {disk}/run/checkpoints > {out}.standing
rm {disk}/filler {disk}/rest
wait $training && ls {disk}/run/checkpoints > {out}.end
"""


@pytest.mark.slow
def test_the_best_checkpoint_stays_through_stops_and_restarts(records, tmp_path, monkeypatch):
    """Of updates 2, 4, 6 and 8 the first is the best, and one has no number at all."""
    scores = {2: 0.9, 4: float("nan"), 6: 0.5, 8: 0.7}
    monkeypatch.setattr(
        loop._Updates, "_validate", lambda self, done: {"val_loss": 1.0, "val_samples": 1,
                                                        "val_exact_match": scores[done]}
    )  # fmt: skip
    config = tiny.config_for(
        records, train__max_steps=8, train__eval_every=2, train__keep=1, data__held_out=0.4,
        data__val=(),
    )  # fmt: skip
    for stop in (3, 5):
        with monkeypatch.context() as patched:
            at_update(stop, lambda: os.kill(os.getpid(), signal.SIGTERM), patched)
            with pytest.raises(Requeue):
                loop.train(config, tmp_path)
        assert standing(tmp_path) == [2, stop]
    loop.train(config, tmp_path)
    assert standing(tmp_path) == [2, 8] and checkpoints.best_in(tmp_path / "checkpoints") == 2


def test_a_score_that_is_not_finite_is_none(straight, tmp_path):
    shutil.copytree(straight / "checkpoints", tmp_path / "checkpoints")
    for step, score in ((4, float("nan")), (6, -1.0)):
        path = tmp_path / "checkpoints" / str(step) / "meta" / "metadata"
        path.write_text(json.dumps({**json.loads(path.read_text()), "score": score}))
    assert checkpoints.best_in(tmp_path / "checkpoints") == 6


def test_metrics_that_cannot_be_written_wait(tmp_path, monkeypatch, capsys):
    values = {"loss": 1.0, "token_accuracy": 0.5, "lr/language": 1.0, "gradient_norm": 1.0,
              "updates_per_second": 1.0, "samples_per_second": 2.0, "tokens_per_second": 3.0,
              "mfu": None, "memory_gib": None, "input_wait": 0.0, "eta_seconds": 8.0,
              "skipped": 0, "lost_samples": 0}  # fmt: skip
    log = MetricLog(tmp_path, 0, 9)
    log.write(1, values)
    append, full = MetricLog._append, iter([True, True, False])

    def cut_short(self, before):
        if not next(full):
            return append(self, before)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(MetricLog, "_append", cut_short)
    for step in (2, 3, 4):
        log.write(step, values)
    log.close()
    assert [line["step"] for line in logged(tmp_path)] == [1, 2, 3, 4]
    assert capsys.readouterr().out.count("its lines wait") == 1


@pytest.mark.slow
def test_a_run_survives_a_disk_that_is_full_for_a_while(compile_cache, records, tmp_path):
    disk, out = tmp_path / "disk", tmp_path / "out"
    disk.mkdir()
    changes = ("train.max_steps=400", "train.save_every=10", "train.log_every=1")
    flags = " ".join(f"'{flag}'" for flag in tiny.arguments(records, disk / "run", *changes))
    program = (
        "import sys; from jaxvlm import entry, train; from jaxvlm.training import checkpoints; "
        "checkpoints._RETRY_SECONDS = 1; entry.run(train.parser(), train.main, sys.argv[1:])"
    )
    command = f'python -u -c "{program}" {flags} > {out} 2>&1'
    script = _FULL.format(disk=disk, out=out, command=command)
    path = f"{Path(os.sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["unshare", "-rm", "bash", "-c", script],
        env={**os.environ, "PATH": path, "JAX_COMPILATION_CACHE_DIR": compile_cache},
        timeout=400,
        capture_output=True,
        text=True,
    )
    if "unshare" in done.stderr:
        pytest.skip(f"no mounts of one's own here: {done.stderr.strip()}")
    assert done.returncode == 0, (done.stderr[-2000:], out.read_text()[-2000:])
    assert any(name.isdigit() for name in Path(f"{out}.standing").read_text().split())
    assert "400" in Path(f"{out}.end").read_text().split()


def test_a_process_in_which_nothing_happens_shows_its_stacks_and_ends(python):
    program = """
import time
from jaxvlm.training.watchdog import watchdog
with watchdog(0.005) as alive:
    for _ in range(8):
        time.sleep(0.1)
        alive()
with watchdog(0.005):
    pass
time.sleep(0.6)
print("still here", flush=True)
def stuck():
    time.sleep(60)
with watchdog(0.005):
    stuck()
"""
    out, errors = (process := python("-c", program)).communicate(timeout=60)
    assert process.returncode == 1 and out == "still here\n"
    assert "Timeout" in errors and "in stuck" in errors


def test_no_minutes_watch_nothing(python):
    program = (
        "import time\nfrom jaxvlm.training.watchdog import watchdog\n"
        "with watchdog(0) as alive:\n    alive()\n    time.sleep(0.5)"
    )
    assert python("-c", program).wait(60) == 0


@pytest.mark.slow
def test_a_run_moves_from_eight_devices_to_four_to_two(python, records, straight, tmp_path):
    def train(devices, micro, last, workdir=tmp_path / "run"):
        flags = tiny.arguments(
            records, workdir, "train.rows_per_device=1", f"train.accumulation={micro}",
            "mesh.data=2", "train.save_every=100",
        )  # fmt: skip
        process = python(
            STOP_AFTER, last, *flags,
            XLA_FLAGS=f"--xla_force_host_platform_device_count={devices}",
        )  # fmt: skip
        out, errors = process.communicate(timeout=300)
        assert process.returncode == (75 if last < 6 else 0), errors
        return out

    train(8, 1, 2)
    assert "resuming" in train(4, 2, 4)
    train(2, 4, 6)
    meta = read_meta(tmp_path / "run" / "checkpoints" / "6")
    assert meta["position"] == 48 and meta["mesh"] == {"data": 2, "fsdp": 1}
    train(2, 4, 6, tmp_path / "alone")
    pairs = zip(logged(tmp_path / "run"), logged(tmp_path / "alone"), strict=True)
    for line, other in pairs:
        assert line["step"] == other["step"] and line["label_tokens"] == other["label_tokens"]
        np.testing.assert_allclose(line["loss"], other["loss"], rtol=1e-4)


def test_a_closed_folder_waits_for_what_is_written(toy, tmp_path):
    optimizer = make_optimizer({p: toy.groups[p] for p in toy.trained}, toy.config.optimizer, 20)
    state = new_state({p: jnp.copy(v) for p, v in toy.trained.items()}, optimizer, toy.mesh)
    written = Checkpoints(tmp_path, 2)
    written.save(state, {"position": 0, "config": {}, "frozen": {}, "data": []})
    written.close()
    until(lambda: standing(tmp_path) == [0], 1)
