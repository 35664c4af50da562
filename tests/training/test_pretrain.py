"""The losses that teach the small VGGT to find things by name."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxvlm.rooms.labels import COLOUR_LABELS, COLOURS, KIND_LABELS, KINDS
from jaxvlm.rooms.layout import generate_room
from jaxvlm.rooms.views import render_views
from jaxvlm.training.pretrain import camera_encodings, finding_losses, quaternion, targets

SPLIT = len(KINDS)
NAMES = SPLIT + len(COLOURS)


@pytest.fixture(scope="module")
def views():
    return render_views(generate_room(0, "pretrain", 3), 3, 56)


def pixels_of(*things):
    """f32[1, kinds, colours] of things given as (kind, colour, pixels)."""
    pixels = np.zeros((1, SPLIT, len(COLOURS)), np.float32)
    for kind, colour, count in things:
        pixels[0, KINDS.index(kind), list(COLOURS).index(colour)] = count
    return jnp.asarray(pixels)


def answers(pixels):
    """Logits of a finder that is sure of the truth."""
    seen = jnp.concatenate([pixels.sum(2), pixels.sum(1)], axis=1) > 0
    others = jnp.zeros((1, NAMES, NAMES))
    others = others.at[:, :SPLIT, SPLIT:].set(40.0 * (pixels > 0))
    others = others.at[:, SPLIT:, :SPLIT].set(40.0 * (pixels > 0).swapaxes(1, 2))
    return jnp.where(seen, 20.0, -20.0), others


def test_the_truth_costs_nothing_and_a_wrong_name_much():
    pixels = pixels_of(("sofa", "red", 90), ("lamp", "blue", 30))
    there, others = answers(pixels)
    assert max(finding_losses(there, others, pixels)) < 1e-5
    wrong = others.at[0, KINDS.index("sofa")].multiply(-1)
    assert finding_losses(there, wrong, pixels)[1] > 5
    assert finding_losses(-there, others, pixels)[0] > 5


def test_what_is_not_there_or_hardly_seen_is_asked_nothing_but_its_presence():
    pixels = pixels_of(("sofa", "red", 90), ("lamp", "blue", 3))
    there, others = answers(pixels)
    noise = others.at[0, KINDS.index("lamp")].add(9.0 * np.arange(NAMES))
    noise = noise.at[0, KINDS.index("piano")].add(9.0 * np.arange(NAMES))
    assert finding_losses(there, noise, pixels)[1] == finding_losses(there, others, pixels)[1]


def test_a_kind_in_two_colours_may_be_told_in_proportion():
    pixels = pixels_of(("chair", "red", 75), ("chair", "blue", 25))
    there, others = answers(pixels)
    row = 0, KINDS.index("chair"), slice(SPLIT, None)
    shares = jnp.log(jnp.maximum(pixels[0, KINDS.index("chair")] / 100, 1e-9))
    told = finding_losses(there, others.at[row].set(shares), pixels)[1]
    assert told < finding_losses(there, others, pixels)[1]


def test_targets_count_every_object_pixel_once(views):
    found = targets(views)
    first_kind, first_colour = len(KIND_LABELS) - SPLIT, len(COLOUR_LABELS) - len(COLOURS)
    objects = (views["kind_map"] >= first_kind) & (views["colour_map"] >= first_colour)
    assert found["pixels"].sum() == objects.sum() > 0
    for kind, colour in np.argwhere(found["pixels"]):
        here = views["kind_map"] == kind + first_kind
        assert (here & (views["colour_map"] == colour + first_colour)).any()
    np.testing.assert_allclose(found["kinds"].astype(np.float32).sum(-1), 1, atol=2e-3)


def test_the_first_camera_is_the_frame_and_rotations_come_back(views):
    cameras = targets(views)["cameras"]
    np.testing.assert_allclose(cameras[0, :7], [0, 0, 0, 0, 0, 0, 1], atol=1e-6)
    angle = 0.7
    turn = np.eye(3)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    expected = [0, 0, np.sin(angle / 2), np.cos(angle / 2)]
    np.testing.assert_allclose(quaternion(turn), expected, atol=1e-6)
    k = np.array([[[50.0, 0, 28], [0, 50, 28], [0, 0, 1]]])
    wide = camera_encodings(np.eye(4)[None], k, 56, 56)[0, 7:]
    np.testing.assert_allclose(wide, 2 * np.arctan(28 / 50), rtol=1e-6)
