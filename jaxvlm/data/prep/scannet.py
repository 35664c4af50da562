"""A ScanNet export: `color/N.jpg`, `depth/N.png`, `pose/N.txt`, `intrinsic/…`, `<scene>.txt`.

Poses are camera-to-world and are multiplied by the scene's `axisAlignment`, so that z is up and the
walls follow the axes, as in the meshes and boxes that others publish.
"""

import dataclasses
import re
from pathlib import Path

import numpy as np
from jaxtyping import Float

from jaxvlm.data.frames import is_rotation
from jaxvlm.data.prep.files import folder_name, read_numbers
from jaxvlm.data.prep.scan import ScanFrame, check_intrinsics, image_size
from jaxvlm.data.prep.view_choice import MOST_CANDIDATES, thinned
from jaxvlm.errors import UserError

_IMAGES = (".jpg", ".jpeg", ".png")
# How far the principal point may lie from an image's middle, as a fraction of the image.
_OFF_CENTRE = 0.15


@dataclasses.dataclass(frozen=True)
class ScanNetScene:
    """The frames of a scene that have a pose.

    Attributes:
      frames: in the order of their numbers.
      lost: of the frames looked at, those whose pose holds inf or NaN.
    """

    frames: list[ScanFrame]
    lost: int


def find_scene(root: Path, scene_id: str) -> Path | None:
    """The folder of a scene: `root/<scene>`, or below `scans` or `scans_test`."""
    if folder_name(scene_id) != scene_id:
        return None
    folders = (root, root / "scans", root / "scans_test")
    return next((f / scene_id for f in folders if (f / scene_id).is_dir()), None)


def read_scene(folder: Path, with_depth: bool, aligned: bool = True) -> ScanNetScene:
    """Reads poses and intrinsics; images are only found, not decoded.

    Args:
      folder: of the scene.
      with_depth: every frame must have a depth image.
      aligned: the scene must have its `<scene>.txt`, whose axisAlignment levels it.

    Raises:
      UserError: naming the missing or wrong file.
    """
    images = _numbered(folder / "color", _IMAGES)
    if not images:
        raise UserError(
            f"{folder / 'color'} holds no images N.jpg; export the scene with ScanNet's SensReader "
            "(--export_color_images --export_depth_images --export_poses --export_intrinsics)"
        )
    depths = _numbered(folder / "depth", (".png",)) if with_depth else {}
    info = read_info(folder)
    if aligned and not info:
        raise UserError(
            f"{folder / folder.name}.txt is missing, whose axisAlignment turns the scene upright; "
            "download it beside the export, or pass --unaligned"
        )
    first = next(iter(images.values()))
    size = image_size(first)
    intrinsics = _intrinsics(folder, size, info, first)
    alignment = axis_alignment(folder, info)
    frames, lost = [], 0
    # Not all the poses of a video are read, one file each; half as many as are looked at would do.
    for number, image in thinned(list(images.items()), 2 * MOST_CANDIDATES):
        pose = _pose(folder / "pose" / f"{number}.txt")
        if pose is None:
            lost += 1
            continue
        if with_depth and number not in depths:
            raise UserError(
                f"{folder / 'depth' / f'{number}.png'} is missing; export depth images, or pass "
                "--no-depth"
            )
        frames.append(ScanFrame(image, depths.get(number), alignment @ pose, intrinsics, size))
    return ScanNetScene(frames, lost)


def read_info(folder: Path) -> dict[str, str]:
    """The lines `name = value` of `<scene>.txt`; empty without that file."""
    path = folder / f"{folder.name}.txt"
    if not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    pairs = (line.split("=", 1) for line in lines if "=" in line)
    return {name.strip(): value.strip() for name, value in pairs}


def axis_alignment(folder: Path, info: dict[str, str]) -> Float[np.ndarray, "4 4"]:
    """The matrix that levels the scene; the identity where `<scene>.txt` has none (test scans)."""
    text = info.get("axisAlignment")
    if text is None:
        return np.eye(4)
    try:
        matrix = np.array([float(word) for word in text.split()]).reshape(4, 4)
    except ValueError:
        matrix = np.full((4, 4), np.nan)
    if not np.isfinite(matrix).all():
        raise UserError(
            f"{folder / folder.name}.txt: axisAlignment must be 16 numbers, found {text!r}"
        )
    return matrix


def _numbered(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Files named by numbers (SensReader writes 12.jpg, others 000012.jpg), in order."""
    if not folder.is_dir():
        return {}
    files = (p for p in folder.iterdir() if p.suffix.lower() in suffixes and p.is_file())
    numbered = {path.stem: path for path in files if path.stem.isdecimal()}
    return dict(sorted(numbered.items(), key=lambda item: int(item[0])))


def _pose(path: Path) -> Float[np.ndarray, "4 4"] | None:
    """A pose, or None where tracking was lost."""
    if not path.is_file():
        raise UserError(f"{path} is missing; export the poses (--export_poses)")
    pose = np.array(read_numbers(path, 16)).reshape(4, 4)
    if not np.isfinite(pose).all():
        return None
    if not is_rotation(pose[:3, :3]):
        raise UserError(f"{path}: the upper left 3 x 3 is no rotation; expected camera-to-world")
    return pose


def _intrinsics(
    folder: Path, size: tuple[int, int], info: dict[str, str], image: Path
) -> Float[np.ndarray, "3 3"]:
    """The colour camera's K in pixels of the exported images."""
    path = folder / "intrinsic" / "intrinsic_color.txt"
    if not path.is_file():
        raise UserError(f"{path} is missing; export the intrinsics (--export_intrinsics)")
    k = np.array(read_numbers(path, 16)).reshape(4, 4)[:3, :3]
    found = [k]
    original = [info.get(name, "") for name in ("colorWidth", "colorHeight")]
    if all(re.fullmatch(r"[1-9]\d{0,5}", text) for text in original):
        # Images that were exported smaller; some exports scale the intrinsics, too.
        scale = [size[0] / int(original[0]), size[1] / int(original[1]), 1]
        found.append(k * np.array(scale)[:, None])
    off = [np.abs(m[:2, 2] / np.array(size) - 0.5).max() for m in found]
    if not min(off) <= _OFF_CENTRE:
        raise UserError(
            f"{path}: the centre {k[0, 2]:g} x {k[1, 2]:g} does not fit {image}, which has "
            f"{size[0]} x {size[1]} pixels; were the images exported in another size? Then "
            f"colorWidth and colorHeight of {folder.name}.txt must be what the intrinsics are of"
        )
    fitting = found[int(np.argmin(off))]
    check_intrinsics(fitting, size, str(path))
    return fitting
