"""ARKitScenes 3DOD: frames with poses from `.traj` and `.pincam`, boxes from `obbAligned`.

Both folder layouts are read: `<id>/<id>_frames/lowres_wide` and `<id>/lowres_wide`. World and boxes
have z up.
"""

import glob
from pathlib import Path

import numpy as np
from jaxtyping import Float

from jaxvlm.data.audit.checks import LARGEST_ROOM
from jaxvlm.data.boxes import OBJECT, Box, box_axes, distinct, flattened
from jaxvlm.data.frames import is_rotation
from jaxvlm.data.prep.files import numbers_of, read_json, read_numbers
from jaxvlm.data.prep.scan import ScanFrame, check_intrinsics, image_size
from jaxvlm.data.prep.view_choice import thinned
from jaxvlm.errors import UserError

# Seconds that a pose and intrinsics may be off an image.
_POSE_OFF, _PINCAM_OFF = 0.005, 0.001
_WORDS = {"tv_monitor": "TV monitor"}


def find_scenes(root: Path) -> list[str]:
    """Names of the folders that hold an annotation.

    Raises:
      UserError: there are none.
    """
    if not root.is_dir():
        raise UserError(f"--arkit-training-root {root} is no folder; it holds one folder a scene")
    folders = (path for path in root.iterdir() if path.is_dir())
    scenes = sorted(f.name for f in folders if (f / f"{f.name}_3dod_annotation.json").is_file())
    if not scenes:
        below = next(root.glob("*/*/*_3dod_annotation.json"), None)
        hint = f"; there are some in {below.parent.parent}" if below else ""
        raise UserError(f"{root} holds no <id>/<id>_3dod_annotation.json{hint}")
    return scenes


def frames_folder(folder: Path) -> Path | None:
    """Where a scene's `lowres_wide` lies; None where its frames were not downloaded."""
    for parent in (folder / f"{folder.name}_frames", folder):
        if (parent / "lowres_wide").is_dir():
            return parent
    return None


def read_frames(folder: Path, scene: str) -> tuple[list[ScanFrame], int]:
    """The frames of a scene that have pose and intrinsics, evenly thinned, and how many have not.

    Args:
      folder: of `lowres_wide` and the others.
      scene: its number, with which files begin.

    Raises:
      UserError: naming the missing or wrong file.
    """
    images = _by_time(folder / "lowres_wide", scene, ".png")
    if not images:
        raise UserError(f"{folder / 'lowres_wide'} holds no images {scene}_<seconds>.png")
    times, poses = read_trajectory(folder / "lowres_wide.traj")
    pincams = _by_time(folder / "lowres_wide_intrinsics", scene, ".pincam")
    depths = _by_time(folder / "lowres_depth", scene, ".png")
    pincam_times, depth_times = (np.array(list(found)) for found in (pincams, depths))
    size = image_size(next(iter(images.values())))
    matched, lost = [], 0
    for time, image in images.items():
        pose = _nearest(times, time, _POSE_OFF)
        pincam = _nearest(pincam_times, time, _PINCAM_OFF)
        if pose is None or pincam is None or not np.isfinite(poses[pose]).all():
            lost += 1
            continue
        depth = _nearest(depth_times, time, _PINCAM_OFF)
        depth_path = None if depth is None else depths[depth_times[depth]]
        matched.append((image, depth_path, poses[pose], pincams[pincam_times[pincam]]))
    # Before the files of intrinsics are read, one a frame.
    frames = [
        ScanFrame(image, depth, pose, read_pincam(pincam, size, image), size)
        for image, depth, pose, pincam in thinned(matched)
    ]
    if not frames:
        raise UserError(
            f"{folder}: none of {len(images)} images has a pose in lowres_wide.traj within "
            f"{_POSE_OFF * 1000:g} ms and a .pincam within {_PINCAM_OFF * 1000:g} ms"
        )
    return frames, lost


def read_trajectory(path: Path) -> tuple[Float[np.ndarray, "N"], Float[np.ndarray, "N 4 4"]]:
    """Times in seconds and camera-to-world poses of a `.traj` file.

    A line is `time rx ry rz tx ty tz`: axis-angle in radians and metres, world to camera.

    Raises:
      UserError: with the file and line.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; download it") from None
    rows = []
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words:
            continue
        try:
            row = [float(word) for word in words]
        except ValueError:
            row = []
        if len(row) != 7:
            raise UserError(
                f"{path}:{number}: expected 7 numbers (time rx ry rz tx ty tz), found "
                f"{len(words)} words; is the download broken off?"
            )
        rows.append(row)
    if not rows:
        raise UserError(f"{path}: the file holds no poses")
    table = np.array(sorted(rows))
    poses = np.tile(np.eye(4), (len(table), 1, 1))
    rotation = _rotations(table[:, 1:4])
    # World-to-camera inverted.
    poses[:, :3, :3] = rotation.swapaxes(-1, -2)
    poses[:, :3, 3] = -np.einsum("nji,nj->ni", rotation, table[:, 4:])
    return table[:, 0], poses


def _rotations(axis_angle: Float[np.ndarray, "N 3"]) -> Float[np.ndarray, "N 3 3"]:
    """Rodrigues' formula."""
    angle = np.linalg.norm(axis_angle, axis=-1)[:, None, None]
    x, y, z = (axis_angle / np.maximum(angle[:, 0], 1e-12)).T
    zero = np.zeros_like(x)
    cross = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).reshape(-1, 3, 3)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * (cross @ cross)


