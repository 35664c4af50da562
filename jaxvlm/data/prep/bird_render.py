"""Bird's-eye images of ScanNet meshes: from straight above, ceilings looked through.

A scan's faces are turned to where the scanner was, so a ceiling seen from above shows its back, and
backs are passed over; so are the outsides of walls.
"""

import os
from pathlib import Path

import numpy as np
import trimesh
from PIL import Image

from jaxvlm.data.prep.scannet import axis_alignment, read_info
from jaxvlm.errors import UserError
from jaxvlm.render.camera import Camera
from jaxvlm.render.mesh import Mesh, Surroundings, embree_scene
from jaxvlm.render.raycast import render

MESH = "_vh_clean_2.ply"
# Nearly parallel rays, so that walls hide little; in units of the image's side.
_FOCAL = 2.0
_MARGIN = 1.05
_ACROSS = 2


def find_meshes(root: Path) -> dict[str, Path]:
    """The mesh of each scene, by its name.

    Raises:
      UserError: there are none.
    """
    if not root.is_dir():
        raise UserError(f"--scan-root {root} is no folder; it holds one folder a scene")
    paths = [p for pattern in ("*", "scans/*", "scans_test/*") for p in root.glob(pattern)]
    found = {p.name: p / (p.name + MESH) for p in sorted(paths)}
    found = {scene: path for scene, path in found.items() if path.is_file()}
    if not found:
        raise UserError(f"{root} holds no <scene>/<scene>{MESH}; download ScanNet's meshes")
    return found


def read_mesh(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Corners f32[F,3,3] in the scene's levelled world and colours f32[F,3] of a mesh.

    Raises:
      UserError: a file that is cut off, has no faces or no colours.
    """
    try:
        mesh = trimesh.load(path, process=False, force="mesh")
        corners, faces = np.asarray(mesh.vertices), np.asarray(mesh.faces)
        colours = np.asarray(mesh.visual.vertex_colors)[:, :3] / 255.0
        coloured = mesh.visual.kind == "vertex"
    except Exception as error:  # The library raises every kind for a broken file.
        raise UserError(f"the mesh {path} cannot be read: {error}") from None
    if not len(faces) or not np.isfinite(corners).all():
        raise UserError(f"the mesh {path} has no faces, or corners that are no numbers")
    if not coloured:
        raise UserError(f"the mesh {path} has no colours; {MESH} files of ScanNet have")
    turn = axis_alignment(path.parent, read_info(path.parent))
    corners = corners @ turn[:3, :3].T + turn[:3, 3]
    return corners[faces].astype(np.float32), colours[faces].mean(1).astype(np.float32)


def bird_view(corners: np.ndarray, colours: np.ndarray, size: int) -> np.ndarray:
    """The scene from above, u8[size,size,3]; +x to the right, +y up, white around.

    Args:
      corners: of faces, metres, z up.
      colours: of faces, 0-1.
      size: side of the image in pixels.
    """
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals /= np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-12)
    mesh = Mesh(
        corners=corners,
        normals=np.repeat(normals[:, None], 3, axis=1).astype(np.float32),
        rgb=colours,
        object_index=np.full(len(corners), -1, np.int16),
        label=np.ones(len(corners), np.int16),
        one_sided=np.ones(len(corners), bool),
        surroundings=Surroundings(),
        embree=embree_scene(corners),
    )
    points = corners.reshape(-1, 3)
    # Stray points of a scan lie far off.
    low, high = (np.percentile(points, q, axis=0) for q in (0.1, 99.9))
    # So high that the tops of the walls, which seem widest, are in the picture.
    height = float(high[2]) + _FOCAL * float((high - low)[:2].max()) * _MARGIN
    pose = np.eye(4)
    pose[:3, :3] = np.diag([1.0, -1.0, -1.0])
    pose[:3, 3] = *((low + high) / 2)[:2], height
    return render(mesh, Camera(pose, _FOCAL), size, supersample=_ACROSS).rgb


def write_bird_view(task: tuple[str, Path, Path, int]) -> str:
    """Draws a scene's image, whole or not at all: (scene, mesh, folder, size) to the scene."""
    scene, path, folder, size = task
    draft = folder / f".{scene}.{os.getpid()}.png"
    try:
        Image.fromarray(bird_view(*read_mesh(path), size)).save(draft)
        os.replace(draft, folder / f"{scene}_bird.png")
    finally:
        draft.unlink(missing_ok=True)
    return scene
