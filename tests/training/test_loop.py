"""Runs that stop and go on, and those that must not."""

import copy
import gc
import json
import os
import shutil
import time

import jax
import numpy as np
import psutil
import pytest
import tiny
from runs import assert_same, final_params, logged
from waiting import until

from jaxvlm.config import load
from jaxvlm.data.sources import load_sources
from jaxvlm.data.training_set import training_rows
from jaxvlm.errors import UserError
from jaxvlm.training import health, loop, prepare
from jaxvlm.training.checkpoints import check_same_run, read_meta, update_to_resume
from jaxvlm.training.metric_log import MetricLog
from jaxvlm.training.parameters import FROZEN
from jaxvlm.training.weights import save_weights
from jaxvlm.workdir import open_workdir


class Killed(Exception):
    """Stands for the end of a process."""


def train_until(config, workdir, step, monkeypatch):
    """Trains and dies after the metrics of update `step` are written, before its checkpoint."""
    write = MetricLog.write

    def deadly(self, done, metrics):
        write(self, done, metrics)
        if done == step:
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(MetricLog, "write", deadly)
        with pytest.raises(Killed):
            loop.train(config, workdir)


def test_a_run_that_died_goes_on_to_the_same_parameters(
    toy, records, straight, tmp_path, monkeypatch, capsys
):
    config = tiny.config_for(records)
    # Update 4 has consumed eight rows: it stands in the middle of the third epoch.
    assert toy.rows.plan.rows_in_epoch(0) == 3
    train_until(config, tmp_path, 5, monkeypatch)
    assert [line["step"] for line in logged(tmp_path)] == [1, 2, 3, 4, 5]
    capsys.readouterr()
    loop.train(config, tmp_path)
    assert "after update 4" in capsys.readouterr().out
    assert_same(final_params(toy, tmp_path, 6), final_params(toy, straight, 6))
    assert [line["step"] for line in logged(tmp_path)] == [1, 2, 3, 4, 5, 6]
    losses = [[line["loss"] for line in logged(folder)] for folder in (tmp_path, straight)]
    assert losses[0] == losses[1]


def test_what_a_run_leaves_behind(straight, records):
    assert [p.name for p in sorted((straight / "checkpoints").iterdir())] == ["4", "6"]
    assert any((straight / "logs").iterdir())
    meta = read_meta(straight / "checkpoints" / "6")
    config = tiny.config_for(records)
    assert meta["position"] == 6 * config.train.rows_per_device * jax.device_count()
    assert meta["step"] == 6 and meta["processes"] == 1
    assert set(meta["versions"]) >= {"jax", "flax", "optax", "orbax-checkpoint", "grain"}
    assert load(str(straight / "config.json")) == config
    for line in logged(straight):
        assert set(line) >= {"loss", "token_accuracy", "gradient_norm", "lr/language"}
        assert 0 < line["lr/language"] <= config.optimizer.learning_rate.language
        assert 0 <= line["input_wait"] <= 1 and line["lost_samples"] == 0
        # All are of one source; no device of this machine has a known peak.
        assert line["loss/records"] == pytest.approx(line["loss"], rel=1e-5) and line["mfu"] is None
        assert line["tokens_per_second"] > line["samples_per_second"] > 0
    lines = (straight / "train.log").read_text().splitlines()
    assert len(lines) == len(logged(straight)) and "Step 6/6  Loss" in lines[-1]
    ended = json.loads((straight / "status.json").read_text())
    assert ended["state"] == "finished" and ended["devices"] == jax.device_count()


def test_a_finished_run_says_so(straight, records, capsys):
    before = (straight / "metrics.jsonl").read_text()
    loop.train(tiny.config_for(records), straight)
    assert "all 6 updates stand in" in capsys.readouterr().out
    assert (straight / "metrics.jsonl").read_text() == before


@pytest.mark.parametrize(
    ("field", "value"), [("seed", 1), ("optimizer.weight_decay", 0.5), ("data.row_length", 128)]
)
def test_a_changed_field_that_matters_stops_the_start(straight, records, field, value):
    config = tiny.config_for(records, **{field.replace(".", "__"): value})
    with pytest.raises(UserError, match=rf"{field}=.* now it is {value}.*another --workdir"):
        loop.train(config, straight)


