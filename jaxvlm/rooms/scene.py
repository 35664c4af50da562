"""A room and what stands in it, as facts: plan, openings, objects. World: metres, z up."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from jaxvlm.errors import UserError

SPLITS: dict[str, int] = {"train": 0, "val": 1, "test": 2, "pretrain": 3}
# Rooms of one split are numbered so far apart; no divisor of ten, so that all digits occur in each.
_APART = 7
STREAMS: dict[str, int] = {"layout": 0, "cameras": 1, "questions": 2}


@dataclass(frozen=True)
class Key:
    """Which room this is; every random choice about it follows from the key alone."""

    seed: int
    split: str
    index: int

    def rng(self, stream: str) -> np.random.Generator:
        """An independent generator for one purpose (see `STREAMS`)."""
        return np.random.default_rng([self.seed, SPLITS[self.split], self.index, STREAMS[stream]])

    @property
    def scene_id(self) -> str:
        """A name that is unique across splits but does not tell the split.

        A model that has to write it down meets the same tokens in test rooms as in training rooms.
        """
        return f"room_{self.index * _APART + SPLITS[self.split]:06d}"


@dataclass(frozen=True)
class Wall:
    """One straight wall from `start` to `end` [2]; the room lies on its left."""

    start: np.ndarray
    end: np.ndarray

    @property
    def length(self) -> float:
        """Metres."""
        return float(np.linalg.norm(self.end - self.start))

    @property
    def along(self) -> np.ndarray:
        """Unit direction [2]."""
        return (self.end - self.start) / self.length

    @property
    def inward(self) -> np.ndarray:
        """Unit normal [2] into the room."""
        return np.array([-self.along[1], self.along[0]])


@dataclass(frozen=True)
class Opening:
    """A door or window in a wall; `at` is the distance of its middle from the wall's start."""

    kind: str
    wall: Wall
    at: float
    width: float
    bottom: float
    top: float

    @property
    def centre(self) -> np.ndarray:
        """World position [3] of its middle, in the plane of the wall."""
        return np.array(
            [*(self.wall.start + self.at * self.wall.along), (self.bottom + self.top) / 2]
        )


@dataclass(frozen=True)
class Plan:
    """The floor [-width/2, width/2] × [-depth/2, depth/2], less one corner for an L shape.

    `notch` is the corner cut out as (x0, x1, y0, y1), or `None` for a rectangle.
    """

    width: float
    depth: float
    height: float
    notch: tuple[float, float, float, float] | None

    @property
    def outline(self) -> np.ndarray:
        """Corners [N,2], counter-clockwise."""
        x, y = self.width / 2, self.depth / 2
        corners = [(-x, -y), (x, -y), (x, y), (-x, y)]
        if self.notch is None:
            return np.array(corners)
        x0, x1, y0, y1 = self.notch
        inner = (x0 if x1 == x else x1, y0 if y1 == y else y1)
        # The three corners that replace the missing one are met on a walk around the floor.
        cut = next(i for i, (x, y) in enumerate(corners) if x in (x0, x1) and y in (y0, y1))
        cx, cy = corners[cut]
        onto = [
            (inner[0], cy) if other[1] == cy else (cx, inner[1])
            for other in (corners[cut - 1], corners[(cut + 1) % 4])
        ]
        return np.array([*corners[:cut], onto[0], inner, onto[1], *corners[cut + 1 :]])

    @property
    def walls(self) -> list[Wall]:
        """One wall an edge of the outline."""
        outline = self.outline
        return [Wall(a, b) for a, b in zip(outline, np.roll(outline, -1, axis=0), strict=True)]

    @property
    def floors(self) -> list[tuple[float, float, float, float]]:
        """One or two rectangles (x0, x1, y0, y1) that tile the floor."""
        x, y = self.width / 2, self.depth / 2
        if self.notch is None:
            return [(-x, x, -y, y)]
        x0, x1, y0, y1 = self.notch
        beside = (-x, x0) if x1 == x else (x1, x)
        rest = (-y, y0) if y1 == y else (y1, y)
        return [(-x, x, *rest), (*beside, y0, y1)]

    def contains(self, points: np.ndarray, margin: float = 0.0) -> np.ndarray:
        """bool[...]: which `points` [...,2] lie on the floor, `margin` metres off every wall."""
        inside = (np.abs(points) <= np.array([self.width, self.depth]) / 2 - margin).all(-1)
        if self.notch is not None:
            x0, x1, y0, y1 = self.notch
            low, high = np.array([x0, y0]) - margin, np.array([x1, y1]) + margin
            inside &= ~((points > low) & (points < high)).all(-1)
        return inside


