"""The vision-language model: VGGT, Perceiver projector, geometry head and Qwen3 put together.

Axes: B rows, S image sets a row, V views, H W pixels, C context tokens, M visual vectors a set
(G geometry, then the latents), T tokens, D language width.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from jaxvlm.models.geometry import GeometryConfig, GeometryHead
from jaxvlm.models.perceiver import Perceiver, PerceiverConfig
from jaxvlm.models.qwen3 import Qwen3, Qwen3Config
from jaxvlm.models.vggt.config import VGGTConfig
from jaxvlm.models.vggt.model import VGGT


@dataclasses.dataclass(frozen=True)
class VLMConfig:
    """Sizes of the four parts; `geometry` is None for a model without geometry tokens."""

    vision: VGGTConfig
    projector: PerceiverConfig
    geometry: GeometryConfig | None
    language: Qwen3Config


class VLM(nnx.Module):
    """Answers questions about image sets."""

    def __init__(self, config: VLMConfig, *, rngs: nnx.Rngs):
        """Builds the parts with random parameters."""
        self.vision = VGGT(config.vision, rngs=rngs)
        self.projector = Perceiver(config.projector, rngs=rngs)
        if config.geometry is not None:
            self.geometry = GeometryHead(config.geometry, rngs=rngs)
        self.language = Qwen3(config.language, rngs=rngs)

    def encode(
        self,
        images: UInt8[Array, "N V H W 3"],
        view_counts: Int[Array, "N"],
        geometry: Float[Array, "N V 37"],
        *,
        remat: str = "none",
        dropout_key: jax.Array | None = None,
    ) -> Float[Array, "N M D"]:
        """The M visual vectors of N image sets: geometry tokens, then latents.

        Views behind `view_counts` are padding and change nothing; `remat` is what the backward
        pass recomputes.
        """
        dtype = self.projector.latents[...].dtype
        pixels = images.astype(jnp.float32) / 255
        tokens = self.vision.aggregator(pixels, view_counts, remat=remat != "none")
        sets, views, patches, width = tokens.shape
        context = tokens.reshape(sets, views * patches, width).astype(dtype)
        real = jnp.arange(views) < view_counts[:, None]
        seen = jnp.repeat(real, patches, 1)
        visual = self.projector(context, seen, dropout_key=dropout_key, remat=remat)
        if hasattr(self, "geometry"):
            poses = self.geometry(geometry.astype(dtype), view_counts)
            visual = jnp.concatenate([poses, visual], axis=1)
        return visual

    def embed(
        self,
        tokens: Int[Array, "B T"],
        visual_index: Int[Array, "B T"],
        visual: Float[Array, "B X D"],
    ) -> Float[Array, "B T D"]:
        """Token embeddings with the visual vectors put where `visual_index` is not -1.

        `visual` holds each row's S*M vectors; `visual_index` counts through them.
        """
        text = self.language.embed(tokens)
        index = jnp.maximum(visual_index, 0)[..., None]
        seen = jnp.take_along_axis(visual.astype(text.dtype), index, axis=1)
        return jnp.where((visual_index >= 0)[..., None], seen, text)


def vlm_config(config) -> VLMConfig:
    """The sizes of all parts from the `model` section of a configuration.

    Widths that follow from other parts (the projector's input and output) are filled in here.
    """
    sizes = {
        part: {name: value for name, value in section.items() if name != "weights"}
        for part, section in config.items()
    }
    language = Qwen3Config(**sizes["language"])
    width = language.hidden_size
    projector = PerceiverConfig(
        **sizes["projector"], in_dim=2 * config.vision.embed_dim, out_dim=width
    )
    geometry = None
    if config.geometry.mode != "none":
        geometry = GeometryConfig(**sizes["geometry"], out_dim=width)
    return VLMConfig(VGGTConfig(**sizes["vision"]), projector, geometry, language)


def abstract_vlm(config: VLMConfig) -> VLM:
    """A model of `ShapeDtypeStruct`s in float32; nothing is allocated."""
    return nnx.eval_shape(lambda: VLM(config, rngs=nnx.Rngs(0)))
