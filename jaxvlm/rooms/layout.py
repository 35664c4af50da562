"""Furnishing a room: plan, doors and windows, then objects placed without collision."""

from collections.abc import Sequence
from itertools import count

import numpy as np

from jaxvlm.rooms.furniture import FURNITURE, SITTABLE, Kind
from jaxvlm.rooms.labels import COLOURS, KINDS
from jaxvlm.rooms.scene import Opening, Plan, Room, RoomObject, Wall, gap, make_key, rectangle

LEAST_OBJECTS, MOST_OBJECTS = 4, 10
CLEARANCE = 0.08
DOOR_ROOM = 0.8
COLOUR_JITTER = 0.025

WALL_TINTS = (
    (0.80, 0.77, 0.70),
    (0.70, 0.77, 0.80),
    (0.74, 0.79, 0.72),
    (0.80, 0.74, 0.74),
    (0.76, 0.74, 0.80),
    (0.78, 0.78, 0.76),
)
FLOOR_TINTS = (
    (0.68, 0.56, 0.43),
    (0.60, 0.60, 0.61),
    (0.70, 0.64, 0.54),
    (0.56, 0.53, 0.48),
    (0.62, 0.65, 0.66),
)
FLOOR_PATTERNS = ("plain", "planks", "tiles")
DOOR_TINTS = ((0.66, 0.52, 0.38), (0.86, 0.85, 0.82), (0.58, 0.60, 0.62))


def generate_room(seed: int, split: str, index: int) -> Room:
    """The room number `index` of a split, the same on every machine and in any order."""
    key = make_key(seed, split, index)
    rng = key.rng("layout")
    for _ in count():
        plan = _draw_plan(rng)
        openings = _draw_openings(rng, plan)
        objects = _furnish(rng, plan, openings)
        if len(objects) >= LEAST_OBJECTS:
            return Room(
                key,
                plan,
                tuple(openings),
                tuple(objects),
                wall_rgb=_jitter(rng, WALL_TINTS[rng.integers(len(WALL_TINTS))]),
                floor_rgb=_jitter(rng, FLOOR_TINTS[rng.integers(len(FLOOR_TINTS))]),
                floor_pattern=FLOOR_PATTERNS[rng.integers(len(FLOOR_PATTERNS))],
                door_rgb=_jitter(rng, DOOR_TINTS[rng.integers(len(DOOR_TINTS))]),
            )
    raise AssertionError("unreachable")


def _draw_plan(rng: np.random.Generator) -> Plan:
    width, depth = rng.uniform(3.5, 5.6, 2)
    height = rng.uniform(2.4, 2.7)
    if min(width, depth) < 4.2 or rng.random() < 0.5:
        return Plan(width, depth, height, None)
    cut_x, cut_y = width * rng.uniform(0.3, 0.45), depth * rng.uniform(0.3, 0.45)
    x, y = width / 2, depth / 2
    span_x = (x - cut_x, x) if rng.random() < 0.5 else (-x, -x + cut_x)
    span_y = (y - cut_y, y) if rng.random() < 0.5 else (-y, -y + cut_y)
    return Plan(width, depth, height, (*span_x, *span_y))


def _draw_openings(rng: np.random.Generator, plan: Plan) -> list[Opening]:
    """One door and one or two windows, on different walls."""
    walls = [wall for wall in plan.walls if wall.length > 1.6]
    order = [walls[i] for i in rng.permutation(len(walls))]
    openings = [_draw_opening(rng, "door", order[0])]
    for wall in order[1 : 2 + int(rng.random() < 0.4)]:
        openings.append(_draw_opening(rng, "window", wall))
    return openings


def _draw_opening(rng: np.random.Generator, kind: str, wall: Wall) -> Opening:
    if kind == "door":
        width, bottom, top = 0.9, 0.0, 2.05
    else:
        width, bottom, top = min(rng.uniform(1.0, 1.7), wall.length - 0.5), 0.95, 2.05
    edge = width / 2 + 0.2
    return Opening(kind, wall, rng.uniform(edge, wall.length - edge), width, bottom, top)


