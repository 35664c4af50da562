"""How each kind of object is built from primitives, and what sizes it comes in.

Local frame: metres, the centre of the footprint at the origin, x its width, +y its front, z up.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from jaxvlm.render.shapes import RGB, Part, Span, ball, box, cylinder, tilted, turned

METAL = (0.60, 0.62, 0.65)
DARK = (0.15, 0.16, 0.18)
CREAM = (0.90, 0.88, 0.82)
SCREEN = (0.33, 0.45, 0.52)
BRIGHT = (0.80, 0.90, 0.96)
WATER = (0.70, 0.84, 0.88)
LEAF = (0.27, 0.42, 0.24)
BOOKS = ((0.72, 0.55, 0.50), (0.55, 0.63, 0.70), (0.80, 0.76, 0.62), (0.56, 0.64, 0.54))


@dataclass(frozen=True)
class Kind:
    """Sizes (ranges of width, depth, height in metres) and habits of one kind of object.

    `top` is the span of sizes when it stands on another object, `None` where it never does;
    `surface` is the height of the face that carries others, as a fraction of its own height.
    """

    size: tuple[Span, Span, Span]
    against_wall: bool = False
    top: tuple[Span, Span, Span] | None = None
    surface: float | None = None


FURNITURE: dict[str, Kind] = {
    "bed": Kind(((1.1, 1.7), (1.95, 2.1), (0.9, 1.1)), against_wall=True, surface=0.5),
    "sofa": Kind(((1.5, 2.1), (0.8, 0.95), (0.8, 0.95)), against_wall=True, surface=0.5),
    "chair": Kind(((0.46, 0.58), (0.46, 0.58), (0.9, 1.1)), surface=0.5),
    "table": Kind(((1.0, 1.5), (0.75, 1.0), (0.6, 0.8)), surface=1.0),
    "bookshelf": Kind(((0.9, 1.4), (0.32, 0.42), (1.1, 2.0)), against_wall=True, surface=1.0),
    "wardrobe": Kind(((1.0, 1.5), (0.55, 0.65), (1.7, 2.1)), against_wall=True),
    "television": Kind(((0.8, 1.2), (0.4, 0.5), (1.0, 1.4)), against_wall=True),
    "refrigerator": Kind(((0.65, 0.85), (0.65, 0.75), (1.4, 1.9)), against_wall=True, surface=1.0),
    "bathtub": Kind(((1.5, 1.8), (0.75, 0.9), (0.6, 0.7)), against_wall=True),
    "toilet": Kind(((0.48, 0.58), (0.72, 0.85), (0.8, 0.95)), against_wall=True),
    "piano": Kind(((1.3, 1.6), (0.65, 0.75), (1.1, 1.35)), against_wall=True, surface=1.0),
    "lamp": Kind(
        ((0.4, 0.62), (0.4, 0.62), (0.7, 1.6)), top=((0.32, 0.42), (0.32, 0.42), (0.5, 0.7))
    ),
    "flower": Kind(
        ((0.38, 0.66), (0.38, 0.66), (0.6, 1.4)), top=((0.3, 0.38), (0.3, 0.38), (0.45, 0.65))
    ),
    "box": Kind(
        ((0.4, 0.85), (0.35, 0.75), (0.35, 1.0)), top=((0.34, 0.45), (0.3, 0.38), (0.26, 0.36))
    ),
    "ball": Kind(
        ((0.35, 0.8), (0.35, 0.8), (0.35, 0.8)), top=((0.28, 0.36), (0.28, 0.36), (0.28, 0.36))
    ),
    "laptop": Kind(
        ((0.5, 0.75), (0.45, 0.62), (0.36, 0.52)), top=((0.44, 0.54), (0.34, 0.4), (0.32, 0.38))
    ),
    "teddy bear": Kind(
        ((0.36, 0.8), (0.34, 0.7), (0.5, 1.25)), top=((0.3, 0.38), (0.28, 0.34), (0.42, 0.55))
    ),
    "toy car": Kind(
        ((0.4, 0.65), (0.75, 1.2), (0.38, 0.6)), top=((0.25, 0.3), (0.44, 0.54), (0.24, 0.3))
    ),
}

SITTABLE = ("bed", "sofa", "chair")


def build(kind: str, size: tuple[float, float, float], rgb: np.ndarray) -> list[Part]:
    """The parts of one object of `size` (width, depth, height) in its named colour."""
    return BUILDERS[kind](*map(float, size), np.asarray(rgb, np.float32))


def _span(a: float, b: float) -> Span:
    return (a, b) if a < b else (b, a)


def bed(w: float, d: float, h: float, rgb: RGB) -> list[Part]:
    """Headboard, frame, blanket, bare end of the mattress, pillows."""
    x, top = w / 2, 0.5 * h
    pillows = [
        ball(CREAM, (w * 0.2, 0.2, 0.09), (side * w * 0.24, -d / 2 + 0.34, top + 0.04))
        for side in (-1, 1)
    ]
    return [
        box(rgb, (-x, x), (-d / 2, -d / 2 + 0.07), (0, h)),
        box(rgb * 0.85, (-x, x), (d / 2 - 0.06, d / 2), (0, top * 1.1)),
        box(rgb * 0.85, (-x, x), (-d / 2, d / 2), (top * 0.25, top * 0.6)),
        box(CREAM, (-x + 0.03, x - 0.03), (-d / 2 + 0.07, d / 2 - 0.06), (top * 0.6, top * 0.97)),
        box(rgb, (-x + 0.01, x - 0.01), (-d / 2 + 0.62, d / 2 - 0.05), (top * 0.5, top)),
        *pillows,
    ]


def sofa(w: float, d: float, h: float, rgb: RGB) -> list[Part]:
    """Seat, back, two arms, cushions."""
    x, y, arm = w / 2, d / 2, 0.2
    inner = x - arm
    parts = [
        box(rgb * 0.9, (-x, x), (-y, y - 0.03), (0.08, 0.36 * h)),
        box(rgb, (-x + 0.05, x - 0.05), (-y, -y + 0.22), (0.08, h)),
        box(rgb, (-x, -inner), (-y, y), (0, 0.68 * h)),
        box(rgb, (inner, x), (-y, y), (0, 0.68 * h)),
    ]
    cushion = (-y + 0.2, -y + 0.33)
    for low, high in ((-inner, -0.015), (0.015, inner)):
        parts.append(box(rgb, (low, high), (-y + 0.2, y), (0.37 * h, 0.5 * h)))
        parts.append(
            tilted(
                box(rgb * 0.92, (low + 0.03, high - 0.03), cushion, (0.5 * h, 0.9 * h)),
                degrees=10,
                axis=0,
                pivot=(0, -y + 0.22, 0.5 * h),
            )
        )
    return parts


def chair(w: float, d: float, h: float, rgb: RGB) -> list[Part]:
    """Four legs, a seat, a slatted back."""
    x, y, seat, leg = w / 2, d / 2, 0.5 * h, 0.065
    posts = [
        box(rgb * 0.9, (sx * x - (sx > 0) * leg, sx * x + (sx < 0) * leg), (ly, ly + leg), (0, top))
        for sx in (-1, 1)
        for ly, top in ((-y, h), (y - leg, seat - 0.06))
    ]
    return [
        *posts,
        box(rgb, (-x, x), (-y, y), (seat - 0.07, seat)),
        box(rgb, (-x, x), (-y + 0.01, -y + 0.055), (h * 0.84, h)),
        box(rgb, (-x, x), (-y + 0.01, -y + 0.055), (h * 0.62, h * 0.76)),
    ]


def table(w: float, d: float, h: float, rgb: RGB) -> list[Part]:
    """Four legs under a top."""
    x, y, leg = w / 2, d / 2, 0.08
    legs = [
        box(rgb * 0.88, (sx - leg / 2, sx + leg / 2), (sy - leg / 2, sy + leg / 2), (0, h - 0.05))
        for sx in (-x + 0.08, x - 0.08)
        for sy in (-y + 0.08, y - 0.08)
    ]
    return [box(rgb, (-x, x), (-y, y), (h - 0.07, h)), *legs]


def bookshelf(w: float, d: float, h: float, rgb: RGB) -> list[Part]:
    """An open case with rows of books that leave part of the back bare."""
    x, y, board = w / 2, d / 2, 0.06
    parts = [
        box(rgb, (-x, -x + board), (-y, y), (0, h)),
        box(rgb, (x - board, x), (-y, y), (0, h)),
        box(rgb * 0.85, (-x, x), (-y, -y + 0.03), (0, h)),
        box(rgb, (-x, x), (-y, y), (h - board, h)),
    ]
    rows = max(3, round(h / 0.42))
    pitch = (h - board) / rows
    for row in range(rows):
        z = row * pitch
        parts.append(box(rgb, (-x, x), (-y, y), (z, z + board)))
        left, books = -x + board + 0.02 + (row % 2) * 0.3 * w, 4 + (row * 2) % 3
        for book in range(books):
            thick = 0.05 + 0.02 * ((row + 2 * book) % 3)
            if left + thick > x - board:
                break
            tall = (pitch - board) * (0.62 + 0.09 * ((book + row) % 4))
            spine = box(
                BOOKS[(book + 2 * row) % 4],
                (left, left + thick),
                (-y + 0.05, y - 0.05),
                (z + board, z + board + tall),
            )
            parts.append(spine)
            left += thick + 0.006
    return parts


def wardrobe(w: float, d: float, h: float, rgb: RGB) -> list[Part]:
    """Two panelled doors with knobs, on feet, under a cornice."""
    x, y = w / 2, d / 2
    front = y - 0.05
    parts = [
        box(rgb * 0.85, (-x + 0.03, x - 0.03), (-y, front), (0.1, h - 0.06)),
        box(rgb * 0.95, (-x, x), (-y, y), (h - 0.08, h)),
        box(rgb * 0.8, (-x, x), (-y, y), (0.08, 0.16)),
    ]
    for side in (-1, 1):
        low, high = _span(side * 0.012, side * (x - 0.04))
        parts.append(box(rgb, (low, high), (front, front + 0.025), (0.18, h - 0.1)))
        for bottom, top in ((0.26, 0.46 * h), (0.52 * h, h - 0.18)):
            parts.append(
                box(rgb * 0.72, (low + 0.09, high - 0.09), (front, front + 0.03), (bottom, top))
            )
        parts.append(ball(METAL, 0.035, (side * 0.06, front + 0.045, 0.5 * h)))
        foot = side * (x - 0.08)
        parts.append(box(rgb * 0.7, (foot - 0.06, foot + 0.06), (-y, y), (0, 0.08)))
    return parts


def television(w: float, d: float, h: float, rgb: RGB) -> list[Part]:
    """A set in a coloured cabinet on legs, with two dials and an antenna."""
    x, y, low, high = w / 2, d / 2, 0.3 * h, 0.82 * h
    parts = [
        box(rgb, (-x, x), (-y, y - 0.03), (low, high)),
        box(rgb * 0.8, (-x, x), (y - 0.05, y - 0.015), (low, low + 0.05)),
        box(DARK, (-x + 0.08, 0.5 * x), (y - 0.04, y - 0.01), (low + 0.09, high - 0.06)),
        box(SCREEN, (-x + 0.12, 0.5 * x - 0.04), (y - 0.04, y), (low + 0.13, high - 0.1)),
    ]
    for z in (0.42, 0.72):
        knob = (0.75 * x, y - 0.03, low + z * (high - low))
        parts.append(ball(METAL, (0.055, 0.03, 0.055), knob))
    for side in (-1, 1):
        parts.append(cylinder(rgb * 0.8, 0.035, (0, low), (side * (x - 0.1), y - 0.12)))
        parts.append(cylinder(rgb * 0.8, 0.035, (0, low), (side * (x - 0.1), -y + 0.08)))
        rod = cylinder(METAL, 0.014, (high - 0.02, h))
        parts.append(tilted(rod, side * 35, 1, (0, 0, high - 0.02)))
    return parts


def refrigerator(w: float, d: float, h: float, rgb: RGB) -> list[Part]:
    """A freezer door over a long door, each with a vertical metal handle."""
    x, y, split = w / 2, d / 2, 0.68 * h
    door = y - 0.04
    parts = [box(rgb * 0.8, (-x, x), (-y, door - 0.05), (0.03, h))]
    for low, high, handle in (
        (0.06, split - 0.012, (0.62 * split, 0.94 * split)),
        (split + 0.012, h, (split + 0.05, h - 0.15)),
    ):
        parts.append(box(rgb, (-x, x), (door - 0.045, door), (low, high)))
        parts.append(box(METAL, (x - 0.14, x - 0.08), (door, y), handle))
    parts.append(box(DARK, (-x + 0.03, x - 0.03), (-y, door - 0.06), (0, 0.06)))
    return parts


def bathtub(w: float, d: float, h: float, rgb: RGB) -> list[Part]:
    """A hollow tub with a broad rim on four round feet, filled with water, a tap at one end."""
    x, y, wall, rim, low = w / 2, d / 2, 0.12, 0.82 * h, 0.14 * h
    side, inner = x - wall, y - wall
    parts = [
        box(rgb * 0.94, (-x + 0.04, x - 0.04), (-y + 0.04, y - 0.04), (low, 0.55 * h)),
        box(WATER, (-side, side), (-inner, inner), (0.55 * h, 0.66 * h)),
        cylinder(METAL, 0.035, (rim, h), (-x + wall / 2, 0)),
        box(METAL, (-x + wall / 2, -x + wall + 0.16), (-0.03, 0.03), (h - 0.06, h)),
    ]
    for sign in (-1, 1):
        end_wall = _span(sign * side, sign * (x - 0.04))
        long_wall = _span(sign * inner, sign * (y - 0.04))
        parts += [
            box(rgb, _span(sign * side, sign * x), (-y, y), (rim - 0.07, rim)),
            box(rgb, (-x, x), _span(sign * inner, sign * y), (rim - 0.07, rim)),
            box(rgb * 0.94, end_wall, (-y + 0.04, y - 0.04), (low, rim)),
            box(rgb * 0.94, (-x + 0.04, x - 0.04), long_wall, (low, rim)),
        ]
        parts.append(ball(METAL, 0.05, (-x + wall / 2, 0.14 * sign, rim + 0.03)))
        for end in (-1, 1):
            foot = (end * (x - 0.16), sign * (y - 0.14), 0.08 * h)
            parts.append(ball(METAL, (0.08, 0.08, 0.08 * h), foot))
    return parts


def toilet(w: float, d: float, h: float, rgb: RGB) -> list[Part]:
    """A bowl with a ring seat and water, an open lid, a cistern."""
    x, y, seat = w / 2, d / 2, 0.48 * h
    tank = 0.26 * d
    radius = x * 0.92
    flat = (d - tank) / (2 * radius)
    centre = (0, y - flat * radius, 0)
    bowl = (
        (0, 0),
        (0.62, 0),
        (0.5, 0.35),
        (1.0, 0.9),
        (1.0, 1.0),
        (0.66, 1.0),
        (0.5, 0.8),
        (0, 0.8),
    )
    water = (centre[0], centre[1], 0)
    lid = turned(rgb, ((0, 0), (radius, 0), (radius, 0.04), (0, 0.04)), flat=0.9)
    lid = tilted(lid, 82, 0)._replace(rgb=rgb * 0.94)
    lid = lid._replace(corners=lid.corners + np.float32((0, -y + tank + 0.05, seat + radius * 0.9)))
    return [
        turned(rgb, [(r * radius, z * seat) for r, z in bowl], centre, flat),
        turned(WATER, ((0, 0.84 * seat), (0.56 * radius, 0.84 * seat)), water, flat),
        box(rgb, (-x, x), (-y, -y + tank), (seat * 0.85, h - 0.05)),
        box(rgb * 0.9, (-x * 0.5, x * 0.5), (-y, 0), (0, seat * 0.6)),
        box(rgb * 0.9, (-x - 0.01, x + 0.01), (-y, -y + tank + 0.015), (h - 0.06, h - 0.01)),
        cylinder(METAL, 0.05, (h - 0.01, h), (0, -y + tank / 2)),
        lid,
    ]


def piano(w: float, d: float, h: float, rgb: RGB) -> list[Part]:
    """An upright piano: case, keyboard, two front legs, a sheet of music."""
    x, y, keys, case = w / 2, d / 2, 0.58 * h, 0.05
    parts = [
        box(rgb, (-x, x), (-y, case), (0, h)),
        box(rgb * 0.9, (-x - 0.01, x + 0.01), (-y, case + 0.03), (h - 0.05, h)),
        box(rgb, (-x, x), (case, y), (keys - 0.12, keys - 0.03)),
        box(CREAM, (-x + 0.07, x - 0.07), (case, y - 0.02), (keys - 0.03, keys)),
        box(rgb, (-x, -x + 0.07), (case, y), (keys - 0.12, keys + 0.09)),
        box(rgb, (x - 0.07, x), (case, y), (keys - 0.12, keys + 0.09)),
        box(rgb, (-x, -x + 0.08), (y - 0.1, y - 0.02), (0, keys - 0.1)),
        box(rgb, (x - 0.08, x), (y - 0.1, y - 0.02), (0, keys - 0.1)),
        box(CREAM, (-0.2, 0.2), (case, case + 0.02), (keys + 0.16, h - 0.1)),
    ]
    count = 15
    pitch = (w - 0.14) / count
    for key in range(count):
        if key % 7 in (2, 6):
            continue
        left = -x + 0.07 + (key + 0.68) * pitch
        parts.append(box(DARK, (left, left + 0.62 * pitch), (case, y - 0.14), (keys, keys + 0.025)))
    return parts


def lamp(w: float, d: float, h: float, rgb: RGB) -> list[Part]:
    """A shade on a pole on a round foot."""
    r, shade = w / 2, min(0.42 * h, 0.8 * w)
    hood = ((0, h - shade), (r, h - shade), (0.55 * r, h), (0, h))
    return [
        turned(rgb, hood),
        turned(rgb, ((0, 0), (0.72 * r, 0), (0.62 * r, 0.05), (0.15 * r, 0.12), (0, 0.12))),
        cylinder(METAL, 0.08 * w, (0.06, h - shade)),
    ]


def flower(w: float, d: float, h: float, rgb: RGB) -> list[Part]:
    """A pot with three blossoms of its own colour on stems, and small leaves."""
    r = w / 2
    pot = 0.42 * h
    parts = [
        turned(
            rgb,
            (
                (0, 0),
                (0.55 * r, 0),
                (0.8 * r, 0.8 * pot),
                (0.92 * r, 0.8 * pot),
                (0.92 * r, pot),
                (0.74 * r, pot),
                (0.7 * r, 0.9 * pot),
                (0, 0.9 * pot),
            ),
        ),
    ]
    petal = 0.42 * r
    for turn, rise in ((90, 1.0), (210, 0.9), (330, 0.82)):
        angle = np.radians(turn)
        across = np.array([np.cos(angle), np.sin(angle)])
        head = np.array([*(across * 0.45 * r), rise * h - petal])
        stem = cylinder(LEAF, 0.035 * w, (0.85 * pot, head[2]), tuple(across * 0.4 * r))
        parts += [
            stem,
            ball((0.95, 0.80, 0.35), 0.32 * petal, head + np.array([0, 0, 0.25 * petal])),
        ]
        for step in range(5):
            spread = np.radians(72 * step)
            offset = np.array([np.cos(spread), np.sin(spread), 0]) * petal * 0.62
            parts.append(ball(rgb, (0.45 * petal, 0.45 * petal, 0.3 * petal), head + offset))
        leaf = ball(LEAF, (0.32 * r, 0.14 * r, 0.06 * r), (0, 0, 0))
        leaf = tilted(tilted(leaf, -30, 1), turn + 60, 2)
        reach = np.array([np.cos(angle + 1), np.sin(angle + 1)]) * 0.5 * r
        parts.append(leaf._replace(corners=leaf.corners + np.float32((*reach, 1.12 * pot))))
    return parts


def cardboard(w: float, d: float, h: float, rgb: RGB) -> list[Part]:
    """An open carton: four sides, a dark inside, four flaps folded outwards."""
    x, y, wall, rim = 0.38 * w, 0.38 * d, 0.02, 0.86 * h
    parts = [
        box(rgb, (-x, x), (-y, -y + wall), (0, rim)),
        box(rgb, (-x, x), (y - wall, y), (0, rim)),
        box(rgb, (-x, -x + wall), (-y, y), (0, rim)),
        box(rgb, (x - wall, x), (-y, y), (0, rim)),
        box(rgb * 0.45, (-x + wall, x - wall), (-y + wall, y - wall), (0, 0.3 * h)),
    ]
    reach = 0.13 * w
    for side in (-1, 1):
        low, high = _span(side * x, side * (x + reach))
        flap = box(rgb * 0.92, (low, high), (-y, y), (rim - 0.015, rim))
        parts.append(tilted(flap, -side * 35, 1, (side * x, 0, rim)))
        low, high = _span(side * y, side * (y + 0.13 * d))
        flap = box(rgb * 0.92, (-x, x), (low, high), (rim - 0.015, rim))
        parts.append(tilted(flap, side * 35, 0, (0, side * y, rim)))
    return parts


def sphere(w: float, d: float, h: float, rgb: RGB) -> list[Part]:
    """A ball with two thin pale seams."""
    r = w / 2
    edge, half = r * 1.012, 0.035 * w
    seam = turned(CREAM, ((0, -half), (edge, -half), (edge, half), (0, half)))
    return [
        ball(rgb, r, (0, 0, r)),
        *(
            part._replace(corners=part.corners + np.float32((0, 0, r)))
            for part in (tilted(seam, 25, 0), tilted(seam, 90, 1))
        ),
    ]


def laptop(w: float, d: float, h: float, rgb: RGB) -> list[Part]:
    """A slab with dark keys and a tilted screen in a coloured frame."""
    x, y, thick = w / 2, d / 2, 0.05
    hinge = -y + 0.24 * d
    lid = (hinge - 0.03, hinge)
    glass = (hinge, hinge + 0.006)
    screen = [
        box(rgb, (-x, x), lid, (thick, h)),
        box(BRIGHT, (-x + 0.05, x - 0.05), glass, (thick + 0.06, h - 0.05)),
    ]
    return [
        box(rgb, (-x, x), (hinge - 0.02, y), (0, thick)),
        box(DARK, (-x + 0.06, x - 0.06), (hinge + 0.05, 0.45 * y), (thick, thick + 0.008)),
        box(rgb * 0.75, (-0.2 * w, 0.2 * w), (0.55 * y, 0.9 * y), (thick, thick + 0.006)),
        *(tilted(part, 16, 0, (0, hinge, thick)) for part in screen),
    ]


def teddy_bear(w: float, d: float, h: float, rgb: RGB) -> list[Part]:
    """A seated bear: body, head, ears, snout, eyes, arms, legs."""
    x, y = w / 2, d / 2
    head = (0, -0.1 * y, 0.7 * h)
    r = min(0.24 * h, 0.72 * x)
    parts = [
        ball(rgb, (0.66 * x, 0.56 * y, 0.29 * h), (0, -0.2 * y, 0.3 * h)),
        ball(CREAM, (0.4 * x, 0.1 * y, 0.17 * h), (0, 0.28 * y, 0.3 * h)),
        ball(rgb, (r * 1.08, r, r), head),
        ball(CREAM, (0.46 * r, 0.34 * r, 0.36 * r), (0, head[1] + 0.86 * r, head[2] - 0.22 * r)),
        ball(DARK, 0.15 * r, (0, head[1] + 1.2 * r, head[2] - 0.1 * r)),
    ]
    for side in (-1, 1):
        parts += [
            ball(rgb, (0.4 * r, 0.2 * r, 0.4 * r), (side * 0.82 * r, head[1], head[2] + 0.8 * r)),
            ball(DARK, 0.12 * r, (side * 0.4 * r, head[1] + 0.88 * r, head[2] + 0.22 * r)),
            ball(rgb, (0.24 * x, 0.4 * y, 0.1 * h), (side * 0.72 * x, 0.2 * y, 0.4 * h)),
            ball(rgb, (0.3 * x, 0.52 * y, 0.11 * h), (side * 0.5 * x, 0.45 * y, 0.11 * h)),
            ball(CREAM, (0.18 * x, 0.06 * y, 0.07 * h), (side * 0.5 * x, 0.95 * y, 0.11 * h)),
        ]
    return parts


def toy_car(w: float, d: float, h: float, rgb: RGB) -> list[Part]:
    """A body with a cabin, windows, four wheels and lights; it drives towards +y."""
    x, y, wheel = w / 2, d / 2, min(0.24 * h, 0.15 * d)
    side, low = 0.86 * x, 0.7 * wheel
    parts = [
        box(rgb, (-side, side), (-y, y), (low, 0.6 * h)),
        box(SCREEN, (-0.8 * side, 0.8 * side), (-0.58 * y, 0.36 * y), (0.6 * h, 0.9 * h)),
        box(rgb, (-0.84 * side, 0.84 * side), (-0.5 * y, 0.26 * y), (0.88 * h, h)),
    ]
    for sx in (-1, 1):
        post = (sx * 0.8 * side - 0.025, sx * 0.8 * side + 0.025)
        parts.append(box(rgb, post, (-0.12 * y - 0.03, -0.12 * y + 0.03), (0.6 * h, 0.9 * h)))
        parts.append(ball((1.0, 0.95, 0.7), 0.11 * h, (sx * 0.6 * side, y, 0.44 * h)))
        for sy in (-0.58, 0.58):
            disc = cylinder(DARK, wheel, (-0.13 * w, 0.13 * w))
            hub = cylinder(METAL, 0.5 * wheel, (-0.14 * w, 0.14 * w))
            shift = np.float32((sx * (x - 0.13 * w), sy * y, wheel))
            parts += [
                part._replace(corners=part.corners + shift)
                for part in (tilted(disc, 90, 1), tilted(hub, 90, 1))
            ]
    return parts


BUILDERS: dict[str, Callable[[float, float, float, np.ndarray], list[Part]]] = {
    "bed": bed,
    "sofa": sofa,
    "chair": chair,
    "table": table,
    "bookshelf": bookshelf,
    "wardrobe": wardrobe,
    "television": television,
    "refrigerator": refrigerator,
    "bathtub": bathtub,
    "toilet": toilet,
    "piano": piano,
    "lamp": lamp,
    "flower": flower,
    "box": cardboard,
    "ball": sphere,
    "laptop": laptop,
    "teddy bear": teddy_bear,
    "toy car": toy_car,
}
