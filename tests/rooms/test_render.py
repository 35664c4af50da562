"""Rendering: geometry that agrees between views, labels and colours that can be trusted."""

import numpy as np
import pytest

from jaxvlm.render.raycast import render
from jaxvlm.rooms.cameras import room_cameras
from jaxvlm.rooms.labels import COLOUR_LABELS, COLOURS, KIND_LABELS, KINDS, SHELL_LABELS
from jaxvlm.rooms.layout import generate_room
from jaxvlm.rooms.mesh import room_mesh
from jaxvlm.rooms.views import render_views


def project(points: np.ndarray, pose: np.ndarray, K: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels [N,2] and depths [N] of world points."""
    local = (points - pose[:3, 3]) @ pose[:3, :3]
    image = local @ K.T
    return image[:, :2] / image[:, 2:], local[:, 2]


def unproject(depth: np.ndarray, pose: np.ndarray, K: np.ndarray) -> np.ndarray:
    """World points [H,W,3] of all pixel centres."""
    height, width = depth.shape
    u, v = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    local = np.stack([(u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1], np.ones_like(u)], -1)
    return (local * depth[..., None]) @ pose[:3, :3].T + pose[:3, 3]


@pytest.mark.parametrize("index", range(4))
def test_views_agree_on_the_world(index):
    """A point of one view lies at the depth the other view shows, or behind what hides it."""
    views = render_views(generate_room(0, "train", index), 4, 96)
    for a, b in ((1, 2), (2, 3), (0, 1), (3, 0)):
        points = unproject(views["depth"][a], views["cam_to_world"][a], views["K"][a])
        shared = views["depth"][a] > 0
        if b == 0:  # seen from above, the nearer walls and the ceiling are not there
            label = views["kind_map"][a]
            shared = (label == KIND_LABELS.index("floor")) | (label >= len(SHELL_LABELS))
        points = points[shared]
        pixels, depths = project(points, views["cam_to_world"][b], views["K"][b])
        columns, rows = np.floor(pixels).astype(int).T
        inside = (depths > 0.1) & (pixels.min(1) >= 1) & (pixels.max(1) < 95)
        shown = views["depth"][b][rows[inside], columns[inside]]
        error = depths[inside] - shown
        agree = np.abs(error) < 0.02 + 0.03 * depths[inside]
        # At outlines the nearest of the pixels around counts.
        steps = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
        around = [views["depth"][b][rows[inside] + i, columns[inside] + j] for i, j in steps]
        in_front = (depths[inside] < np.min(around, axis=0) * 0.95 - 0.1) & (shown > 0)
        assert agree.mean() > 0.3
        assert in_front.mean() < 0.01


def test_floor_depth_unprojects_to_the_floor():
    views = render_views(generate_room(0, "train", 5), 3, 64)
    floor = views["kind_map"] == KIND_LABELS.index("floor")
    assert floor.sum() > 500
    for view in range(3):
        points = unproject(views["depth"][view], views["cam_to_world"][view], views["K"][view])
        heights = points[floor[view]][:, 2]
        assert np.abs(heights).max() < 1e-3


def test_object_pixels_unproject_into_their_boxes():
    room = generate_room(0, "train", 3)
    views = render_views(room, 3, 96)
    for view in range(3):
        points = unproject(views["depth"][view], views["cam_to_world"][view], views["K"][view])
        for i, thing in enumerate(room.objects):
            mine = points[views["object_index"][view] == i] - thing.centre
            across = mine[:, :2] @ np.array([thing.front[1], -thing.front[0]])
            ahead = mine[:, :2] @ thing.front
            local = np.stack([across, ahead, mine[:, 2]], -1)
            assert (np.abs(local) <= np.array(thing.size) / 2 * 1.08 + 0.03).all()


def test_bird_view_holds_the_whole_room():
    for index in range(20):
        room = generate_room(0, "val", index)
        camera = room_cameras(room_mesh(room), 1)[0]
        outline = room.plan.outline
        corners = np.concatenate([np.c_[outline, np.full(len(outline), z)] for z in (0, 2.4)])
        pixels, _ = project(corners, camera.cam_to_world, camera.intrinsics(100, 100))
        assert pixels.min() > 0 and pixels.max() < 100
        assert np.ptp(pixels, axis=0).max() > 80


def test_poses_are_rotations_and_inside_cameras_are_inside():
    for index in range(10):
        room = generate_room(0, "test", index)
        for number, camera in enumerate(room_cameras(room_mesh(room), 4)):
            rotation = camera.cam_to_world[:3, :3]
            np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-9)
            assert np.linalg.det(rotation) == pytest.approx(1)
            if number:
                x, y, height = camera.cam_to_world[:3, 3]
                assert room.plan.contains(np.array([x, y])) and 1.4 <= height <= 1.7
                assert camera.cam_to_world[2, 0] == pytest.approx(0)


def test_fewer_views_are_a_prefix_and_renders_repeat():
    room = generate_room(0, "train", 9)
    few, many = render_views(room, 2, 48), render_views(room, 4, 48)
    for name in few:
        np.testing.assert_array_equal(few[name], many[name][:2])


def test_shapes_types_and_labels():
    room = generate_room(0, "train", 2)
    views = render_views(room, 3, (80, 48))
    assert views["rgb"].shape == (3, 48, 80, 3) and views["rgb"].dtype == np.uint8
    assert views["depth"].shape == (3, 48, 80) and views["depth"].dtype == np.float32
    assert views["K"][0, :2, 2].tolist() == [40, 24]
    shown = views["object_index"] >= 0
    assert shown.any() and views["object_index"].dtype == np.int16
    kinds = np.array([KIND_LABELS.index(thing.kind) for thing in room.objects])
    colours = np.array([COLOUR_LABELS.index(thing.colour) for thing in room.objects])
    index = views["object_index"][shown]
    np.testing.assert_array_equal(views["kind_map"][shown], kinds[index])
    np.testing.assert_array_equal(views["colour_map"][shown], colours[index])
    assert set(np.unique(views["colour_map"][~shown])) <= {0, 1}
    assert (views["kind_map"][~shown] < len(SHELL_LABELS)).all()
    np.testing.assert_array_equal(views["kind_map"] == 0, views["depth"] == 0)


def test_supersampling_and_shadows_change_colour_only():
    room = generate_room(0, "train", 4)
    mesh = room_mesh(room)
    camera = room_cameras(mesh, 2)[1]
    plain, fine = render(mesh, camera, 48), render(mesh, camera, 48, 2, shadows=True)
    np.testing.assert_array_equal(plain.depth, fine.depth)
    np.testing.assert_array_equal(plain.object_index, fine.object_index)
    assert (plain.rgb != fine.rgb).any()
    assert fine.rgb.mean() < plain.rgb.mean()


def test_named_colours_dominate_and_stay_apart():
    """For most objects, more pixels look like the named colour, lit or in shade, than another."""
    names, table = list(COLOURS), np.array(list(COLOURS.values()))
    table = np.concatenate([table, 0.75 * table])
    right = {kind: [] for kind in KINDS}
    for index in range(40):
        room = generate_room(2, "train", index)
        views = render_views(room, 3, 64)
        for i, thing in enumerate(room.objects):
            pixels = views["rgb"][views["object_index"] == i] / 255
            if len(pixels) >= 25:
                nearest = ((pixels[:, None] - table) ** 2).sum(-1).argmin(1) % len(names)
                counts = np.bincount(nearest, minlength=len(names))
                right[thing.kind].append(names[int(counts.argmax())] == thing.colour)
    assert np.mean(np.concatenate(list(right.values()))) > 0.9
    for kind, hits in right.items():
        assert len(hits) > 3 and np.mean(hits) > 0.7, kind
