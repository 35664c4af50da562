"""Ray casting: colour, depth and labels of a scene seen by a camera."""

from dataclasses import dataclass

import numpy as np

from jaxvlm.render.camera import Camera
from jaxvlm.render.mesh import Mesh

CEILING_RGB = np.float32((0.93, 0.93, 0.92))
SURFACE_OFFSET = 1e-3
ONE_SIDED_LAYERS = 12


@dataclass(frozen=True)
class Rendering:
    """What one camera sees: `rgb` u8[H,W,3], `depth` f32[H,W] metres along the optical axis
    (0 where nothing was hit), `object_index` i16[H,W] (-1 for none), `kind_map` i16[H,W] the
    labels of the faces (0 where nothing was hit).
    """

    rgb: np.ndarray
    depth: np.ndarray
    object_index: np.ndarray
    kind_map: np.ndarray


@dataclass(frozen=True)
class _Hits:
    """First hits of R rays: face i32[R] (-1 none), depth f32[R], u and v f32[R] on the face."""

    face: np.ndarray
    depth: np.ndarray
    u: np.ndarray
    v: np.ndarray


def render(
    mesh: Mesh,
    camera: Camera,
    size: int | tuple[int, int],
    supersample: int = 1,
    shadows: bool = False,
) -> Rendering:
    """The view of `camera` at `size` (a side, or width and height).

    `supersample` averages that many colour samples a side and pixel; depth and labels are
    those of the pixel's centre.
    """
    width, height = (size, size) if isinstance(size, int) else size
    origins, directions = camera.rays(width, height)
    hits = _cast(mesh, origins, directions)
    ceiling = _ceiling_depth(mesh, origins, directions, hits)
    found = hits.face >= 0
    depth = np.where(found, hits.depth, ceiling)
    label = np.where(found, mesh.label[hits.face], np.int16(mesh.surroundings.ceiling_label))
    label[depth == 0] = 0
    index = np.where(found, mesh.object_index[hits.face], np.int16(-1))
    if supersample == 1:
        rgb = _shade(mesh, origins, directions, hits, depth, shadows)
    else:
        fine = (width * supersample, height * supersample)
        origins, directions = camera.rays(*fine)
        hits = _cast(mesh, origins, directions)
        ceiling = _ceiling_depth(mesh, origins, directions, hits)
        fine_depth = np.where(hits.face >= 0, hits.depth, ceiling)
        rgb = _shade(mesh, origins, directions, hits, fine_depth, shadows)
        rgb = rgb.reshape(height, supersample, width, supersample, 3).mean((1, 3))
    shape = (height, width)
    return Rendering(
        (rgb.clip(0, 1) * 255 + 0.5).astype(np.uint8).reshape(*shape, 3),
        depth.reshape(shape),
        index.reshape(shape),
        label.reshape(shape),
    )


def _cast(mesh: Mesh, origins: np.ndarray, directions: np.ndarray) -> _Hits:
    first = mesh.embree.run(origins, directions, output=1)
    face, depth = first["primID"], first["tfar"]
    u, v = first["u"], first["v"]
    for _ in range(ONE_SIDED_LAYERS):
        behind = np.flatnonzero(face >= 0)
        behind = behind[mesh.one_sided[face[behind]]]
        normals = mesh.normals[face[behind], 0]
        behind = behind[(normals * directions[behind]).sum(-1) > 0]
        if not len(behind):
            break
        passed = depth[behind] + SURFACE_OFFSET
        onward = origins[behind] + passed[:, None] * directions[behind]
        again = mesh.embree.run(onward, directions[behind], output=1)
        face[behind], depth[behind] = again["primID"], again["tfar"] + passed
        u[behind], v[behind] = again["u"], again["v"]
    return _Hits(face, depth, u, v)


def _ceiling_depth(
    mesh: Mesh, origins: np.ndarray, directions: np.ndarray, hits: _Hits
) -> np.ndarray:
    """Depth of the ceiling for rays that hit nothing else from below it, else 0."""
    if mesh.surroundings.ceiling is None:
        return np.zeros(len(origins), np.float32)
    rise = mesh.surroundings.ceiling - origins[:, 2]
    climbs = (hits.face < 0) & (rise > 0) & (directions[:, 2] > 1e-6)
    return np.where(climbs, rise / np.where(climbs, directions[:, 2], 1), 0).astype(np.float32)


def _shade(
    mesh: Mesh,
    origins: np.ndarray,
    directions: np.ndarray,
    hits: _Hits,
    depth: np.ndarray,
    shadows: bool,
) -> np.ndarray:
    """Lambert shading f32[R,3] under the scene's lamps and even ambient light."""
    rgb = np.ones((len(depth), 3), np.float32)
    rgb[depth > 0] = CEILING_RGB
    found = np.flatnonzero(hits.face >= 0)
    face = hits.face[found]
    u, v = hits.u[found, None], hits.v[found, None]
    first, second, third = mesh.normals[face].swapaxes(0, 1)
    normals = (1 - u - v) * first + u * second + v * third
    normals /= np.sqrt((normals * normals).sum(-1, keepdims=True))
    facing = (normals * directions[found]).sum(-1, keepdims=True)
    normals = np.where(facing > 0, -normals, normals)
    points = origins[found] + depth[found, None] * directions[found]
    around = mesh.surroundings
    light = around.ambient + around.skylight * normals[:, 2]
    for *lamp, strength in around.lamps:
        towards = np.float32(lamp) - points
        distance = np.sqrt((towards * towards).sum(-1))
        cosine = ((normals * towards).sum(-1) / np.maximum(distance, 1e-6)).clip(0)
        if shadows:
            cosine *= _lit(mesh, points, normals, towards)
        light += strength * cosine
    albedo = mesh.rgb[face] * _floor_pattern(mesh, face, points)[:, None]
    rgb[found] = albedo * light[:, None]
    return rgb


def _lit(mesh: Mesh, points: np.ndarray, normals: np.ndarray, towards: np.ndarray) -> np.ndarray:
    """1 where nothing of the furniture stands between a point and a lamp, else 0."""
    start = points + 4 * SURFACE_OFFSET * normals
    hit = mesh.embree.run(start, towards, output=1)
    blocked = (hit["primID"] >= 0) & (hit["tfar"] < 1) & ~mesh.one_sided[hit["primID"]]
    return 1 - blocked.astype(np.float32)


def _floor_pattern(mesh: Mesh, face: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Brightness f32[R] of planks or tiles; 1 off the floor."""
    tone = np.ones(len(face), np.float32)
    pattern = mesh.surroundings.floor_pattern
    if pattern == "plain":
        return tone
    floor = np.flatnonzero(mesh.label[face] == mesh.surroundings.floor_label)
    x, y = points[floor, 0], points[floor, 1]
    if pattern == "tiles":
        tone[floor] = 1 - 0.09 * ((np.floor(x / 0.45) + np.floor(y / 0.45)) % 2)
    else:
        row = np.floor(x / 0.22)
        plank = np.floor((y + 0.7 * row) / 1.3)
        tone[floor] = 1 - 0.06 * ((row * 7 + plank * 3) % 3)
    return tone