def _furnish(rng: np.random.Generator, plan: Plan, openings: Sequence[Opening]) -> list[RoomObject]:
    floor_area = sum((x1 - x0) * (y1 - y0) for x0, x1, y0, y1 in plan.floors)
    most = MOST_OBJECTS if floor_area > 14 else MOST_OBJECTS - 2
    kinds = _draw_kinds(rng, int(rng.integers(LEAST_OBJECTS + 2, most + 1)))
    colours = _draw_colours(rng, len(kinds))
    objects: list[RoomObject] = []
    by_size = sorted(range(len(kinds)), key=lambda i: -_largest_footprint(FURNITURE[kinds[i]]))
    for i in by_size:
        kind, colour = kinds[i], colours[i]
        rgb = _jitter(rng, COLOURS[colour])
        wants_top = rng.random() < (0.85 if kind == "laptop" else 0.55)
        spot = _spot_on_top(rng, kind, objects) if wants_top else None
        spot = spot or _spot_on_floor(rng, kind, plan, openings, objects)
        if spot is not None:
            objects.append(RoomObject(kind, colour, rgb, *spot))
    return objects


def _draw_kinds(rng: np.random.Generator, total: int) -> list[str]:
    """Mostly different kinds; half of the rooms repeat one kind up to four times."""
    order = [KINDS[i] for i in rng.permutation(len(KINDS))]
    if rng.random() < 0.5:
        copies = min(int(rng.integers(2, 5)), total - 2)
        repeatable = [kind for kind in KINDS if not FURNITURE[kind].against_wall]
        repeated = repeatable[rng.integers(len(repeatable))]
        others = [kind for kind in order if kind != repeated]
        return [repeated] * copies + others[: total - copies]
    return order[:total]


def _draw_colours(rng: np.random.Generator, total: int) -> list[str]:
    """Uniform colours; a third of the rooms favour one, so that some counts are large."""
    names = list(COLOURS)
    colours = [names[i] for i in rng.integers(len(names), size=total)]
    if rng.random() < 0.33:
        favourite = names[rng.integers(len(names))]
        colours = [favourite if rng.random() < 0.35 else colour for colour in colours]
    return colours


def _jitter(rng: np.random.Generator, rgb: Sequence[float]) -> np.ndarray:
    return (np.array(rgb) + rng.uniform(-COLOUR_JITTER, COLOUR_JITTER, 3)).clip(0.03, 1.0)


def _draw_size(rng: np.random.Generator, spans: Sequence) -> tuple[float, float, float]:
    """Small things keep their proportions (one draw), within a little jitter."""
    share = rng.random()
    shares = np.clip(share + rng.uniform(-0.15, 0.15, 3), 0, 1)
    width, depth, height = (
        low + s * (high - low) for (low, high), s in zip(spans, shares, strict=True)
    )
    if spans[0] == spans[1]:
        depth = width
        if spans[1] == spans[2]:
            height = width
    return float(width), float(depth), float(height)


def _largest_footprint(kind: Kind) -> float:
    (_, width), (_, depth), _ = kind.size
    return width * depth + (10 if kind.against_wall else 0) + (5 if kind.surface else 0)


def _spot_on_floor(
    rng: np.random.Generator,
    kind: str,
    plan: Plan,
    openings: Sequence[Opening],
    objects: Sequence[RoomObject],
) -> tuple | None:
    habits = FURNITURE[kind]
    standing = [thing.footprint for thing in objects if thing.support < 0]
    doorway = [_keep_free(opening) for opening in openings if opening.kind == "door"]
    for _ in range(40):
        size = _draw_size(rng, habits.size)
        if habits.against_wall:
            centre, yaw = _along_wall(rng, size, plan)
        else:
            centre, yaw = _anywhere(rng, kind, plan)
        outline = rectangle(centre, size[:2], yaw)
        if not _fits(outline, plan):
            continue
        if any(gap(outline, other) < CLEARANCE for other in standing):
            continue
        if any(gap(outline, other) == 0 for other in doorway):
            continue
        if size[2] > 1.15 and any(gap(outline, _keep_free(o, 0.4)) == 0 for o in openings):
            continue
        return np.array([*centre, size[2] / 2]), size, yaw
    return None


