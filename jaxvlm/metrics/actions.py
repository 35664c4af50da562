"""What an action is worth: is it one, of the right kind, and how far off is its box, in metres.

A line of predictions has the true action as `reference`, in metres, and `up`, the vertical axis of
its frame ("z" where it has none). What was predicted stands in `predicted_action`; in files of
other systems it is the JSON of `prediction`, in metres too. A text of ours that is no action, whose
`predicted_action` is None, may be JSON all the same: what that holds is told, but it has no box.
"""

import json
from collections.abc import Mapping

import numpy as np

from jaxvlm.data.actions import language
from jaxvlm.data.boxes import Box, action_box
from jaxvlm.metrics.overlap import intersection_over_union

# Figures of which the median tells more than the mean.
MEDIANS = ("center_error", "extent_error", "normal_angle", "head_center_error")
# Metres; a prediction without box lies within none.
_WITHIN = {"center_10cm": 0.1, "center_25cm": 0.25, "center_50cm": 0.5}
_OVERLAPS = {"acc_25": 0.25, "acc_50": 0.5}
# All that may stand in a line.
ACTION_VALUES = (
    *("json_valid", "action_valid", "keys_present", "action_right", "scene_right"),
    *("center_error", *_WITHIN, "extent_error", "normal_angle", "iou", *_OVERLAPS),
    *("head_center_error", "head_iou"),
)


def is_action(line: Mapping) -> bool:
    """Whether a line's reference is an action."""
    return isinstance(line.get("reference"), Mapping)


def action_values(line: Mapping) -> dict[str, float | None]:
    """The values of a line whose reference is an action; None for what it does not tell."""
    true, up = line["reference"], line.get("up") or "z"
    found = _predicted(line)
    fields = {} if found is None else found
    said = _object(line["prediction"]) if found is None else found
    # The frame's origin may lie farther from the camera than an action's numbers reach.
    wrong = language.problem(fields, anywhere=True)
    values = {
        "json_valid": float(said is not None),
        "action_valid": float(wrong is None),
        "keys_present": float(_has_keys(said or {}, true, in_metres=found is not None)),
        "action_right": _same("action", said or {}, true),
        "scene_right": _same("scene", said or {}, true),
    }
    right = action_box(true, up)
    if right is None:
        return values
    values |= box_values(action_box(fields, up), right)
    if line.get("head_action") is not None:
        head = box_values(action_box(line["head_action"], up), right)
        values |= {f"head_{name}": head[name] for name in ("center_error", "iou")}
    return values


def box_values(found: Box | None, true: Box) -> dict[str, float | None]:
    """How far a box is off; an error is None, and everything else 0, where there is no box.

    Returns:
      `center_error` in metres, and whether it is within 10, 25 and 50 cm; `extent_error`, the mean
      of the three lengths' errors in metres; `normal_angle` in degrees; `iou`, the share of the
      boxes' volume that is in both, and whether it is at least 0.25 and 0.5.
    """
    if found is None:
        none = dict.fromkeys(("center_error", "extent_error", "normal_angle"))
        return none | dict.fromkeys((*_WITHIN, "iou", *_OVERLAPS), 0.0)
    error = float(np.linalg.norm(found.centre - true.centre))
    cosine = np.clip(found.axes[2] @ true.axes[2], -1, 1)
    overlap = intersection_over_union(found, true)
    return {
        "center_error": error,
        **{name: float(error <= most) for name, most in _WITHIN.items()},
        "extent_error": float(np.abs(found.size - true.size).mean()),
        "normal_angle": float(np.degrees(np.arccos(cosine))),
        "iou": overlap,
        **{name: float(overlap >= least) for name, least in _OVERLAPS.items()},
    }


def _same(name: str, said: Mapping, true: Mapping) -> float | None:
    return None if true.get(name) in (None, "") else float(said.get(name) == true[name])


def _has_keys(said: Mapping, true: Mapping, in_metres: bool) -> bool:
    """Whether all fields are there; in the action language their names have a suffix."""
    schema = language.ACTIONS.get(true.get("action"))
    suffixes = {name: kind.suffix for name, kind in schema.fields.items()} if schema else {}
    return {"action", "scene"} <= said.keys() and all(
        name in said or (not in_metres and name + suffix in said)
        for name, suffix in suffixes.items()
    )


def _predicted(line: Mapping) -> dict | None:
    """The object that was predicted, in metres, whatever it holds."""
    if "predicted_action" in line:
        return line["predicted_action"]
    return _object(line["prediction"])


def _object(text: str) -> dict | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
