"""Scaled dot-product attention, for every model of this package.

Axes: B batch, T query tokens, S key tokens, N query heads, K key/value heads, H head dim.
"""

import os

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from jaxvlm.errors import UserError
from jaxvlm.models import cudnn
from jaxvlm.models.pieces import Seen, attend_in_pieces

# "auto" takes cuDNN's kernel where it fits, "pieces" never.
CHOICE = "JAXVLM_ATTENTION"
_CHOICES = ("auto", "pieces")


def attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K H"],
    *,
    causal: bool = False,
    segments: Int32[Array, "B S"] | None = None,
    lengths: Int32[Array, "B"] | None = None,
) -> Float[Array, "B T N H"]:
    """Softmax attention with scale 1/sqrt(H), scores in float32.

    On an NVIDIA GPU in half precision it is cuDNN's kernel, everywhere else `attend_in_pieces`;
    neither holds all scores at once, which among the tokens of 8 views would be gigabytes.

    Args:
      query: queries; N is a multiple of K (grouped-query attention).
      key: keys.
      value: values.
      causal: a query sees no key behind its own place.
      segments: of the tokens, where T = S: a query sees keys of its own segment only.
      lengths: keys from there on are padding, which nothing sees; the first key is seen always.

    Returns:
      The attended values in the queries' dtype.

    Raises:
      UserError: see `choice`.
      ValueError: both segments and lengths, of which a query might see nothing.
    """
    if segments is not None and lengths is not None:
        raise ValueError("padding behind lengths is a segment of its own: give segments alone")
    if lengths is not None:
        lengths = jnp.clip(lengths, 1, key.shape[1])
    seen = Seen(segments, lengths)
    if choice() == "auto" and cudnn.fits(query, key, value):
        return cudnn.attend(query, key, value, seen, causal)
    batch, length, heads, dim = query.shape
    # Heads before tokens, as products want them; those of one key together.
    grouped = query.reshape(batch, length, key.shape[2], -1, dim).transpose(0, 2, 3, 1, 4)
    keys, values = key.swapaxes(1, 2), value.swapaxes(1, 2)
    out = attend_in_pieces(grouped, keys, values, seen, causal)
    return out.transpose(0, 3, 1, 2, 4).reshape(batch, length, heads, dim)


def choice() -> str:
    """What the environment variable `JAXVLM_ATTENTION` asks for.

    Raises:
      UserError: it is not known.
    """
    chosen = os.environ.get(CHOICE) or "auto"
    if chosen not in _CHOICES:
        raise UserError(f"{CHOICE}={chosen!r}: expected one of {', '.join(_CHOICES)}")
    return chosen


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
