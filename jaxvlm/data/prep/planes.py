"""Planes and cameras metadata: `<scene>/annotations/planes.json` with `<scene>/cameras.json`.

Planes are `{label, center, normal, extent}`, cameras `{rgb_path, pose, intrinsics, depth_hist}`:
camera-to-world poses (16 numbers, row-major), K in pixels (9 numbers), metres, z up.
"""

import dataclasses
from pathlib import Path

import numpy as np

from jaxvlm.data.boxes import SURFACE_DEPTH, Box, box_axes
from jaxvlm.data.frames import is_rotation
from jaxvlm.data.prep.files import numbers_of, read_json
from jaxvlm.data.prep.scan import ScanFrame, check_intrinsics, image_size
from jaxvlm.errors import UserError


@dataclasses.dataclass(frozen=True)
class PlanesScene:
    """Surfaces and the images that show them.

    Attributes:
      boxes: the planes.
      frames: the cameras.
    """

    boxes: list[Box]
    frames: list[ScanFrame]


def find_planes(root: Path) -> list[Path]:
    """Scene folders below `root`, or `root` itself."""
    if (root / "annotations" / "planes.json").is_file():
        return [root]
    return sorted(path.parent.parent for path in root.glob("*/annotations/planes.json"))


def read_planes(folder: Path) -> PlanesScene:
    """Reads a scene.

    Raises:
      UserError: a missing file, or the entry and field that is wrong.
    """
    planes_path, cameras_path = folder / "annotations" / "planes.json", folder / "cameras.json"
    boxes = [
        _plane(entry, f"{planes_path}: item {number}", number)
        for number, entry in enumerate(_list(planes_path))
    ]
    frames = [
        _camera(entry, folder, f"{cameras_path}: item {number}")
        for number, entry in enumerate(_list(cameras_path))
    ]
    if not frames:
        raise UserError(f"{cameras_path}: the file holds no cameras")
    return PlanesScene(boxes, frames)


def _list(path: Path) -> list:
    found = read_json(path)
    if not isinstance(found, list):
        raise UserError(f"{path}: expected a list, found {type(found).__name__}")
    return found


def _plane(entry: object, where: str, number: int) -> Box:
    label = entry.get("label") if isinstance(entry, dict) else None
    if not isinstance(label, str) or not label:
        raise UserError(f"{where}: needs a text 'label'")
    centre = numbers_of(entry, "center", (3,), where)
    normal = numbers_of(entry, "normal", (3,), where)
    extent = numbers_of(entry, "extent", (2, 3), where)
    if np.linalg.norm(normal) < 1e-6:
        raise UserError(f"{where}: 'normal' has no direction")
    if extent.min() < 0 or extent[:2].min() <= 0:
        raise UserError(f"{where}: 'extent' must be positive metres, found {extent.tolist()}")
    # A plane is flat; an anchor is a box.
    depth = max(extent[2], SURFACE_DEPTH) if len(extent) == 3 else SURFACE_DEPTH
    size = np.array([*extent[:2], depth])
    category = label.replace("_", " ")
    return Box(f"{label}-{number}", "plane", category, centre, box_axes(normal), size)


def _camera(entry: object, folder: Path, where: str) -> ScanFrame:
    path = entry.get("rgb_path") if isinstance(entry, dict) else None
    if not isinstance(path, str) or not path:
        raise UserError(f"{where}: needs a text 'rgb_path'")
    image = next((p for p in (folder / path, Path(path)) if p.is_file()), None)
    if image is None:
        raise UserError(f"{where}: the image {path!r} does not exist in {folder} nor here")
    pose = numbers_of(entry, "pose", (16,), where).reshape(4, 4)
    if not is_rotation(pose[:3, :3]):
        raise UserError(f"{where}: the upper left 3 x 3 of 'pose' is no rotation")
    intrinsics = numbers_of(entry, "intrinsics", (9,), where).reshape(3, 3)
    size = image_size(image)
    check_intrinsics(intrinsics, size, where)
    depth = None
    if entry.get("depth_hist") is not None:
        depth = numbers_of(entry, "depth_hist", (16,), where)
        if depth.min() < 0 or abs(depth.sum() - 1) > 1e-2:
            raise UserError(
                f"{where}: 'depth_hist' adds up to {depth.sum():.4g}; give fractions over 0-10 m"
            )
    return ScanFrame(image, depth, pose, intrinsics, size)
