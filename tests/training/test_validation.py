"""Validation: what is held out, what it finds, and that the best checkpoint stays."""

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from answering import answer_records
from caches import fill
from runs import logged

from jaxvlm.data.sources import load_sources
from jaxvlm.data.training_set import held_out_scenes, run_rows, training_rows
from jaxvlm.errors import UserError
from jaxvlm.generation.restore import restore_answerer
from jaxvlm.models.vlm import vlm_config
from jaxvlm.training import loop
from jaxvlm.training.checkpoints import best_in, read_meta, steps_in
from jaxvlm.training.mesh import make_mesh
from jaxvlm.training.run import find_checkpoint, run_config, run_parameters
from jaxvlm.training.validation import Validation, exact_samples

SCENES = [f"scene{i}" for i in range(6)]


def validation_rows(config):
    config = config.copy_and_resolve_references()
    config.train.eval_every = 1
    return run_rows(config, 1)[1]


def validate(toy, config, params, batch_rows=2):
    rows = validation_rows(config)
    validation = Validation(toy.model, rows, batch_rows, jnp.float32, toy.mesh)
    return validation(params, toy.frozen, lambda: None)


def samples_of(rows):
    groups = [g for row in range(rows.plan.rows_in_epoch(0)) for g in rows.plan.row(row)]
    return [rows.builder.samples[i] for group in groups for i in group.samples]


def test_held_out_scenes_are_never_trained_on(records):
    config = tiny.config_for(records, data__val=(), data__held_out=0.5)
    held_out = held_out_scenes(SCENES, config.data)
    assert 0 < len(held_out) < 6
    trained = samples_of(training_rows(config, 9))
    validated = samples_of(validation_rows(config))
    assert {sample.scene for sample in validated} == held_out
    assert {sample.scene for sample in trained} == set(SCENES) - held_out
    assert len(validated) == 2 * len(held_out)
    # By name: more scenes beside them change nothing, nor does the seed.
    again = tiny.config_for(records, data__val=(), data__held_out=0.5, seed=5)
    assert held_out_scenes([*SCENES, "another"], again.data) - {"another"} == held_out
    assert not held_out_scenes(SCENES, tiny.config_for(records, data__held_out=0.5).data)


def test_what_is_held_out_is_part_of_what_a_run_was_trained_on(records):
    """Naming data.val, which a run may do when it goes on, gives the scenes back to training."""
    config = tiny.config_for(records, data__val=(), data__held_out=0.5)
    named = tiny.config_for(records, data__held_out=0.5)
    assert training_rows(config, 9).fingerprint != training_rows(named, 9).fingerprint


def test_about_the_asked_share_of_scenes_is_held_out(records):
    config = tiny.config_for(records, data__val=(), data__held_out=0.02)
    names = [f"scene{i:04}_00" for i in range(10_000)]
    assert 150 < len(held_out_scenes(names, config.data)) < 250


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__val": ()}, "nothing is held out: name data.val, or raise data.held_out=0.0"),
        ({"data__val": (), "data__held_out": 0.999}, "data.held_out=0.999 leaves nothing of"),
        ({"data__val": "none.jsonl"}, "none.jsonl"),
    ],
)
def test_validation_without_samples_is_refused(records, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        loop.train(tiny.config_for(records, train__eval_every=2, **changes), tmp_path)


def test_the_samples_are_fixed_and_as_many_as_asked(records):
    config = tiny.config_for(records, train__eval_samples=5, data__view_dropout=0.5)
    one, other = (validation_rows(config) for _ in range(2))
    asked = [sample.record for sample in samples_of(one)]
    assert len(set(asked)) == 5 and asked == [sample.record for sample in samples_of(other)]
    # All views are shown, whatever training leaves out.
    for row in range(len(one)):
        for group in one.plan.row(row):
            assert len(group.views) == one.builder.samples[group.samples[0]].views


def test_loss_and_exact_match_do_not_depend_on_the_batches(toy, records):
    found = [validate(toy, toy.config, toy.trained, rows) for rows in (1, 2, 4)]
    assert found[0]["val_samples"] == 12
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-5)


def test_a_sample_is_right_when_all_its_labels_are():
    batch = {
        "segment_ids": jnp.array([[1, 1, 1, 2, 2, 0], [1, 2, 3, 3, 3, 0]]),
        "label_positions": jnp.array([[1, 2, 3, 4, 0], [0, 1, 2, 3, 4]]),
        "label_weights": jnp.array([[1.0, 1, 1, 1, 0], [1, 1, 1, 1, 1]]),
    }
    right = jnp.array([[1, 1, 1, 0, 0], [1, 0, 1, 1, 1]], bool)
    assert [float(x) for x in exact_samples(batch, right)] == [3.0, 5.0]


def test_exact_match_is_what_decoding_token_by_token_finds(finished_run):
    folder = find_checkpoint(finished_run)
    config = run_config(folder, [])
    answerer = restore_answerer(folder, config)
    (source,) = load_sources(config.data.val, config.data.image_roots, "error")
    records = list(source.records)
    texts = answer_records(answerer, records)
    right = np.mean([text == record.answer for text, record in zip(texts, records, strict=True)])
    rows = validation_rows(config)
    params = run_parameters(folder, config, make_mesh(1, -1))
    model = vlm_config(config.model)
    found = Validation(model, rows, 2, jnp.float32, make_mesh(1, -1))(params, {}, lambda: None)
    assert found["val_exact_match"] == pytest.approx(right) and right > 0.5


@pytest.mark.slow
def test_the_best_checkpoint_stays_and_is_what_is_evaluated(records, tmp_path, monkeypatch):
    scores = iter([0.1, 0.7, 0.3, 0.2])
    found = Validation.__call__

    def scored(self, *arguments):
        return {**found(self, *arguments), "val_exact_match": next(scores)}

    monkeypatch.setattr(Validation, "__call__", scored)
    config = tiny.config_for(
        records, train__max_steps=8, train__eval_every=2, train__save_every=1, train__keep=1
    )
    loop.train(config, tmp_path)
    assert steps_in(tmp_path / "checkpoints") == [4, 8]
    assert best_in(tmp_path / "checkpoints") == 4
    assert find_checkpoint(tmp_path).name == "4"
    assert read_meta(tmp_path / "checkpoints" / "4")["val_exact_match"] == 0.7
    lines = logged(tmp_path)
    assert [line["step"] for line in lines if "val_loss" in line] == [2, 4, 6, 8]
    assert all(line["val_loss"] > 0 for line in lines if "val_loss" in line)


@pytest.mark.slow
def test_validation_sees_cached_features_too(toy, data, tmp_path):
    changes = {"data__val": (), "data__held_out": 0.5, "train__eval_every": 3,
               "data__view_dropout": 0.5, "data__features__dtype": "float32"}  # fmt: skip
    config = fill(data, tmp_path / "features", **changes)
    loop.train(config, tmp_path / "cached")
    loop.train(tiny.config_for(data, **changes), tmp_path / "images")
    ends = [logged(tmp_path / name)[2] for name in ("cached", "images")]
    assert ends[0]["val_samples"] == ends[1]["val_samples"] > 0
    # Training shows other views, but both learn.
    assert all(line["val_loss"] < 6.5 for line in ends)
