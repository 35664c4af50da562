"""The names the rooms are made of: kinds of object, colours, and the label lists of dense maps."""

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.84, 0.08, 0.09),
    "orange": (1.00, 0.50, 0.04),
    "yellow": (0.99, 0.87, 0.12),
    "green": (0.10, 0.62, 0.18),
    "blue": (0.10, 0.27, 0.86),
    "purple": (0.47, 0.15, 0.66),
    "pink": (1.00, 0.55, 0.74),
    "brown": (0.36, 0.19, 0.08),
    "black": (0.07, 0.07, 0.08),
    "white": (0.99, 0.99, 0.98),
}
"""Colour name to linear RGB in 0–1, far enough apart to survive shading."""

KINDS: tuple[str, ...] = (
    "bed",
    "sofa",
    "chair",
    "table",
    "bookshelf",
    "wardrobe",
    "television",
    "refrigerator",
    "bathtub",
    "toilet",
    "piano",
    "lamp",
    "flower",
    "box",
    "ball",
    "laptop",
    "teddy bear",
    "toy car",
)

SHELL_LABELS: tuple[str, ...] = ("none", "floor", "wall", "ceiling", "door", "window")
"""What belongs to the room itself; `none` is where a ray hits nothing."""

KIND_LABELS: tuple[str, ...] = SHELL_LABELS + KINDS
"""Values of a kind map, in order: 0 none … 5 window, then the kinds."""

COLOUR_LABELS: tuple[str, ...] = ("none", "background", *COLOURS)
"""Values of a colour map, in order: 0 nothing hit, 1 the room itself, then the named colours."""

PLURALS: dict[str, str] = {"bookshelf": "bookshelves", "box": "boxes"}


def plural(noun: str) -> str:
    """The plural of a kind's name."""
    return PLURALS.get(noun, noun + "s")


def article(phrase: str) -> str:
    """`phrase` with its indefinite article."""
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase
