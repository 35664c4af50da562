"""Geometry features: 37 numbers a view, for every source.

| numbers | `"first_camera"` | `"original"` |
| --- | --- | --- |
| 0-8 | camera-to-frame rotation, row-major | rotation as recorded |
| 9-11 | position in metres, in that frame | translation as recorded |
| 12-20 | intrinsics of the framed image, divided by its sides | intrinsics as recorded |
| 21-36 | depth histogram: fractions in 16 equal bins over 0-10 m | histogram as recorded |

The frame is the level frame of the first kept camera (`frames.py`). A part that a record lacks is
zero. `"original"` is for converted checkpoints of the original, whose geometry head takes the mean
over the views.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float

from jaxvlm.data.frames import first_camera_frame
from jaxvlm.data.framing import Framing, Window
from jaxvlm.data.record import Record
from jaxvlm.errors import UserError

FEATURES = 37
DEPTH_BINS, DEPTH_RANGE = 16, 10.0
# Of each part: where it stands among the 37.
_PARTS = {"R": slice(0, 9), "t": slice(9, 12), "K": slice(12, 21), "depth_hist": slice(21, 37)}


def depth_histogram(depth: Float[np.ndarray, "H W"]) -> Float[np.ndarray, "16"]:
    """Fractions of an image's known depths in equal bins over 0-10 m.

    Args:
      depth: metres along the optical axis; 0 or less, and not finite, where nothing is known. What
        lies beyond 10 m counts for the last bin.

    Returns:
      Numbers that add up to 1, or zeros where no depth is known.
    """
    known = depth[np.isfinite(depth) & (depth > 0)].clip(max=DEPTH_RANGE)
    counts, _ = np.histogram(known, bins=DEPTH_BINS, range=(0, DEPTH_RANGE))
    return counts / max(len(known), 1)


def looked_at(
    points: Float[np.ndarray, "N 3"],
    geometry: Mapping[str, Float[np.ndarray, "V N"]],
    image_size: tuple[int, int],
) -> Bool[np.ndarray, "N V"]:
    """Which points lie in which images; what stands in front of them is not asked.

    Args:
      points: in the frame of the poses, metres.
      geometry: with `R`, `t` and `K`.
      image_size: (width, height) in pixels.
    """
    rotation = geometry["R"].reshape(-1, 3, 3).astype(np.float64)
    offset = points[:, None] - geometry["t"].astype(np.float64)
    local = np.einsum("vji,nvj->nvi", rotation, offset)
    pixel = np.einsum("vij,nvj->nvi", geometry["K"].reshape(-1, 3, 3).astype(np.float64), local)
    depth = local[..., 2:]
    inside = (pixel[..., :2] >= 0) & (pixel[..., :2] < np.array(image_size) * depth)
    return inside.all(-1) & (depth[..., 0] > 0)


def geometry_features(
    record: Record,
    views: Sequence[int],
    framing: Framing,
    convention: str = "first_camera",
    windows: Sequence[Window | None] | None = None,
) -> Float[np.ndarray, "V 37"] | None:
    """Features of the kept views of a record, or None where the record has no geometry.

    Args:
      record: with raw camera-to-world poses and pixel intrinsics.
      views: indices of the kept views; the first gives the frame.
      framing: of the images.
      convention: see the module.
      windows: which part of the frame each kept view shows; None for the whole of all.

    Raises:
      UserError: intrinsics without `image_size`.
    """
    if record.geometry is None:
        return None
    views = list(views)
    features = np.zeros((len(views), FEATURES), np.float32)
    for name, values in record.geometry.items():
        features[:, _PARTS[name]] = values[views]
    if convention == "original":
        return features
    poses = record.poses()
    if poses is not None:
        rotation, translation = (part[views] for part in poses)
        frame = first_camera_frame(rotation[0], translation[0], record.up)
        features[:, _PARTS["R"]] = frame.rotations(rotation).reshape(-1, 9)
        features[:, _PARTS["t"]] = frame.points(translation)
    if "K" in record.geometry:
        if record.image_size is None:
            raise UserError(f"{record.origin}: geom_token.K needs 'image_size' [width, height]")
        for row, (view, window) in enumerate(
            zip(views, windows or [None] * len(views), strict=True)
        ):
            k = record.geometry["K"][view].reshape(3, 3)
            features[row, _PARTS["K"]] = framing.intrinsics(k, *record.image_size, window).ravel()
    return features
