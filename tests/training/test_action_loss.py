"""The losses of the action head: what they measure, and what a weight of 0 leaves out."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jaxvlm.config_checks import check
from jaxvlm.data.records import RecordFile
from jaxvlm.data.tokenizer import load_tokenizer
from jaxvlm.data.training_set import training_rows
from jaxvlm.errors import UserError
from jaxvlm.models.action_head import projected, seen
from jaxvlm.models.tree import load
from jaxvlm.models.vlm import abstract_vlm, vlm_config
from jaxvlm.paths import unflatten
from jaxvlm.training.action_loss import action_errors
from jaxvlm.training.loss import LossWeights, batch_loss, hidden_states
from jaxvlm.training.mesh import make_mesh
from jaxvlm.training.parameters import assign_groups
from jaxvlm.training.state import abstract_parameters, initial_parameters

ALL = LossWeights(1.0, 1.0, 0.5)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A configuration, a model with random parameters, and a batch of actions."""
    path = tiny.action_records(tmp_path_factory.mktemp("actions"))
    config = tiny.config_for(path, **tiny.ACTIONS)
    check(config)
    sizes = vlm_config(config.model)
    shapes = abstract_parameters(sizes)
    groups = assign_groups(config.parameters, shapes, config.optimizer.learning_rate)
    mesh = make_mesh(-1, -1)
    params = initial_parameters(sizes, groups, set(shapes), jnp.float32, 0, mesh)
    batch = {k: v for k, v in training_rows(config, 2).batch(0, 2).items() if k != "lost"}
    return config, sizes, params, batch, RecordFile(path)


def total(made, weights, **changes):
    _, sizes, params, batch, _ = made
    model = load(abstract_vlm(sizes), unflatten(params))
    return batch_loss(model, {**batch, **changes}, "none", None, 1, weights)


def test_a_batch_has_the_boxes_of_its_actions(made):
    config, _, _, batch, records = made
    action = load_tokenizer(config.text.tokenizer).action_id
    there = batch["action_weights"] > 0
    assert there.sum() == batch["segment_ids"].max(1).sum() > 2
    boxes = {tuple(np.round(box, 3)) for box in batch["action_targets"][there]}
    expected = set()
    for record in records:
        learnt = record.learnt_action()
        numbers = learnt["center"] + learnt["extent"] + learnt["normal"]
        expected.add(tuple(np.round(np.float32(numbers), 3)))
    assert boxes <= expected
    for row, at in np.argwhere(there):
        position = batch["action_positions"][row, at]
        segment = batch["segment_ids"][row, position]
        # The token in front of the first label, and as many labels as its sample has.
        labels = batch["label_positions"][row][batch["label_weights"][row] > 0]
        of_sample = batch["segment_ids"][row, labels] == segment
        assert position == labels[of_sample].min()
        assert batch["action_weights"][row, at] == of_sample.sum()
        tokens = batch["tokens"][row]
        assert tokens[position] == action and (tokens == action).sum() == there[row].sum()


def cameras(rng, views):
    """World poses, intrinsics in fractions of the image, and the features made of them."""
    features = np.zeros((views, 37), np.float32)
    rotations = [np.linalg.qr(rng.normal(size=(3, 3)))[0] for _ in range(views)]
    for view, rotation in enumerate(rotations):
        rotation = rotation * np.sign(np.linalg.det(rotation))
        features[view, :9], features[view, 9:12] = rotation.ravel(), rng.normal(size=3)
        features[view, 12:21] = [1.1, 0, 0.5, 0, 0.9, 0.45, 0, 0, 1]
    return features


def by_hand(point, feature):
    rotation, k = feature[:9].reshape(3, 3), feature[12:21].reshape(3, 3)
    camera = rotation.T @ (point - feature[9:12])
    return (k @ camera)[:2] / max(camera[2], 0.1), camera[2]


