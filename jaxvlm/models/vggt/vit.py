"""Patch embeddings: a ViT with registers (arXiv:2304.07193, 2309.16588), or a convolution.

Axes: B images (batch times views), H W pixels, S patches (row-major), T tokens, C width,
M side of the learnt grid of positions, L layers.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxvlm.models.partition import gathered
from jaxvlm.models.vggt.blocks import (
    TOKEN_INIT,
    VIT_INIT,
    Block,
    PatchProjection,
    layer_norm,
    run,
    stack,
)
from jaxvlm.models.vggt.config import VGGTConfig


def interpolate_positions(
    table: Float[Array, "1 1+M*M C"], height: int, width: int, patch_size: int
) -> Float[Array, "1 1+S C"]:
    """Learnt positions (class token first) resized to the patches of `height` x `width` pixels.

    Bicubic with antialiasing, in float32. The class position is kept as it is, and so is the whole
    table where the image is the square that it was learnt on.
    """
    rows, columns = height // patch_size, width // patch_size
    count = table.shape[1] - 1
    if rows * columns == count and height == width:
        return table
    side = round(count**0.5)
    grid = table[0, 1:].astype(jnp.float32).reshape(side, side, -1)
    grid = jax.image.resize(
        grid,
        (rows, columns, grid.shape[-1]),
        method="bicubic",
        antialias=True,
        precision=jax.lax.Precision.HIGHEST,
    )
    patches = grid.reshape(1, rows * columns, -1).astype(table.dtype)
    return jnp.concatenate([table[:, :1], patches], axis=1)


class VisionTransformer(nnx.Module):
    """A ViT with a class token and registers that returns the normed patch tokens only."""

    def __init__(self, config: VGGTConfig, *, rngs: nnx.Rngs):
        width = config.embed_dim
        self.patch_size = config.patch_size
        tokens = 1 + (config.img_size // config.patch_size) ** 2
        self.patch_embed = PatchProjection(config.patch_size, width, rngs=rngs)
        self.cls_token = nnx.Param(TOKEN_INIT(rngs.params(), (1, 1, width)))
        self.pos_embed = nnx.Param(VIT_INIT(rngs.params(), (1, tokens, width)))
        shape = (1, config.num_register_tokens, width)
        self.register_tokens = nnx.Param(TOKEN_INIT(rngs.params(), shape))
        # Unused: of the ViT's own training. Kept so that import and export are exact.
        self.mask_token = nnx.Param(jnp.zeros((1, width)))

        def block(rngs: nnx.Rngs) -> Block:
            return Block(
                width,
                config.vit_heads,
                mlp_ratio=config.mlp_ratio,
                layer_scale=1.0,
                epsilon=1e-6,
                kernel_init=VIT_INIT,
                rngs=rngs,
            )

        self.blocks = stack(block, config.vit_depth, rngs)
        self.norm = layer_norm(width, 1e-6, rngs=rngs)

    def __call__(
        self, images: Float[Array, "B H W 3"], *, remat: bool = False
    ) -> Float[Array, "B S C"]:
        """Embeds normalised images; the result is float32."""
        x = self.patch_embed(images)
        batch, _, width = x.shape
        cls = jnp.broadcast_to(self.cls_token[...], (batch, 1, width))
        x = jnp.concatenate([cls, x], axis=1)
        positions = gathered(self.pos_embed[...])
        x = x + interpolate_positions(positions, *images.shape[1:3], self.patch_size)
        registers = self.register_tokens[...]
        registers = jnp.broadcast_to(registers, (batch, *registers.shape[1:]))
        x = jnp.concatenate([x[:, :1], registers, x[:, 1:]], axis=1)
        x = run(self.blocks, x.astype(jnp.float32), remat=remat)
        return self.norm(x[:, 1 + registers.shape[1] :])


class ConvPatchEmbed(nnx.Module):
    """One convolution with the stride of a patch: no positions, no norm."""

    def __init__(self, config: VGGTConfig, *, rngs: nnx.Rngs):
        self.proj = PatchProjection(config.patch_size, config.embed_dim, rngs=rngs)

    def __call__(
        self, images: Float[Array, "B H W 3"], *, remat: bool = False
    ) -> Float[Array, "B S C"]:
        """Embeds normalised images; there is nothing to recompute, so `remat` has no effect."""
        del remat
        return self.proj(images)
