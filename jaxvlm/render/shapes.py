"""Coloured primitives as plain triangle arrays: boxes, solids of revolution, ellipsoids."""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from trimesh.creation import icosphere, revolve

RGB = tuple[float, float, float] | np.ndarray
Span = tuple[float, float]


class Part(NamedTuple):
    """Triangles of one colour: `corners` and corner `normals` f32[F,3,3], `rgb` 0–1."""

    corners: np.ndarray
    normals: np.ndarray
    rgb: RGB


def box(rgb: RGB, x: Span, y: Span, z: Span) -> Part:
    """An axis-aligned box between the given bounds in metres."""
    corners, normals = _unit_box()
    low = np.array([x[0], y[0], z[0]], np.float32)
    high = np.array([x[1], y[1], z[1]], np.float32)
    return Part(low + corners * (high - low), normals, rgb)


def turned(
    rgb: RGB, profile: Sequence[Span], centre: Sequence[float] = (0, 0, 0), flat: float = 1.0
) -> Part:
    """A solid of revolution about z: `profile` of (radius, height), its y squashed by `flat`."""
    corners, normals = _unit_turned(tuple(tuple(map(float, point)) for point in profile))
    scale = np.array([1, flat, 1], np.float32)
    return Part(corners * scale + np.asarray(centre, np.float32), _stretched(normals, scale), rgb)


def cylinder(rgb: RGB, radius: float, z: Span, centre: Span = (0, 0)) -> Part:
    """An upright cylinder."""
    unit = turned(rgb, ((0, 0), (1, 0), (1, 1), (0, 1)))
    scale = np.array([radius, radius, z[1] - z[0]], np.float32)
    shift = np.array([*centre, z[0]], np.float32)
    return Part(unit.corners * scale + shift, unit.normals, rgb)


def ball(rgb: RGB, radii: float | Sequence[float], centre: Sequence[float]) -> Part:
    """A sphere or ellipsoid with half axes `radii`."""
    scale = np.broadcast_to(np.asarray(radii, np.float32), 3)
    corners, normals = _unit_ball(1 if scale.max() < 0.12 else 2)
    return Part(corners * scale + np.asarray(centre, np.float32), _stretched(normals, scale), rgb)


def tilted(part: Part, degrees: float, axis: int, pivot: Sequence[float] = (0, 0, 0)) -> Part:
    """`part` turned about a coordinate axis (0 x, 1 y, 2 z) through `pivot`."""
    rotation = axis_rotation(np.radians(degrees), axis)
    pivot = np.asarray(pivot, np.float32)
    return Part((part.corners - pivot) @ rotation.T + pivot, part.normals @ rotation.T, part.rgb)


def axis_rotation(angle: float, axis: int) -> np.ndarray:
    """The rotation f32[3,3] by `angle` radians about a coordinate axis."""
    rotation = np.eye(3, dtype=np.float32)
    i, j = (axis + 1) % 3, (axis + 2) % 3
    rotation[i, i] = rotation[j, j] = np.cos(angle)
    rotation[i, j], rotation[j, i] = -np.sin(angle), np.sin(angle)
    return rotation


def _stretched(normals: np.ndarray, scale: np.ndarray) -> np.ndarray:
    normals = normals / scale
    return normals / np.linalg.norm(normals, axis=-1, keepdims=True)


@cache
def _unit_box() -> tuple[np.ndarray, np.ndarray]:
    corners, normals = [], []
    for axis in range(3):
        i, j = (axis + 1) % 3, (axis + 2) % 3
        for side in (0, 1):
            square = np.zeros((4, 3), np.float32)
            square[:, axis] = side
            square[[1, 2], i] = 1
            square[[2, 3], j] = 1
            if side == 0:
                square = square[::-1]
            corners += [square[[0, 1, 2]], square[[0, 2, 3]]]
            normals += [np.tile(np.eye(3)[axis] * (2 * side - 1), (3, 1))] * 2
    return np.stack(corners), np.stack(normals).astype(np.float32)


@cache
def _unit_ball(subdivisions: int) -> tuple[np.ndarray, np.ndarray]:
    corners = icosphere(subdivisions).triangles.astype(np.float32)
    return corners, corners


@cache
def _unit_turned(profile: tuple[Span, ...]) -> tuple[np.ndarray, np.ndarray]:
    mesh = revolve(np.array(profile), sections=20)
    corners = np.asarray(mesh.triangles, np.float32)
    face = np.asarray(mesh.face_normals, np.float32)[:, None].repeat(3, axis=1)
    # Smooth around the axis, sharp along the profile: corners of a face share its slope.
    radial = corners[..., :2]
    length = np.linalg.norm(radial, axis=-1, keepdims=True)
    around = np.where(length > 1e-6, radial / np.maximum(length, 1e-6), face[..., :2])
    slope = np.linalg.norm(face[..., :2], axis=-1, keepdims=True)
    outward = np.sign((face[..., :2] * radial.mean(1, keepdims=True)).sum(-1, keepdims=True))
    normals = np.concatenate([around * slope * outward, face[..., 2:]], axis=-1)
    return corners, _stretched(normals, np.ones(3, np.float32))
