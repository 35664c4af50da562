"""Views drawn from boxes, for scenes without photographs.

Walls, doors and windows where the scene has them, a floor, a ceiling, and for each box the look of
its category. Cameras stand where a person could, at eye height, and are chosen to see everything.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image

from jaxvlm.data.boxes import OBJECT, Box
from jaxvlm.data.frames import rounded
from jaxvlm.data.geometry import depth_histogram
from jaxvlm.data.prep.looks import parts
from jaxvlm.errors import UserError
from jaxvlm.render.camera import Camera, look_at
from jaxvlm.render.mesh import Mesh, Surroundings, mesh_fields
from jaxvlm.render.raycast import render
from jaxvlm.render.shapes import Part, box

_WALL, _FLOOR, _FRAME = (0.86, 0.84, 0.78), (0.62, 0.52, 0.42), (0.95, 0.95, 0.93)
_DOOR, _GLASS, _KNOB = (0.58, 0.40, 0.24), (0.62, 0.80, 0.95), (0.25, 0.22, 0.18)
_FLOOR_LABEL = 1
# Metres: eyes above the floor, room around a person, spots apart, walls of scenes without any.
_EYES, _CLEARANCE, _APART, _HEIGHT, _MARGIN = 1.5, 0.35, 0.4, 2.5, 1.0
_FOCAL = 0.55
_LARGEST_SCENE = 200.0
_TURNS, _TILT = 8, np.radians(-12)
_PROBE, _ENOUGH = 24, 10
# A wall is worth less of an image than furniture, doors and windows are.
_WALLS_WORTH = 0.25
# What it is worth to stand or look elsewhere, when little new is to be seen.
_APART_WORTH = 0.5
# Share of the directions around a spot in which there is a wall, where the spot is inside.
_ENCLOSED = 0.8


@dataclasses.dataclass(frozen=True)
class DrawnScene:
    """Views of a scene that no camera took.

    Attributes:
      cameras: poses in the boxes' world.
      views: pixels of each view.
      geometry: as a record's `geom_token`.
      unseen: names of the boxes that no view shows.
    """

    cameras: list[Camera]
    views: list[np.ndarray]
    geometry: dict[str, Float[np.ndarray, "V N"]]
    unseen: list[str]


def draw_scene(
    boxes: Sequence[Box], floors: Sequence[np.ndarray], num_views: int, size: int
) -> DrawnScene:
    """Draws a scene.

    Args:
      boxes: what stands in it; metres, z up.
      floors: corners of its floors; where there are none, a floor and walls are put around.
      num_views: views to draw.
      size: side of the square views in pixels.
    """
    corners = np.concatenate([b.corners() for b in boxes] + [np.asarray(f) for f in floors])
    if not (np.ptp(corners, axis=0) <= _LARGEST_SCENE).all():
        raise UserError(
            f"the scene is {np.ptp(corners, axis=0).max():g} m across; boxes must be in metres"
        )
    mesh = scene_mesh(boxes, floors)
    cameras, unseen = place_cameras(mesh, boxes, num_views)
    drawn = [render(mesh, camera, size, supersample=2, shadows=True) for camera in cameras]
    poses = np.stack([camera.cam_to_world for camera in cameras])
    intrinsics = np.stack([camera.intrinsics(size, size).ravel() for camera in cameras])
    geometry = {
        "R": rounded(poses[:, :3, :3].reshape(-1, 9), 6),
        "t": rounded(poses[:, :3, 3], 5),
        "K": rounded(intrinsics, 3),
        "depth_hist": rounded(np.stack([depth_histogram(view.depth) for view in drawn]), 6),
    }
    geometry = {name: np.asarray(value, np.float32) for name, value in geometry.items()}
    names = [boxes[index].name for index in unseen]
    return DrawnScene(cameras, [view.rgb for view in drawn], geometry, names)


def save_views(scene: DrawnScene, folder: Path) -> list[Path]:
    """Writes the views as PNG files; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"view_{number:02}.png" for number in range(len(scene.views))]
    for path, view in zip(paths, scene.views, strict=True):
        Image.fromarray(view).save(path)
    return paths


