"""Transformer blocks of VGGT (arXiv:2503.11651), in the manner of DINOv2 (arXiv:2304.07193).

Axes: B batch (whatever is folded into it), T tokens, C width, N heads, H head dim, D = H/2,
L layers of a stack, Y rows and X columns of patches, S = Y*X, O output channels, K kernel side.
"""

import functools
from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from jaxvlm.models.attention import attention
from jaxvlm.models.gelu import gelu
from jaxvlm.models.partition import batch_sharded, gathered
from jaxvlm.models.remat import rematerialised
from jaxvlm.models.vggt.seats import Attend

Module = TypeVar("Module", bound=nnx.Module)
Rotation = tuple[Float[Array, "T H"], Float[Array, "T H"]]

# PyTorch's default for linear and convolution kernels: uniform within 1/sqrt(fan in).
TORCH_INIT = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
VIT_INIT = nnx.initializers.truncated_normal(0.02)
TOKEN_INIT = nnx.initializers.normal(1e-6)


def layer_norm(width: int, epsilon: float, *, affine: bool = True, rngs: nnx.Rngs):
    """A LayerNorm whose statistics are float32 whatever the input's dtype is."""
    return nnx.LayerNorm(
        width,
        epsilon=epsilon,
        use_bias=affine,
        use_scale=affine,
        use_fast_variance=False,
        rngs=rngs,
    )


def stack(make: Callable[[nnx.Rngs], Module], length: int, rngs: nnx.Rngs) -> Module:
    """`length` modules in one, their parameters stacked on a new first axis, for `lax.scan`."""
    return nnx.vmap(make)(rngs.split(length))


def cut(stacked: Module) -> tuple[Module, ...]:
    """The modules of a `stack`, each with parameters of its own, for `fold` alone.

    Their kernels lie as [out, in], which products of few tokens read faster on some CPUs.
    """
    leaves, structure = jax.tree.flatten(stacked)
    # Leaf by leaf, so that no more than one is there three times.
    layers = zip(*(_turned(list(jnp.unstack(leaf))) for leaf in leaves), strict=True)
    return tuple(structure.unflatten(layer) for layer in layers)


def _turned(layers):
    """The layers with [out, in] kernels instead of [in, out], or the other way round."""
    return jax.tree.map(lambda leaf: leaf.T if leaf.ndim == 2 else leaf, layers)


def fold(body: Callable, carry, stacks: Sequence[Module | tuple[Module, ...]], *, remat: bool):
    """Runs `body` over the layers of stacks, by `lax.scan`, or one by one where they are `cut`.

    Args:
      body: from the carry, a layer of each stack and their number to the next carry.
      carry: the first.
      stacks: of as many layers each, all stacked or all cut.
      remat: recompute each layer in the backward pass.

    Returns:
      The last carry.

    Raises:
      ValueError: `remat` of layers that are cut, which are not for training.
    """
    if isinstance(stacks[0], tuple):
        if remat:
            raise ValueError("layers that are cut are not for training: nothing to recompute")
        # Traced and lowered once for all layers.
        step = jax.jit(lambda carry, layers, index: body(carry, _turned(layers), index))
        for index, layers in enumerate(zip(*stacks, strict=True)):
            carry = step(carry, layers, index)
        return carry
    body = rematerialised(body, "full" if remat else "none")
    indices = jnp.arange(len(jax.tree.leaves(stacks[0])[0]))
    return jax.lax.scan(lambda carry, of: (body(carry, *of), None), carry, (stacks, indices))[0]


def run(
    blocks: Module | tuple[Module, ...],
    x: Float[Array, "B T C"],
    *,
    lengths=None,
    remat: bool = False,
):
    """Runs `Block`s, stacked or cut, one after the other, without rotation.

    Tokens from `lengths` on are padding, which none sees.
    """
    attend = functools.partial(attention, lengths=lengths)
    return fold(lambda x, of, _: gathered(of[0])(x, attend=attend), x, (blocks,), remat=remat)


