"""Draws curves of JSON-lines logs as an SVG picture, without a plotting library.

python scripts/plot_curves.py --output curve.svg --field loss demo=runs/demo/metrics.jsonl
"""

import argparse
import json
from html import escape
from pathlib import Path

WIDTH, HEIGHT, MARGIN = 720, 320, 48
COLOURS = ("#3b6fb6", "#c2572b", "#2f8f5b", "#8a4fb0", "#8c7a1f", "#555555")


def read(path: Path, field: str) -> list[tuple[float, float]]:
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [(line["step"], line[field]) for line in lines if field in line]


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    return [low + (high - low) * i / (count - 1) for i in range(count)]


def svg(curves: dict[str, list[tuple[float, float]]], field: str) -> str:
    points = [point for curve in curves.values() for point in curve]
    right = max(x for x, _ in points)
    low, high = min(0.0, *(y for _, y in points)), max(y for _, y in points)

    def place(x: float, y: float) -> tuple[float, float]:
        across = MARGIN + x / right * (WIDTH - 2 * MARGIN)
        return across, HEIGHT - MARGIN - (y - low) / (high - low) * (HEIGHT - 2 * MARGIN)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>'
    ]
    for value in ticks(low, high):
        _, y = place(0, value)
        parts.append(f'<path d="M{MARGIN} {y:.1f}H{WIDTH - MARGIN}" stroke="#ddd"/>')
        parts.append(f'<text x="4" y="{y + 4:.1f}">{value:.2f}</text>')
    for value in ticks(0, right):
        x, _ = place(value, low)
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 26}" text-anchor="middle">{value:.0f}</text>')
    for curve, colour in zip(curves.values(), COLOURS, strict=False):
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in curve))
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
    for number, (name, colour) in enumerate(zip(curves, COLOURS, strict=False)):
        y = MARGIN + 16 * number
        parts.append(f'<text x="{WIDTH - MARGIN - 8}" y="{y}" text-anchor="end" fill="{colour}">'
                     f"{escape(name)}</text>")  # fmt: skip
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 8}" text-anchor="middle">update</text>')
    parts.append(f'<text x="{MARGIN}" y="24">{escape(field)}</text></svg>\n')
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--field", default="loss")
    parser.add_argument("curves", nargs="+", metavar="NAME=FILE")
    flags = parser.parse_args()
    named = dict(curve.split("=", 1) for curve in flags.curves)
    curves = {name: read(Path(path), flags.field) for name, path in named.items()}
    flags.output.write_text(svg(curves, flags.field), encoding="utf-8")


if __name__ == "__main__":
    main()
