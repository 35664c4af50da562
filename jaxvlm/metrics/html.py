"""Parts of the HTML pages of an evaluation: each page is one self-contained file."""

import base64
import io
from collections.abc import Callable, Iterable, Sequence
from html import escape

import numpy as np
from PIL import Image

from jaxvlm.data.images import upright_rgb

# The side in pixels of pictures on a page.
SIDE = 224
_BARS = 16
_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;color:#222}
body{margin:2rem auto;max-width:72rem;padding:0 1rem}
table{border-collapse:collapse;margin:1rem 0}td,th{padding:.2rem .8rem;border-bottom:1px solid #ddd}
td:not(:first-child){text-align:right}.total tr:last-child td{font-weight:600}
.room{border-top:2px solid #ccc;padding:1rem 0}.room img{margin-right:.4rem;border-radius:4px}
.qa td{text-align:left!important;font-weight:400!important}
.right{color:#176b2c}.wrong{color:#a51d1d}
.bar{background:#3b6fb6;height:.8rem;display:inline-block;border-radius:2px}
.note{color:#555}
"""


def document(title: str, headline: str, *parts: str) -> str:
    """A page; the parts are HTML."""
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style><h1>{escape(title)}</h1><p>{escape(headline)}</p>"
        f"{''.join(parts)}</html>"
    )


def notes(lines: Iterable[tuple[str, str]]) -> str:
    """A list of what names mean."""
    items = (f"<li>{escape(name.replace('_', ' '))}: {escape(text)}</li>" for name, text in lines)
    return f'<ul class="note">{"".join(items)}</ul>'


def html_table(
    columns: Sequence[str], body: Iterable[Sequence[object]], total: bool = False
) -> str:
    """A table of any cells, as text; `total` says that the last row is of all others."""
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    lines = "".join(
        "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in body
    )
    kind = " class=total" if total else ""
    return f"<table{kind}><tr>{head}</tr>{lines}</table>"


def bars(values: Iterable[tuple[str, float, str]]) -> str:
    """A bar a line: its name, its length from 0 to 1, and the text beside it."""
    lines = "".join(
        f"<tr><td>{escape(name)}</td><td style='text-align:left;font-weight:400'>"
        f"<span class=bar style='width:{300 * length:.0f}px'></span> {escape(text)}</td></tr>"
        for name, length, text in values
    )
    return f"<table>{lines}</table>"


def histogram(title: str, values: Sequence[float | None], unit: str) -> str:
    """How many values lie in each of some equal parts; nothing where none is known."""
    known = np.asarray([value for value in values if value is not None], float)
    if not len(known):
        return ""
    whole = unit == "tokens"
    # Whole numbers have bars of their own, as long as those are few.
    top = known.max() + 1 if whole else max(known.max(), 1e-3)
    bars = int(min(top, _BARS)) if whole else _BARS
    counts, edges = np.histogram(known, bars, (0, top))
    form = "{:.0f}" if whole else "{:.3g}"
    lines = "".join(
        f"<tr><td>from {form.format(np.ceil(edge) if whole else edge)} {unit}</td>"
        f"<td style='text-align:left;font-weight:400'><span class=bar style='width:"
        f"{300 * count / counts.max():.0f}px'></span> {count:,}</td></tr>"
        for count, edge in zip(counts, edges[:-1], strict=True)
    )
    half, most = (f"{np.percentile(known, part):.3g} {unit}" for part in (50, 90))
    text = f"Half of them have at most {half}, nine in ten at most {most}."
    return f"<h2>{title}</h2><p class=note>{text}</p><table>{lines}</table>"


def picture(path: str, draw: Callable[[Image.Image, tuple[int, int]], None] | None = None) -> str:
    """The image as a data URL, no larger than it is shown; nothing for one that cannot be read.

    `draw` may draw on it, and is told the size of the file's; a small image is enlarged for that.
    """
    buffer = io.BytesIO()
    try:
        with Image.open(path) as image:
            image = upright_rgb(image)
            size = image.size
            image.thumbnail((2 * SIDE, 2 * SIDE))
            if draw is not None:
                scale = 2 * SIDE / max(image.size)
                image = image.resize([round(side * scale) for side in image.size])
                draw(image, size)
            image.save(buffer, "JPEG", quality=85)
    except (OSError, ValueError, Image.DecompressionBombError):
        # Views that are not shown to the model were never looked at.
        return ""
    return data_url(buffer.getvalue(), "jpeg")


def data_url(data: bytes, kind: str) -> str:
    """An image file as a URL that holds it."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