def test_a_field_that_a_run_is_older_than_is_as_it_was(straight):
    now = read_meta(straight / "checkpoints" / "6")
    before = copy.deepcopy(now)
    del before["config"]["loss"]["answers"]
    check_same_run(before, now, straight)
    now["config"]["loss"]["answers"] = 2.0
    with pytest.raises(UserError, match=r"loss.answers=1.0, now it is 2.0"):
        check_same_run(before, now, straight)


def test_changed_fields_that_do_not_matter_are_taken(straight, records, capsys):
    changed = {"train__log_every": 3, "evaluation__batch_sets": 1, "train__remat": "dots"}
    config = tiny.config_for(records, **changed)
    assert config.train.remat != tiny.config_for(records).train.remat
    loop.train(config, straight)
    assert "nothing to do" in capsys.readouterr().out
    assert load(str(straight / "config.json")).evaluation.batch_sets == 1
    loop.train(tiny.config_for(records), straight)


def test_rows_of_an_update_may_be_spread_anew_but_not_change_in_number(straight, records, capsys):
    spread = tiny.config_for(records, train__rows_per_device=1, train__accumulation=2)
    loop.train(spread, straight)
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"a run of 2 rows an update, now they would be 4"):
        loop.train(tiny.config_for(records, train__accumulation=2), straight)
    loop.train(tiny.config_for(records), straight)


