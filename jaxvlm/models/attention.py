"""Scaled dot-product attention: the one place where every model of this package attends.

Axes: B batch, T query tokens, S key tokens, N query heads, K key/value heads, H head dim.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

# Queries attended at a time.
_QUERIES = 1024


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
    batch, length, *_ = query.shape
    pieces = -(-length // _QUERIES)
    if mask is not None:
        mask = jnp.broadcast_to(mask, (batch, mask.shape[1], length, key.shape[1]))
    if pieces == 1:
        return _attend(query, key, value, mask)
    # Padding is attended too, and cut off again.
    size = -(-length // pieces)
    queries = _split(query, 1, pieces, size)
    masks = None if mask is None else _split(mask, 2, pieces, size)

    def piece(queries_and_mask):
        queries, seen = queries_and_mask
        return _attend(queries, key, value, seen)

    # Scores are recomputed backwards: those of all pieces together are what is too large.
    out = jax.lax.map(jax.checkpoint(piece, prevent_cse=False), (queries, masks))
    return jnp.moveaxis(out, 0, 1).reshape(batch, pieces * size, *query.shape[2:])[:, :length]


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


def _attend(query, key, value, mask):
    return jax.nn.dot_product_attention(query, key, value, mask=mask, implementation="xla")


def _split(x: Array, axis: int, pieces: int, size: int) -> Array:
    """Cuts `axis` into `pieces` of `size`, on a new first axis; the last is padded with zeros."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, pieces * size - x.shape[axis])
    x = jnp.pad(x, widths)
    return jnp.moveaxis(x.reshape(*x.shape[:axis], pieces, size, *x.shape[axis + 1 :]), axis, 0)
