"""Numbers as a curve of braille dots."""

import numpy as np

# The bits of a braille character's dots, by row and column (Unicode U+2800).
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))


def curve(xs: list[float], ys: list[float], width: int, height: int) -> list[str]:
    """Lines of text that show ys over xs, the y axis with its numbers on the left.

    Args:
      xs: rising.
      ys: finite, as many.
      width: characters, the axis among them.
      height: lines, the x axis among them.
    """
    low, high = min(ys), max(ys)
    labels = [f"{high:.3g}", f"{low:.3g}"]
    margin = max(map(len, labels)) + 2
    columns, rows = max(width - margin, 4), max(height - 1, 2)
    image = np.zeros((rows, columns), int)
    points = _points(np.array(xs, float), np.array(ys, float), 2 * columns, 4 * rows)
    for x, y in points:
        image[y // 4, x // 2] |= _DOTS[y % 4][x % 2]
    lines = []
    for index, row in enumerate(image):
        label = labels[0] if index == 0 else labels[1] if index == rows - 1 else ""
        dots = "".join(chr(0x2800 + bits) if bits else " " for bits in row)
        lines.append(f"{label:>{margin - 2}} ┤{dots}".rstrip())
    first, last = f"{xs[0]:,.0f}", f"{xs[-1]:,.0f}"
    lines.append(" " * margin + first + last.rjust(max(columns - len(first), len(last) + 1)))
    return lines


def _points(xs: np.ndarray, ys: np.ndarray, width: int, height: int) -> list[tuple[int, int]]:
    """Places of dots, y from the top: in each column the mean of what falls into it."""
    span, rise = np.ptp(xs) or 1.0, np.ptp(ys) or 1.0
    columns = np.minimum((xs - xs[0]) / span * width, width - 1).astype(int)
    counts = np.bincount(columns, minlength=width)
    sums = np.bincount(columns, weights=ys - ys.min(), minlength=width)
    used = np.flatnonzero(counts)
    levels = sums[used] / counts[used] / rise
    places = np.minimum((1 - levels) * (height - 1) + 0.5, height - 1).astype(int)
    return list(zip(used.tolist(), places.tolist(), strict=True))