def _along_wall(rng: np.random.Generator, size: tuple, plan: Plan) -> tuple[np.ndarray, float]:
    walls = plan.walls
    wall = walls[rng.integers(len(walls))]
    at = rng.uniform(size[0] / 2, max(size[0] / 2, wall.length - size[0] / 2))
    back = size[1] / 2 + rng.uniform(0.03, 0.08)
    centre = wall.start + at * wall.along + back * wall.inward
    return centre, float(np.arctan2(-wall.inward[0], wall.inward[1]))


def _anywhere(rng: np.random.Generator, kind: str, plan: Plan) -> tuple[np.ndarray, float]:
    half = np.array([plan.width, plan.depth]) / 2
    share = 0.7 if kind == "table" else 1.0
    centre = rng.uniform(-half * share, half * share)
    if kind == "table":
        return centre, float(rng.integers(4) * np.pi / 2 + rng.uniform(-0.1, 0.1))
    # Most fronts turn towards the middle, where they are seen.
    towards = np.arctan2(centre[0], -centre[1])
    return centre, float(towards + rng.uniform(-1.2, 1.2))


def _fits(outline: np.ndarray, plan: Plan) -> bool:
    if not plan.contains(outline, margin=0.02).all():
        return False
    if plan.notch is None:
        return True
    x0, x1, y0, y1 = plan.notch
    return gap(outline, np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])) > 0.02


def _keep_free(opening: Opening, reach: float = DOOR_ROOM) -> np.ndarray:
    wall = opening.wall
    middle = opening.centre[:2] + wall.inward * reach / 2
    yaw = float(np.arctan2(wall.along[1], wall.along[0]))
    return rectangle(middle, (opening.width, reach), yaw)


def _spot_on_top(
    rng: np.random.Generator, kind: str, objects: Sequence[RoomObject]
) -> tuple | None:
    """A place on something that carries it, beside what is there already."""
    spans = FURNITURE[kind].top
    hosts = [i for i, thing in enumerate(objects) if FURNITURE[thing.kind].surface is not None]
    if spans is None or not hosts:
        return None
    host_order = [hosts[i] for i in rng.permutation(len(hosts))]
    for host_index in host_order:
        host = objects[host_index]
        taken = [thing.footprint for thing in objects if thing.support == host_index]
        area = _surface(host)
        if area is None or (host.kind in SITTABLE and kind in ("lamp", "flower")):
            continue
        low, high = area
        for _ in range(6):
            size = _draw_size(rng, spans)
            size = _shrunk(size, high - low)
            room_left = (high - low - np.array(size[:2])) / 2
            if (room_left < 0).any():
                break
            offset = (low + high) / 2 + rng.uniform(-room_left, room_left)
            cos, sin = np.cos(host.yaw), np.sin(host.yaw)
            centre = host.centre[:2] + np.array([[cos, -sin], [sin, cos]]) @ offset
            outline = rectangle(centre, size[:2], host.yaw)
            if any(gap(outline, other) < 0.05 for other in taken):
                continue
            height = host.bottom + FURNITURE[host.kind].surface * host.size[2]
            return np.array([*centre, height + size[2] / 2]), size, host.yaw, host_index
    return None


def _shrunk(size: tuple[float, float, float], area: np.ndarray) -> tuple[float, float, float]:
    """A little smaller where that makes it fit, in proportion."""
    share = min(1.0, area[0] / size[0], area[1] / size[1])
    return tuple(s * share for s in size) if share >= 0.75 else size


def _surface(host: RoomObject) -> tuple[np.ndarray, np.ndarray] | None:
    """Bounds (low [2], high [2]) of the carrying face in the host's local frame."""
    x, y = host.size[0] / 2, host.size[1] / 2
    low, high = np.array([-x, -y]), np.array([x, y])
    if host.kind == "bed":
        low[1], high[1] = -y + 0.65, y - 0.1
    elif host.kind == "sofa":
        low, high = np.array([-x + 0.22, -y + 0.36]), np.array([x - 0.22, y])
    elif host.kind == "chair":
        low[1] = -y + 0.08
    elif host.kind == "piano":
        high[1] = 0.08
    elif host.kind == "refrigerator":
        high[1] = y - 0.05
    return low, high
