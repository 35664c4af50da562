"""The parts of the model put together: one sample's way from images to logits."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvlm.config import default
from jaxvlm.data.plan import Group
from jaxvlm.models.tree import load, pure
from jaxvlm.models.vlm import abstract_vlm, vlm_config
from jaxvlm.paths import flatten, unflatten
from jaxvlm.training.loss import batch_loss


@pytest.fixture(scope="module")
def model(toy):
    return load(abstract_vlm(toy.model), unflatten({**toy.frozen, **toy.trained}))


@pytest.fixture(scope="module")
def encode(toy):
    """`batch -> visual vectors [B, S*M, D]`."""
    abstract = abstract_vlm(toy.model)

    @jax.jit
    def function(params, batch):
        model = load(abstract, unflatten(params))
        visual = model.encode_rows(batch["images"], batch["view_counts"], batch["geometry"])
        return visual.reshape(len(batch["tokens"]), -1, visual.shape[-1])

    return lambda batch: function({**toy.frozen, **toy.trained}, batch)


@pytest.fixture(scope="module")
def label_logits(toy):
    """`(visual, batch) -> logits [B, L, W]` at the label positions."""
    abstract = abstract_vlm(toy.model)

    @jax.jit
    def function(params, visual, batch):
        model = load(abstract, unflatten(params))
        x = model.embed(batch["tokens"], batch["visual_index"], visual)
        hidden = model.language(x, batch["positions"], batch["segment_ids"])
        at_labels = jnp.take_along_axis(hidden, batch["label_positions"][..., None], axis=1)
        return model.language.logits(at_labels)

    return lambda visual, batch: function({**toy.frozen, **toy.trained}, visual, batch)


@pytest.fixture(scope="module")
def loss_and_gradients(toy):
    """`batch -> summed loss, gradients of the trained parameters`."""
    abstract = abstract_vlm(toy.model)

    def loss(trained, frozen, batch):
        return batch_loss(load(abstract, unflatten({**frozen, **trained})), batch, "none", None)[0]

    compiled = jax.jit(jax.value_and_grad(loss))
    return lambda batch: compiled(toy.trained, toy.frozen, batch)


def label_sets(batch, per_set):
    """The image set that each label's sample asks about, -1 where there is no label."""
    sets = np.full(batch["labels"].shape, -1)
    for row, column in np.argwhere(batch["label_weights"] > 0):
        segment = batch["segment_ids"][row, batch["label_positions"][row, column]]
        shown = batch["visual_index"][row][batch["segment_ids"][row] == segment]
        (sets[row, column],) = np.unique(shown[shown >= 0] // per_set)
    return sets


def test_visual_vectors_stand_exactly_where_the_index_says(model, toy):
    batch = toy.batch()
    index = batch["visual_index"]
    size = toy.rows.builder.layout.size * batch["view_counts"].shape[1]
    visual = np.random.default_rng(0).normal(size=(len(index), size, 32)).astype(np.float32)
    embedded = np.asarray(model.embed(batch["tokens"], index, visual))
    table = np.asarray(model.language.embed_tokens.embedding[...])
    for row, column in np.ndindex(*index.shape):
        place = index[row, column]
        expected = visual[row, place] if place >= 0 else table[batch["tokens"][row, column]]
        np.testing.assert_array_equal(embedded[row, column], expected)
    assert (index >= 0).sum() > 20


@pytest.mark.slow
def test_a_packed_row_is_its_samples_each_in_a_row_of_its_own(toy, loss_and_gradients):
    groups = toy.rows.plan.row(0)
    alone = [Group((i,), group.views) for group in groups for i in group.samples]
    assert len(groups) == 2 and len(alone) == 4
    build = toy.rows.builder
    packed_loss, packed_gradients = loss_and_gradients(build.batch([groups]))
    loss, gradients = loss_and_gradients(build.batch([[group] for group in alone]))
    np.testing.assert_allclose(packed_loss, loss, rtol=1e-5)
    for path, gradient in gradients.items():
        scale = float(jnp.abs(gradient).max())
        np.testing.assert_allclose(packed_gradients[path], gradient, atol=1e-5 * max(scale, 1))


def test_fewer_places_for_views_change_nothing(toy, encode):
    build = toy.rows.builder
    first, second = toy.rows.plan.row(0)
    groups = [dataclasses.replace(first, views=first.views[:1]), second]
    fewer = dataclasses.replace(build, capacity=dataclasses.replace(build.capacity, views=3))
    batches = [builder.batch([groups]) for builder in (build, fewer)]
    assert [batch["images"].shape[1] for batch in batches] == [4, 3]
    visual = [np.asarray(encode(batch)) for batch in batches]
    shown = np.unique(batches[0]["visual_index"][batches[0]["visual_index"] >= 0])
    np.testing.assert_allclose(visual[1][0, shown], visual[0][0, shown], atol=1e-5)


def test_an_image_changes_only_the_answers_about_its_set(toy, encode, label_logits):
    batch = toy.batch()
    sets = label_sets(batch, toy.rows.builder.layout.size)
    changed = {**batch, "images": batch["images"].copy()}
    first = batch["view_counts"][0, 0]
    changed["images"][0, first] = 255 - changed["images"][0, first]
    before = np.asarray(label_logits(encode(batch), batch))
    after = np.asarray(label_logits(encode(changed), changed))
    difference = np.abs(after - before).max(-1)
    own = np.zeros_like(sets, bool)
    own[0] = sets[0] == 1
    other = (sets >= 0) & ~own
    assert own.any() and other[0].any()
    assert difference[own].min() > 1e-5
    assert difference[other].max() < 1e-6


def test_padding_views_change_nothing(toy, encode, label_logits):
    batch = toy.batch(0, 4)
    counts = batch["view_counts"]
    empty = np.arange(batch["images"].shape[1]) >= counts.sum(axis=1)[:, None]
    padding = np.arange(batch["geometry"].shape[2]) >= counts[..., None]
    assert empty.any() and padding[counts > 0].any()
    garbage = {**batch, "images": batch["images"].copy(), "geometry": batch["geometry"].copy()}
    garbage["images"][empty] = 199
    garbage["geometry"][padding] = 7.0
    real = batch["label_weights"] > 0
    before = np.asarray(label_logits(encode(batch), batch))[real]
    after = np.asarray(label_logits(encode(garbage), garbage))[real]
    np.testing.assert_allclose(after, before, atol=1e-6)


def test_every_visual_position_is_attended(toy, model, encode):
    batch = toy.batch(0, 4)

    def loss(visual):
        x = model.embed(batch["tokens"], batch["visual_index"], visual)
        hidden = model.language(x, batch["positions"], batch["segment_ids"])
        at_labels = jnp.take_along_axis(hidden, batch["label_positions"][..., None], axis=1)
        chosen = jax.nn.log_softmax(model.language.logits(at_labels))
        picked = jnp.take_along_axis(chosen, batch["labels"][..., None], axis=-1)[..., 0]
        return -(picked * batch["label_weights"]).sum()

    gradient = np.abs(np.asarray(jax.jit(jax.grad(loss))(encode(batch)))).max(-1)
    for row, index in enumerate(batch["visual_index"]):
        shown = np.unique(index[index >= 0])
        assert gradient[row][shown].min() > 0
        hidden = np.setdiff1d(np.arange(gradient.shape[1]), shown)
        assert (gradient[row][hidden] == 0).all()
    assert (batch["visual_index"] >= 0).any(1).all()


def test_a_gradient_reaches_every_trained_parameter(toy, loss_and_gradients):
    _, gradients = loss_and_gradients(toy.batch(0, 4))
    zero = [path for path, gradient in gradients.items() if not np.abs(gradient).max() > 0]
    assert zero == []
    parts = {path.split("/")[0] for path in gradients}
    assert parts == {"projector", "geometry", "language"}
    # Stacked layers: every single one.
    for path, gradient in gradients.items():
        if "/layers/" in path:
            assert np.abs(gradient).reshape(len(gradient), -1).max(1).min() > 0, path


def test_full_size_parts_have_the_published_parameter_counts():
    shapes = flatten(pure(abstract_vlm(vlm_config(default().model))))
    counts = dict.fromkeys(("vision", "projector", "geometry", "language"), 0)
    for path, leaf in shapes.items():
        counts[path.split("/")[0]] += leaf.size
    assert counts == {
        "vision": 909_112_320,
        "projector": 1_227_684_352,
        "geometry": 6_653_440,
        "language": 4_022_468_096,
    }


def test_a_model_without_geometry_has_no_geometry_parameters(toy):
    model = vlm_config(toy.config.model)
    assert model.geometry is not None
    changed = toy.config.copy_and_resolve_references()
    changed.model.geometry.mode = "none"
    paths = flatten(pure(abstract_vlm(vlm_config(changed.model))))
    assert paths and not any(path.startswith("geometry/") for path in paths)
