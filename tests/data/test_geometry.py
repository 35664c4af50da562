"""Geometry features: one frame for the views of a set, whatever the world's axes were."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from jaxvlm.data.frames import first_camera_frame
from jaxvlm.data.framing import Framing
from jaxvlm.data.geometry import depth_histogram, geometry_features, looked_at
from jaxvlm.data.record import parse_record
from jaxvlm.errors import UserError

SEEDS = st.integers(0, 2**32 - 1)
ANGLES = st.floats(-np.pi, np.pi)


def rotations(rng: np.random.Generator, count: int) -> np.ndarray:
    q, r = np.linalg.qr(rng.normal(size=(count, 3, 3)))
    q = q * np.sign(np.diagonal(r, axis1=1, axis2=2))[:, None]
    return q * np.sign(np.linalg.det(q))[:, None, None]


def yaw(angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def features(rotation, translation, views=None, **changes):
    count = len(rotation)
    entry = {
        "images": [f"{i}.jpg" for i in range(count)],
        "question": "q",
        "geom_token": {"R": np.reshape(rotation, (-1, 9)).tolist(), "t": np.array(translation)},
        **changes,
    }
    entry["geom_token"]["t"] = entry["geom_token"]["t"].tolist()
    return geometry_features(
        parse_record(entry, "here:1"), views or list(range(count)), Framing(112, 112)
    )


def split(rows):
    return rows[:, :9].reshape(-1, 3, 3), rows[:, 9:12]


@settings(deadline=None)
@given(SEEDS)
def test_the_first_kept_camera_gives_the_frame(seed):
    rng = np.random.default_rng(seed)
    rotation, translation = rotations(rng, 3), rng.normal(size=(3, 3))
    turned, moved = split(features(rotation, translation, [1, 2]))
    np.testing.assert_allclose(moved[0], 0, atol=1e-5)
    forward = turned[0, :, 2]
    assert abs(forward[0]) < 1e-4 and forward[1] > 0
    # Height above the floor and tilt survive: the frame's z is the world's.
    np.testing.assert_allclose(moved[1, 2], translation[2, 2] - translation[1, 2], atol=1e-4)
    np.testing.assert_allclose(turned[:, 2], rotation[1:, 2], atol=1e-5)
    np.testing.assert_allclose(np.linalg.det(turned), 1, atol=1e-4)
    # Distances and relative turns are those of the world.
    np.testing.assert_allclose(
        np.linalg.norm(moved[1]), np.linalg.norm(translation[2] - translation[1]), rtol=1e-4
    )
    np.testing.assert_allclose(turned[0].T @ turned[1], rotation[1].T @ rotation[2], atol=1e-4)


@settings(deadline=None)
@given(SEEDS, ANGLES, st.tuples(*[st.floats(-50, 50)] * 3))
def test_turning_and_moving_the_world_changes_nothing(seed, angle, offset):
    rng = np.random.default_rng(seed)
    rotation, translation = rotations(rng, 3), rng.normal(size=(3, 3))
    turn = yaw(angle)
    there = features(turn @ rotation, translation @ turn.T + offset)
    np.testing.assert_allclose(there, features(rotation, translation), atol=1e-3)


@settings(deadline=None)
@given(SEEDS)
def test_a_world_with_y_up_is_the_same_scene(seed):
    rng = np.random.default_rng(seed)
    rotation, translation = rotations(rng, 2), rng.normal(size=(2, 3))
    # x stays, the world's z becomes y, its y becomes -z.
    swap = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]])
    upright = features(swap @ rotation, translation @ swap.T, up="y")
    np.testing.assert_allclose(upright, features(rotation, translation), atol=1e-5)


@pytest.mark.parametrize("tilt", [0.0, 1e-5])
@pytest.mark.parametrize("angle", [0.0, 1.0, -2.5])
def test_a_camera_that_looks_straight_down(angle, tilt):
    down = np.array([[1, 0, 0], [0, -1, 0], [0, 0, -1]])
    camera = yaw(angle) @ down
    camera[0, 2] += tilt
    frame = first_camera_frame(camera, np.array([1.0, 2, 3]))
    top_of_image = -camera[:, 1]
    np.testing.assert_allclose(frame.directions(top_of_image), [0, 1, 0], atol=1e-6)
    np.testing.assert_allclose(frame.rotation @ frame.rotation.T, np.eye(3), atol=1e-6)
    np.testing.assert_array_equal(frame.points(np.array([1.0, 2, 3])), [0, 0, 0])


def test_missing_parts_are_zero():
    entry = {"images": ["a", "b"], "question": "q", "image_size": [640, 480]}
    assert geometry_features(parse_record(entry, "o"), [0], Framing(112, 112)) is None
    k = [[500, 0, 320, 0, 500, 240, 0, 0, 1]] * 2
    histogram = [[0.5, 0.5] + [0] * 14, [0] * 15 + [1]]
    record = parse_record({**entry, "geom_token": {"K": k}}, "o")
    rows = geometry_features(record, [0, 1], Framing(112, 112))
    assert not rows[:, :12].any() and not rows[:, 21:].any() and rows[:, 12:21].any()
    # The centre of the image stays the centre of the square, half its side.
    np.testing.assert_allclose(rows[0, 12:21].reshape(3, 3)[:2, 2], 0.5, atol=0.01)
    record = parse_record({**entry, "geom_token": {"depth_hist": histogram}}, "o")
    rows = geometry_features(record, [1], Framing(112, 112))
    assert not rows[:, :21].any()
    np.testing.assert_array_equal(rows[0, 21:], histogram[1])


def test_intrinsics_need_the_image_size():
    token = {"K": [[500, 0, 320, 0, 500, 240, 0, 0, 1]]}
    record = parse_record({"images": ["a"], "question": "q", "geom_token": token}, "f.jsonl:3")
    with pytest.raises(UserError, match=r"f\.jsonl:3: .*needs 'image_size'"):
        geometry_features(record, [0], Framing(112, 112))


def test_depths_beyond_the_range_count_for_the_last_bin():
    depth = np.array([[0.0, np.nan, 0.1, 0.5], [9.9, 10.0, 12.0, -1.0]])
    histogram = depth_histogram(depth)
    assert histogram.sum() == pytest.approx(1) and histogram[0] == pytest.approx(2 / 5)
    assert histogram[-1] == pytest.approx(3 / 5)
    assert not depth_histogram(np.zeros((2, 2))).any()


def test_points_are_in_an_image_that_is_wider_than_high():
    geometry = {
        "R": np.float32([np.eye(3).ravel()]),
        "t": np.zeros((1, 3), np.float32),
        "K": np.float32([[100, 0, 320, 0, 100, 240, 0, 0, 1]]),
    }
    # At 1 m, the image reaches 3.2 m to the sides and 2.4 m up and down.
    points = np.array(
        [[3.1, 0, 1], [-3.1, 0, 1], [3.3, 0, 1], [0, 2.3, 1], [0, 3.1, 1], [0, 0, -1]]
    )
    inside = looked_at(points, geometry, (640, 480))[:, 0]
    assert inside.tolist() == [True, True, False, True, False, False]
