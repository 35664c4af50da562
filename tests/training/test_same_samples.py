"""The same samples teach the same, packed or one a row, from images or from cached features."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from conftest import make_toy

from jaxvlm.data.training_set import training_rows
from jaxvlm.training import features
from jaxvlm.training.optimizer import make_optimizer
from jaxvlm.training.state import new_state
from jaxvlm.training.step import make_steps

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def cached(records, tmp_path_factory):
    """`dtype -> configuration` of a filled feature cache."""

    def fill(dtype):
        folder = tmp_path_factory.mktemp(f"features_{dtype}")
        config = tiny.config_for(
            records, data__features__folder=str(folder), data__features__dtype=dtype
        )
        features.cache_features(config, batch_sets=3)
        return config

    return {dtype: fill(dtype) for dtype in ("float32", "bfloat16")}


def epoch_of(config):
    """All samples of the first epoch as one batch."""
    rows = training_rows(config, 1000)
    batch = rows.batch(0, rows.plan.rows_in_epoch(0))
    batch.pop("lost")
    return batch


def summed(toy, batch, model=None):
    """Loss and gradients, per label token."""
    optimizer = make_optimizer({p: toy.groups[p] for p in toy.trained}, toy.config.optimizer, 9)
    state = new_state({p: jnp.copy(v) for p, v in toy.trained.items()}, optimizer, toy.mesh)
    steps = make_steps(model or toy.model, optimizer, jnp.float32, "none", state)
    frozen = {} if model else toy.frozen
    sums = steps.accumulate(toy.trained, frozen, steps.start(toy.trained), batch, KEY)
    return float(sums.loss / sums.labels), {p: g / sums.labels for p, g in sums.gradients.items()}


def from_features(toy, batch):
    """As `summed`, by a model that has no VGGT at all."""
    return summed(toy, batch, dataclasses.replace(toy.model, vision=None))


def check_same(one, other, loss, gradients):
    assert one[0] == pytest.approx(other[0], rel=loss)
    largest = max(float(jnp.abs(g).max()) for g in other[1].values())
    for path, gradient in other[1].items():
        np.testing.assert_allclose(
            one[1][path], gradient, atol=gradients * largest, rtol=gradients, err_msg=path
        )


@pytest.fixture(scope="module")
def packed(toy):
    """Loss and gradients of the packed rows, through VGGT."""
    return summed(toy, epoch_of(toy.config))


@pytest.mark.slow
def test_packed_is_unpacked(records, toy, packed):
    batch = epoch_of(tiny.config_for(records, data__pack=False))
    assert batch["tokens"].shape == (12, 64) and batch["labels"].shape[1] == 12
    assert batch["segment_ids"].max() == 1
    check_same(summed(toy, batch), packed, 1e-5, 1e-5)


@pytest.mark.slow
def test_features_in_float32_are_the_images(toy, cached, packed):
    batch = epoch_of(cached["float32"])
    assert "images" not in batch and batch["features"].dtype == np.float32
    check_same(from_features(toy, batch), packed, 1e-6, 1e-5)


@pytest.mark.slow
def test_packed_is_unpacked_from_features(records, toy, cached, packed):
    with_cache = cached["float32"].data.features.folder
    single = tiny.config_for(
        records,
        data__pack=False,
        data__features__folder=with_cache,
        data__features__dtype="float32",
    )
    check_same(from_features(toy, epoch_of(single)), packed, 1e-5, 1e-5)


@pytest.mark.slow
def test_features_in_bfloat16_are_nearly_the_images(toy, cached, packed):
    batch = epoch_of(cached["bfloat16"])
    assert batch["features"].dtype == jnp.bfloat16
    loss, _ = from_features(toy, batch)
    assert 0 < abs(loss - packed[0]) < 1e-2


def test_one_compiled_encoder_gives_the_very_same_features(toy, cached):
    """What the cache holds is what VGGT puts out, to the bit, view by view in their order."""
    rows = training_rows(cached["float32"], 10)
    groups = rows.plan.row(0)
    batch = rows.batch(0, 1)
    record = rows.builder.records[rows.builder.samples[groups[0].samples[0]].record]
    plain = make_toy(tiny.config_for(toy.config.data.train[0]["path"])).rows.builder.reader
    sets = plain.empty(3)
    plain.read(sets, 0, record, groups[0].views)
    given = dict(toy.frozen)
    encode = features.Encoder(toy.model, given, toy.mesh, np.dtype(np.float32))
    assert not given
    # On a CPU from layers of their own, see `cut_layers`.
    assert isinstance(encode._vision.aggregator.frame_blocks, tuple)
    made = encode(sets["images"][:, : len(groups[0].views)])[0]
    count = batch["feature_counts"][0, 0]
    assert count == len(made)
    np.testing.assert_array_equal(batch["features"][0, 0, :count], made)
    assert not batch["features"][0, 0, count:].any()
