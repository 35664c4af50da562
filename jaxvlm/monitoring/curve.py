"""Numbers as a curve of braille dots."""

import numpy as np

# The bits of a braille character's dots, by row and column (Unicode U+2800).
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
# Characters of the numbers on the y axis, and of all that stands left of the dots.
_LABEL = 7
_MARGIN = _LABEL + 2


def curve(xs: np.ndarray, ys: np.ndarray, width: int, height: int) -> list[str]:
    """Lines of text that show ys over xs, with the numbers of both axes.

    Where more than one y falls into a column of dots, their mean is shown.

    Args:
      xs: float[n], rising, at least one.
      ys: float[n], finite.
      width: characters, the axis among them; at least 24 are taken.
      height: lines, the axis among them; at least 3 are taken.
    """
    columns, rows = max(width, 24) - _MARGIN, max(height - 1, 2)
    # The size of the numbers must not matter: a difference of large ones would be infinite.
    size = np.abs(ys).max() or 1.0
    places, means = _columns(xs, ys / size, 2 * columns)
    low, high = means.min(), means.max()
    levels = np.interp(np.arange(places[-1] + 1), places, means)
    heights = np.rint((high - levels) / ((high - low) or 1.0) * (4 * rows - 1)).astype(int)
    image = np.zeros((rows, columns), int)
    before = heights[0]
    for x, y in enumerate(heights):
        # From the column before to this one without a gap.
        for each in range(min(y, before + 1), max(y, before - 1) + 1):
            image[each // 4, x // 2] |= _DOTS[each % 4][x % 2]
        before = y
    labels = {0: high, rows // 2: (high + low) / 2, rows - 1: low}
    if high == low:
        labels = {0: high}
    lines = []
    for row, bits in enumerate(image):
        label = _label(labels[row] * size) if row in labels else ""
        dots = "".join(chr(0x2800 + each) if each else " " for each in bits)
        lines.append(f"{label:>{_LABEL}} {'┤' if label else '│'}{dots}".rstrip())
    ends = f"{xs[0]:,.0f}", f"{xs[-1]:,.0f}"
    between = "update".center(max(columns - len("".join(ends)), 8))
    return [*lines, " " * _MARGIN + ends[0] + between + ends[1]]


def _columns(xs: np.ndarray, ys: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The columns of dots that something falls into, and the mean of it."""
    span = (xs[-1] - xs[0]) or 1.0
    at = ((xs - xs[0]) / span * (width - 1)).astype(int)
    counts = np.bincount(at)
    used = np.flatnonzero(counts)
    return used, np.bincount(at, weights=ys)[used] / counts[used]


def _label(number: float) -> str:
    """The number with three digits, or fewer where the axis is too narrow."""
    forms = (f"{number:.{digits}g}" for digits in (3, 2, 1))
    return next(form for form in forms if len(form) <= _LABEL)
