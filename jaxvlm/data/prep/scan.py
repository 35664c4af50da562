"""A scan: frames with poses and intrinsics, as every data set with a camera has them."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image

from jaxvlm.data.frames import rounded, upright
from jaxvlm.data.geometry import depth_histogram
from jaxvlm.data.prep.view_choice import choose_views, thinned
from jaxvlm.errors import UserError

_MILLIMETRES = 1000.0
# Cameras further apart than this were not measured in metres.
_LARGEST_SCENE = 200.0


@dataclasses.dataclass(frozen=True)
class Frame:
    """One image of a scan.

    Attributes:
      image: its file.
      depth: its depth image (uint16, millimetres, 0 where unknown), or None.
      pose: camera-to-world.
      intrinsics: K in pixels of `size`.
      size: (width, height) of the image in pixels.
    """

    image: Path
    depth: Path | None
    pose: Float[np.ndarray, "4 4"]
    intrinsics: Float[np.ndarray, "3 3"]
    size: tuple[int, int]


def choose_frames(
    frames: Sequence[Frame], up: str, count: int, method: str, rng: np.random.Generator
) -> list[Frame]:
    """The frames that are shown (`view_choice.py`).

    Raises:
      UserError: cameras too far apart to be one scene in metres.
    """
    candidates = thinned(frames)
    turn = upright(up)
    rotations = np.stack([turn @ frame.pose[:3, :3] for frame in candidates])
    positions = np.stack([turn @ frame.pose[:3, 3] for frame in candidates])
    if np.ptp(positions, axis=0).max() > _LARGEST_SCENE:
        raise UserError(
            f"{candidates[0].image.parent}: the cameras stand "
            f"{np.ptp(positions, axis=0).max():.4g} m apart; poses must be in metres"
        )
    fields = np.stack(
        [(np.array(frame.size) / 2) / np.diagonal(frame.intrinsics)[:2] for frame in candidates]
    )
    chosen = choose_views(rotations, positions, fields, count, method, rng)
    return [candidates[index] for index in chosen]


def measured(frames: Sequence[Frame]) -> dict[str, Float[np.ndarray, "V N"]]:
    """The `geom_token` of frames: raw poses and intrinsics, and histograms of their depths."""
    poses = np.stack([frame.pose for frame in frames])
    parts = {
        "R": rounded(poses[:, :3, :3].reshape(-1, 9), 6),
        "t": rounded(poses[:, :3, 3], 5),
        "K": rounded(np.stack([frame.intrinsics.ravel() for frame in frames]), 3),
    }
    if all(frame.depth is not None for frame in frames):
        depths = [depth_histogram(read_depth(frame.depth)) for frame in frames]
        parts["depth_hist"] = rounded(np.stack(depths), 6)
    return {name: np.asarray(value, np.float32) for name, value in parts.items()}


def view_rows(scene: str, frames: Sequence[Frame]) -> list[tuple]:
    """Rows of the table of chosen views."""
    return [
        (scene, number, relative_path(frame.image), *rounded(frame.pose[:3, 3], 3))
        for number, frame in enumerate(frames)
    ]


def read_depth(path: Path) -> Float[np.ndarray, "H W"]:
    """A depth image in metres; 0 where nothing is known.

    Raises:
      UserError: it cannot be read, or is no 16-bit image.
    """
    try:
        with Image.open(path) as file:
            if not file.mode.startswith("I"):
                raise ValueError(f"its pixels are of mode {file.mode!r}, expected 16-bit numbers")
            return np.asarray(file).astype(np.float32) / _MILLIMETRES
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"the depth image {path} cannot be read: {error}") from None


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) in pixels of an image, from its head.

    Raises:
      UserError: it is no image.
    """
    try:
        with Image.open(path) as file:
            return file.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"the image {path} cannot be read: {error}") from None


def relative_path(path: Path) -> str:
    """A path as records write it: from the working folder where it lies below it."""
    absolute, here = path.absolute(), Path.cwd()
    inside = absolute.is_relative_to(here)
    return str(absolute.relative_to(here)) if inside else str(absolute)
