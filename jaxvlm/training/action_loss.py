"""What the action head is wrong by: in metres, and in the images.

Axes: B rows, A actions a row, S image sets a row, V views, D width.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxvlm.models.action_head import CENTRE, EXTENT, NORMAL, projected, seen

# Smaller errors are squared: metres, and fractions of an image's side. Until a model knows where to
# look, an error's sign alone is all noise.
_METRES, _SIDES = 0.5, 0.05


class ActionErrors(NamedTuple):
    """Errors of boxes.

    Attributes:
      box: robust L1 of centre, extent and normal, in metres: the sum of the three means.
      projection: of the centres in the views that see the true one, in fractions of their sides; 0
        where none does.
      centre: metres between the centres.
    """

    box: Float[Array, "B A"]
    projection: Float[Array, "B A"]
    centre: Float[Array, "B A"]


def action_errors(
    found: Float[Array, "B A 9"],
    true: Float[Array, "B A 9"],
    views: Float[Array, "B A V 37"],
    counts: Float[Array, "B A"],
) -> ActionErrors:
    """Errors of the head's boxes.

    Args:
      found: of the head.
      true: of the records.
      views: geometry of the image set that each action is about.
      counts: its views.
    """
    parts = (CENTRE, EXTENT, NORMAL)
    box = sum(_robust(found[..., p] - true[..., p], _METRES).mean(-1) for p in parts)
    looks = seen(true[..., CENTRE], views, counts).astype(jnp.float32)
    there, _ = projected(true[..., CENTRE], views)
    here, _ = projected(found[..., CENTRE], views)
    off = _robust(here - there, _SIDES).sum(-1)
    # Where nothing is looked at a point may project to anywhere.
    projection = jnp.where(looks > 0, off, 0.0).sum(-1) / jnp.maximum(looks.sum(-1), 1.0)
    difference = found[..., CENTRE] - true[..., CENTRE]
    return ActionErrors(box, projection, jnp.sqrt((difference**2).sum(-1) + 1e-12))


def _robust(error: Float[Array, "*A"], square_below: float) -> Float[Array, "*A"]:
    """Huber's loss with slope 1: the error's size, smooth around 0."""
    size = jnp.abs(error)
    smooth = 0.5 * size**2 / square_below
    return jnp.where(size < square_below, smooth, size - 0.5 * square_below)
