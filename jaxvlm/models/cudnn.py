"""Attention by cuDNN's kernel, on NVIDIA's GPUs in half precision.

Axes: B batch, T query tokens, S key tokens, N query heads, K key/value heads, H head dim.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxvlm.models.pieces import Seen

# What JAX calls the kernel of the forward pass of training.
KERNEL = "dot_product_attention_fwd_wrapper"
# The widest head that the kernel has on every GPU since Ampere.
_WIDEST = 128
# Whether what is compiled here is for GPUs that are not here.
_elsewhere = False


def fits(
    query: Float[Array, "B T N H"], key: Float[Array, "B S K H"], value: Float[Array, "B S K H"]
) -> bool:
    """Whether there is a kernel for such arrays on the devices that run what is compiled."""
    width = query.shape[3]
    dtypes = {query.dtype, key.dtype, value.dtype}
    halves = len(dtypes) == 1 and query.dtype in (jnp.bfloat16, jnp.float16)
    return (_elsewhere or _on_gpu()) and halves and width <= _WIDEST and width % 8 == 0


def compile_for_absent_gpus() -> None:
    """From now on this process compiles for GPUs that have the kernel, and runs nothing."""
    global _elsewhere
    _elsewhere = True


@functools.cache
def _on_gpu() -> bool:
    device = jax.devices()[0]
    if "cuda" not in device.client.platform_version.lower():
        return False
    return float(device.compute_capability) >= 8.0  # Ampere


def _kernel(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K H"],
    seen: Seen,
    causal: bool,
) -> Float[Array, "B T N H"]:
    """What `jaxvlm.models.attention.attention` says. Segments become a mask [B, 1, T, S]."""
    mask = None
    if seen.segments is not None:
        mask = (seen.segments[:, None, :] == seen.segments[:, :, None])[:, None]
    return jax.nn.dot_product_attention(
        query, key, value, mask=mask, key_value_seq_lengths=seen.lengths, is_causal=causal,
        implementation="cudnn",
    )  # fmt: skip


def _with_gradient(query, key, value, seen, causal):
    """JAX has gradients of even numbers of tokens only: an odd one gets one more, of padding."""
    length, slots = query.shape[1], key.shape[1]

    def even(query, key, value):
        def padded(x):
            return jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), *[(0, 0)] * (x.ndim - 2)))

        segments, lengths = seen
        if slots % 2:
            segments = None if segments is None else padded(segments)
            lengths = jnp.full(len(key), slots, jnp.int32) if lengths is None else lengths
        found = _kernel(*map(padded, (query, key, value)), Seen(segments, lengths), causal)
        return found[:, :length]

    return jax.vjp(even, query, key, value)


attend = jax.custom_vjp(_kernel, nondiff_argnums=(4,))
attend.defvjp(_with_gradient, lambda causal, back, gradient: (*back(gradient), None))
