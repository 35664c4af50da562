"""A scan: frames with poses and intrinsics, as every data set with a camera has them."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image

from jaxvlm.data.frames import rounded
from jaxvlm.data.geometry import DEPTH_BINS, depth_histogram
from jaxvlm.data.prep.view_choice import choose_views, thinned
from jaxvlm.errors import UserError

_MILLIMETRES = 1000.0
# Cameras further apart than this were not measured in metres.
_LARGEST_SCENE = 200.0
_ORIENTATION = 0x0112


@dataclasses.dataclass(frozen=True)
class ScanFrame:
    """One image of a scan.

    Attributes:
      image: its file.
      depth: its depth image (uint16, millimetres, 0 where unknown), or a histogram that was
        measured before, or None.
      pose: camera-to-world.
      intrinsics: K in pixels of `size`.
      size: (width, height) of the image in pixels.
    """

    image: Path
    depth: Path | Float[np.ndarray, "16"] | None
    pose: Float[np.ndarray, "4 4"]
    intrinsics: Float[np.ndarray, "3 3"]
    size: tuple[int, int]

    def histogram(self) -> Float[np.ndarray, "16"] | None:
        """Its depth histogram, or None where nothing is known."""
        if isinstance(self.depth, Path):
            return depth_histogram(read_depth(self.depth))
        return self.depth


def choose_frames(
    frames: Sequence[ScanFrame], count: int, method: str, rng: np.random.Generator
) -> list[ScanFrame]:
    """The frames that are shown (`view_choice.py`), of a scan whose world has z up.

    Raises:
      UserError: cameras too far apart to be one scene in metres, or images of several sizes.
    """
    candidates = thinned(frames)
    rotations = np.stack([frame.pose[:3, :3] for frame in candidates])
    positions = np.stack([frame.pose[:3, 3] for frame in candidates])
    if np.ptp(positions, axis=0).max() > _LARGEST_SCENE:
        raise UserError(
            f"{candidates[0].image.parent}: the cameras stand "
            f"{np.ptp(positions, axis=0).max():.4g} m apart; poses must be in metres"
        )
    fields = np.stack(
        [(np.array(frame.size) / 2) / np.diagonal(frame.intrinsics)[:2] for frame in candidates]
    )
    chosen = choose_views(rotations, positions, fields, count, method, rng)
    shown = [candidates[index] for index in chosen]
    for frame in shown:
        size = image_size(frame.image)
        if size != shown[0].size:
            raise UserError(
                f"the image {frame.image} has {size[0]} x {size[1]} pixels, others of its scan "
                f"{shown[0].size[0]} x {shown[0].size[1]}; a record's views must be of one size"
            )
    return shown


def measured(frames: Sequence[ScanFrame]) -> dict[str, Float[np.ndarray, "V N"]]:
    """The `geom_token` of frames: raw poses and intrinsics, and histograms of their depths.

    A frame without depth has a histogram of zeros; where none has depth, the part is absent.
    """
    poses = np.stack([frame.pose for frame in frames])
    parts = {
        "R": rounded(poses[:, :3, :3].reshape(-1, 9), 6),
        "t": rounded(poses[:, :3, 3], 5),
        "K": rounded(np.stack([frame.intrinsics.ravel() for frame in frames]), 3),
    }
    histograms = [frame.histogram() for frame in frames]
    if any(histogram is not None for histogram in histograms):
        known = [np.zeros(DEPTH_BINS) if h is None else h for h in histograms]
        parts["depth_hist"] = rounded(np.stack(known), 6)
    return {name: np.asarray(value, np.float32) for name, value in parts.items()}


def view_rows(scene: str, frames: Sequence[ScanFrame]) -> list[tuple]:
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
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"the depth image {path} cannot be read: {error}") from None


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) in pixels of an image, from its head.

    Raises:
      UserError: it is no image, or is to be turned: intrinsics would be of another image.
    """
    try:
        with Image.open(path) as file:
            if file.getexif().get(_ORIENTATION, 1) != 1:
                raise ValueError("its EXIF data turns it, which its intrinsics don't know")
            return file.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"the image {path} cannot be read: {error}") from None


def check_intrinsics(k: Float[np.ndarray, "3 3"], size: tuple[int, int], where: str) -> None:
    """Refuses what no camera is.

    Args:
      k: in pixels.
      size: (width, height) of the image.
      where: the file, for the message.

    Raises:
      UserError: focal lengths far from the image's size, or numbers that are not finite.
    """
    focal = np.diagonal(k)[:2] / max(size)
    if not np.isfinite(k).all() or not ((focal > 0.1) & (focal < 20)).all():
        raise UserError(
            f"{where}: no camera of {size[0]} x {size[1]} pixels has the focal lengths "
            f"{k[0, 0]:g} x {k[1, 1]:g}; expected the intrinsics of the colour camera in pixels"
        )


def relative_path(path: Path) -> str:
    """A path as records write it: from the working folder where it lies below it."""
    absolute, here = path.absolute(), Path.cwd()
    inside = absolute.is_relative_to(here)
    return str(absolute.relative_to(here)) if inside else str(absolute)
