"""The HTML page of answers: tables, pictures, questions and answers right and wrong."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape

from jaxvlm.metrics.html import SIDE, bars, document, histogram, html_table, notes, picture
from jaxvlm.metrics.summary import CONTROLS, figure_tables, percent, table

# Rooms on the page.
_ROOMS = 24


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
    run = [item for item in CONTROLS.items() if summary["controls"][item[0]] is not None]
    by_kind = [(kind, f["em"], percent(f["em"])) for kind, f in summary["kinds"].items()]
    return document(
        title,
        summary["headline"],
        html_table(*table(summary), total=True),
        notes(run),
        "<p class=note>Below, figures have 95% intervals. EM: equal to a reference after cleaning; "
        "EM-R: or one contains the other without spaces; exact match and partial match: the "
        "original's, without cleaning.</p>",
        f"<p class=note>Asked: {escape(', '.join(map(str, summary.get('files', []))))}; answered "
        f"by {escape(str(summary.get('checkpoint', 'weights of their own')))}.</p>",
        *(
            f"<h2>{escape(name)}</h2>{html_table(('figure', 'value', 'interval'), rows)}"
            for name, rows in figure_tables(summary)
        ),
        f"<h2>EM by kind</h2>{bars(by_kind)}",
        histogram("Length of the answers", tokens, "tokens"),
        histogram("Time of the answers, many beside each other", seconds, "s"),
        f"<h2>Rooms, questions and answers</h2><p class=note>{len(rooms)} of {len(places)} "
        "image sets, evenly spaced through the split.</p>",
        *(_room(*room) for room in rooms.items()),
    )


def _answer(line: Mapping) -> str:
    """A cell that tells right from wrong without its colour too."""
    kind, sign = ("right", "✓") if line["em"] else ("wrong", "✗")
    return f'<td class="{kind}">{sign} {escape(line["prediction"] or "(nothing)")}</td>'


def _room(images: tuple[str, ...], asked: Sequence[Mapping]) -> str:
    pictures = "".join(
        f'<img alt="view {number}" width="{SIDE}" src="{picture(path)}">'
        for number, path in enumerate(images)
    )
    lines = "".join(
        f"<tr><td>{escape(' '.join(filter(None, (p['situation'], p['question']))))}</td>"
        f"<td>{escape(p['kind'])}</td>{_answer(p)}"
        f"<td>{escape(' / '.join(p['references']))}</td></tr>"
        for p in asked
    )
    name = escape(asked[0]["scene_id"])
    return (
        f'<div class="room"><h3>{name}</h3>{pictures}<table class="qa"><tr><th>question</th>'
        f"<th>kind</th><th>answer</th><th>reference</th></tr>{lines}</table></div>"
    )