@dataclass(frozen=True)
class RoomObject:
    """One object: an upright box around it, its names, and what it stands on.

    `centre` [3] is the middle of the box; `size` is (width, depth, height) along the local axes;
    the front points along world (-sin yaw, cos yaw). `support` is an index into the room's
    objects, -1 for the floor.
    """

    kind: str
    colour: str
    rgb: np.ndarray
    centre: np.ndarray
    size: tuple[float, float, float]
    yaw: float
    support: int = -1

    @property
    def front(self) -> np.ndarray:
        """Unit direction [2] its front faces."""
        return np.array([-np.sin(self.yaw), np.cos(self.yaw)])

    @cached_property
    def footprint(self) -> np.ndarray:
        """Corners [4,2] on the floor plan, counter-clockwise."""
        return rectangle(self.centre[:2], self.size[:2], self.yaw)

    @property
    def bottom(self) -> float:
        """Height of its lowest point in metres."""
        return float(self.centre[2] - self.size[2] / 2)

    @property
    def top(self) -> float:
        """Height of its highest point in metres."""
        return float(self.centre[2] + self.size[2] / 2)

    @property
    def name(self) -> str:
        """Colour and kind, as in "red chair"."""
        return f"{self.colour} {self.kind}"


@dataclass(frozen=True)
class Room:
    """A furnished room. Surface tints are RGB in 0–1."""

    key: Key
    plan: Plan
    openings: tuple[Opening, ...]
    objects: tuple[RoomObject, ...]
    wall_rgb: np.ndarray
    floor_rgb: np.ndarray
    floor_pattern: str
    door_rgb: np.ndarray

    def opening(self, kind: str) -> list[Opening]:
        """All doors or all windows."""
        return [opening for opening in self.openings if opening.kind == kind]


def make_key(seed: int, split: str, index: int) -> Key:
    """A checked key: a known split and non-negative numbers."""
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}: expected one of {', '.join(SPLITS)}")
    if seed < 0 or index < 0:
        raise UserError(f"seed and room index must not be negative, got {seed} and {index}")
    return Key(seed, split, index)


def rectangle(centre: np.ndarray, size: tuple[float, float], yaw: float) -> np.ndarray:
    """Corners [4,2] of a turned rectangle, counter-clockwise."""
    half = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * np.asarray(size) / 2
    cos, sin = np.cos(yaw), np.sin(yaw)
    return half @ np.array([[cos, sin], [-sin, cos]]) + centre


def gap(a: np.ndarray, b: np.ndarray) -> float:
    """Distance in metres between convex outlines [N,2] and [M,2]; 0 where they overlap."""
    # Plain numbers: an outline has four corners, and an array costs more than its sums.
    first, second = a.tolist(), b.tolist()
    if not (_separates(first, second) or _separates(second, first)):
        return 0.0
    return min(_edge_distance(first, second), _edge_distance(second, first))


_Outline = list[list[float]]


def _edges(outline: _Outline) -> Iterator[tuple[float, float, float, float]]:
    """Where each edge begins, and how far it goes."""
    for (x, y), (to_x, to_y) in zip(outline, outline[1:] + outline[:1], strict=True):
        yield x, y, to_x - x, to_y - y


def _separates(outline: _Outline, other: _Outline) -> bool:
    """Whether a line along one of the outline's edges has the two on different sides."""
    for _, _, dx, dy in _edges(outline):
        own = [dx * y - dy * x for x, y in outline]
        others = [dx * y - dy * x for x, y in other]
        if max(own) < min(others) or max(others) < min(own):
            return True
    return False


def _edge_distance(points: _Outline, outline: _Outline) -> float:
    """From the nearest of some points to the nearest place on an outline's edges."""
    least = math.inf
    for x, y, dx, dy in _edges(outline):
        length = max(dx * dx + dy * dy, 1e-12)
        for px, py in points:
            share = min(max(((px - x) * dx + (py - y) * dy) / length, 0.0), 1.0)
            least = min(least, math.hypot(px - x - share * dx, py - y - share * dy))
    return least
