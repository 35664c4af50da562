"""An evaluation of actions: its figures beside its controls and baselines, for people to read."""

from collections.abc import Iterator, Mapping

from jaxvlm.metrics.baselines import BASELINES
from jaxvlm.metrics.summary import CONTROLS, better, percent, points, points_between

ACTION_CONTROLS = {name: CONTROLS[name] for name in ("no_image", "other_images")} | {
    "no_geometry": "the same pictures without what tells where their cameras stood"
}
# In the order of their table: name, how it is read, and its unit.
_FIGURES = {
    "json_valid": ("valid JSON", "%"),
    "action_valid": ("valid action", "%"),
    "keys_present": ("all keys there", "%"),
    "action_right": ("right action", "%"),
    "scene_right": ("right scene", "%"),
    "exact_match": ("exact match", "%"),
    "center_error_median": ("centre off by (median)", "m"),
    "center_error": ("centre off by (mean)", "m"),
    "center_10cm": ("centre within 10 cm", "%"),
    "center_25cm": ("centre within 25 cm", "%"),
    "center_50cm": ("centre within 50 cm", "%"),
    "extent_error_median": ("extent off by (median)", "m"),
    "extent_error": ("extent off by (mean)", "m"),
    "normal_angle_median": ("normal off by (median)", "°"),
    "normal_angle": ("normal off by (mean)", "°"),
    "iou": ("3-D IoU (mean)", "%"),
    "acc_25": ("IoU at least 0.25", "%"),
    "acc_50": ("IoU at least 0.50", "%"),
    "head_center_error_median": ("action head: centre off by (median)", "m"),
    "head_center_error": ("action head: centre off by (mean)", "m"),
    "head_iou": ("action head: 3-D IoU (mean)", "%"),
}
_COLUMNS = ("center_error_median", "center_50cm", "iou", "acc_25", "acc_50")
# Beside other ways of asking and baselines.
_COMPARED = ("center_error_median", "center_error", "center_25cm", "center_50cm", "iou", "acc_25",
             "acc_50")  # fmt: skip


def with_comparisons(
    summary: dict, answered: Mapping[str, dict], found: Mapping[str, dict]
) -> dict:
    """A summary with those of its controls and its baselines.

    Args:
      summary: of `summarize`.
      answered: the summaries of the same instructions asked in another way, by control.
      found: of `baselines`.

    Returns:
      The summary, behind `headline`; `controls` and `baselines` have figures for each.
    """
    controls = {
        name: {key: answered[name].get(key) for key in _COMPARED} if name in answered else None
        for name in ACTION_CONTROLS
    }
    baselines = {name: found.get(name) for name in BASELINES}
    return {"headline": headline(summary, controls, baselines), **summary, "controls": controls,
            "baselines": baselines}  # fmt: skip


def headline(summary: Mapping, controls: Mapping, baselines: Mapping) -> str:
    """The summary in a line."""
    key = "center_error_median"
    parts = [f"valid {percent(summary['action_valid'])}"]
    if key not in summary:
        # Actions without a box are the same or not.
        return ", ".join([*parts, f"the same {percent(summary['exact_match'])}"])
    parts.append(f"centre off by {_shown(summary.get(key), 'm')} (median)")
    run = {_called(name): each for name, each in controls.items() if each is not None}
    parts += [f"{name} {_shown(each[key], 'm')}" for name, each in run.items()]
    known = {name: each[key] for name, each in baselines.items() if each is not None}
    if known:
        best = min(known, key=known.__getitem__)
        parts.append(f"best baseline {_shown(known[best], 'm')} ({_called(best)})")
    return ", ".join(parts)


def category_table(summary: Mapping) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Columns and rows by category, the total last."""
    columns = ("category", "actions", *(_FIGURES[name][0] for name in _COLUMNS))
    rows = [
        (
            kind,
            f"{figures['count']:,}",
            *(_shown(figures.get(name), _FIGURES[name][1]) for name in _COLUMNS),
        )
        for kind, figures in {**summary["kinds"], "all": summary}.items()
    ]
    return columns, rows


def comparison_table(summary: Mapping) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Columns and rows of the model, its controls and the baselines."""
    columns = ("", *(_FIGURES[name][0] for name in _COMPARED))
    compared = {"the model": summary, **summary["controls"], **summary["baselines"]}
    rows = [
        (
            _called(name),
            *(_shown(figures.get(key), _FIGURES[key][1]) for key in _COMPARED),
        )
        for name, figures in compared.items()
        if figures is not None
    ]
    return columns, rows


def figure_rows(summary: Mapping) -> list[tuple[str, str, str]]:
    """Every figure of all actions with its interval; medians have none."""
    return list(_rows(summary))


def action_difference_rows(found: Mapping) -> list[tuple[str, ...]]:
    """Rows of a comparison of actions: each figure of both, the difference and its interval.

    A figure that not every action has from both says of how many it is.
    """
    rows = []
    for name, (text, unit) in _FIGURES.items():
        each = found["figures"].get(name)
        if each is not None:
            ends = each["interval"]
            spread = "-" if ends is None else " to ".join(_shown(end, unit) for end in ends)
            numbers = (each[which] for which in ("first", "second", "difference"))
            values = ("no box" if n is None else _shown(n, unit) for n in numbers)
            if each["count"] < found["count"]:
                text += f", of {each['count']:,} with both"
            rows.append((text, *values, spread))
    return rows


def action_verdict(found: Mapping) -> str:
    """What a comparison says of the centres; first of all of them where one lacks boxes."""
    off, within = (found["figures"][name] for name in ("center_error", "center_50cm"))
    said = []
    if off["count"] < within["count"]:
        text = f"centres within 50 cm: {{}} by {points(abs(within['difference']))}"
        said.append(better(text, within, more=True))
    if not off["count"]:
        return f"{said[0]} (no action has a box from both)"
    many = f"{off['count']:,} action{'s' * (off['count'] > 1)}"
    where = f", of {many} with a box from both" if said else ""
    text = f"centre{where}: {{}} by {_shown(abs(off['difference']), 'm')}"
    return "\n".join([*said, better(text, off, more=False)])


def _rows(summary: Mapping) -> Iterator[tuple[str, str, str]]:
    for name, (text, unit) in _FIGURES.items():
        if summary.get(name) is None:
            continue
        between = summary["intervals"].get(name)
        spread = "-" if between is None else " to ".join(_shown(end, unit) for end in between)
        yield text, _shown(summary[name], unit), spread
    if "no_true_box" in summary:
        text = "actions without a true box, left out of figures of boxes"
        yield text, f"{summary['no_true_box']:,}", "-"
    for way, lead in summary.get("leads", {}).items():
        for name, each in lead.items():
            text = f"{_FIGURES[name][0]}, above that with {_called(way)}"
            yield text, points(each["difference"]), points_between(each["interval"])


def _called(name: str) -> str:
    """A control or baseline as tables name it; one that is told what is true says so."""
    return "largest true object" if name == "largest_object" else name.replace("_", " ")


def _shown(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    if unit == "%":
        return percent(value)
    return f"{value:.1f}°" if unit == "°" else f"{value:.2f} m"
