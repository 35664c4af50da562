"""A record as a picture: its views, the cameras and the action's box from above, the text.

Boxes of actions are drawn into the views through the record's own poses and intrinsics.
"""

import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from jaxvlm.data.audit.checks import check_record
from jaxvlm.data.boxes import record_box
from jaxvlm.data.drawing import box_outline, draw_box, viewpoints
from jaxvlm.data.geometry import DEPTH_BINS, DEPTH_RANGE
from jaxvlm.data.images import find_image, open_image
from jaxvlm.data.record import Record
from jaxvlm.data.top_view import camera_colour, draw_top_view, font

_WIDTH, _GAP, _TOP = 1280, 10, 560
_MOST_ACROSS = 5
_INK, _QUIET, WRONG, _BOX = "#222222", "#777777", "#c00000", "#00c853"


def describe(record: Record) -> list[tuple[str, str]]:
    """Lines of text about a record with their colours."""
    name = " · ".join(
        filter(None, (record.task, record.kind if record.kind != record.task else ""))
    )
    lines = [
        (f"{record.origin}", _QUIET),
        (f"{name}   scene {record.scene_id or '-'}   question {record.question_id or '-'}", _QUIET),
    ]
    if record.rendered:
        lines.append(("images are rendered from boxes, no photographs", WRONG))
    if record.situation:
        lines.append((f"Situation: {record.situation}", _INK))
    lines.append((f"Question: {record.question}", _INK))
    if record.action is None:
        lines.append((f"Answer: {record.answer or '(none)'}", _INK))
        lines += [(f"  or: {other}", _INK) for other in record.answers[1:]]
    else:
        lines.append((f"Action ({record.frame}, {record.up} up): {record.action}", _INK))
        lines.append((f"Learnt: {record.answer}", _QUIET))
    if record.object_names:
        lines.append((f"About: {', '.join(record.object_names)}", _QUIET))
    lines += _views(record)
    lines += [(f"{p.level}: {p.message}", WRONG) for p in check_record(record)]
    return lines


def _views(record: Record) -> list[tuple[str, str]]:
    """A line a view with its geometry."""
    geometry = record.geometry or {}
    if not geometry:
        return [(f"{len(record.images)} view(s), no geometry", _QUIET)]
    lines = [(f"{len(record.images)} views; {', '.join(geometry)}; {record.frame} frame", _QUIET)]
    for view in range(len(record.images)):
        parts = [f"view {view}:"]
        if "t" in geometry:
            parts.append("at " + " ".join(f"{v:.2f}" for v in geometry["t"][view]))
        if "K" in geometry and record.image_size:
            field = 2 * np.degrees(np.arctan(record.image_size[0] / 2 / geometry["K"][view, 0]))
            parts.append(f"{field:.0f}° wide")
        if "depth_hist" in geometry and geometry["depth_hist"][view].any():
            half = np.searchsorted(np.cumsum(geometry["depth_hist"][view]), 0.5)
            parts.append(f"median depth about {(half + 0.5) * DEPTH_RANGE / DEPTH_BINS:.1f} m")
        lines.append((" ".join(parts), camera_colour(view)))
    return lines


def draw_record(
    record: Record, roots: Sequence[str], lines: Sequence[tuple[str, str]]
) -> Image.Image:
    """The picture: views above, the scene from above and the text below.

    Args:
      record: what to show.
      roots: folders of relative image paths.
      lines: text with colours, from `describe`.
    """
    across = min(len(record.images), _MOST_ACROSS)
    side = (_WIDTH - _GAP) // across - _GAP
    views = [_view(record, number, roots, side) for number in range(len(record.images))]
    rows = [views[start : start + across] for start in range(0, len(views), across)]
    heights = [max(view.height for view in row) + _GAP for row in rows]
    above = _from_above(record, (_TOP, _TOP))
    left = _GAP if above is None else _TOP + 2 * _GAP
    folded = _folded(lines, (_WIDTH - left - _GAP) // 8)
    below = max(_TOP if above is not None else 0, 20 * len(folded) + _GAP)
    picture = Image.new("RGB", (_WIDTH, sum(heights) + below + 2 * _GAP), "#ffffff")
    y = _GAP
    for row, height in zip(rows, heights, strict=True):
        for number, view in enumerate(row):
            picture.paste(view, (_GAP + number * (side + _GAP), y))
        y += height
    if above is not None:
        picture.paste(above, (_GAP, y))
    pen = ImageDraw.Draw(picture)
    for number, (text, colour) in enumerate(folded):
        pen.text((left, y + 20 * number), text, fill=colour, font=font(14))
    return picture


def _folded(lines: Sequence[tuple[str, str]], width: int) -> list[tuple[str, str]]:
    return [
        (part, colour)
        for text, colour in lines
        for part in textwrap.wrap(text, width, subsequent_indent="    ") or [""]
    ]


def _view(record: Record, number: int, roots: Sequence[str], side: int) -> Image.Image:
    """A view with its number and the action's box."""
    found = find_image(record.images[number], roots)
    if found is None:
        image = Image.new("RGB", (side, side * 3 // 4), "#eeeeee")
        text = "\n".join(textwrap.wrap(f"not found: {record.images[number]}", max(side // 8, 8)))
        ImageDraw.Draw(image).text((8, 30), text, fill=WRONG, font=font(12))
    else:
        image = open_image(found)
        size = image.size
        image = image.resize((side, max(1, round(image.height * side / image.width))))
        box = record_box(record)
        if box is not None:
            draw_box(image, record, number, box, _BOX, size)
    pen = ImageDraw.Draw(image)
    pen.rectangle((0, 0, 22, 20), fill=camera_colour(number))
    pen.text((11, 10), str(number), fill="#ffffff", anchor="mm", font=font(13))
    return image


def _from_above(record: Record, size: tuple[int, int]) -> Image.Image | None:
    poses, box = record.poses(), record_box(record)
    if poses is None and box is None:
        return None
    outlines = [] if box is None else [box_outline(box, _BOX, "#d8f5e3")]
    return draw_top_view(outlines, viewpoints(record), size)