def axial_rotation(positions: np.ndarray, head_dim: int, base: float) -> Rotation:
    """Cosines and sines of the 2-D rotary embedding.

    The first half of H turns by y, the second by x, each with the frequencies base^(-2i/D),
    i < D/2, twice over (rotate-half layout). The angles are float32 in a bfloat16 model too:
    rounded to bfloat16 those of the 37th row would be off by up to 0.1 rad.

    Args:
      positions: int [T, 2], y and x of every token.
      head_dim: H, a multiple of 4.
      base: base of the frequencies.
    """
    half = head_dim // 2
    frequencies = base ** -(np.arange(0, half, 2) / half)
    angles = positions[:, :, None] * np.tile(frequencies, 2)
    angles = angles.reshape(len(positions), head_dim).astype(np.float32)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: Float[Array, "B T N H"], rotation: Rotation) -> Float[Array, "B T N H"]:
    """Turns queries or keys by `axial_rotation`, in float32; returns `x`'s dtype."""
    cos, sin = (table[:, None] for table in rotation)
    wide = x.astype(jnp.float32)
    pairs = wide.reshape(*x.shape[:-1], 2, 2, x.shape[-1] // 4)
    turned = jnp.stack([-pairs[..., 1, :], pairs[..., 0, :]], axis=-2).reshape(x.shape)
    return (wide * cos + turned * sin).astype(x.dtype)


class Attention(nnx.Module):
    """Multi-head self-attention; optionally normalises each head's queries and keys."""

    def __init__(self, width: int, heads: int, *, qk_norm: bool, kernel_init, rngs: nnx.Rngs):
        self.heads = heads
        self.qkv = nnx.Linear(width, 3 * width, kernel_init=kernel_init, rngs=rngs)
        self.q_norm = layer_norm(width // heads, 1e-5, rngs=rngs) if qk_norm else None
        self.k_norm = layer_norm(width // heads, 1e-5, rngs=rngs) if qk_norm else None
        self.proj = nnx.Linear(width, width, kernel_init=kernel_init, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B T C"],
        rotation: Rotation | None = None,
        attend: Attend = attention,
    ) -> Float[Array, "B T C"]:
        """Attends among the T tokens, or as `attend` makes of queries, keys and values."""
        qkv = self.qkv(x).reshape(*x.shape[:2], 3, self.heads, -1)
        query, key, value = (qkv[:, :, i] for i in range(3))
        if self.q_norm is not None:
            query, key = self.q_norm(query), self.k_norm(key)
        if rotation is not None:
            query, key = rotate(query, rotation), rotate(key, rotation)
        return self.proj(attend(query, key, value).reshape(x.shape))


class Mlp(nnx.Module):
    """Linear, exact (erf) GELU, Linear."""

    def __init__(self, width: int, hidden: int, out: int, *, kernel_init, rngs: nnx.Rngs):
        self.fc1 = nnx.Linear(width, hidden, kernel_init=kernel_init, rngs=rngs)
        self.fc2 = nnx.Linear(hidden, out, kernel_init=kernel_init, rngs=rngs)

    def __call__(self, x: Float[Array, "*axes C"]) -> Float[Array, "*axes O"]:
        """Transforms the last axis."""
        return self.fc2(gelu(self.fc1(x)))


class Block(nnx.Module):
    """Pre-norm block with LayerScale on both branches.

    The branches compute in the dtype of the parameters; the sum keeps that of `x`, which is float32
    in the long stacks, as under PyTorch's autocast.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        mlp_ratio: float,
        layer_scale: float,
        epsilon: float = 1e-5,
        qk_norm: bool = False,
        kernel_init=TORCH_INIT,
        rngs: nnx.Rngs,
    ):
        self.norm1 = layer_norm(width, epsilon, rngs=rngs)
        self.attn = Attention(width, heads, qk_norm=qk_norm, kernel_init=kernel_init, rngs=rngs)
        self.ls1 = nnx.Param(jnp.full(width, layer_scale))
        self.norm2 = layer_norm(width, epsilon, rngs=rngs)
        hidden = int(width * mlp_ratio)
        self.mlp = Mlp(width, hidden, width, kernel_init=kernel_init, rngs=rngs)
        self.ls2 = nnx.Param(jnp.full(width, layer_scale))

    def __call__(
        self,
        x: Float[Array, "B T C"],
        rotation: Rotation | None = None,
        attend: Attend = attention,
    ) -> Float[Array, "B T C"]:
        """Attends among the T tokens (see `Attention`), then transforms each by itself."""
        x, dtype = batch_sharded(x), self.ls1[...].dtype
        x = x + self.ls1[...] * self.attn(self.norm1(x).astype(dtype), rotation, attend)
        return x + self.ls2[...] * self.mlp(self.norm2(x).astype(dtype))


class PatchProjection(nnx.Module):
    """A convolution whose stride is its kernel's side, written as one matrix product."""

    def __init__(self, patch_size: int, width: int, *, rngs: nnx.Rngs):
        shape = (patch_size, patch_size, 3, width)
        self.kernel = nnx.Param(TORCH_INIT(rngs.params(), shape))
        self.bias = nnx.Param(jnp.zeros(width))

    def __call__(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B S C"]:
        """Embeds the patches, row by row."""
        side, _, channels, width = self.kernel.shape
        batch, height, columns = len(images), images.shape[1] // side, images.shape[2] // side
        x = images.reshape(batch, height, side, columns, side, channels)
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height * columns, -1)
        return x @ gathered(self.kernel[...]).reshape(-1, width) + self.bias[...]


class Spread(nnx.Module):
    """A transposed convolution whose stride is its kernel's side: no two kernels overlap."""

    def __init__(self, width: int, factor: int, *, rngs: nnx.Rngs):
        # [K, K, in, out]: no output pixel sees more than one input pixel.
        shape = (factor, factor, width, width)
        self.kernel = nnx.Param(TORCH_INIT(rngs.params(), shape))
        self.bias = nnx.Param(jnp.zeros(width))

    def __call__(self, x: Float[Array, "B Y X C"]) -> Float[Array, "B Y*K X*K C"]:
        """Makes K*K pixels of each."""
        batch, rows, columns, width = x.shape
        factor = self.kernel.shape[0]
        x = jnp.einsum("byxc,uvco->byuxvo", x, self.kernel[...])
        return x.reshape(batch, rows * factor, columns * factor, width) + self.bias[...]
