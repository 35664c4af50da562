"""What rendered boxes look like: each category has a colour and, where it has one, a shape.

Local axes of a part: x to the right, y the height, z the front, the box's centre at the origin.
"""

import colorsys
import hashlib
from collections.abc import Callable, Sequence

import numpy as np

from jaxvlm.render.shapes import Part, box

RGB = tuple[float, float, float]
# Colours of the categories of RoomPlan and ARKitScenes, far apart from one another.
_COLOURS: dict[str, RGB] = {
    "bathtub": (0.55, 0.80, 0.90),
    "bed": (0.25, 0.40, 0.80),
    "cabinet": (0.55, 0.36, 0.20),
    "chair": (0.85, 0.25, 0.20),
    "dishwasher": (0.45, 0.55, 0.60),
    "fireplace": (0.50, 0.16, 0.12),
    "oven": (0.22, 0.22, 0.26),
    "refrigerator": (0.80, 0.84, 0.86),
    "shelf": (0.76, 0.56, 0.30),
    "sink": (0.40, 0.75, 0.78),
    "sofa": (0.30, 0.60, 0.32),
    "stairs": (0.66, 0.60, 0.50),
    "stool": (0.95, 0.50, 0.15),
    "storage unit": (0.55, 0.36, 0.20),
    "stove": (0.30, 0.28, 0.30),
    "table": (0.80, 0.64, 0.36),
    "toilet": (0.93, 0.90, 0.95),
    "TV": (0.08, 0.08, 0.12),
    "TV monitor": (0.08, 0.08, 0.12),
    "washer": (0.62, 0.68, 0.80),
    "washing machine": (0.62, 0.68, 0.80),
}
_DARK, _LIGHT = (0.12, 0.12, 0.13), (0.92, 0.92, 0.90)
Span = tuple[float, float]


def colour(category: str) -> RGB:
    """The colour of a category; an unknown one has one of its own, always the same."""
    category = _known(category)
    if category in _COLOURS:
        return _COLOURS[category]
    digest = hashlib.sha256(category.encode("utf-8", "surrogateescape")).digest()
    return colorsys.hsv_to_rgb(digest[0] / 256, 0.35 + digest[1] / 512, 0.45 + digest[2] / 600)


def parts(category: str, size: np.ndarray, attributes: Sequence[str] = ()) -> list[Part]:
    """The parts of a thing that fills its box; some attributes show."""
    name = _known(category)
    width, height, depth = (float(v) for v in size)
    if name == "sink":
        # A little over what it is let into, or its rim could not be seen.
        height += 0.04
    if name == "storage unit" and "shelf" in attributes:
        name = "shelf"
    block = _Block(width, height, depth, colour(name))
    if name == "chair" and "{} on a star-shaped base" in attributes:
        return _chair(block, star=True)
    return _SHAPES.get(name, _plain)(block)


def _known(category: str) -> str:
    """The category whose look a thing has: "built in cabinet" looks like a cabinet."""
    words = category.replace("_", " ").lower()
    names = {name.lower(): name for name in _COLOURS}
    if words in names:
        return names[words]
    return next((names[word] for word in reversed(words.split()) if word in names), category)


class _Block:
    """A box to cut parts from, in shares of its width, height and depth, from 0 to 1."""

    def __init__(self, width: float, height: float, depth: float, rgb: RGB):
        self.size = (width, height, depth)
        self.rgb = rgb

    def cut(self, x: Span, y: Span, z: Span, rgb: RGB | None = None) -> Part:
        """The part between these shares."""
        spans = [
            ((low - 0.5) * length, (high - 0.5) * length)
            for (low, high), length in zip((x, y, z), self.size, strict=True)
        ]
        return box(self.rgb if rgb is None else rgb, *spans)

    def share(self, axis: int, metres: float, most: float) -> float:
        """So many metres as a share of an axis, at most `most`."""
        return min(metres / self.size[axis], most)

    def tint(self, factor: float) -> RGB:
        """Its colour, lighter or darker."""
        return tuple(min(channel * factor, 1.0) for channel in self.rgb)


