"""Scaled dot-product attention: the one place where every model of this package attends.

Axes: B batch, T query tokens, S key tokens, N query heads, K key/value heads, G = N/K, H head dim.
"""

import functools

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
    key, value = key.swapaxes(1, 2), value.swapaxes(1, 2)
    if mask is not None:
        mask = jnp.broadcast_to(mask, (batch, mask.shape[1], length, slots))
        apart = (kv_heads, -1) if mask.shape[1] == heads else (1, 1)
        mask = mask.reshape(batch, *apart, length, slots)
    pieces = -(-length // _QUERIES)
    size = -(-length // pieces)
    if pieces == 1:
        out = _attend(query, key, value, mask)
    else:
        # Padding is attended too, and cut off again.
        queries = _split(query, 3, pieces, size)
        masks = None if mask is None else _split(mask, 3, pieces, size)

        def piece(queries_and_mask):
            queries, seen = queries_and_mask
            return _attend(queries, key, value, seen)

        # Scores are recomputed backwards: those of all pieces together are what is too large.
        out = jax.lax.map(jax.checkpoint(piece, prevent_cse=False), (queries, masks))
        out = jnp.moveaxis(out, 0, 3).reshape(*query.shape[:3], -1, dim)[:, :, :, :length]
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


def _attend(
    query: Float[Array, "B K G T H"],
    key: Float[Array, "B K S H"],
    value: Float[Array, "B K S H"],
    mask: Bool[Array, "B #K #G T S"] | None,
) -> Float[Array, "B K G T H"]:
    """Attention of all queries at once.

    It is the values that are divided by the sum of the weights, as in FlashAttention (arXiv
    2205.14135): they are fewer than the weights.
    """
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    scores = product("bkgth,bksh->bkgts", query, key) * query.shape[-1] ** -0.5
    if mask is not None:
        scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    out = product("bkgts,bksh->bkgth", weights.astype(value.dtype), value)
    return (out / weights.sum(axis=-1, keepdims=True)).astype(query.dtype)


def _split(x: Array, axis: int, pieces: int, size: int) -> Array:
    """Cuts `axis` into `pieces` of `size`, on a new first axis; the last is padded with zeros."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, pieces * size - x.shape[axis])
    x = jnp.pad(x, widths)
    return jnp.moveaxis(x.reshape(*x.shape[:axis], pieces, size, *x.shape[axis + 1 :]), axis, 0)
