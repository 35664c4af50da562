"""Frames: actions move there and back, and mean the same point to every camera."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from jaxvlm.data.actions import language
from jaxvlm.data.actions.fields import DIRECTION, LENGTH, POINT
from jaxvlm.data.actions.language import Schema
from jaxvlm.data.boxes import Box, box_axes, place_anchor, record_box, world_box
from jaxvlm.data.frames import Frame, first_camera_frame, move_action, upright, with_axis
from jaxvlm.data.framing import Framing
from jaxvlm.data.geometry import geometry_features
from jaxvlm.data.record import parse_record

SEEDS = st.integers(0, 2**32 - 1)


def rotation(rng) -> np.ndarray:
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q = q * np.sign(np.diagonal(r))
    return q * np.sign(np.linalg.det(q))


def action(rng, up: str) -> dict:
    angle = rng.uniform(0, 2 * np.pi)
    normal = upright(up).T @ np.array([np.cos(angle), np.sin(angle), 0])
    return {
        "action": "place_anchor",
        "scene": "s",
        "center": rng.normal(size=3).round(3).tolist(),
        "normal": normal.tolist(),
        "extent": [1.0, 0.5, 0.25],
    }


@settings(deadline=None)
@given(SEEDS, st.sampled_from("zy"))
def test_an_action_goes_there_and_back(seed, up):
    rng = np.random.default_rng(seed)
    frame = first_camera_frame(rotation(rng), rng.normal(size=3), up)
    before = action(rng, up)
    there = move_action(before, frame)
    assert there["normal"][2] == pytest.approx(0, abs=1e-4)
    back = move_action(there, frame.inverse())
    for name in ("center", "normal"):
        np.testing.assert_allclose(back[name], before[name], atol=3e-4)
    assert back["extent"] == before["extent"] and back["scene"] == "s"
    point = rng.normal(size=3)
    homogeneous = frame.to_world() @ [*frame.points(point), 1]
    np.testing.assert_allclose(homogeneous[:3], point, atol=1e-9)
    again = Frame.from_world(frame.to_world())
    np.testing.assert_allclose(again.points(point), frame.points(point), atol=1e-9)


@settings(deadline=None)
@given(SEEDS, st.booleans(), st.booleans())
def test_a_box_keeps_its_corners_whichever_frame_it_is_told_in(seed, level, down):
    """Also a table's top, whose heading no normal tells."""
    rng = np.random.default_rng(seed)
    frame = first_camera_frame(rotation(rng), rng.normal(size=3))
    angle = rng.uniform(0, 2 * np.pi)
    side = np.array([np.cos(angle), np.sin(angle), 0])
    normal = np.array([0, 0, -1.0 if down else 1.0]) if level else side
    axes = box_axes(normal, side if level and seed % 2 else None)
    np.testing.assert_allclose(axes @ axes.T, np.eye(3), atol=1e-9)
    assert np.linalg.det(axes) > 0
    box = Box("b", "plane", "top", rng.normal(size=3), axes, np.array([2.0, 0.5, 0.1]))
    entry = {"images": ["a"], "instruction": "Place it."}
    moved = place_anchor(box, "s", frame)
    seen = record_box(parse_record({**entry, "action_json": moved}, "o"))
    np.testing.assert_allclose(seen.corners(), frame.points(box.corners()), atol=1e-3)
    back = record_box(
        parse_record({**entry, "action_json": move_action(moved, frame.inverse())}, "o")
    )
    np.testing.assert_allclose(back.corners(), box.corners(), atol=1e-3)


def test_a_level_surface_without_an_axis_means_the_worlds_x():
    frame = Frame(np.array([[0, 1, 0], [-1, 0, 0], [0, 0, 1.0]]), np.zeros(3))
    action = {"center": [0, 0, 1], "normal": [0, 0, 1], "extent": [2, 1, 0.1]}
    for none in ({}, {"axis": None}):
        assert move_action(with_axis(action | none), frame)["axis"] == [0, -1, 0]
    assert "axis" not in with_axis({**action, "normal": [1, 0, 0]})
    # In a y-up world a wall's normal may be z.
    assert "axis" not in with_axis(action, up="y")
    assert with_axis({**action, "normal": [0, 1, 0]}, up="y")["axis"] == [1, 0, 0]
    assert with_axis({**action, "axis": [0, 1, 0]})["axis"] == [0, 1, 0]


