"""Geometry features: 37 numbers a view, in the frame of the first kept camera.

rotation 9 (camera-to-world, row-major), translation 3 (metres), intrinsics 9 (of the cropped
square, divided by its side), depth histogram 16 (fractions over 0-10 m). A part that the record
lacks is zero.

Frame: origin at the first kept camera, turned about the vertical by that camera's yaw, Z up. The
first view's rotation keeps its pitch and roll, so gravity stays known.
"""

import numpy as np
from jaxtyping import Float

from jaxvlm.data.images import crop_intrinsics
from jaxvlm.data.records import Record
from jaxvlm.errors import UserError

FEATURES = 37
# Rotates a y-up world into a z-up one: (x, y, z) -> (x, -z, y).
_Y_UP_TO_Z_UP = np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]], np.float64)


def level_frame(
    rotation: Float[np.ndarray, "3 3"], translation: Float[np.ndarray, "3"]
) -> tuple[Float[np.ndarray, "3 3"], Float[np.ndarray, "3"]]:
    """The world-to-frame transform `x -> A (x - o)` of a camera's level frame.

    Y points where the camera looks, projected on the floor; for a camera that looks straight
    down or up, where the top of its image points.

    Args:
      rotation: camera-to-world, camera axes x right, y down, z forward, world Z up.
      translation: the camera's position in metres.

    Returns:
      `A [3,3]` and `o [3]`.
    """
    forward = rotation[:2, 2]
    if np.linalg.norm(forward) < 1e-3:
        forward = -rotation[:2, 1]
    cos, sin = forward / max(np.linalg.norm(forward), 1e-12)
    return np.array([[sin, -cos, 0], [cos, sin, 0], [0, 0, 1]], np.float64), translation


def geometry_features(
    record: Record, views: list[int], size: int
) -> Float[np.ndarray, "V 37"] | None:
    """Features of the kept views of a record, or None where the record has no geometry.

    Args:
      record: with raw camera-to-world poses and pixel intrinsics.
      views: indices of the kept views; the first gives the frame.
      size: side of the square that images are cropped to, in pixels.

    Raises:
      UserError: intrinsics without `image_size`.
    """
    if record.geometry is None:
        return None
    parts = record.geometry
    features = np.zeros((len(views), FEATURES), np.float32)
    if "R" in parts and "t" in parts:
        rotation = parts["R"][views].reshape(-1, 3, 3).astype(np.float64)
        translation = parts["t"][views].astype(np.float64)
        if record.up == "y":
            rotation, translation = _Y_UP_TO_Z_UP @ rotation, translation @ _Y_UP_TO_Z_UP.T
        frame, origin = level_frame(rotation[0], translation[0])
        features[:, :9] = (frame @ rotation).reshape(-1, 9)
        features[:, 9:12] = (translation - origin) @ frame.T
    if "K" in parts:
        if record.image_size is None:
            raise UserError(f"{record.origin}: geom_token.K needs 'image_size' [width, height]")
        for row, view in enumerate(views):
            k = parts["K"][view].reshape(3, 3)
            features[row, 12:21] = crop_intrinsics(k, *record.image_size, size).ravel()
    if "depth_hist" in parts:
        features[:, 21:] = parts["depth_hist"][views]
    return features
