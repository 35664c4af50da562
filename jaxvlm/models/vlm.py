"""The vision-language model: VGGT, Perceiver projector, geometry head and Qwen3 put together.

Axes: B rows, S image sets a row, X views a row, N image sets, V views, H W pixels, C context
tokens, I their width, M visual vectors a set (G geometry, then the latents), T tokens, D language
width.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from jaxvlm.models.action_head import ActionHead, ActionHeadConfig
from jaxvlm.models.geometry import GeometryConfig, GeometryHead
from jaxvlm.models.lora import LoraConfig
from jaxvlm.models.partition import gathered
from jaxvlm.models.perceiver import Perceiver, PerceiverConfig
from jaxvlm.models.qwen3 import Qwen3, Qwen3Config
from jaxvlm.models.vggt.config import VGGTConfig
from jaxvlm.models.vggt.model import VGGT
from jaxvlm.models.vggt.seats import seats

# The parts of the model, by which parameters' paths begin; the weights of each can be imported.
PARTS = ("vision", "projector", "geometry", "language")


@dataclasses.dataclass(frozen=True)
class VLMConfig:
    """Sizes of the parts.

    `geometry` is None for a model without geometry tokens, `vision` for one that is only given
    features which VGGT made before, `language` for one that only sees, `action` for one without a
    head that measures actions.
    """

    vision: VGGTConfig | None
    projector: PerceiverConfig
    geometry: GeometryConfig | None
    language: Qwen3Config | None
    action: ActionHeadConfig | None = None


class VLM(nnx.Module):
    """Answers questions about image sets."""

    def __init__(self, config: VLMConfig, *, rngs: nnx.Rngs):
        """Builds the parts with random parameters."""
        if config.vision is not None:
            self.vision = VGGT(config.vision, rngs=rngs)
        self.projector = Perceiver(config.projector, rngs=rngs)
        if config.geometry is not None:
            self.geometry = GeometryHead(config.geometry, rngs=rngs)
        if config.language is not None:
            self.language = Qwen3(config.language, rngs=rngs)
        if config.action is not None:
            self.action = ActionHead(config.action, rngs=rngs)

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
        features = self.see(images, view_counts, remat=remat)
        counts = view_counts * (features.shape[1] // images.shape[1])
        return self.project(
            features, counts, view_counts, geometry, remat=remat, dropout_key=dropout_key
        )

    def see(
        self,
        images: UInt8[Array, "N V H W 3"],
        view_counts: Int[Array, "N"],
        *,
        remat: str = "none",
    ) -> Float[Array, "N C I"]:
        """What `features_of` says, of this model's VGGT."""
        return features_of(self.vision, images, view_counts, remat=remat)

    def encode_rows(
        self,
        images: UInt8[Array, "B X H W 3"],
        view_counts: Int[Array, "B S"],
        geometry: Float[Array, "B S V 37"],
        *,
        remat: str = "none",
        dropout_key: jax.Array | None = None,
    ) -> Float[Array, "B*S M D"]:
        """What `encode` gives of the sets of rows, whose views stand behind each other.

        But for attention across views, VGGT sees X views a row instead of S*V.
        """
        views = geometry.shape[2]
        taken = seats(view_counts, views, images.shape[1])
        tokens = self.vision.aggregator(_pixels(images), taken=taken, remat=remat != "none")
        features = _of_sets(taken.spread(tokens))
        counts, geometry = view_counts.reshape(-1), geometry.reshape(-1, *geometry.shape[2:])
        return self.project(
            features,
            counts * tokens.shape[2],
            counts,
            geometry,
            remat=remat,
            dropout_key=dropout_key,
        )

    def project(
        self,
        features: Float[Array, "N C I"],
        feature_counts: Int[Array, "N"],
        view_counts: Int[Array, "N"],
        geometry: Float[Array, "N V 37"],
        *,
        remat: str = "none",
        dropout_key: jax.Array | None = None,
    ) -> Float[Array, "N M D"]:
        """The M visual vectors of N image sets from what `see` made of them.

        Features behind `feature_counts` and views behind `view_counts` are padding.
        """
        dtype = self.projector.latents[...].dtype
        visual = self.projector(
            features.astype(dtype), feature_counts, dropout_key=dropout_key, remat=remat
        )
        if hasattr(self, "geometry"):
            poses = gathered(self.geometry)(geometry, view_counts)
            visual = jnp.concatenate([poses.astype(visual.dtype), visual], axis=1)
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
        # In float32, for gradients of the questions that share a set are added up.
        seen = jnp.take_along_axis(visual.astype(jnp.float32), index, axis=1)
        return jnp.where((visual_index >= 0)[..., None], seen.astype(text.dtype), text)


def features_of(
    vision: VGGT,
    images: UInt8[Array, "N V H W 3"],
    view_counts: Int[Array, "N"] | None,
    *,
    remat: str = "none",
) -> Float[Array, "N C I"]:
    """VGGT's last tokens, view after view; those of padded views are meaningless."""
    return _of_sets(vision.aggregator(_pixels(images), view_counts, remat=remat != "none"))


def _pixels(images: UInt8[Array, "*axes"]) -> Float[Array, "*axes"]:
    return images.astype(jnp.float32) / 255


def _of_sets(tokens: Float[Array, "N V P I"]) -> Float[Array, "N V*P I"]:
    return tokens.reshape(tokens.shape[0], -1, tokens.shape[-1])


def vlm_config(config) -> VLMConfig:
    """The sizes of all parts from the `model` section of a configuration.

    Widths that follow from other parts (the projector's input and output) are filled in here.
    """
    sizes = {
        part: {name: value for name, value in section.items() if name != "weights"}
        for part, section in config.items()
    }
    lora = sizes["language"].pop("lora")
    language = Qwen3Config(**sizes["language"], lora=LoraConfig(**lora) if lora.rank else None)
    width = language.hidden_size
    projector = PerceiverConfig(
        **sizes["projector"], in_dim=2 * config.vision.embed_dim, out_dim=width
    )
    geometry = None
    if config.geometry.mode != "none":
        geometry = GeometryConfig(**sizes["geometry"], out_dim=width)
    action = ActionHeadConfig(width, config.action.ffn_dim) if config.action.ffn_dim else None
    return VLMConfig(VGGTConfig(**sizes["vision"]), projector, geometry, language, action)


def abstract_vlm(config: VLMConfig) -> VLM:
    """A model of `ShapeDtypeStruct`s in float32; nothing is allocated."""
    return nnx.eval_shape(lambda: VLM(config, rngs=nnx.Rngs(0)))
