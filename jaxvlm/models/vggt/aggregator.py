"""VGGT's aggregator: attention alternates within a view and across the views (arXiv:2503.11651).

Axes: B batch (image sets, or rows of several), V views of each, H W pixels, P tokens a view
(camera, registers, patches row by row), S patches a view, C width, K asked layers, L layers.
"""

import gc
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jaxvlm.errors import UserError
from jaxvlm.models.partition import gathered
from jaxvlm.models.vggt.blocks import (
    TOKEN_INIT,
    Block,
    Rotation,
    axial_rotation,
    cut,
    fold,
    stack,
)
from jaxvlm.models.vggt.config import VGGTConfig
from jaxvlm.models.vggt.seats import Attend, Seats, across_rows, across_sets
from jaxvlm.models.vggt.vit import ConvPatchEmbed, VisionTransformer

# Mean and standard deviation of ImageNet's red, green and blue.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class Aggregator(nnx.Module):
    """Patch embedding, then `depth` pairs of a frame block and a global block."""

    def __init__(self, config: VGGTConfig, *, rngs: nnx.Rngs):
        self.config = config
        width = config.embed_dim
        embed = VisionTransformer if config.patch_embed == "vit" else ConvPatchEmbed
        self.patch_embed = embed(config, rngs=rngs)
        # Of the two tokens the first is for the first view, the second for every other view.
        self.camera_token = nnx.Param(TOKEN_INIT(rngs.params(), (1, 2, 1, width)))
        shape = (1, 2, config.num_register_tokens, width)
        self.register_token = nnx.Param(TOKEN_INIT(rngs.params(), shape))

        def block(rngs: nnx.Rngs) -> Block:
            return Block(
                width,
                config.num_heads,
                mlp_ratio=config.mlp_ratio,
                layer_scale=config.init_values,
                qk_norm=True,
                rngs=rngs,
            )

        self.frame_blocks = stack(block, config.depth, rngs)
        self.global_blocks = stack(block, config.depth, rngs)

    def __call__(
        self,
        images: Float[Array, "B V H W 3"],
        view_counts: Int[Array, " B"] | None = None,
        *,
        taken: Seats | None = None,
        layers: Sequence[int] | None = None,
        remat: bool = False,
    ) -> Float[Array, "B V P 2C"] | tuple[Float[Array, "B V P 2C"], ...]:
        """Tokens of all views.

        Args:
          images: colours in [0, 1]; both sides multiples of the patch size. Computes in the dtype
            of the parameters.
          view_counts: real views of each item, the others being padding at the end: no real view
            sees them, and their own tokens are meaningless.
          taken: where each view belongs, if an item is a row of several sets instead of one set;
            the tokens of its empty seats are meaningless. It counts the views itself.
          layers: layers (from 0) to return; by default the last alone. No other is kept.
          remat: recompute each pair of blocks in the backward pass.

        Returns:
          The frame block's output beside the global block's: one array, or with `layers` a tuple
          of arrays in the asked order.

        Raises:
          UserError: the images' sides are not multiples of the patch size, or no such layer.
          ValueError: both `view_counts` and `taken`.
        """
        if view_counts is not None and taken is not None:
            raise ValueError("the views of rows are counted by `taken` alone")
        asked = tuple(layers) if layers is not None else (self.config.depth - 1,)
        if not asked or not all(0 <= layer < self.config.depth for layer in asked):
            raise UserError(
                f"layers {asked} asked of a VGGT with layers 0..{self.config.depth - 1}"
            )
        grid = self.config.grid(*images.shape[2:4])
        if taken is None:
            first = jnp.arange(images.shape[1]) == 0
            across = across_sets(images.shape[1], view_counts)
        else:
            first, across = taken.first, across_rows(taken)
        tokens = self._with_special(self.patch_tokens(images, remat), first)
        kept = self._alternate(tokens, grid, across, asked, remat)
        return kept[0] if layers is None else tuple(kept)

    def cut_layers(self) -> None:
        """Gives each layer arrays of its own: the same outputs, from a program without a scan.

        On a CPU a scan copies each layer's parameters before it computes with them. Without it the
        program takes some three times as long to compile.
        """
        owners = {"frame_blocks": self, "global_blocks": self}
        if self.config.patch_embed == "vit":
            owners["blocks"] = self.patch_embed
        for name, owner in owners.items():
            setattr(owner, name, cut(getattr(owner, name)))
            # Modules refer to themselves in circles, which only the collector frees.
            gc.collect()

    def patch_tokens(
        self, images: Float[Array, "B V H W 3"], remat: bool = False
    ) -> Float[Array, "B V S C"]:
        """Normalises the images and embeds their patches, row by row."""
        batch, views, *rest = images.shape
        x = (images.astype(jnp.float32) - jnp.asarray(MEAN)) / jnp.asarray(STD)
        x = x.reshape(batch * views, *rest).astype(self.camera_token.dtype)
        x = self.patch_embed(x, remat=remat)
        return x.reshape(batch, views, *x.shape[1:])

    def _with_special(
        self, patches: Float[Array, "B V S C"], first: Bool[Array, "*B V"]
    ) -> Float[Array, "B V P C"]:
        """Puts the camera and register tokens before the patches of each view.

        Those of a set's first view are others than those of all its other views.
        """
        special = jnp.concatenate([self.camera_token[...], self.register_token[...]], axis=2)
        one, other = special[0]
        special = jnp.where(first[..., None, None], one, other)
        special = jnp.broadcast_to(special, (*patches.shape[:2], *one.shape))
        return jnp.concatenate([special, patches], axis=2)

    def _alternate(
        self,
        tokens: Float[Array, "B V P C"],
        grid: tuple[int, int],
        across: Attend,
        asked: tuple[int, ...],
        remat: bool,
    ) -> Float[Array, "K B V P 2C"]:
        """Runs the pairs of blocks, keeping the asked layers."""
        rotation = self._rotation(grid)

        def body(carry, pair, index):
            x, kept = carry
            frame, cross = gathered(pair)
            within = frame(x, rotation)
            x = cross(within, rotation, across)
            here = (jnp.asarray(asked) == index).reshape(-1, 1, 1, 1)
            both = jnp.concatenate([within, x], axis=-1).astype(kept.dtype)
            return x, jnp.where(here, both, kept)

        x = tokens.reshape(-1, *tokens.shape[2:]).astype(jnp.float32)
        dtype = self.camera_token[...].dtype
        kept = jnp.zeros((len(asked), *x.shape[:-1], 2 * x.shape[-1]), dtype)
        _, kept = fold(body, (x, kept), (self.frame_blocks, self.global_blocks), remat=remat)
        return kept.reshape(len(asked), *tokens.shape[:-1], -1)

    def _rotation(self, grid: tuple[int, int]) -> Rotation:
        """Patches stand at (row + 1, column + 1) in every view, special tokens at (0, 0)."""
        config = self.config
        patches = np.stack(np.indices(grid), axis=-1).reshape(-1, 2) + 1
        special = np.zeros((config.special_tokens, 2), patches.dtype)
        positions = np.concatenate([special, patches])
        return axial_rotation(positions, config.embed_dim // config.num_heads, config.rope_freq)
