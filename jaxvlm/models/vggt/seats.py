"""Attention across the views of a set, also where rows hold the views of several sets.

Frame blocks and linear maps see every view by itself; in the rows' layout they see real views
behind each other, and only attention across views is given each set padded to its V places.

Axes: B rows, S image sets a row, V places a set, X seats a row (one view each), P tokens a view,
N heads, H head dim.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxvlm.models.attention import attention

Heads = Float[Array, "views P N H"]
Attend = Callable[[Heads, Heads, Heads], Heads]


class Seats(NamedTuple):
    """Where the views of rows sit, set after set, and where each stands in its set.

    Attributes:
      counts: views of each set.
      seat: of each place's view; of an empty place, any.
      place: of each seat's view; of an empty seat, any.
      first: whether a seat's view is the first of its set.
    """

    counts: Int[Array, "B S"]
    seat: Int[Array, "B S V"]
    place: Int[Array, "B X"]
    first: Bool[Array, "B X"]

    def spread(self, x: Float[Array, "B X ..."]) -> Float[Array, "B*S V ..."]:
        """What is in the seats, at the places of each set; zeros at empty ones."""
        rows, sets, places = self.seat.shape
        found = _taken(x, self.seat.reshape(rows, -1))
        real = jnp.arange(places) < self.counts[..., None]
        found = jnp.where(real.reshape(rows, -1, *[1] * (x.ndim - 2)), found, 0)
        return found.reshape(rows * sets, places, *x.shape[2:])

    def gather(self, x: Float[Array, "B*S V ..."]) -> Float[Array, "B X ..."]:
        """The inverse of `spread`; in an empty seat is some view or other."""
        rows = len(self.counts)
        return _taken(x.reshape(rows, -1, *x.shape[2:]), self.place)


def seats(counts: Int[Array, "B S"], places: int, count: int) -> Seats:
    """Seats for rows whose sets have so many of V places taken, and which have X seats each.

    Each row must have seats for all of its views, as packing sees to.
    """
    ends = jnp.cumsum(counts, axis=1)
    starts = ends - counts
    seat = jnp.minimum(starts[..., None] + jnp.arange(places), count - 1)
    # The set of a seat: as many sets end before it.
    number = jnp.arange(count)
    sets = (ends[:, None, :] <= number[:, None]).sum(axis=-1)
    sets = jnp.minimum(sets, counts.shape[1] - 1)
    within = number - jnp.take_along_axis(starts, sets, axis=1)
    place = sets * places + jnp.clip(within, 0, places - 1)
    return Seats(counts, seat, place, within == 0)


def _taken(x: Float[Array, "B J ..."], index: Int[Array, "B K"]) -> Float[Array, "B K ..."]:
    return jax.vmap(lambda row, places: row.at[places].get(mode="promise_in_bounds"))(x, index)


def across_sets(views: int, counts: Int[Array, " B"] | None) -> Attend:
    """Attention among all tokens of each set of V views, which stand set after set.

    Those behind `counts` are padding, which none sees.
    """

    def attend(query: Heads, key: Heads, value: Heads) -> Heads:
        merged = (x.reshape(-1, views * x.shape[1], *x.shape[2:]) for x in (query, key, value))
        lengths = None if counts is None else counts * query.shape[1]
        return attention(*merged, lengths=lengths).reshape(query.shape)

    return attend


def across_rows(taken: Seats) -> Attend:
    """The same for the views in the seats of rows, row after row."""
    attend_sets = across_sets(taken.seat.shape[2], taken.counts.reshape(-1))

    def attend(query: Heads, key: Heads, value: Heads) -> Heads:
        rows = len(taken.counts)

        def spread(x: Heads) -> Heads:
            found = taken.spread(x.reshape(rows, -1, *x.shape[1:]))
            return found.reshape(-1, *x.shape[1:])

        out = attend_sets(*map(spread, (query, key, value)))
        out = taken.gather(out.reshape(-1, taken.seat.shape[2], *out.shape[1:]))
        return out.reshape(query.shape)

    return attend
