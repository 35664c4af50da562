"""Boxes that need no model: what a model's must be better than.

Axes: V views.
"""

from collections.abc import Iterable, Mapping

import numpy as np
from jaxtyping import Float

from jaxvlm.data.boxes import Box, action_box, box_axes, world_box
from jaxvlm.data.record import Record
from jaxvlm.metrics.actions import box_values

BASELINES = {
    "training_mean": "the mean box of the training set, in the first camera's frame",
    "room_center": "the mean box, where the cameras' lines of sight come closest",
    "largest_object": "the largest of the scene's true boxes",
}


def baselines(training: Iterable[Record], asked: Iterable[Record]) -> dict[str, dict]:
    """Figures of each baseline over the records that it says something of.

    Args:
      training: records whose actions are known beforehand.
      asked: the evaluated ones.

    Returns:
      By name `count`, the mean of each figure of `box_values`, and `center_error_median`.
    """
    mean = _mean_box(training)
    asked = [(record, _true_box(record)) for record in asked]
    largest: dict[str, Box] = {}
    for record, box in asked:
        # In the world: each record of a scene may have a frame of its own.
        own = world_box(record, record.action)
        if box is not None and own is not None:
            known = largest.get(record.scene_id)
            if known is None or own.size.prod() > known.size.prod():
                largest[record.scene_id] = own
    found: dict[str, list[Mapping]] = {name: [] for name in BASELINES}
    for record, box in asked:
        if box is None:
            continue
        own = world_box(record, record.action)
        if own is not None:
            found["largest_object"].append(box_values(largest[record.scene_id], own))
        if mean is not None:
            found["training_mean"].append(box_values(mean, box))
            centre = _looked_at(record)
            if centre is not None:
                moved = Box("", "object", "", centre, mean.axes, mean.size)
                found["room_center"].append(box_values(moved, box))
    return {name: _figures(values) for name, values in found.items() if values}


def _true_box(record: Record) -> Box | None:
    """In the first camera's frame."""
    return None if record.action is None else action_box(record.learnt_action(), "z")


def _mean_box(training: Iterable[Record]) -> Box | None:
    boxes = [box for record in training if (box := _true_box(record)) is not None]
    if not boxes:
        return None
    centre, size, normal = (
        np.mean([part(box) for box in boxes], axis=0)
        for part in (lambda box: box.centre, lambda box: box.size, lambda box: box.axes[2])
    )
    normal = normal if np.linalg.norm(normal) > 1e-6 else np.array([0.0, 1, 0])
    return Box("", "object", "", centre, box_axes(normal), size)


def _looked_at(record: Record) -> Float[np.ndarray, "3"] | None:
    """The point nearest to all cameras' lines of sight, in the first camera's frame."""
    poses, frame = record.poses(), record.model_frame()
    if poses is None:
        return None
    rotation, position = frame.rotations(poses[0]), frame.points(poses[1])
    forward = rotation[:, :, 2]
    across = np.eye(3) - forward[:, :, None] * forward[:, None]
    total = across.sum(0)
    if np.linalg.cond(total) > 1e6:
        # All look the same way.
        return None
    return np.linalg.solve(total, (across @ position[..., None]).sum(0))[:, 0]


def _figures(values: list[Mapping]) -> dict:
    means = {name: float(np.mean([each[name] for each in values])) for name in values[0]}
    median = float(np.median([each["center_error"] for each in values]))
    return {"count": len(values), **means, "center_error_median": median}