def test_points_are_projected_through_the_records_cameras():
    rng = np.random.default_rng(0)
    features, points = cameras(rng, 6), rng.normal(size=(1, 5, 3)).astype(np.float32)
    views = np.broadcast_to(features, (1, 5, 6, 37))
    found, depth = projected(points, views)
    looks = seen(points, views, np.full((1, 5), 4))
    for a in range(5):
        for v in range(6):
            at, z = by_hand(points[0, a].astype(np.float64), features[v].astype(np.float64))
            np.testing.assert_allclose(found[0, a, v], at, rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(depth[0, a, v], z, atol=1e-5)
            assert looks[0, a, v] == (v < 4 and z > 0.1 and all(at >= 0) and all(at < 1))
    assert not seen(points, np.zeros_like(views), np.full((1, 5), 6)).any()


def test_the_errors_of_a_box():
    true = np.concatenate([[0.1, 0.2, 2.0], [1, 1, 1], [0, 1, 0]]).astype(np.float32)[None, None]
    looking = np.zeros((1, 1, 2, 37), np.float32)
    looking[..., :9] = np.eye(3).ravel()
    looking[..., 12:21] = [1, 0, 0.5, 0, 1, 0.5, 0, 0, 1]
    # The second camera stands in front of the box, which lies behind it.
    looking[0, 0, 1, 11] = 3.0
    nothing = action_errors(true, true, looking, np.array([[2]]))
    assert nothing.box.item() == nothing.projection.item() == 0
    # Half a metre to the right, at two metres: a quarter of the image.
    moved = true + np.float32([0.5, 0, 0, 0, 0, 0, 0, 0, 0])
    found = action_errors(moved, true, looking, np.array([[2]]))
    assert found.centre.item() == pytest.approx(0.5, abs=1e-5)
    assert found.box.item() == pytest.approx(0.25 / 3, rel=1e-5)
    assert found.projection.item() == pytest.approx(0.25 - 0.025, rel=1e-5)
    far = action_errors(
        true + np.float32([2, 0, 0, 0, 0, 0, 0, 0, 0]), true, looking, np.array([[2]])
    )
    assert far.box.item() == pytest.approx((2 - 0.25) / 3, rel=1e-5)
    unseen = action_errors(moved, true, looking[:, :, 1:], np.array([[1]]))
    assert unseen.projection.item() == 0

    # A point behind the camera has a finite gradient: its depth is taken for 10 cm.
    def off(z):
        behind = jnp.asarray(true).at[0, 0, 2].set(z)
        return action_errors(behind, true, looking, np.array([[2]])).projection.sum()

    assert np.isfinite(jax.grad(off)(-1.0)) and np.isfinite(off(-1.0))


def test_a_centre_is_projected_into_the_views_of_its_own_images(made):
    """Which those are is told by the visual tokens in front of the instruction."""
    _, sizes, params, batch, _ = made
    model = load(abstract_vlm(sizes), unflatten(params))
    there = np.argwhere(batch["action_weights"] > 0)
    hidden = hidden_states(model, batch)
    a_set = np.where(batch["visual_index"] >= 0, batch["visual_index"], 0).max() + 1
    expected, sets = 0.0, set()
    for row, at in there:
        position = batch["action_positions"][row, at]
        own = batch["segment_ids"][row] == batch["segment_ids"][row, position]
        which = batch["visual_index"][row][own & (batch["visual_index"][row] >= 0)]
        number = int(which[0]) * batch["view_counts"].shape[1] // a_set
        sets.add(number)
        true = batch["action_targets"][row, at, :3].astype(np.float64)
        found = np.asarray(model.action(hidden[row, position]))[:3].astype(np.float64)
        off, views = 0.0, 0
        for view in batch["geometry"][row, number][: batch["view_counts"][row, number]]:
            (here, _), (place, depth) = by_hand(found, view), by_hand(true, view)
            if depth > 0.1 and (place >= 0).all() and (place < 1).all():
                size = np.abs(here - place)
                off += np.where(size < 0.05, size**2 / 0.1, size - 0.025).sum()
                views += 1
        expected += batch["action_weights"][row, at] * off / max(views, 1)
    assert len(sets) > 1 and expected > 0
    projection = total(made, ALL)[1].actions.projection
    np.testing.assert_allclose(projection, expected, rtol=1e-3)


def test_the_loss_is_the_weighted_sum_of_its_parts(made):
    whole, tally = total(made, ALL)
    language, _ = total(made, LossWeights())
    boxes, projections = tally.actions.box, tally.actions.projection
    assert float(boxes) > 0 and float(projections) > 0
    np.testing.assert_allclose(whole, language + boxes + 0.5 * projections, rtol=1e-6)
    alone, without = total(made, LossWeights(0.0, 1.0, 0.0))
    np.testing.assert_allclose(alone, boxes, rtol=1e-6)
    assert float(without.losses.sum()) == 0


def test_a_weight_of_0_removes_the_cost(made):
    """Neither logits nor the head are computed where nobody asks for them."""
    config, sizes, params, batch, _ = made

    def shapes(weights):
        def value(params):
            model = load(abstract_vlm(sizes), unflatten(params))
            return batch_loss(model, batch, "none", None, 1, weights)[0]

        text = str(jax.make_jaxpr(value)(params))
        return text

    vocabulary = f",{config.model.language.vocab_size}]"
    assert vocabulary in shapes(LossWeights()) and "softplus" not in shapes(LossWeights())
    alone = shapes(LossWeights(0.0, 1.0, 0.0))
    head = f"f32[{config.model.language.hidden_size},16]"
    logits = f"f32[2,{batch['labels'].shape[1]}{vocabulary}"
    assert logits in shapes(ALL) and logits not in alone and head in alone


def test_the_finer_a_digit_the_less_it_may_count(made):
    """What follows on digits of a number counts less, digit or not: a label has no say in it."""
    config, _, _, batch, _ = made
    coarse = config.copy_and_resolve_references()
    coarse.loss.finer_digits = 0.5
    counted = training_rows(coarse, 2).batch(0, 2)
    # The head counts as much as the labels do.
    assert counted["action_weights"].sum() == counted["label_weights"].sum()
    tokenizer = load_tokenizer(config.text.tokenizer)
    numbers = re.compile(r"(?<![0-9])[0-9]{1,4}(?![0-9])")
    for labels, plain, weights in zip(
        batch["labels"], batch["label_weights"], counted["label_weights"], strict=True
    ):
        texts = [tokenizer.decode([label]) for label in labels[plain > 0]]
        starts = np.cumsum([0, *map(len, texts)])
        expected = np.ones(len(texts))
        for number in numbers.finditer("".join(texts)):
            (first,) = np.flatnonzero(starts == number.start())
            for place in range(1, len(number[0]) + 1):
                if first + place < len(texts):
                    expected[first + place] = 0.5**place
        np.testing.assert_array_equal(weights[plain > 0], expected)
        assert {1.0, 0.5, 0.25} <= set(expected)


def test_answers_may_count_more_than_actions(made, tmp_path):
    actions = made[0].data.train
    questions = {"path": str(tiny.write_records(tmp_path)), "weight": 1.0}
    config = made[0].copy_and_resolve_references()
    config.data.train = (*actions, questions)
    config.loss.answers = 25.0
    check(config)
    batch = training_rows(config, 8).batch(0, 8)
    there = batch["label_weights"] > 0
    counts = {
        source: set(batch["label_weights"][there & (batch["label_sources"] == source)])
        for source in (0, 1)
    }
    assert counts == {0: {1.0}, 1: {25.0}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model__action__ffn_dim": 0}, "model.action.ffn_dim=0 has none"),
        ({"loss__action_json": 0.0, "loss__geometry_consistency": 0.0}, "would learn nothing"),
        ({"loss__language": -1.0}, "loss.language=-1.0: expected at least 0"),
        ({"data__geometry_convention": "original"}, "first_camera"),
    ],
)
def test_losses_that_fit_no_model_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        check(tiny.config_for("nowhere.jsonl", **tiny.ACTIONS | change))


@pytest.mark.slow
def test_the_head_learns_through_every_loss(made):
    """Each weight alone gives the head a gradient."""
    _, sizes, params, batch, _ = made
    for weights in (LossWeights(0.0, 1.0, 0.0), LossWeights(0.0, 0.0, 1.0)):

        def value(params, weights=weights):
            model = load(abstract_vlm(sizes), unflatten(params))
            return batch_loss(model, batch, "none", None, 1, weights)[0]

        gradients = jax.jit(jax.grad(value))(params)
        for path in (
            "action/in_proj/kernel",
            "projector/out_proj/kernel",
            "geometry/in_proj/kernel",
        ):
            assert np.isfinite(gradients[path]).all() and np.abs(gradients[path]).max() > 0, path
