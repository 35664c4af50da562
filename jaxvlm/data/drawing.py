"""Boxes drawn into the views of a record, and its cameras as they stand on the floor."""

import itertools

import numpy as np
from PIL import Image, ImageDraw

from jaxvlm.data.boxes import Box
from jaxvlm.data.frames import upright
from jaxvlm.data.record import Record
from jaxvlm.data.top_view import Outline, Viewpoint

_EDGES = [(a, b) for a, b in itertools.combinations(range(8), 2) if (a ^ b).bit_count() == 1]
# Metres in front of a camera from which an edge is drawn.
_NEAR = 0.05
# Metres that the line which shows a front reaches out of its box.
_FRONT = 0.3


def draw_box(
    image: Image.Image,
    record: Record,
    view: int,
    box: Box,
    colour: str,
    size: tuple[int, int],
) -> tuple[float, float] | None:
    """Draws a box, in the record's frame turned to z up, into one of its views.

    Args:
      image: the view, in any size.
      record: it draws nothing where poses or intrinsics are missing.
      view: which.
      box: what is drawn.
      colour: of its edges.
      size: of the image file, which the intrinsics are of where the record has no `image_size`.

    Returns:
      The pixel of its middle; None where no camera shows it.
    """
    poses = record.poses()
    if poses is None or "K" not in record.geometry:
        return None
    turn = upright(record.up)
    rotation, position = turn @ poses[0][view], turn @ poses[1][view]
    k = record.geometry["K"][view].reshape(3, 3).astype(np.float64)
    local = (box.corners() - position) @ rotation
    scale = np.array(image.size) / np.array(record.image_size or size)
    pen = ImageDraw.Draw(image)
    for a, b in _EDGES:
        ends = _clipped(local[a], local[b])
        if ends is not None:
            pixels = [tuple((k @ end)[:2] / end[2] * scale) for end in ends]
            if np.abs(pixels).max() < 1e5:
                pen.line(pixels, fill=colour, width=2)
    middle = (box.centre - position) @ rotation
    return tuple((k @ middle)[:2] / middle[2] * scale) if middle[2] > _NEAR else None


def _clipped(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """The part of an edge in front of the camera."""
    if max(a[2], b[2]) <= _NEAR:
        return None
    if a[2] > b[2]:
        a, b = b, a
    if a[2] < _NEAR:
        a = a + (b - a) * (_NEAR - a[2]) / (b[2] - a[2])
    return a, b


def viewpoints(record: Record) -> list[Viewpoint]:
    """A record's cameras, in its frame turned to z up; none without poses."""
    poses = record.poses()
    if poses is None:
        return []
    found = []
    for view in range(len(record.images)):
        rotation = upright(record.up) @ poses[0][view]
        # The top of the image of a camera that looks down.
        forward = rotation[:2, 2] if np.linalg.norm(rotation[:2, 2]) > 0.1 else -rotation[:2, 1]
        field = np.pi / 6
        if "K" in record.geometry and record.image_size:
            field = float(np.arctan(record.image_size[0] / 2 / record.geometry["K"][view, 0]))
        position = (upright(record.up) @ poses[1][view])[:2]
        found.append(Viewpoint(position, forward, field))
    return found


def box_outline(
    box: Box, colour: str, fill: str | None = None, name: str | None = None, aside: int = 0
) -> Outline:
    """A box from above, with its front; named as it is where no name is given."""
    front = box.centre[:2] + box.axes[2, :2] * (box.size[2] / 2 + _FRONT)
    name = box.name if name is None else name
    return Outline(box.footprint(), name, colour, 3, fill, front, aside)
