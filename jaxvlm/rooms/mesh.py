"""A room as triangles; walls, doors and windows are seen from inside only."""

from dataclasses import dataclass

import numpy as np

from jaxvlm.render.mesh import Mesh, Surroundings, mesh_fields
from jaxvlm.render.shapes import Part, axis_rotation
from jaxvlm.rooms.furniture import build
from jaxvlm.rooms.labels import KIND_LABELS
from jaxvlm.rooms.scene import Opening, Room, Wall

FRAME_RGB = (0.88, 0.88, 0.86)
SKY_RGB = (0.60, 0.78, 0.92)
KNOB_RGB = (0.45, 0.42, 0.35)
LAMPS = ((0.45, 0.35, 0.95, 0.28), (-0.4, -0.45, 0.9, 0.16))
"""Point lights: position as a fraction of half width, half depth and height; strength."""


@dataclass(frozen=True)
class RoomMesh(Mesh):
    """A room's mesh: labels are indices into `KIND_LABELS`, objects those of the room."""

    room: Room


def room_mesh(room: Room) -> RoomMesh:
    """Builds the mesh and its ray-casting structure (some milliseconds)."""
    parts: list[Part] = []
    owners: list[tuple[int, int]] = []
    for label, part in _shell(room):
        parts.append(part)
        owners.append((-1, KIND_LABELS.index(label)))
    shell = len(parts)
    for index, thing in enumerate(room.objects):
        rotation = axis_rotation(thing.yaw, axis=2)
        shift = np.float32((*thing.centre[:2], thing.bottom))
        for part in build(thing.kind, thing.size, thing.rgb):
            parts.append(
                Part(part.corners @ rotation.T + shift, part.normals @ rotation.T, part.rgb)
            )
            owners.append((index, KIND_LABELS.index(thing.kind)))
    one_sided = [number < shell for number in range(len(parts))]
    return RoomMesh(room=room, **mesh_fields(parts, owners, one_sided, _surroundings(room)))


def _surroundings(room: Room) -> Surroundings:
    plan = room.plan
    return Surroundings(
        ambient=0.6,
        skylight=0.1,
        lamps=tuple(
            (x * plan.width / 2, y * plan.depth / 2, z * plan.height, strength)
            for x, y, z, strength in LAMPS
        ),
        ceiling=plan.height,
        ceiling_label=KIND_LABELS.index("ceiling"),
        floor_label=KIND_LABELS.index("floor"),
        floor_pattern=room.floor_pattern,
    )


def _shell(room: Room) -> list[tuple[str, Part]]:
    parts = []
    for x0, x1, y0, y1 in room.plan.floors:
        square = np.array([(x0, y0, 0), (x1, y0, 0), (x1, y1, 0), (x0, y1, 0)])
        parts.append(("floor", _quad(room.floor_rgb, square)))
    for wall in room.plan.walls:
        whole = (0.0, wall.length, 0.0, room.plan.height)
        parts.append(("wall", _panel(room.wall_rgb, wall, whole, 0)))
        skirting = (0.0, wall.length, 0.0, 0.1)
        parts.append(("wall", _panel(room.wall_rgb * 0.8, wall, skirting, 0.004)))
    for opening in room.openings:
        label = opening.kind
        panels = _door(room, opening) if label == "door" else _window(opening)
        parts += [(label, panel) for panel in panels]
    return parts


def _door(room: Room, door: Opening) -> list[Part]:
    left, right = door.at - door.width / 2, door.at + door.width / 2
    rgb = room.door_rgb
    parts = [
        _panel(FRAME_RGB, door.wall, (left - 0.08, right + 0.08, 0, door.top + 0.08), 0.008),
        _panel(rgb, door.wall, (left, right, 0, door.top), 0.012),
        _panel(KNOB_RGB, door.wall, (right - 0.16, right - 0.06, 0.98, 1.08), 0.02),
    ]
    for bottom, top in ((0.2, 0.85), (1.2, 1.85)):
        inset = (left + 0.16, right - 0.16, bottom, top)
        parts.append(_panel(rgb * 0.86, door.wall, inset, 0.016))
    return parts


def _window(window: Opening) -> list[Part]:
    left, right = window.at - window.width / 2, window.at + window.width / 2
    bottom, top, wall, bar = window.bottom, window.top, window.wall, 0.03
    middle = (bottom + top) / 2
    outer = (left - 0.08, right + 0.08, bottom - 0.08, top + 0.08)
    return [
        _panel(FRAME_RGB, wall, outer, 0.008),
        _panel(SKY_RGB, wall, (left, right, bottom, top), 0.012),
        _panel(FRAME_RGB, wall, (window.at - bar, window.at + bar, bottom, top), 0.016),
        _panel(FRAME_RGB, wall, (left, right, middle - bar, middle + bar), 0.016),
    ]


def _panel(rgb, wall: Wall, span: tuple[float, float, float, float], out: float) -> Part:
    """A rectangle on a wall, (left, right, bottom, top), `out` metres into the room."""
    left, right, bottom, top = span
    base = wall.start + out * wall.inward
    a, b = base + left * wall.along, base + right * wall.along
    return _quad(rgb, np.array([(*a, bottom), (*b, bottom), (*b, top), (*a, top)])[::-1])


def _quad(rgb, square: np.ndarray) -> Part:
    corners = square[[[0, 1, 2], [0, 2, 3]]].astype(np.float32)
    normal = np.cross(square[1] - square[0], square[2] - square[0])
    normal = (normal / np.linalg.norm(normal)).astype(np.float32)
    return Part(corners, np.broadcast_to(normal, (2, 3, 3)), rgb)
