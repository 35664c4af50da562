"""The HTML page of an evaluation: one self-contained file with tables, pictures and answers."""

import base64
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape

import numpy as np
from PIL import Image

from jaxvlm.data.images import upright_rgb
from jaxvlm.metrics.summary import CONTROLS, percent, sentence_rows, table

# Rooms on the page, and the side in pixels of their pictures.
_ROOMS = 24
_SIDE = 224
_BARS = 16
_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;color:#222}
body{margin:2rem auto;max-width:72rem;padding:0 1rem}
table{border-collapse:collapse;margin:1rem 0}td,th{padding:.2rem .8rem;border-bottom:1px solid #ddd}
td:not(:first-child){text-align:right}tr:last-child td{font-weight:600}
.room{border-top:2px solid #ccc;padding:1rem 0}.room img{margin-right:.4rem;border-radius:4px}
.qa td{text-align:left!important;font-weight:400!important}
.right{color:#176b2c}.wrong{color:#a51d1d}
.bar{background:#3b6fb6;height:.8rem;display:inline-block;border-radius:2px}
.note{color:#555}
"""


def page(title: str, summary: Mapping, lines: Callable[[], Iterable[Mapping]]) -> str:
    """The page as HTML text.

    Args:
      title: above it.
      summary: of `with_controls`.
      lines: gives the scored lines, as often as it is called.
    """
    places: dict[tuple[str, ...], int] = {}
    tokens, seconds = [], []
    for line in lines():
        places.setdefault(tuple(line["images"]), len(places))
        tokens.append(line.get("tokens"))
        seconds.append(line.get("seconds"))
    step = max(len(places) // _ROOMS, 1)
    rooms: dict[tuple[str, ...], list[Mapping]] = {
        images: [] for images, place in places.items() if not place % step and place < step * _ROOMS
    }
    for line in lines():
        if tuple(line["images"]) in rooms:
            rooms[tuple(line["images"])].append(line)
    note = "".join(
        f"<li>{escape(name.replace('_', ' '))}: {escape(text)}</li>"
        for name, text in CONTROLS.items()
        if summary["controls"][name] is not None
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style><h1>{escape(title)}</h1><p>{escape(summary['headline'])}</p>"
        f'{_table(*table(summary))}<ul class="note">{note}</ul>'
        f"<h2>All figures</h2><p class=note>With 95% intervals, for scenes drawn again.</p>"
        f"{_table(('figure', 'value', 'interval'), sentence_rows(summary))}"
        f"<h2>EM by kind</h2>{_bars(summary)}"
        f"{_histogram('Length of the answers', tokens, 'tokens')}"
        f"{_histogram('Time of the answers, many beside each other', seconds, 's')}"
        f"<h2>Rooms, questions and answers</h2><p class=note>{len(rooms)} of {len(places)} "
        "image sets, evenly spaced through the split.</p>"
        f"{''.join(_room(*room) for room in rooms.items())}</html>"
    )


def _table(columns: Sequence[str], body: Iterable[Sequence[object]]) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    lines = "".join(
        "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in body
    )
    return f"<table><tr>{head}</tr>{lines}</table>"


def _bars(summary: Mapping) -> str:
    lines = "".join(
        f"<tr><td>{escape(kind)}</td><td style='text-align:left;font-weight:400'>"
        f"<span class=bar style='width:{300 * figures['em']:.0f}px'></span> "
        f"{percent(figures['em'])}</td></tr>"
        for kind, figures in summary["kinds"].items()
    )
    return f"<table>{lines}</table>"


def _histogram(title: str, values: Sequence[float | None], unit: str) -> str:
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
    middle = f"{np.median(known):.3g} {unit}, nine in ten below {np.percentile(known, 90):.3g}"
    return f"<h2>{title}</h2><p class=note>Half of them below {middle}.</p><table>{lines}</table>"


def _room(images: tuple[str, ...], asked: Sequence[Mapping]) -> str:
    pictures = "".join(
        f'<img alt="view {number}" width="{_SIDE}" src="{_picture(path)}">'
        for number, path in enumerate(images)
    )
    lines = "".join(
        f"<tr><td>{escape(' '.join(filter(None, (p['situation'], p['question']))))}</td>"
        f'<td class="{"right" if p["em"] else "wrong"}">{escape(p["prediction"])}</td>'
        f"<td>{escape(p['reference'])}</td></tr>"
        for p in asked
    )
    name = escape(asked[0]["scene_id"])
    return (
        f'<div class="room"><h3>{name}</h3>{pictures}<table class="qa"><tr><th>question</th>'
        f"<th>answer</th><th>reference</th></tr>{lines}</table></div>"
    )


def _picture(path: str) -> str:
    """The image as a data URL, no larger than it is shown; nothing for one that cannot be read."""
    buffer = io.BytesIO()
    try:
        with Image.open(path) as image:
            image = upright_rgb(image)
            image.thumbnail((2 * _SIDE, 2 * _SIDE))
            image.save(buffer, "JPEG", quality=85)
    except (OSError, ValueError, Image.DecompressionBombError):
        # Views that are not shown to the model were never looked at.
        return ""
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
