"""How much two boxes overlap.

Axes: N points.
"""

import itertools

import numpy as np
from jaxtyping import Float
from scipy.spatial import ConvexHull, QhullError

from jaxvlm.data.boxes import Box

# Metres: what is nearer counts as on the surface, and what is thinner as empty.
_NEAR = 1e-9
_EDGES = [(a, b) for a, b in itertools.combinations(range(8), 2) if (a ^ b).bit_count() == 1]


def intersection_over_union(one: Box, other: Box) -> float:
    """The volume that two boxes share, as a part of that of both together; they may be turned."""
    shared = _shared(one, other)
    # What is as thin as the tolerance may share more than it has.
    return min(shared / (one.size.prod() + other.size.prod() - shared), 1.0)


def _shared(one: Box, other: Box) -> float:
    """The volume of the intersection, which is the convex hull of its corners.

    A corner of it is one of a box inside the other, or where an edge of one meets a face of the
    other.
    """
    points = np.concatenate([_corners_within(one, other), _corners_within(other, one)])
    if len(points) < 4:
        return 0.0
    try:
        return float(ConvexHull(points).volume)
    except QhullError:
        # They touch.
        return 0.0


def _corners_within(one: Box, other: Box) -> Float[np.ndarray, "N 3"]:
    """Corners of a box inside another, and the points where its edges meet the other's faces."""
    # In the other's axes and halves of its size it is the cube from -1 to 1.
    local = (one.corners() - other.centre) @ other.axes.T / (other.size / 2)
    ends = np.array(_EDGES)
    start, step = local[ends[:, 0]], local[ends[:, 1]] - local[ends[:, 0]]
    with np.errstate(divide="ignore", invalid="ignore"):
        at = np.stack([(side - start) / step for side in (-1.0, 1.0)], axis=-1)
    at = np.where(np.isfinite(at), at, -1.0).reshape(len(ends), -1)
    met = start[:, None] + at[..., None] * step[:, None]
    met = met[(at > 0) & (at < 1)]
    points = np.concatenate([local, met])
    points = points[(np.abs(points) <= 1 + _NEAR).all(-1)]
    return points * (other.size / 2) @ other.axes + other.centre
