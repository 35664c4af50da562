"""Layout: the same room every time, nothing through anything else."""

import numpy as np
import pytest

from jaxvlm.errors import UserError
from jaxvlm.rooms.furniture import BUILDERS, FURNITURE, build
from jaxvlm.rooms.labels import COLOURS, KINDS
from jaxvlm.rooms.layout import LEAST_OBJECTS, MOST_OBJECTS, generate_room
from jaxvlm.rooms.scene import Plan, Room, RoomObject

ROOMS = [generate_room(0, "train", index) for index in range(60)]


def facts(room: Room) -> list[tuple]:
    return [(o.kind, o.colour, *o.centre, *o.size, o.yaw, o.support) for o in room.objects]


def grid_points(thing: RoomObject, steps: int = 15) -> np.ndarray:
    """Points [S·S,2] spread over a footprint, edges included."""
    along = np.linspace(0, 1, steps)
    a, b, _, d = thing.footprint
    u, v = np.meshgrid(along, along)
    return (a + u[..., None] * (b - a) + v[..., None] * (d - a)).reshape(-1, 2)


def inside_box(points: np.ndarray, thing: RoomObject) -> np.ndarray:
    offset = points - thing.centre[:2]
    ahead = offset @ thing.front
    across = offset @ np.array([thing.front[1], -thing.front[0]])
    return (np.abs(across) < thing.size[0] / 2) & (np.abs(ahead) < thing.size[1] / 2)


def inside_outline(points: np.ndarray, outline: np.ndarray) -> np.ndarray:
    """Crossing-number test, written apart from the generator's own."""
    inside = np.zeros(len(points), bool)
    for (ax, ay), (bx, by) in zip(outline, np.roll(outline, -1, axis=0), strict=True):
        crosses = (ay > points[:, 1]) != (by > points[:, 1])
        at = ax + (points[:, 1] - ay) / (by - ay if by != ay else 1) * (bx - ax)
        inside ^= crosses & (points[:, 0] < at)
    return inside


def test_same_key_same_room():
    assert facts(generate_room(3, "val", 7)) == facts(generate_room(3, "val", 7))


def test_splits_seeds_and_indices_differ():
    rooms = [
        generate_room(seed, split, index)
        for seed in (0, 1)
        for split in ("train", "val", "test", "pretrain")
        for index in (0, 1)
    ]
    assert len({str(facts(room)) for room in rooms}) == len(rooms)


def test_unknown_split_is_refused():
    with pytest.raises(UserError, match="unknown split 'dev'"):
        generate_room(0, "dev", 0)


def test_number_of_objects_and_both_plans():
    assert all(LEAST_OBJECTS <= len(room.objects) <= MOST_OBJECTS for room in ROOMS)
    assert 0 < sum(room.plan.notch is not None for room in ROOMS) < len(ROOMS)


def test_objects_do_not_run_through_each_other_or_the_walls():
    for room in ROOMS:
        for i, thing in enumerate(room.objects):
            points = grid_points(thing)
            if thing.support < 0:
                assert inside_outline(points, room.plan.outline).all(), (room.key, thing)
            for j, other in enumerate(room.objects):
                if i != j and thing.support == other.support:
                    assert not inside_box(points, other).any(), (room.key, thing, other)


def test_what_stands_on_something_rests_on_its_face():
    carried = [(room, o) for room in ROOMS for o in room.objects if o.support >= 0]
    assert len(carried) > 30
    for room, thing in carried:
        host = room.objects[thing.support]
        surface = FURNITURE[host.kind].surface
        assert surface is not None
        assert thing.bottom == pytest.approx(surface * host.size[2])
        assert inside_box(thing.footprint * 0.999 + thing.centre[:2] * 0.001, host).all()


def test_the_way_through_the_door_is_free():
    for room in ROOMS:
        (door,) = room.opening("door")
        for reach in (0.1, 0.4, 0.75):
            spot = (door.centre[:2] + reach * door.wall.inward)[None]
            assert not any(inside_box(spot, thing).any() for thing in room.objects)


def test_outline_walls_face_the_floor():
    notches = [None, (1, 2, 0.5, 1.5), (-2, -1, 0.5, 1.5), (1, 2, -1.5, -0.5), (-2, -1, -1.5, -0.5)]
    for notch in notches:
        plan = Plan(4.0, 3.0, 2.5, notch)
        assert len(plan.walls) == (4 if notch is None else 6)
        area = sum((x1 - x0) * (y1 - y0) for x0, x1, y0, y1 in plan.floors)
        assert area == pytest.approx(12.0 - (notch is not None))
        for wall in plan.walls:
            assert plan.contains((wall.start + wall.end) / 2 + 0.05 * wall.inward)


def test_kinds_and_colours_are_nearly_uniform():
    rooms = [generate_room(1, "train", index) for index in range(250)]
    kinds = [KINDS.index(thing.kind) for room in rooms for thing in room.objects]
    colours = [list(COLOURS).index(thing.colour) for room in rooms for thing in room.objects]
    for drawn, total in ((kinds, len(KINDS)), (colours, len(COLOURS))):
        shares = np.bincount(drawn, minlength=total) / len(drawn) * total
        assert shares.min() > 0.6 and shares.max() < 1.5


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_fills_its_box(kind):
    """The parts reach the box that collisions and anchors use, and hardly leave it."""
    assert kind in BUILDERS
    spans = FURNITURE[kind].size
    for share in (0, 1):
        size = tuple(span[share] for span in spans)
        corners = np.concatenate([p.corners.reshape(-1, 3) for p in build(kind, size, np.ones(3))])
        box = np.array(size)
        reach = corners.max(0) - corners.min(0)
        assert (reach > 0.8 * box).all(), reach / box
        assert (reach < 1.08 * box + 0.03).all(), reach / box
        assert corners[:, 2].min() == pytest.approx(0, abs=0.03)
