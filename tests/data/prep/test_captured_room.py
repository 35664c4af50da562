"""Boxes written like a RoomPlan export are the boxes that its reader finds."""

import json

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from jaxvlm.data.boxes import Box, box_axes
from jaxvlm.data.prep.captured_room import captured_room
from jaxvlm.data.prep.roomplan import read_roomplan
from jaxvlm.metrics.overlap import intersection_over_union

CATEGORIES = ("chair", "coffee table", "washing machine", "TV", "door", "window", "wall")


@st.composite
def boxes(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    angle = rng.uniform(0, 2 * np.pi)
    level = draw(st.sampled_from((0.0, 1.0, -1.0)))
    normal = np.array([np.cos(angle), np.sin(angle), 0]) if not level else np.array([0, 0, level])
    axis = np.array([np.sin(angle), np.cos(angle), 0])
    category = draw(st.sampled_from(CATEGORIES))
    size = rng.uniform(0.2, 3, 3)
    if category in ("door", "window", "wall"):
        normal, size[2] = np.array([np.cos(angle), np.sin(angle), 0]), 0.1
    return Box(category, "object", category, rng.normal(size=3), box_axes(normal, axis), size)


@settings(max_examples=50, deadline=None)
@given(st.lists(boxes(), min_size=1, max_size=4, unique_by=lambda box: tuple(box.centre)))
def test_the_reader_finds_what_was_written(tmp_path_factory, written):
    path = tmp_path_factory.mktemp("room") / "room.json"
    path.write_text(json.dumps(captured_room(written, "a scene")))
    found = read_roomplan(path).boxes
    assert len(found) == len(written)
    for box in written:
        other = min(found, key=lambda each: np.linalg.norm(each.centre - box.centre))
        assert other.category == box.category
        assert intersection_over_union(box, other) > 0.99
        if abs(box.axes[2, 2]) < 0.5:
            np.testing.assert_allclose(other.axes, box.axes, atol=1e-4)


def test_it_looks_like_an_export():
    axes = box_axes(np.array([0.0, 1, 0]))
    box = Box("tv", "object", "TV", np.array([1.0, 2, 0.5]), axes, np.array([1.2, 0.7, 0.1]))
    room = captured_room([box], "s")
    (entry,) = room["objects"]
    assert entry["category"] == {"television": {}} and entry["confidence"] == {"high": {}}
    assert entry["dimensions"] == [1.2, 0.7, 0.1]
    # Column-major, y up: the position stands last.
    assert entry["transform"][12:] == [1.0, 0.5, -2.0, 1.0]
    assert {"walls", "doors", "windows", "openings", "objects", "floors", "sections", "story",
            "version", "referenceOriginTransform"} <= room.keys()  # fmt: skip


AXES = box_axes(np.array([0.0, 1, 0]))


def written_and_read(tmp_path, name: str) -> tuple[str, str]:
    """A category's key in the file, and the category that is read there."""
    room = captured_room([Box("x", "object", name, np.zeros(3), AXES, np.ones(3))], "s")
    (tmp_path / "room.json").write_text(json.dumps(room))
    (key,) = room["objects"][0]["category"]
    return key, read_roomplan(tmp_path / "room.json").boxes[0].category


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("coffee table", "coffeeTable"),
        ("TV stand", "TV stand"),
        ("LED lamp", "LED lamp"),
        ("café table", "café table"),
        ("椅子", "椅子"),
        ("", ""),
        ("Chair", "Chair"),
        ("t-shirt", "t-shirt"),
        ("macBook", '"macBook"'),
        ('"', '"'),
        ('"chair"', '""chair""'),
        ("washing machine", "washerDryer"),
        ("chair", "chair"),
    ],
)
def test_a_name_has_a_key(tmp_path, name, key):
    assert written_and_read(tmp_path, name) == (key, name)


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])) | st.from_regex(r"[a-zA-Z0-9 \"]*"))
def test_every_name_is_read_back(tmp_path_factory, name):
    # What is a word of RoomPlan's own is read in our words.
    own = {"television": "TV", "storage": "storage unit", "washer dryer": "washing machine"}
    if name not in {"wall", "door", "window", "opening"}:
        folder = tmp_path_factory.mktemp("named")
        assert written_and_read(folder, name)[1] == own.get(name, name)


def test_what_is_predicted_to_be_tilted_stands_upright(tmp_path):
    tilted = box_axes(np.array([0.0, 0.8, 0.6]))
    door = Box("door", "object", "door", np.zeros(3), tilted, np.array([0.9, 2.0, 0.1]))
    (tmp_path / "room.json").write_text(json.dumps(captured_room([door], "s")))
    (read,) = read_roomplan(tmp_path / "room.json").boxes
    np.testing.assert_allclose(read.axes, AXES, atol=1e-6)
