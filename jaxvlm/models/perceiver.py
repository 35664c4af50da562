"""The projector: learned latents read the visual tokens and become tokens of the language model.

Cross-attention from a fixed set of latents to all visual tokens (Perceiver, arXiv 2103.03206, and
Perceiver IO, arXiv 2107.14795), without self-attention among the latents. A layer is attention,
residual, LayerNorm, MLP with erf GELU, residual, LayerNorm; all layers read the same context.

Axes: B batch (image sets), C context tokens, I context width, M latents, D latent width, L layers,
N heads, H head dim, F feed-forward width, O output width.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from jaxvlm.errors import UserError
from jaxvlm.models.dropout import dropout
from jaxvlm.models.flat import flat
from jaxvlm.models.flops import Flops
from jaxvlm.models.partition import batch_sharded, gathered
from jaxvlm.models.remat import rematerialised

CONTEXTS = ("all", "first")


@dataclasses.dataclass(frozen=True)
class PerceiverConfig:
    """Sizes of the projector.

    `context="first"` lets it see only the first `context_tokens` tokens: for checkpoints of the
    original, which were trained so.
    """

    in_dim: int = 2048
    latent_dim: int = 4096
    num_latents: int = 128
    num_heads: int = 8
    num_layers: int = 6
    ffn_dim: int = 16384
    out_dim: int = 2560
    dropout: float = 0.0
    context: str = "all"
    context_tokens: int = 128

    def __post_init__(self):
        if self.context not in CONTEXTS:
            raise UserError(f"perceiver.context={self.context!r} is unknown, expected {CONTEXTS}")
        if self.latent_dim % self.num_heads:
            raise UserError(
                f"perceiver.latent_dim={self.latent_dim} is not a multiple of "
                f"perceiver.num_heads={self.num_heads}"
            )
        if not 0 <= self.dropout < 1:
            raise UserError(f"perceiver.dropout={self.dropout} is not in [0, 1)")

    def flops(self, sets: float, context: float) -> Flops:
        """Operations for image sets with so many context tokens together.

        Keys and values are made on the latents' side, as `Attention` says.
        """
        latents, width = sets * self.num_latents, self.latent_dim
        # Query, its key map, the value map and the output; then the MLP.
        layer = latents * (4 * width**2 + 2 * width * self.ffn_dim)
        ends = context * self.in_dim * width + latents * width * self.out_dim
        # Each head compares its latents with the whole width of the context, and reads it.
        pairs = context * self.num_latents * self.num_heads
        return Flops(2.0 * (self.num_layers * layer + ends), 4.0 * self.num_layers * pairs * width)


def _layer_norm(dim: int, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(dim, epsilon=1e-5, use_fast_variance=False, rngs=rngs)


class CrossAttention(nnx.Module):
    """Multi-head attention from latents to context, with biases and one fused q, k, v kernel.

    Latents are few and context tokens many, so the key and value maps are applied on the latents'
    side: q·(Wₖc + bₖ) = (Wₖᵀq)·c + q·bₖ, whose last term is the same for all c and drops out of the
    softmax, and Σ p(Wᵥc + bᵥ) = Wᵥ(Σ p c) + (Σ p) bᵥ. Keys and values of the context never exist:
    C·M·N·D instead of C·D·D multiplications, a quarter at full size, and as much less memory.
    `models.attention` neither fits these shapes (each head's query is D wide) nor drops weights.
    """

    def __init__(self, config: PerceiverConfig, *, rngs: nnx.Rngs):
        self.num_heads = config.num_heads
        self.dropout = config.dropout
        self.qkv = nnx.Linear(config.latent_dim, 3 * config.latent_dim, rngs=rngs)
        self.out_proj = nnx.Linear(config.latent_dim, config.latent_dim, rngs=rngs)

    def __call__(
        self,
        latents: Float[Array, "B M D"],
        context: Float[Array, "B C D"],
        mask: Bool[Array, "B C"] | None,
        key: jax.Array | None,
    ) -> Float[Array, "B M D"]:
        """Every latent's view of the context; the mean of the context if all of it is masked."""
        width = latents.shape[-1]
        heads = (width, self.num_heads, width // self.num_heads)
        query_map, key_map, value_map = (
            part.reshape(heads) for part in jnp.split(self.qkv.kernel[...], 3, axis=1)
        )
        query_bias, _, value_bias = (
            part.reshape(heads[1:]) for part in jnp.split(self.qkv.bias[...], 3)
        )
        query = jnp.einsum("bmd,dnh->bmnh", latents, query_map) + query_bias
        query = jnp.einsum("bmnh,dnh->bmnd", query, key_map)
        weights = dropout(_weights(query, context, mask, heads[2]), self.dropout, key)
        read = jnp.einsum("bnmc,bcd->bmnd", weights.astype(context.dtype), context)
        total = weights.sum(-1).swapaxes(1, 2)[..., None].astype(context.dtype)
        value = jnp.einsum("bmnd,dnh->bmnh", read, value_map) + total * value_bias
        return self.out_proj(value.reshape(latents.shape))


def _weights(
    query: Float[Array, "B M N D"],
    context: Float[Array, "B C D"],
    mask: Bool[Array, "B C"] | None,
    head_dim: int,
) -> Float[Array, "B N M C"]:
    """Softmax of the scaled scores over the context, float32; masked tokens weigh nothing."""
    scores = jnp.einsum("bmnd,bcd->bnmc", query, context, preferred_element_type=jnp.float32)
    scores *= head_dim**-0.5
    if mask is not None:
        scores = jnp.where(mask[:, None, None, :], scores, jnp.finfo(scores.dtype).min)
    return jax.nn.softmax(scores, axis=-1)


class Mlp(nnx.Module):
    """Linear, erf GELU, dropout, Linear."""

    def __init__(self, config: PerceiverConfig, *, rngs: nnx.Rngs):
        self.dropout = config.dropout
        self.fc1 = nnx.Linear(config.latent_dim, config.ffn_dim, rngs=rngs)
        self.fc2 = nnx.Linear(config.ffn_dim, config.latent_dim, rngs=rngs)

    def __call__(self, x: Float[Array, "B M D"], key: jax.Array | None) -> Float[Array, "B M D"]:
        """Maps every latent by itself."""
        hidden = jax.nn.gelu(self.fc1(flat(x)), approximate=False)
        return self.fc2(dropout(hidden, self.dropout, key)).reshape(x.shape)


class Block(nnx.Module):
    """One layer, normalised after each residual."""

    def __init__(self, config: PerceiverConfig, *, rngs: nnx.Rngs):
        self.attn = CrossAttention(config, rngs=rngs)
        self.norm1 = _layer_norm(config.latent_dim, rngs)
        self.mlp = Mlp(config, rngs=rngs)
        self.norm2 = _layer_norm(config.latent_dim, rngs)

    def __call__(
        self,
        latents: Float[Array, "B M D"],
        context: Float[Array, "B C D"],
        mask: Bool[Array, "B C"] | None,
        key: jax.Array | None,
    ) -> Float[Array, "B M D"]:
        """The latents after reading the context once more."""
        attn_key, mlp_key = (None, None) if key is None else jax.random.split(key)
        latents = self.norm1(latents + self.attn(latents, context, mask, attn_key))
        return batch_sharded(self.norm2(latents + self.mlp(latents, mlp_key)))


class Perceiver(nnx.Module):
    """The projector; it computes in the dtype of parameters and context, softmax in float32.

    The layers' parameters are stacked on a first axis L.
    """

    def __init__(self, config: PerceiverConfig, *, rngs: nnx.Rngs):
        self.config = config
        shape = (config.num_latents, config.latent_dim)
        # Small latents would all ask the same: what they read would drown what tells them apart.
        self.latents = nnx.Param(nnx.initializers.normal(1.0)(rngs.params(), shape))
        self.in_proj = nnx.Linear(config.in_dim, config.latent_dim, rngs=rngs)
        stack = nnx.vmap(lambda stream: Block(config, rngs=stream))
        self.layers = stack(rngs.split(config.num_layers))
        self.out_proj = nnx.Linear(config.latent_dim, config.out_dim, rngs=rngs)

    def __call__(
        self,
        context: Float[Array, "B C I"],
        context_mask: Bool[Array, "B C"] | None = None,
        *,
        dropout_key: jax.Array | None = None,
        remat: str = "none",
    ) -> Float[Array, "B M O"]:
        """Tokens for the language model.

        Args:
          context: visual tokens of all views of an image set.
          context_mask: true where a token is real; None if all are.
          dropout_key: key of the dropout on attention weights and in the MLP; None for none.
          remat: what the backward pass recomputes, see `rematerialised`.
        """
        config = self.config
        if config.context == "first":
            context = context[:, : config.context_tokens]
            context_mask = None if context_mask is None else context_mask[:, : context.shape[1]]
        context = batch_sharded(gathered(self.in_proj)(context))
        shape = (context.shape[0], *self.latents.shape)
        latents = jnp.broadcast_to(gathered(self.latents[...]).astype(context.dtype), shape)
        keys = None if dropout_key is None else jax.random.split(dropout_key, config.num_layers)

        def body(latents, scanned):
            layer, key = scanned
            return gathered(layer)(latents, context, context_mask, key), None

        body = rematerialised(body, remat)
        latents, _ = jax.lax.scan(body, batch_sharded(latents), (self.layers, keys))
        return batch_sharded(gathered(self.out_proj)(latents))
