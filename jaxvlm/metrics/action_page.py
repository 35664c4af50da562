"""The HTML page of actions: figures, and of every scene a floor plan and its photographs."""

import dataclasses
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape

import numpy as np
from PIL import Image

from jaxvlm.data.actions.fields import POINT
from jaxvlm.data.boxes import action_box
from jaxvlm.data.drawing import box_outline, draw_box, viewpoints
from jaxvlm.data.record import Record
from jaxvlm.data.top_view import Name, Outline, draw_top_view, write_names
from jaxvlm.metrics.action_summary import (
    ACTION_CONTROLS,
    category_table,
    comparison_table,
    figure_rows,
)
from jaxvlm.metrics.baselines import BASELINES
from jaxvlm.metrics.html import SIDE, data_url, document, histogram, html_table, notes, picture

TRUE, PREDICTED = "#00873e", "#c2185b"
# Numbers stand left of the middle of a true box, right of that of a predicted one.
_LEFT, _RIGHT = -1, 1
_PLAN = 420
# Of a scene's views; of more, evenly spaced ones.
_VIEWS = 4
# Metres around what is known of a scene that its plan shows if something is predicted there.
_AROUND = 4.0


def page(
    title: str,
    summary: Mapping,
    lines: Callable[[], Iterable[Mapping]],
    record: Callable[[Mapping], Record],
) -> str:
    """The page as HTML text.

    Args:
      title: above it.
      summary: of `with_comparisons`.
      lines: gives the scored lines, as often as it is called.
      record: the record of a line.
    """
    shown: dict[tuple[str, ...], list[Mapping]] = {}
    for line in lines():
        shown.setdefault(tuple(line["images"]), []).append(line)
    errors = [line.get("center_error") for line in lines()]
    columns, compared = comparison_table(summary)
    return document(
        title,
        summary["headline"],
        html_table(columns, compared),
        notes(zip((row[0] for row in compared[1:]), _meanings(summary), strict=True)),
        "<h2>All figures</h2><p class=note>Means with 95% intervals, for scenes drawn again.</p>",
        html_table(("figure", "value", "interval"), figure_rows(summary)),
        f"<h2>By category</h2>{html_table(*category_table(summary), total=True)}",
        histogram("Distance between the centres", errors, "m"),
        f"<h2>Scenes</h2><p class=note>{len(shown):,} image sets, of each at most {_VIEWS} views. "
        f'<span style="color:{TRUE}">True</span> and '
        f'<span style="color:{PREDICTED}">predicted</span> boxes, with the same numbers from '
        "above, in the views and below, and a line to their front; cameras are numbered like their "
        "pictures, from 0.</p>",
        *(
            _scene(asked, record(asked[0]).first_views(len(images)))
            for images, asked in shown.items()
        ),
    )


def _meanings(summary: Mapping) -> list[str]:
    """What each row of the comparison is, behind the model's."""
    known = (("controls", ACTION_CONTROLS), ("baselines", BASELINES))
    return [
        text
        for group, texts in known
        for name, text in texts.items()
        if summary[group][name] is not None
    ]


def _scene(asked: Sequence[Mapping], record: Record) -> str:
    true = [action_box(line["reference"], record.up) for line in asked]
    found = [action_box(line["predicted_action"], record.up) for line in asked]

    def draw(view: int) -> Callable[[Image.Image, tuple[int, int]], None]:
        def on(image: Image.Image, size: tuple[int, int]) -> None:
            names = []
            for boxes, colour, aside in ((true, TRUE, _LEFT), (found, PREDICTED, _RIGHT)):
                for number, box in enumerate(boxes, 1):
                    at = box and draw_box(image, record, view, box, colour, size)
                    if at is not None:
                        names.append(Name(str(number), at, colour, aside))
            write_names(image, names, 16)

        return on

    pictures = "".join(
        f'<img alt="view {view}" width="{SIDE}" src="{picture(path, draw(view))}">'
        for view, path in list(enumerate(record.images))[:: -(-len(record.images) // _VIEWS)]
    )
    rows = "".join(
        f"<tr><td>{number}</td><td>{escape(line['question'])}</td>"
        f"<td>{_centre(line['reference'])}</td><td>{_centre(line['predicted_action'])}</td>"
        f"<td>{escape(line['prediction'])}</td><td>{_off(line)}</td></tr>"
        for number, line in enumerate(asked, 1)
    )
    drawn = " (drawn, no photographs)" if record.rendered else ""
    return (
        f'<div class="room"><h3>{escape(record.scene_id)}{drawn}</h3>'
        f'<img alt="from above" src="{_plan(record, true, found)}">{pictures}'
        "<table class=qa><tr><th></th><th>instruction</th><th>true centre, m</th>"
        "<th>predicted, m</th><th>answer (first camera, cm)</th><th>centre off by</th></tr>"
        f"{rows}</table></div>"
    )


def _off(line: Mapping) -> str:
    error = line.get("center_error")
    return "no box" if error is None else f"{error:.2f} m"


def _centre(action: Mapping | None) -> str:
    centre = (action or {}).get("center")
    return "-" if POINT.malformed(centre) else ", ".join(f"{value:.2f}" for value in centre)


def _plan(record: Record, true: Sequence, found: Sequence) -> str:
    """The scene from above, as a data URL; what is predicted far away is named at the edge."""

    def outlines(boxes: Sequence, colour: str, fill: str | None, aside: int) -> list[Outline]:
        return [
            box_outline(box, colour, fill, str(number), aside)
            for number, box in enumerate(boxes, 1)
            if box is not None
        ]

    cameras, known = viewpoints(record), outlines(true, TRUE, "#d8f5e3", _LEFT)
    places = [camera.position for camera in cameras]
    places += [corner for each in known for corner in each.corners]
    said = outlines(found, PREDICTED, None, _RIGHT)
    if places:
        low, high = np.min(places, axis=0) - _AROUND, np.max(places, axis=0) + _AROUND
        for number, each in enumerate(said):
            middle = each.corners.mean(0)
            off = float(np.linalg.norm(middle - np.clip(middle, low, high)))
            if off:
                name = f"{each.name}: {off + _AROUND:.0f} m away"
                said[number] = dataclasses.replace(each, name=name, far=True)
    buffer = io.BytesIO()
    draw_top_view([*known, *said], cameras, (_PLAN, _PLAN)).save(buffer, "PNG")
    return data_url(buffer.getvalue(), "png")