def read_pincam(path: Path, size: tuple[int, int], image: Path) -> Float[np.ndarray, "3 3"]:
    """K in pixels from a line `width height fx fy cx cy`.

    Raises:
      UserError: malformed, or of another image size.
    """
    width, height, fx, fy, cx, cy = read_numbers(path, 6)
    if (width, height) != size:
        raise UserError(
            f"{path}:1: the intrinsics are of {width:g} x {height:g} pixels, the image {image} "
            f"has {size[0]} x {size[1]}; use the .pincam files of lowres_wide_intrinsics"
        )
    k = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]])
    check_intrinsics(k, size, f"{path}:1")
    if not (0 < cx < width and 0 < cy < height):
        raise UserError(f"{path}:1: the centre {cx:g} x {cy:g} lies outside of the image")
    return k


def read_boxes(path: Path, cameras: Float[np.ndarray, "N 3"] | None) -> list[Box]:
    """The annotated objects.

    The front of a box is its dominant normal; where the file has none, the thinner of its two
    horizontal sides, on the side of the cameras.

    Args:
      path: `<id>_3dod_annotation.json`.
      cameras: positions, or None where no frames are there.

    Raises:
      UserError: with the object and field that is wrong.
    """
    whole = read_json(path)
    data = whole.get("data") if isinstance(whole, dict) else None
    if not isinstance(data, list):
        raise UserError(f"{path}: expected an object with a list 'data'")
    eye = None if cameras is None else cameras.mean(0)
    return distinct(
        (_box(entry, f"{path}: data[{number}]", number, eye), f"{path}: data[{number}]")
        for number, entry in enumerate(data)
    )


def _box(entry: object, where: str, number: int, eye: np.ndarray | None) -> Box:
    try:
        label, uid = entry["label"], str(entry.get("uid") or number)
        aligned = entry["segments"]["obbAligned"]
    except (KeyError, TypeError, AttributeError):
        label = aligned = None
    if not isinstance(label, str) or not label or not isinstance(aligned, dict):
        raise UserError(f"{where}: needs a text 'label' and 'segments.obbAligned'")
    where = f"{where}.segments.obbAligned"
    centre = numbers_of(aligned, "centroid", (3,), where)
    lengths = numbers_of(aligned, "axesLengths", (3,), where)
    rows = numbers_of(aligned, "normalizedAxes", (9,), where).reshape(3, 3)
    # Axes may be listed in any order, so that they mirror.
    if not is_rotation(rows) and not is_rotation(-rows):
        raise UserError(f"{where}: 'normalizedAxes' is no rotation")
    if not 0 < lengths.min() <= lengths.max() <= LARGEST_ROOM:
        raise UserError(
            f"{where}: 'axesLengths' must be positive metres up to {LARGEST_ROOM:g}, found "
            f"{lengths.tolist()}"
        )
    up = int(np.argmax(np.abs(rows[:, 2])))
    flat = [axis for axis in range(3) if axis != up]
    towards = np.zeros(3)
    if aligned.get("dominantNormal") is not None:
        towards = flattened(numbers_of(aligned, "dominantNormal", (3,), where))
    # A normal that points up says nothing about the front.
    if np.linalg.norm(towards) > 0.5:
        flat.sort(key=lambda axis: -abs(rows[axis] @ towards))
    else:
        towards = np.zeros(3) if eye is None else eye - centre
        flat.sort(key=lambda axis: lengths[axis])
    front, side = flat
    normal = rows[front] * (1 if rows[front] @ towards >= 0 else -1)
    size = np.array([lengths[side], lengths[up], lengths[front]])
    category = _WORDS.get(label, label.replace("_", " "))
    return Box(uid, OBJECT, category, centre, box_axes(flattened(normal)), size)


def _by_time(folder: Path, scene: str, suffix: str) -> dict[float, Path]:
    """Files `<scene>_<seconds><suffix>` by their time, in order."""
    found = {}
    for path in folder.glob(f"{glob.escape(scene)}_*{suffix}"):
        if not path.is_file():
            continue
        try:
            found[float(path.name[len(scene) + 1 : -len(suffix)])] = path
        except ValueError:
            continue
    return dict(sorted(found.items()))


def _nearest(times: np.ndarray, time: float, tolerance: float) -> int | None:
    """Index of the nearest time that is near enough."""
    if not len(times):
        return None
    index = int(np.clip(np.searchsorted(times, time), 1, max(len(times) - 1, 1)))
    index = min(
        (i for i in (index - 1, index) if i < len(times)), key=lambda i: abs(times[i] - time)
    )
    # Times are written with three decimals.
    return index if abs(times[index] - time) <= tolerance + 5e-4 else None