def test_actions_of_ones_own_move_by_what_their_fields_are(monkeypatch):
    monkeypatch.setitem(
        language.ACTIONS, "measure", Schema({"start": POINT, "end": POINT, "length": LENGTH})
    )
    monkeypatch.setitem(
        language.ACTIONS, "place_plane", Schema({"center": POINT, "normal": DIRECTION})
    )
    # A camera that looks along -x; its frame's y is that direction.
    geometry = {"R": [[0, 0, -1, -1, 0, 0, 0, -1, 0]], "t": [[5, 5, 1]]}
    entry = {"images": ["a"], "instruction": "Do.", "scene_id": "s", "geom_token": geometry}
    line = {"action": "measure", "scene": "s", "start": [4, 5, 1], "end": [5, 7, 1], "length": 2}
    plane = {"action": "place_plane", "scene": "s", "center": [5, 5, 0], "normal": [0, 0, 1]}
    learnt = [
        parse_record({**entry, "action_json": each}, "o").learnt_action() for each in (line, plane)
    ]
    assert learnt[0] == {**line, "start": [0, 1, 0], "end": [2, 0, 0]}
    # It has no axis that would tell how it lies.
    assert learnt[1] == {**plane, "center": [0, 0, -1]}
    assert language.problem(learnt[1]) is None


@settings(deadline=None)
@given(SEEDS, st.sampled_from("zy"))
def test_what_is_learnt_is_where_the_geometry_tokens_say(seed, up):
    """The action's text and the views' features are in one frame, whatever the record's was."""
    rng = np.random.default_rng(seed)
    rotations, positions = [rotation(rng) for _ in range(2)], rng.normal(size=(2, 3))
    entry = {
        "images": ["a", "b"],
        "instruction": "Place it.",
        "action_json": action(rng, up),
        "geom_token": {"R": [r.ravel().tolist() for r in rotations], "t": positions.tolist()},
        "up": up,
    }
    record = parse_record(entry, "o")
    features = geometry_features(record, [0, 1], Framing(112, 112))
    learnt = np.array(record.learnt_action()["center"])
    for view in range(2):
        in_camera = rotations[view].T @ (np.array(entry["action_json"]["center"]) - positions[view])
        turn, place = features[view, :9].reshape(3, 3), features[view, 9:12]
        np.testing.assert_allclose(turn.T @ (learnt - place), in_camera, atol=1e-3)
    assert record.action == entry["action_json"]


def test_the_originals_convention_is_the_numbers_as_recorded():
    rng = np.random.default_rng(0)
    token = {
        name: rng.uniform(1, 2, (2, width)).tolist()
        for name, width in (("R", 9), ("t", 3), ("K", 9), ("depth_hist", 16))
    }
    record = parse_record({"images": ["a", "b"], "question": "q", "geom_token": token}, "o")
    rows = geometry_features(record, [1], Framing(112, 112), "original")
    expected = np.concatenate([token[n][1] for n in ("R", "t", "K", "depth_hist")])
    np.testing.assert_allclose(rows[0], expected, rtol=1e-6)


@pytest.mark.parametrize("up", "zy")
def test_a_box_in_the_world_stands_upright_whichever_axis_is_up(up):
    action = {"action": "place_anchor", "scene": "s", "center": [1, 2, 3], "extent": [2, 1, 0.5],
              "normal": [1, 0, 0]}  # fmt: skip
    entry = {"images": ["a"], "instruction": "Do.", "scene_id": "s", "action_json": action}
    plain = parse_record({**entry, "up": up}, "o")
    moved = parse_record({**entry, "up": up, "frame_to_world": np.eye(4).tolist()}, "o")
    expected = record_box(plain)
    for found in (world_box(plain, action), world_box(moved, action)):
        np.testing.assert_allclose(found.centre, expected.centre)
        np.testing.assert_allclose(found.axes, expected.axes)
