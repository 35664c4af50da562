"""Dropout (Srivastava et al., JMLR 2014) as a function of a key."""

import jax
import jax.numpy as jnp
from jaxtyping import Array


def dropout(x: Array, rate: float, key: jax.Array | None) -> Array:
    """Zeroes each element with probability `rate` and scales up the rest; no key, no dropout."""
    if key is None or rate == 0:
        return x
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0)