def scene_mesh(boxes: Sequence[Box], floors: Sequence[np.ndarray]) -> Mesh:
    """The scene as triangles; faces know the index of their box."""
    corners = np.concatenate([b.corners() for b in boxes] + [np.asarray(f) for f in floors])
    low, high = corners.min(0), corners.max(0)
    made: list[tuple[Part, int]] = []
    walls = [b for b in boxes if b.group == "wall"]
    if not walls:
        margin = np.array([_MARGIN, _MARGIN, 0])
        low, high = low - margin, high + margin
        high[2] = max(high[2], low[2] + _HEIGHT)
        made += [(part, -1) for part in _four_walls(low, high)]
    for index, thing in enumerate(boxes):
        for part in _box_parts(thing, boxes):
            made.append((_placed(part, thing), index))
    ground = min([float(np.median(np.asarray(f)[:, 2])) for f in floors], default=float(low[2]))
    floor = box(_FLOOR, (low[0], high[0]), (low[1], high[1]), (ground - 0.05, ground))
    ceiling = max([b.corners()[:, 2].max() for b in walls], default=float(high[2]))
    middle, reach = (low + high) / 2, (high - low) / 4
    around = Surroundings(
        ambient=0.55,
        skylight=0.1,
        lamps=tuple(
            (middle[0] + x * reach[0], middle[1] + y * reach[1], ceiling - 0.1, 0.22)
            for x, y in ((0.9, 0.7), (-0.8, -0.9))
        ),
        ceiling=float(ceiling),
        floor_label=_FLOOR_LABEL,
        floor_pattern="planks",
    )
    owners = [(index, 0) for _, index in made] + [(-1, _FLOOR_LABEL)]
    everything = [part for part, _ in made] + [floor]
    # What is one-sided casts no shadow; a wall's faces all look outwards, so nothing else changes.
    shell = [index < 0 or boxes[index].group != OBJECT for index, _ in owners]
    return Mesh(**mesh_fields(everything, owners, shell, around))


def _four_walls(low: np.ndarray, high: np.ndarray) -> list[Part]:
    thick = 0.05
    x, y, z = ((float(a), float(b)) for a, b in zip(low, high, strict=True))
    return [
        box(_WALL, (x[0] - thick, x[0]), y, z),
        box(_WALL, (x[1], x[1] + thick), y, z),
        box(_WALL, x, (y[0] - thick, y[0]), z),
        box(_WALL, x, (y[1], y[1] + thick), z),
    ]


def _placed(part: Part, thing: Box) -> Part:
    """A part from its box's axes into the world."""
    axes = thing.axes.astype(np.float32)
    corners = part.corners @ axes + thing.centre.astype(np.float32)
    # The axes (right, up, front) turn the other way round than (x, y, z) seen from the front.
    return Part(corners, part.normals @ axes, part.rgb)


def _box_parts(thing: Box, boxes: Sequence[Box]) -> list[Part]:
    """The parts of a box, along its own axes."""
    if thing.group == OBJECT or thing.group == "plane":
        return parts(thing.category, thing.size, thing.attributes)
    width, height, _ = (float(v) for v in thing.size)
    if thing.group == "wall":
        return _wall(thing, [b for b in boxes if b.parent == thing.name and b.group != OBJECT])
    x, y = (-width / 2, width / 2), (-height / 2, height / 2)
    found = _trim(x, y)
    if thing.group == "door" and not thing.open:
        found.append(box(_DOOR, x, y, (-0.02, 0.02)))
        found.append(box(_KNOB, (x[1] - 0.14, x[1] - 0.06), (-0.04, 0.04), (-0.06, 0.06)))
    elif thing.group == "door":
        # Its leaf, swung into the room.
        found.append(box(_DOOR, (x[0], x[0] + 0.04), y, (0, width)))
    elif thing.group == "window":
        found.append(box(_GLASS, x, y, (-0.01, 0.01)))
        found.append(box(_FRAME, (-0.02, 0.02), y, (-0.025, 0.025)))
        found.append(box(_FRAME, x, (-0.02, 0.02), (-0.025, 0.025)))
    return found


def _trim(x: tuple[float, float], y: tuple[float, float]) -> list[Part]:
    """A frame around a hole in a wall."""
    edge, out = 0.05, (-0.06, 0.06)
    return [
        box(_FRAME, (x[0] - edge, x[0]), (y[0], y[1] + edge), out),
        box(_FRAME, (x[1], x[1] + edge), (y[0], y[1] + edge), out),
        box(_FRAME, x, (y[1], y[1] + edge), out),
    ]


def _wall(wall: Box, holes: Sequence[Box]) -> list[Part]:
    """A wall with holes: the cells between their edges that lie in none."""
    half = wall.size / 2
    cuts = []
    for hole in holes:
        x, y, _ = wall.axes @ (hole.centre - wall.centre)
        w, h = hole.size[:2] / 2
        cuts.append((x - w, x + w, y - h, y + h))
    xs = sorted(
        {-half[0], half[0], *(np.clip(c[i], -half[0], half[0]) for c in cuts for i in (0, 1))}
    )
    ys = sorted(
        {-half[1], half[1], *(np.clip(c[i], -half[1], half[1]) for c in cuts for i in (2, 3))}
    )
    found = []
    for x0, x1 in itertools.pairwise(xs):
        for y0, y1 in itertools.pairwise(ys):
            x, y = (x0 + x1) / 2, (y0 + y1) / 2
            if not any(a < x < b and c < y < d for a, b, c, d in cuts):
                found.append(box(_WALL, (x0, x1), (y0, y1), (-0.03, 0.03)))
    return found or [box(_WALL, (-half[0], half[0]), (-half[1], half[1]), (-0.03, 0.03))]