@pytest.mark.slow
def test_an_unfinished_checkpoint_is_ignored(toy, records, straight, tmp_path, monkeypatch):
    config = tiny.config_for(records)
    train_until(config, tmp_path, 3, monkeypatch)
    # What a kill in the middle of writing leaves behind.
    torn = tmp_path / "checkpoints" / "4.orbax-checkpoint-tmp"
    (torn / "params").mkdir(parents=True)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    loop.train(config, tmp_path)
    assert_same(final_params(toy, tmp_path, 6), final_params(toy, straight, 6))
    assert [line["step"] for line in logged(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_other_frozen_weights_are_noticed(toy, records, tmp_path):
    weights = tmp_path / "vggt"
    meta = {"model": {"vision": {}}}
    save_weights(weights, toy.frozen, meta)
    config = tiny.config_for(records, model__vision__weights=str(weights), train__max_steps=2)
    workdir = tmp_path / "run"
    workdir.mkdir()
    loop.train(config, workdir)
    assert not any(toy.groups[p].name == FROZEN for p in final_params(toy, workdir, 2))
    weights.rename(tmp_path / "old")
    path = "vision/aggregator/frame_blocks/mlp/fc1/bias"
    save_weights(weights, {**toy.frozen, path: toy.frozen[path] + 1e-3}, meta)
    with pytest.raises(
        UserError, match=r"frozen weights of vision are .*check model.vision.weights"
    ):
        loop.train(config, workdir)


def test_a_workdir_in_use_is_refused(tmp_path, python, records):
    with open_workdir(tmp_path / "run") as folder:
        assert folder.is_dir()
        process = python("-m", "jaxvlm.train", *tiny.arguments(records, folder))
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 2
        assert errors.splitlines()[-1].startswith(
            f"jaxvlm.train: error: another run works in {folder}"
        )
        assert "Traceback" not in errors
    # The lock went with its owner.
    with open_workdir(tmp_path / "run"):
        pass


def test_a_new_workdir_has_no_checkpoint(tmp_path):
    assert update_to_resume(tmp_path, None) is None


@pytest.mark.slow
def test_a_killed_process_goes_on_to_the_same_parameters(toy, python, records, tmp_path):
    changes = ["train.max_steps=400", "train.save_every=25"]

    def command(name):
        return "-m", "jaxvlm.train", *tiny.arguments(records, tmp_path / name, *changes)

    straight = python(*command("straight"))
    assert straight.wait(300) == 0
    killed = python(*command("killed"))
    folder = tmp_path / "killed" / "checkpoints"
    deadline = time.monotonic() + 200
    while not (folder / "50").is_dir():
        assert time.monotonic() < deadline and killed.poll() is None
        time.sleep(0.002)
    killed.kill()
    assert killed.wait() == -9
    assert not (folder / "400").exists()
    again = python(*command("killed"))
    out, errors = again.communicate(timeout=300)
    assert again.returncode == 0, errors
    assert "resuming" in out
    assert_same(
        final_params(toy, tmp_path / "killed", 400), final_params(toy, tmp_path / "straight", 400)
    )
    assert [line["step"] for line in logged(tmp_path / "killed")] == list(range(1, 401))


def test_micro_batches_of_an_update_are_summed(toy, records, straight, tmp_path):
    config = tiny.config_for(records, train__rows_per_device=1, train__accumulation=2)
    loop.train(config, tmp_path)
    losses = [[line["loss"] for line in logged(folder)] for folder in (tmp_path, straight)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


@pytest.mark.parametrize("save_every", [1, 6])
def test_a_loss_that_is_not_finite_stops_the_run_and_saves_nothing(records, tmp_path, save_every):
    rates = {f"optimizer__learning_rate__{g}": 1e30 for g in ("language", "projector")}
    config = tiny.config_for(records, **rates, train__save_every=save_every)
    with pytest.raises(UserError, match=r"update \d: the loss is .*learning_rate"):
        loop.train(config, tmp_path)
    kept = [int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()]
    lost = len(logged(tmp_path)) + 1
    assert all(step < lost for step in kept) and 6 not in kept


def test_data_that_breaks_off_does_not_lose_the_updates_made(tmp_path):
    records = tiny.write_records(tmp_path)
    config = tiny.config_for(records, train__max_steps=12, train__save_every=12)
    load_sources(config.data.train, config.data.image_roots, "error")
    # Broken after it was looked at, which nothing tells.
    broken = tmp_path / "scene0_1.png"
    before, content = broken.stat(), broken.read_bytes()
    broken.write_bytes(content[:100] + bytes(len(content) - 100))
    os.utime(broken, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(UserError, match=r"records.jsonl:\d+: the image .*scene0_1.png"):
        loop.train(config, tmp_path)
    made = len(logged(tmp_path))
    kept = [p.name for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()]
    assert made and kept == [str(made)]


def test_samples_whose_image_vanishes_are_left_out_and_counted(tmp_path, capfd, monkeypatch):
    records = tiny.write_records(tmp_path)
    config = tiny.config_for(records, train__max_steps=9, data__on_bad_record="skip")
    write = MetricLog.write

    def vanishing(self, done, metrics):
        write(self, done, metrics)
        (tmp_path / "scene4_1.png").unlink(missing_ok=True)

    monkeypatch.setattr(MetricLog, "write", vanishing)
    loop.train(config, tmp_path / "run")
    lost = [line["lost_samples"] for line in logged(tmp_path / "run")]
    # Two samples an epoch of three rows show it; some batches were read before it went.
    assert lost[0] == 0 and lost == sorted(lost) and 2 <= lost[-1] <= 12
    printed = capfd.readouterr()
    assert printed.err.count("scene4_1.png") <= 2 and "samples left out" in printed.out
    assert "the samples that show it are left out" in printed.err


def test_a_run_without_a_single_image_left_stops(tmp_path, monkeypatch):
    records = tiny.write_records(tmp_path)
    changes = {"train__max_steps": 30, "train__save_every": 30, "data__on_bad_record": "skip"}
    write = MetricLog.write

    def vanishing(self, done, metrics):
        write(self, done, metrics)
        for image in tmp_path.glob("*.png"):
            image.unlink()

    monkeypatch.setattr(MetricLog, "write", vanishing)
    with pytest.raises(UserError, match=r"update \d+: for 5 updates not one sample was left"):
        loop.train(tiny.config_for(records, **changes), tmp_path / "run")
    assert len(logged(tmp_path / "run")) < 12
    assert not any(p.name == "30" for p in (tmp_path / "run" / "checkpoints").iterdir())


def test_a_run_too_short_for_that_stops_too_where_no_update_was_applied(tmp_path, monkeypatch):
    records = tiny.write_records(tmp_path)
    make = loop.run_steps

    def vanishing(*arguments):
        for image in tmp_path.glob("*.png"):
            image.unlink()
        return make(*arguments)

    monkeypatch.setattr(loop, "run_steps", vanishing)
    config = tiny.config_for(records, train__max_steps=2, data__on_bad_record="skip")
    with pytest.raises(UserError, match="update 2: for 2 updates not one sample was left"):
        loop.train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints" / "2").exists()


@pytest.mark.slow
def test_a_killed_worker_is_told_and_the_updates_are_kept(python, tmp_path):
    records = tiny.write_records(tmp_path)
    flags = tiny.arguments(records, tmp_path / "run", "train.max_steps=100000",
                           "train.save_every=100000", "data.num_workers=1")  # fmt: skip
    process = python("-m", "jaxvlm.train", *flags)
    until(lambda: (tmp_path / "run" / "metrics.jsonl").exists() and logged(tmp_path / "run"))
    workers = [
        c for c in psutil.Process(process.pid).children() if "spawn_main" in str(c.cmdline())
    ]
    assert workers
    for worker in workers:
        worker.kill()
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2, errors[-2000:]
    assert "fewer data.num_workers need less" in errors and "Traceback" not in errors
    kept = [p.name for p in (tmp_path / "run" / "checkpoints").iterdir() if p.name.isdigit()]
    assert len(kept) == 1 and int(kept[0]) > 0


def test_other_records_are_noticed(tmp_path):
    records = tiny.write_records(tmp_path)
    config = tiny.config_for(records, train__max_steps=2)
    loop.train(config, tmp_path / "run")
    records.write_text(records.read_text().replace('"red"', '"pink"'))
    with pytest.raises(UserError, match=r"records of data.train, or their views, differ"):
        loop.train(config, tmp_path / "run")


# The storage library leaves its failed readings to the garbage collector, which complains.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", ["params", "optimizer", "meta", "renamed", "cut"])
def test_a_damaged_checkpoint_is_named(straight, records, tmp_path, damage):
    workdir = tmp_path / "run"
    shutil.copytree(straight, workdir)
    newest = workdir / "checkpoints" / "6"
    if damage == "renamed":
        newest = newest.rename(newest.with_name("9"))
    elif damage == "meta":
        (newest / "meta" / "metadata").write_text("{}")
    elif damage == "cut":
        files = [p for p in (newest / "params").rglob("*") if p.is_file()]
        largest = max(files, key=lambda p: p.stat().st_size)
        largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    else:
        shutil.rmtree(newest / damage)
    with pytest.raises(
        UserError, match=rf"the checkpoint {newest} .*damaged.*--resume_from 4 goes on"
    ):
        loop.train(tiny.config_for(records), workdir)
    gc.collect()


def test_a_damaged_line_of_metrics_is_dropped(records, straight, tmp_path, monkeypatch, capsys):
    config = tiny.config_for(records)
    train_until(config, tmp_path, 3, monkeypatch)
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b"\0\xff\0garbage{\n")
    loop.train(config, tmp_path)
    assert "1 damaged line(s) dropped" in capsys.readouterr().out
    assert [line["step"] for line in logged(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_logged_means_are_weighted_by_label_tokens():
    made = [(1.0, 0.0, 3), (5.0, 1.0, 1)]
    recent = [
        {
            "loss": loss,
            "token_accuracy": hits,
            "gradient_norm": 1.0,
            "label_tokens": labels,
            "skipped": 0.0,
        }
        for loss, hits, labels in made
    ]
    means = health.means(recent)
    assert means["loss"] == 2.0 and means["token_accuracy"] == 0.25
    assert means["label_tokens"] == 2.0


@pytest.mark.slow
def test_more_than_forty_epochs_are_warned_of(records, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(prepare, "_MANY_EPOCHS", 3)
    loop.train(tiny.config_for(records, train__max_steps=2), tmp_path / "few")
    said = capsys.readouterr().out
    assert "epochs of the same questions" not in said and "row_views" not in said
    loop.train(tiny.config_for(records), tmp_path / "many")
    assert "more than 3 epochs of the same questions" in capsys.readouterr().out


def test_too_few_and_too_many_places_for_views_are_told(records, capsys):
    roomy = {"data__row_sets": 4, "data__row_length": 256, "data__row_labels": 24}

    def said(**changes) -> str:
        config = tiny.config_for(records, **roomy, **changes)
        rows = training_rows(config, 8)
        prepare._say_views(config.data, rows.usage(), rows)
        return " ".join(capsys.readouterr().out.split()[-40:])

    assert "row_views" not in said()
    # Scenes have two photographs at most.
    assert "all 32 places for views of a row" in said(data__num_views=8)
    assert "with data.row_views=10 it sees fewer" in said(data__num_views=8)
    assert "with data.row_views=2 an epoch has" in said(data__row_views=2)
    assert "row_views" not in said(data__row_views=7)
