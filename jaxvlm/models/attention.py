"""Scaled dot-product attention: the one place where every model of this package attends.

Axes: B batch, T query tokens, S key tokens, N query heads, K key/value heads, G = N/K, H head dim.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

# Queries attended at a time: so many that products are large, and so few that their scores stay in
# a CPU's cache.
_QUERIES = 256


def attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K H"],
    *,
    mask: Bool[Array, "B #N #T S"] | None = None,
) -> Float[Array, "B T N H"]:
    """Softmax attention with scale 1/sqrt(H), scores in float32.

    Long queries are attended piece by piece: the scores of VGGT's global attention among 8 views
    would take gigabytes an image set.

    Args:
      query: queries; N is a multiple of K (grouped-query attention).
      key: keys.
      value: values.
      mask: true where a query may see a key; a query that may see nothing returns the mean value.

    Returns:
      The attended values in the queries' dtype.
    """
    batch, length, heads, dim = query.shape
    kv_heads, slots = key.shape[2], key.shape[1]
    # Heads before tokens, as products want them; those of one key together.
    query = query.reshape(batch, length, kv_heads, -1, dim).transpose(0, 2, 3, 1, 4)
    if mask is not None:
        mask = jnp.broadcast_to(mask, (batch, mask.shape[1], length, slots))
        apart = (kv_heads, -1) if mask.shape[1] == heads else (1, 1)
        mask = mask.reshape(batch, *apart, length, slots)
    out = _attend(query, key.swapaxes(1, 2), value.swapaxes(1, 2), mask)
    return out.transpose(0, 3, 1, 2, 4).reshape(batch, length, heads, dim)


def attend_cached(
    query: Float[Array, "B N H"],
    key: Float[Array, "B K S H"],
    value: Float[Array, "B K S H"],
    lengths: Int32[Array, "B"],
) -> Float[Array, "B N H"]:
    """Attention of one query a row over the first `lengths` of its S slots.

    The slots of a head lie together, as products want them.
    """
    batch, kv_heads, slots, dim = key.shape
    grouped = query.reshape(batch, kv_heads, -1, dim)
    scores = jnp.einsum("bkgh,bksh->bkgs", grouped, key, preferred_element_type=jnp.float32)
    seen = jnp.arange(slots) < lengths[:, None, None, None]
    weights = jax.nn.softmax(jnp.where(seen, scores * dim**-0.5, -jnp.inf), axis=-1)
    out = jnp.einsum(
        "bkgs,bksh->bkgh", weights.astype(value.dtype), value, preferred_element_type=jnp.float32
    )
    return out.reshape(query.shape).astype(query.dtype)


@jax.custom_vjp
def _attend(
    query: Float[Array, "B K G T H"],
    key: Float[Array, "B K S H"],
    value: Float[Array, "B K S H"],
    mask: Bool[Array, "B #K #G T S"] | None,
) -> Float[Array, "B K G T H"]:
    """Attention of pieces of the queries, one after the other.

    It is the values that are divided by the sum of the weights, for they are fewer; and backwards
    the weights are computed again from the scores' maximum and that sum, for they are what would
    take the memory: both as in FlashAttention (arXiv 2205.14135).
    """
    return _forward(query, key, value, mask)[0]


def _forward(query, key, value, mask):
    def piece(parts):
        query, mask = parts
        scores = _scores(query, key, mask)
        most = scores.max(axis=-1)
        # The sum is that of the rounded weights, so that what is common to them cancels.
        weights = jnp.exp(scores - most[..., None]).astype(value.dtype)
        share = 1 / weights.sum(axis=-1, dtype=jnp.float32)
        out = _product("bkts,bksh->bkth", _flat(weights), value)
        out = out.reshape(query.shape) * share[..., None]
        return out.astype(query.dtype), most, share

    parts = jax.lax.map(piece, _split((query, mask), query.shape[3]))
    out, most, share = (_joined(part, query.shape[3]) for part in parts)
    return out, (query, key, value, mask, out, most, share)


def _backward(kept, gradient):
    query, key, value, mask, out, most, share = kept
    dtype = value.dtype
    # What a score's change takes from all weights of its query.
    common = (gradient.astype(jnp.float32) * out).sum(axis=-1)

    def piece(sums, parts):
        query, mask, gradient, common, most, share = parts
        weights = jnp.exp(_scores(query, key, mask) - most[..., None]) * share[..., None]
        change = _product("bkth,bksh->bkts", _flat(gradient), value).reshape(weights.shape)
        change = weights * (change - common[..., None]) * query.shape[-1] ** -0.5
        if mask is not None:
            change = jnp.where(mask, change, 0)
        change, weights = _flat(change.astype(dtype)), _flat(weights.astype(dtype))
        more = (
            _product("bkts,bkth->bksh", change, _flat(query)),
            _product("bkts,bkth->bksh", weights, _flat(gradient)),
        )
        own = _product("bkts,bksh->bkth", change, key).reshape(query.shape)
        return tuple(a + b for a, b in zip(sums, more, strict=True)), own.astype(query.dtype)

    length = query.shape[3]
    zeros = (jnp.zeros(key.shape, jnp.float32), jnp.zeros(value.shape, jnp.float32))
    parts = _split((query, mask, gradient, common, most, share), length)
    (of_key, of_value), of_query = jax.lax.scan(piece, zeros, parts)
    return _joined(of_query, length), of_key.astype(key.dtype), of_value.astype(dtype), None


_attend.defvjp(_forward, _backward)


def _product(axes: str, *factors: Array) -> Array:
    """A sum of products in float32."""
    return jnp.einsum(axes, *factors, preferred_element_type=jnp.float32)


def _scores(query: Array, key: Array, mask: Array | None) -> Array:
    scores = _product("bkth,bksh->bkts", _flat(query), key) * query.shape[-1] ** -0.5
    scores = scores.reshape(*query.shape[:4], -1)
    return scores if mask is None else jnp.where(mask, scores, jnp.finfo(jnp.float32).min)


def _flat(x: Float[Array, "B K G T X"]) -> Float[Array, "B K G*T X"]:
    """All queries of a key's heads behind each other, for one product."""
    return x.reshape(*x.shape[:2], -1, x.shape[4])


def _split(arrays, length: int):
    """Cuts the axis T, the fourth, into pieces on a new first axis, the last padded with zeros."""
    pieces = -(-length // _QUERIES)
    size = -(-length // pieces)

    def split(x: Array) -> Array:
        widths = [(0, 0)] * x.ndim
        widths[3] = (0, pieces * size - length)
        x = jnp.pad(x, widths)
        return jnp.moveaxis(x.reshape(*x.shape[:3], pieces, size, *x.shape[4:]), 3, 0)

    return jax.tree.map(split, arrays)


def _joined(x: Array, length: int) -> Array:
    """The inverse of `_split`."""
    x = jnp.moveaxis(x, 0, 3)
    return x.reshape(*x.shape[:3], -1, *x.shape[5:])[:, :, :, :length]