def place_cameras(
    mesh: Mesh, boxes: Sequence[Box], num_views: int
) -> tuple[list[Camera], list[int]]:
    """Cameras that together see every box, the most telling first, and the boxes none sees."""
    candidates = [
        look_at(spot, spot + way, _FOCAL) for spot in _spots(mesh, boxes) for way in _ways()
    ]
    seen = np.stack([_seen(mesh, camera, len(boxes)) for camera in candidates])
    poses = np.stack([c.cam_to_world[:3, [2, 3]].ravel() for c in candidates])
    apart = np.full(len(candidates), _APART_WORTH)
    worth = np.array([_WALLS_WORTH if b.group == "wall" else 1.0 for b in boxes])
    total = np.zeros(len(boxes))
    chosen: list[int] = []
    for _ in range(min(num_views, len(candidates))):
        # The first look at a box counts most, each further one less.
        gain = np.log1p(total + seen) - np.log1p(total)
        scores = gain @ worth + apart
        scores[chosen] = -1
        chosen.append(int(np.argmax(scores)))
        total += seen[chosen[-1]]
        off = np.linalg.norm(poses - poses[chosen[-1]], axis=1)
        apart = np.minimum(apart, _APART_WORTH * off)
    return [candidates[index] for index in chosen], np.flatnonzero(total == 0).tolist()


def _ways() -> list[np.ndarray]:
    yaws = np.arange(_TURNS) * 2 * np.pi / _TURNS + 0.2
    flat, rise = np.cos(_TILT), np.sin(_TILT)
    return [np.array([np.cos(yaw) * flat, np.sin(yaw) * flat, rise]) for yaw in yaws]


def _spots(mesh: Mesh, boxes: Sequence[Box]) -> list[np.ndarray]:
    """Where a person could stand: inside, off the walls and the furniture."""
    corners = mesh.corners.reshape(-1, 3)
    low, high = corners.min(0), corners.max(0)
    # The floor is the lowest thing of all, and 5 cm thick.
    eyes = low[2] + 0.05 + _EYES
    xs, ys = (
        low[i] + (np.arange(max(int((high[i] - low[i]) / _APART), 1)) + 0.5) * _APART
        for i in (0, 1)
    )
    spots = np.stack(np.meshgrid(xs, ys, [eyes]), -1).reshape(-1, 3)
    around = np.arange(36) * 2 * np.pi / 36
    ways = np.stack([np.cos(around), np.sin(around), np.zeros(36)], -1)
    origins = np.repeat(spots, len(ways), 0).astype(np.float32)
    hits = mesh.embree.run(origins, np.tile(ways, (len(spots), 1)).astype(np.float32), output=1)
    distance = np.where(hits["primID"] >= 0, hits["tfar"], np.inf).reshape(len(spots), -1)
    inside = np.isfinite(distance).mean(1) >= _ENCLOSED
    free = inside & (distance.min(1) > _CLEARANCE) & ~_within(spots, boxes)
    waist = spots[0, 2] - 0.7
    over = [thing for thing in boxes if thing.corners()[:, 2].max() > waist]
    high = ~_within(spots, over)
    for allowed in (free, inside & high, inside, np.ones(len(spots), bool)):
        if allowed.any():
            return list(spots[allowed])
    return list(spots)


def _within(spots: np.ndarray, boxes: Sequence[Box]) -> np.ndarray:
    """Which spots are where furniture stands."""
    blocked = np.zeros(len(spots), bool)
    for thing in boxes:
        if thing.group != OBJECT:
            continue
        local = np.abs((spots - thing.centre) @ thing.axes.T) - thing.size / 2
        blocked |= (local[:, [0, 2]] < 0.2).all(1)
    return blocked


def _seen(mesh: Mesh, camera: Camera, count: int) -> np.ndarray:
    """Pixels of each box in a small image, up to enough to know it by."""
    hits = mesh.embree.run(*camera.rays(_PROBE, _PROBE))
    index = mesh.object_index[hits[hits >= 0]]
    pixels = np.bincount(index[index >= 0], minlength=count)
    return np.minimum(pixels, _ENOUGH).astype(np.float64)