def _plain(block: _Block) -> list[Part]:
    """A block whose front tells it from its back."""
    lip = block.share(2, 0.02, 0.2)
    return [
        block.cut((0, 1), (0, 1), (0, 1 - lip)),
        block.cut((0.08, 0.92), (0.08, 0.92), (1 - lip, 1), block.tint(1.25)),
    ]


def _table(block: _Block) -> list[Part]:
    top = block.share(1, 0.05, 0.3)
    x, z = block.share(0, 0.06, 0.2), block.share(2, 0.06, 0.2)
    legs = [
        block.cut(across, (0, 1 - top), along, block.tint(0.7))
        for across in ((0, x), (1 - x, 1))
        for along in ((0, z), (1 - z, 1))
    ]
    return [block.cut((0, 1), (1 - top, 1), (0, 1)), *legs]


def _chair(block: _Block, star: bool = False) -> list[Part]:
    seat = min(0.5, 0.45 / block.size[1])
    thick, back = block.share(1, 0.06, 0.2), block.share(2, 0.07, 0.25)
    x, z = block.share(0, 0.05, 0.2), block.share(2, 0.05, 0.2)
    if star:
        foot = block.share(1, 0.05, 0.1)
        below = [
            block.cut((0.5 - x, 0.5 + x), (0, seat - thick), (0.5 - z, 0.5 + z), _DARK),
            block.cut((0.05, 0.95), (0, foot), (0.5 - z / 2, 0.5 + z / 2), _DARK),
            block.cut((0.5 - x / 2, 0.5 + x / 2), (0, foot), (0.05, 0.95), _DARK),
        ]
    else:
        below = [
            block.cut(across, (0, seat - thick), along, _DARK)
            for across in ((0, x), (1 - x, 1))
            for along in ((0, z), (1 - z, 1))
        ]
    return [
        block.cut((0, 1), (seat - thick, seat), (0, 1)),
        block.cut((0, 1), (seat, 1), (0, back), block.tint(0.85)),
        *below,
    ]


def _sofa(block: _Block) -> list[Part]:
    seat = min(0.6, 0.42 / block.size[1])
    arm, back = block.share(0, 0.16, 0.2), block.share(2, 0.22, 0.35)
    return [
        block.cut((0, 1), (0, seat), (0, 1)),
        block.cut((0, 1), (seat, 1), (0, back), block.tint(0.85)),
        *(
            block.cut(side, (seat, (1 + seat) / 2), (back, 1), block.tint(0.9))
            for side in ((0, arm), (1 - arm, 1))
        ),
    ]


def _bed(block: _Block) -> list[Part]:
    """The head lies at the back, where no front of a bed is."""
    mattress = min(0.9, 0.5 / block.size[1])
    head, pillow = block.share(2, 0.06, 0.1), block.share(2, 0.45, 0.25)
    return [
        block.cut((0, 1), (0, mattress), (head, 1)),
        block.cut((0, 1), (0, 1), (0, head), (0.45, 0.30, 0.18)),
        block.cut((0.08, 0.92), (mattress, min(mattress + 0.1, 1)), (head, head + pillow), _LIGHT),
    ]


def _doors(columns: int, rows: int) -> Callable[[_Block], list[Part]]:
    def shape(block: _Block) -> list[Part]:
        lip = block.share(2, 0.02, 0.2)
        found = [block.cut((0, 1), (0, 1), (0, 1 - lip), block.tint(0.8))]
        for column in range(columns):
            for row in range(rows):
                x = ((column + 0.05) / columns, (column + 0.95) / columns)
                y = ((row + 0.05) / rows, (row + 0.95) / rows)
                found.append(block.cut(x, y, (1 - lip, 1)))
        return found

    return shape


