"""A picture from above: boxes as rectangles, cameras as wedges; metres, z up, north is +y."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont

_BACKGROUND, _GRID, _INK = "#ffffff", "#e6e6e6", "#333333"
_CAMERAS = (
    *("#d62728", "#1f77b4", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#e377c2"),
    *("#7f7f7f", "#bcbd22", "#000000", "#ff9896"),
)
_REACH = 0.8
_BORDER = 40
# How a name stands at its place by `Name.aside`, and pixels of white around its letters.
_ANCHORS, _EDGE = {-1: "rm", 0: "mm", 1: "lm"}, 2
# Pixels from its middle where a name may stand, the nearest first.
_AROUND = sorted(
    ((right, down) for right in range(-64, 65, 8) for down in range(-64, 65, 8)),
    key=lambda place: place[0] ** 2 + place[1] ** 2,
)


@dataclasses.dataclass(frozen=True)
class Outline:
    """Something with a footprint.

    Attributes:
      corners: on the floor, in order.
      name: written beside it; empty for none.
      colour: of its edge, as Pillow reads it.
      width: of its edge in pixels.
      fill: of its inside, or None.
      front: a point that its front faces, or None.
      aside: -1 or 1 for a name left or right of its middle.
      far: the picture need not reach it: then its name stands at the edge.
    """

    corners: Float[np.ndarray, "N 2"]
    name: str = ""
    colour: str = _INK
    width: int = 2
    fill: str | None = None
    front: Float[np.ndarray, "2"] | None = None
    aside: int = 0
    far: bool = False


@dataclasses.dataclass(frozen=True)
class Name:
    """A text in a picture.

    Attributes:
      text: what it says.
      at: pixels right and down.
      colour: as Pillow reads it.
      aside: -1 or 1 for left or right of `at`; its middle is there otherwise.
    """

    text: str
    at: tuple[float, float]
    colour: str
    aside: int = 0


@dataclasses.dataclass(frozen=True)
class Viewpoint:
    """A camera: position and forward direction on the floor, half its field of view in radians."""

    position: Float[np.ndarray, "2"]
    forward: Float[np.ndarray, "2"]
    half_field: float


def font(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's own font."""
    return ImageFont.load_default(size)


def camera_colour(number: int) -> str:
    """The colour of a view, the same everywhere."""
    return _CAMERAS[number % len(_CAMERAS)]


def draw_top_view(
    outlines: Sequence[Outline], viewpoints: Sequence[Viewpoint], size: tuple[int, int]
) -> Image.Image:
    """Draws them to scale with a grid of metres.

    Args:
      outlines: drawn in their order.
      viewpoints: numbered from 0.
      size: (width, height) of the picture in pixels.
    """
    points = [outline.corners for outline in outlines if not outline.far]
    points += [v.position[None] + _REACH * np.array([[-1, -1], [1, 1]]) for v in viewpoints]
    every = np.concatenate(points) if points else np.zeros((1, 2))
    low, high = every.min(0) - 0.2, every.max(0) + 0.2
    scale = float(((np.array(size) - 2 * _BORDER) / np.maximum(high - low, 1e-3)).min())
    middle = (low + high) / 2

    def place(point: np.ndarray) -> tuple[float, float]:
        x, y = (np.asarray(point) - middle) * scale
        return size[0] / 2 + float(x), size[1] / 2 - float(y)

    def inside(point: np.ndarray) -> tuple[float, float]:
        """As near to its place as the picture reaches."""
        x, y = np.clip(place(point), _BORDER / 2, np.array(size) - _BORDER / 2)
        return float(x), float(y)

    image = Image.new("RGB", size, _BACKGROUND)
    pen = ImageDraw.Draw(image)
    _grid(pen, place, low, high, scale, size)
    for outline in outlines:
        corners = [place(corner) for corner in outline.corners]
        if outline.fill:
            pen.polygon(corners, fill=outline.fill)
        pen.line([*corners, corners[0]], fill=outline.colour, width=outline.width, joint="curve")
        centre = outline.corners.mean(0)
        if outline.front is not None:
            pen.line([place(centre), place(outline.front)], fill=outline.colour, width=2)
    cameras = [_camera(pen, place, view, number) for number, view in enumerate(viewpoints)]
    # Last, on white, so that no line runs through them.
    names = []
    for outline in outlines:
        if outline.name:
            at = inside(outline.corners.mean(0))
            # From the edge inwards.
            aside = (-1 if at[0] > size[0] / 2 else 1) if outline.far else outline.aside
            names.append(Name(outline.name, at, outline.colour, aside))
    write_names(image, names, 12, cameras)
    return image


def _grid(pen, place, low, high, scale: float, size: tuple[int, int]) -> None:
    # Metres between lines, so that a large scene has no more than a few dozen.
    step = next(s for s in (1, 2, 5, 10, 50, 100, 1000, 1e9) if s * scale >= 18)
    for axis in (0, 1):
        for metre in np.arange(np.ceil(low[axis] / step), np.floor(high[axis] / step) + 1) * step:
            ends = [low.copy(), high.copy()]
            ends[0][axis] = ends[1][axis] = metre
            pen.line([place(end) for end in ends], fill=_GRID)
    left, bottom = _BORDER, size[1] - _BORDER / 2
    pen.line([(left, bottom), (left + step * scale, bottom)], fill=_INK, width=3)
    pen.text(
        (left + step * scale + 6, bottom), f"{step:g} m", fill=_INK, anchor="lm", font=font(12)
    )


def write_names(
    image: Image.Image,
    names: Sequence[Name],
    size: int,
    taken: Sequence[tuple[float, float, float, float]] = (),
) -> None:
    """Writes each name at its place or, where something stands already, as near as there is room.

    Args:
      image: what they are written on.
      names: in their order.
      size: of the letters in pixels.
      taken: left, top, right and bottom of what else no name may cover.
    """
    pen, taken = ImageDraw.Draw(image), list(taken)
    for name in names:
        style = {"anchor": _ANCHORS[name.aside], "font": font(size), "stroke_width": _EDGE}
        x, y = name.at[0] + _EDGE * name.aside, name.at[1]
        for right, down in _AROUND:
            at = (x + right, y + down)
            left, top, end, bottom = pen.textbbox(at, name.text, **style)
            if all(left >= c or end <= a or top >= d or bottom <= b for a, b, c, d in taken):
                break
        else:
            at = (x, y)
        taken.append((left, top, end, bottom))
        pen.text(at, name.text, fill=name.colour, stroke_fill="#ffffff", **style)


def _camera(pen, place, view: Viewpoint, number: int) -> tuple[float, float, float, float]:
    """Draws a camera; returns where its number stands."""
    colour = camera_colour(number)
    angle = np.arctan2(view.forward[1], view.forward[0])
    edges = [
        view.position + _REACH * np.array([np.cos(angle + turn), np.sin(angle + turn)])
        for turn in (-view.half_field, view.half_field)
    ]
    pen.line([place(edges[0]), place(view.position), place(edges[1])], fill=colour, width=2)
    x, y = place(view.position)
    disc = (x - 8, y - 8, x + 8, y + 8)
    pen.ellipse(disc, fill=colour)
    pen.text((x, y), str(number), fill="#ffffff", anchor="mm", font=font(11))
    return disc
