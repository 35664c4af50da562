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
from jaxtyping import Array, Float, Int

from jaxvlm.errors import UserError
from jaxvlm.models.attention import attention
from jaxvlm.models.dropout import dropout
from jaxvlm.models.flat import flat
from jaxvlm.models.flops import Flops
from jaxvlm.models.gelu import gelu
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

    @property
    def reads_as_latents(self) -> bool:
        """Whether keys and values are made on the latents' side, see `CrossAttention`.

        Of a context token that takes M·N·D multiplications twice; making and reading its key and
        value takes D·D + M·D twice.
        """
        return self.num_latents * (self.num_heads - 1) <= self.latent_dim

    def flops(self, sets: float, context: float) -> Flops:
        """Operations for image sets with so many context tokens together."""
        latents, width = sets * self.num_latents, self.latent_dim
        # Query and output; then the MLP.
        layer = latents * (2 * width**2 + 2 * width * self.ffn_dim)
        # Key and value map.
        layer += 2 * width**2 * (latents if self.reads_as_latents else context)
        entry = 2.0 * context * self.in_dim * width
        linear = 2.0 * (self.num_layers * layer + latents * width * self.out_dim)
        # The heads share the width, or each compares its latents with all of it.
        pairs = context * self.num_latents * (self.num_heads if self.reads_as_latents else 1)
        return Flops(linear, 4.0 * self.num_layers * pairs * width, entry)


def _layer_norm(dim: int, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(dim, epsilon=1e-5, use_fast_variance=False, rngs=rngs)


class CrossAttention(nnx.Module):
    """Multi-head attention from latents to context, with biases and one fused q, k, v kernel.

    Where latents are few and wide, the key and value maps are applied on their side:
    q·(Wₖc + bₖ) = (Wₖᵀq)·c + q·bₖ, whose last term is the same for all c and drops out of the
    softmax, and Σ p(Wᵥc + bᵥ) = Wᵥ(Σ p c) + bᵥ, for Σ p = 1. Keys and values of the context then
    never exist: at full size a quarter of the multiplications, and as much less memory.
    """

    def __init__(self, config: PerceiverConfig, *, rngs: nnx.Rngs):
        self.num_heads = config.num_heads
        self.dropout = config.dropout
        self.reads_as_latents = config.reads_as_latents
        self.qkv = nnx.Linear(config.latent_dim, 3 * config.latent_dim, rngs=rngs)
        self.out_proj = nnx.Linear(config.latent_dim, config.latent_dim, rngs=rngs)

    def __call__(
        self,
        latents: Float[Array, "B M D"],
        context: Float[Array, "B C D"],
        lengths: Int[Array, "B"] | None,
        key: jax.Array | None,
    ) -> Float[Array, "B M D"]:
        """Every latent's view of the context, of which tokens from `lengths` on are padding."""
        kernels = jnp.split(self.qkv.kernel[...], 3, axis=1)
        biases = jnp.split(self.qkv.bias[...], 3)

        def mapped(x: Float[Array, "B X D"], which: int) -> Float[Array, "B X N H"]:
            out = flat(x) @ kernels[which] + biases[which]
            return out.reshape(*x.shape[:2], self.num_heads, -1)

        query = mapped(latents, 0)
        drops = self.dropout > 0 and key is not None
        if self.reads_as_latents and not drops:
            key_map, value_map = (
                kernel.reshape(len(kernel), self.num_heads, -1) for kernel in kernels[1:]
            )
            # `attention` divides by the square root of the width that it sees.
            scale = self.num_heads**0.5
            query = jnp.einsum("bmnh,dnh->bmnd", query * scale, key_map)
            shared = context[:, :, None]
            read = attention(query, shared, shared, lengths=lengths)
            read = jnp.einsum("bmnd,dnh->bmnh", read, value_map).reshape(latents.shape)
            read += biases[2]
        elif drops:
            read = _dropped_attention(
                query, mapped(context, 1), mapped(context, 2), lengths, self.dropout, key
            )
        else:
            read = attention(query, mapped(context, 1), mapped(context, 2), lengths=lengths)
        return self.out_proj(read.reshape(latents.shape))


def _dropped_attention(
    query: Float[Array, "B M N H"],
    keys: Float[Array, "B C N H"],
    values: Float[Array, "B C N H"],
    lengths: Int[Array, "B"] | None,
    rate: float,
    key: jax.Array,
) -> Float[Array, "B M N H"]:
    """`attention`, some of whose weights are dropped, which no kernel and no piece does."""
    scores = jnp.einsum("bmnh,bcnh->bnmc", query, keys, preferred_element_type=jnp.float32)
    scores *= query.shape[-1] ** -0.5
    if lengths is not None:
        seen = jnp.arange(keys.shape[1]) < lengths[:, None, None, None]
        scores = jnp.where(seen, scores, jnp.finfo(scores.dtype).min)
    weights = dropout(jax.nn.softmax(scores, axis=-1), rate, key)
    return jnp.einsum("bnmc,bcnh->bmnh", weights.astype(values.dtype), values)


class Mlp(nnx.Module):
    """Linear, erf GELU, dropout, Linear."""

    def __init__(self, config: PerceiverConfig, *, rngs: nnx.Rngs):
        self.dropout = config.dropout
        self.fc1 = nnx.Linear(config.latent_dim, config.ffn_dim, rngs=rngs)
        self.fc2 = nnx.Linear(config.ffn_dim, config.latent_dim, rngs=rngs)

    def __call__(self, x: Float[Array, "B M D"], key: jax.Array | None) -> Float[Array, "B M D"]:
        """Maps every latent by itself."""
        hidden = gelu(self.fc1(flat(x)))
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
        lengths: Int[Array, "B"] | None,
        key: jax.Array | None,
    ) -> Float[Array, "B M D"]:
        """The latents after reading the context once more."""
        attn_key, mlp_key = (None, None) if key is None else jax.random.split(key)
        latents = self.norm1(latents + self.attn(latents, context, lengths, attn_key))
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
        lengths: Int[Array, "B"] | None = None,
        *,
        dropout_key: jax.Array | None = None,
        remat: str = "none",
    ) -> Float[Array, "B M O"]:
        """Tokens for the language model.

        Args:
          context: visual tokens of all views of an image set.
          lengths: how many of each set's tokens are real, the others standing behind them; None
            if all are. The first is read always.
          dropout_key: key of the dropout on attention weights and in the MLP; None for none.
          remat: what the backward pass recomputes, see `rematerialised`.
        """
        config = self.config
        if config.context == "first":
            context = context[:, : config.context_tokens]
        if lengths is not None:
            lengths = jnp.maximum(lengths, 1)
        context = batch_sharded(gathered(self.in_proj)(context))
        shape = (context.shape[0], *self.latents.shape)
        latents = jnp.broadcast_to(gathered(self.latents[...]).astype(context.dtype), shape)
        keys = None if dropout_key is None else jax.random.split(dropout_key, config.num_layers)

        def body(latents, scanned):
            layer, key = scanned
            return gathered(layer)(latents, context, lengths, key), None

        body = rematerialised(body, remat)
        latents, _ = jax.lax.scan(body, batch_sharded(latents), (self.layers, keys))
        return batch_sharded(gathered(self.out_proj)(latents))
