"""Attention by pieces of the queries, with a gradient of its own: on any device and in any dtype.

Axes: B batch, T query tokens, S key tokens, K key/value heads, G query heads of one key's, H head
dim, P pieces, Q queries of a piece, X anything.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int32

# The name that what attention gives has for rematerialisation.
ATTENDED = "attended"
# Queries attended at a time: so many that products are large, and so few that their scores take
# little memory.
_QUERIES = 256


class Seen(NamedTuple):
    """Which keys a query sees, see `attention`.

    Attributes:
      segments: of queries and keys, or None.
      lengths: of the keys, or None.
    """

    segments: Int32[Array, "B S"] | None
    lengths: Int32[Array, "B"] | None


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def attend_in_pieces(
    query: Float[Array, "B K G T H"],
    key: Float[Array, "B K S H"],
    value: Float[Array, "B K S H"],
    seen: Seen,
    causal: bool,
) -> Float[Array, "B K G T H"]:
    """Attention of pieces of the queries, one after the other.

    It is the values that are divided by the sum of the weights, for they are fewer; and backwards
    the weights are computed again from the scores' maximum and that sum, for they are what would
    take the memory: both as in FlashAttention (arXiv 2205.14135). A mask is never whole either.
    """
    return _forward(query, key, value, seen, causal)[0]


def _forward(query, key, value, seen, causal):
    def piece(parts):
        query, own = parts
        scores = _scores(query, key, _mask(own, seen, key.shape[2], causal))
        most = scores.max(axis=-1)
        # The sum is that of the rounded weights, so that what is common to them cancels.
        weights = _weights(scores, most, query.shape[-1]).astype(value.dtype)
        share = 1 / weights.sum(axis=-1, dtype=jnp.float32)
        out = _product("bkts,bksh->bkth", _flat(weights), value)
        out = out.reshape(query.shape) * share[..., None]
        return out.astype(query.dtype), most, share

    length = query.shape[3]
    parts = jax.lax.map(piece, (_split(query, 3), _own(seen, length)))
    out, most, share = (checkpoint_name(_joined(part, length), ATTENDED) for part in parts)
    return out, (query, key, value, seen, out, most, share)


def _backward(causal, kept, gradient):
    query, key, value, seen, out, most, share = kept
    dtype = value.dtype
    # What a score's change takes from all weights of its query.
    common = (gradient.astype(jnp.float32) * out).sum(axis=-1)

    def piece(sums, parts):
        own, query, gradient, common, most, share = parts
        # What is not seen has no weight, and so no gradient either.
        scores = _scores(query, key, _mask(own, seen, key.shape[2], causal))
        weights = _weights(scores, most, query.shape[-1]) * share[..., None]
        change = _product("bkth,bksh->bkts", _flat(gradient), value).reshape(weights.shape)
        change = weights * (change - common[..., None]) * query.shape[-1] ** -0.5
        change, weights = _flat(change.astype(dtype)), _flat(weights.astype(dtype))
        more = (
            _product("bkts,bkth->bksh", change, _flat(query)),
            _product("bkts,bkth->bksh", weights, _flat(gradient)),
        )
        of_query = _product("bkts,bksh->bkth", change, key).reshape(query.shape)
        return tuple(a + b for a, b in zip(sums, more, strict=True)), of_query.astype(query.dtype)

    length = query.shape[3]
    zeros = (jnp.zeros(key.shape, jnp.float32), jnp.zeros(value.shape, jnp.float32))
    split = (_split(x, 3) for x in (query, gradient, common, most, share))
    (of_key, of_value), of_query = jax.lax.scan(piece, zeros, (_own(seen, length), *split))
    return _joined(of_query, length), of_key.astype(key.dtype), of_value.astype(dtype), None


attend_in_pieces.defvjp(_forward, _backward)


def _own(seen: Seen, length: int) -> tuple[Int32[Array, "P Q"], Int32[Array, "P B Q"] | None]:
    """Places and segments of the queries of each piece."""
    places = _split(jnp.arange(length, dtype=jnp.int32), 0)
    return places, None if seen.segments is None else _split(seen.segments, 1)


def _mask(own, seen: Seen, slots: int, causal: bool) -> Bool[Array, "#B 1 1 #Q S"] | None:
    """True where a query of a piece sees a key; None where each sees all."""
    places, segments = own
    keys = jnp.arange(slots)
    found = []
    if causal:
        found.append(keys <= places[None, :, None])
    if segments is not None:
        found.append(seen.segments[:, None, :] == segments[:, :, None])
    if seen.lengths is not None:
        found.append(keys < seen.lengths[:, None, None])
    return functools.reduce(jnp.logical_and, found)[:, None, None] if found else None


def _product(axes: str, *factors: Array) -> Array:
    """A sum of products in float32."""
    return jnp.einsum(axes, *factors, preferred_element_type=jnp.float32)


def _scores(query: Array, key: Array, mask: Array | None) -> Array:
    """Products of queries and keys, not scaled: that is done where they are looked at again."""
    scores = _product("bkth,bksh->bkts", _flat(query), key)
    scores = scores.reshape(*query.shape[:4], -1)
    return scores if mask is None else jnp.where(mask, scores, jnp.finfo(jnp.float32).min)


def _weights(scores: Array, most: Array, dim: int) -> Array:
    """Weights of scores of heads of a dimension, by the largest of each query."""
    return jnp.exp((scores - most[..., None]) * dim**-0.5)


def _flat(x: Float[Array, "B K G T X"]) -> Float[Array, "B K G*T X"]:
    """All queries of a key's heads behind each other, for one product."""
    return x.reshape(*x.shape[:2], -1, x.shape[4])


def _split(x: Array, axis: int) -> Array:
    """Cuts an axis into pieces on a new first axis, the last padded with zeros."""
    length = x.shape[axis]
    pieces = -(-length // _QUERIES)
    size = -(-length // pieces)
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, pieces * size - length)
    x = jnp.pad(x, widths)
    return jnp.moveaxis(x.reshape(*x.shape[:axis], pieces, size, *x.shape[axis + 1 :]), axis, 0)


def _joined(x: Array, length: int) -> Array:
    """The inverse of `_split` of the fourth axis."""
    x = jnp.moveaxis(x, 0, 3)
    return x.reshape(*x.shape[:3], -1, *x.shape[5:])[:, :, :, :length]
