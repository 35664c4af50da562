"""Scaled dot-product attention: the one place where every model of this package attends.

Axes: B batch, T query tokens, S key tokens, N query heads, K key/value heads, H head dim.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K H"],
    *,
    mask: Bool[Array, "B #N #T S"] | None = None,
    causal: bool = False,
) -> Float[Array, "B T N H"]:
    """Softmax attention with scale 1/sqrt(H), scores in float32.

    Args:
      query: queries; N is a multiple of K (grouped-query attention).
      key: keys.
      value: values.
      mask: true where a query may see a key; a query that may see nothing returns the mean value.
      causal: additionally forbid keys behind the query's own index.

    Returns:
      The attended values in the queries' dtype.
    """
    if mask is not None:
        mask = jnp.broadcast_to(mask, (query.shape[0], mask.shape[1], query.shape[1], key.shape[1]))
    return jax.nn.dot_product_attention(
        query, key, value, mask=mask, is_causal=causal, implementation="xla"
    )