def _shelf(block: _Block) -> list[Part]:
    side, back = block.share(0, 0.03, 0.1), block.share(2, 0.02, 0.1)
    boards = max(2, round(block.size[1] / 0.35))
    thick = block.share(1, 0.03, 0.1)
    return [
        block.cut((0, 1), (0, 1), (0, back), block.tint(0.7)),
        block.cut((0, side), (0, 1), (0, 1)),
        block.cut((1 - side, 1), (0, 1), (0, 1)),
        *(block.cut((0, 1), (y, y + thick), (0, 1)) for y in np.linspace(0, 1 - thick, boards + 1)),
    ]


def _tub(block: _Block) -> list[Part]:
    x, z = block.share(0, 0.08, 0.2), block.share(2, 0.08, 0.2)
    return [
        block.cut((0, 1), (0, 0.6), (0, 1)),
        *(block.cut(side, (0.6, 1), (0, 1)) for side in ((0, x), (1 - x, 1))),
        *(block.cut((x, 1 - x), (0.6, 1), side) for side in ((0, z), (1 - z, 1))),
    ]


def _toilet(block: _Block) -> list[Part]:
    seat = min(0.6, 0.42 / block.size[1])
    return [
        block.cut((0.1, 0.9), (0, seat * 0.9), (0.2, 1)),
        block.cut((0.05, 0.95), (seat * 0.9, seat), (0.2, 1), block.tint(0.85)),
        block.cut((0, 1), (seat, 1), (0, 0.25)),
    ]


def _screen(block: _Block) -> list[Part]:
    lip = block.share(2, 0.01, 0.2)
    return [
        block.cut((0, 1), (0, 1), (0, 1 - lip)),
        block.cut((0.04, 0.96), (0.06, 0.94), (1 - lip, 1), (0.16, 0.20, 0.30)),
    ]


def _stairs(block: _Block) -> list[Part]:
    steps = max(3, round(block.size[1] / 0.18))
    return [
        block.cut((0, 1), (0, (i + 1) / steps), (1 - (i + 1) / steps, 1 - i / steps))
        for i in range(steps)
    ]


def _hearth(block: _Block) -> list[Part]:
    lip = block.share(2, 0.03, 0.2)
    return [
        block.cut((0, 1), (0, 1), (0, 1 - lip)),
        block.cut((0.2, 0.8), (0, 0.6), (1 - lip, 1), _DARK),
        block.cut((0.35, 0.65), (0, 0.25), (1 - lip, 1), (0.95, 0.45, 0.10)),
    ]


def _drum(block: _Block) -> list[Part]:
    lip = block.share(2, 0.02, 0.2)
    return [
        block.cut((0, 1), (0, 1), (0, 1 - lip)),
        block.cut((0.2, 0.8), (0.2, 0.75), (1 - lip, 1), _DARK),
        block.cut((0.05, 0.95), (0.86, 0.95), (1 - lip, 1), _LIGHT),
    ]


def _hob(block: _Block) -> list[Part]:
    top = block.share(1, 0.02, 0.2)
    rings = [
        block.cut((x, x + 0.3), (1 - top, 1), (z, z + 0.3), (0.75, 0.15, 0.10))
        for x in (0.12, 0.58)
        for z in (0.12, 0.58)
    ]
    return [block.cut((0, 1), (0, 1 - top), (0, 1)), *rings]


_SHAPES: dict[str, Callable[[_Block], list[Part]]] = {
    "bathtub": _tub,
    "bed": _bed,
    "cabinet": _doors(2, 1),
    "chair": _chair,
    "dishwasher": _doors(1, 1),
    "fireplace": _hearth,
    "oven": _doors(1, 2),
    "refrigerator": _doors(1, 2),
    "shelf": _shelf,
    "sink": _tub,
    "sofa": _sofa,
    "stairs": _stairs,
    "stool": _table,
    "storage unit": _doors(2, 2),
    "stove": _hob,
    "table": _table,
    "toilet": _toilet,
    "TV": _screen,
    "TV monitor": _screen,
    "washer": _drum,
    "washing machine": _drum,
}
