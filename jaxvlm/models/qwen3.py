"""Qwen3 decoder-only language model (Qwen3 technical report, arXiv 2505.09388).

Pre-norm blocks: grouped-query attention with an RMSNorm on every query and key head and rotary
positions (RoFormer, arXiv 2104.09864), then a SiLU-gated feed-forward.

Axes: B batch rows, T tokens, L layers, N query heads, K key/value heads, H head dim, D width,
F feed-forward width, W vocabulary.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int32

from jaxvlm.errors import UserError
from jaxvlm.models.attention import attention
from jaxvlm.models.flat import flat
from jaxvlm.models.flops import Flops
from jaxvlm.models.lora import LoraConfig, LoraLinear
from jaxvlm.models.partition import batch_sharded, gathered
from jaxvlm.models.remat import rematerialised

# Fields of a Hugging Face config.json whose value this implementation takes for granted.
_EXPECTED = {
    "model_type": "qwen3",
    "hidden_act": "silu",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "use_sliding_window": False,
}
# Our field: the name in a Hugging Face config.json.
_HF_NAMES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "intermediate_size": "intermediate_size",
    "rms_norm_eps": "rms_norm_eps",
}
# From queries [B,T,N,H], keys and values [B,T,K,H] of new tokens to what the queries attend to.
Attend = Callable[[Array, Array, Array], Array]
Rotation = tuple[Float[Array, "B T 1 H/2"], Float[Array, "B T 1 H/2"]]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _looked_up(
    table: Float[Array, "W D"], tokens: Int32[Array, "B T"], size: int
) -> Float[Array, "B T D"]:
    """The tokens' rows of a table of so many.

    A row's gradient is summed in float32: a token of the chat template stands in every question,
    and a sum in bfloat16 stops growing at 256 times what is added.
    """
    return jnp.take(table, tokens, axis=0)


def _look_up(table, tokens, size):
    return jnp.take(table, tokens, axis=0), tokens


def _add_up(size, tokens, gradient):
    zeros = jnp.zeros((size, gradient.shape[-1]), jnp.float32)
    return zeros.at[tokens].add(gradient.astype(jnp.float32)).astype(gradient.dtype), None


_looked_up.defvjp(_look_up, _add_up)


@dataclasses.dataclass(frozen=True)
class Qwen3Config:
    """Sizes of a Qwen3 model; `from_hf` reads them from a Hugging Face config.json.

    The first `frozen_layers` are a stack of their own, with parameters of their own names, which
    rules can tell from the other layers'. `lora` adds adapters to those alone. The function
    computed is the same.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 5e6
    tie_embeddings: bool = True
    frozen_layers: int = 0
    lora: LoraConfig | None = None

    def __post_init__(self):
        if not 0 <= self.frozen_layers < self.num_layers:
            raise UserError(
                f"frozen_layers={self.frozen_layers}: expected less than "
                f"num_layers={self.num_layers}; a rule freezes the whole language model"
            )
        if self.num_heads % self.num_kv_heads:
            raise UserError(
                f"num_heads={self.num_heads} is not a multiple of num_kv_heads={self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise UserError(f"head_dim={self.head_dim} is odd; rotary positions need pairs")

    def flops(self, tokens: float, pairs: float, labels: float) -> Flops:
        """Operations of the decoder.

        Args:
          tokens: that go through it.
          pairs: of a token and one that it attends to, itself among them.
          labels: positions of which logits are made.
        """
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        # Query and output, key and value; gate, up and down.
        layer = self.hidden_size * (2 * queries + 2 * keys + 3 * self.intermediate_size)
        linear = tokens * self.num_layers * layer + labels * self.hidden_size * self.vocab_size
        return Flops(2.0 * linear, 4.0 * pairs * self.num_layers * queries)

    @classmethod
    def from_hf(cls, config: Mapping) -> Self:
        """Reads the dict of a Hugging Face config.json.

        Raises:
          UserError: a field is missing, or asks for something this model does not do.
        """
        for name, expected in _EXPECTED.items():
            value = config.get(name, expected)
            if value != expected:
                raise UserError(f"config.json: {name} is {value!r}, only {expected!r} is supported")
        other = sorted(set(config.get("layer_types") or ()) - {"full_attention"})
        if other:
            raise UserError(f"config.json: layer_types has {other}, only 'full_attention' works")
        missing = [name for name in _HF_NAMES.values() if config.get(name) is None]
        if missing:
            raise UserError(f"config.json: the field {missing[0]!r} is missing")
        return cls(
            **{ours: config[theirs] for ours, theirs in _HF_NAMES.items()},
            rope_theta=_rope_theta(config),
            tie_embeddings=config.get("tie_word_embeddings", False),
        )

    def to_hf(self) -> dict:
        """A Hugging Face config.json: what `from_hf` reads, and what goes with it."""
        sizes = {theirs: getattr(self, ours) for ours, theirs in _HF_NAMES.items()}
        return {
            "architectures": ["Qwen3ForCausalLM"],
            **_EXPECTED,
            **sizes,
            "rope_theta": self.rope_theta,
            "max_position_embeddings": 262144,
            "tie_word_embeddings": self.tie_embeddings,
            "use_cache": True,
        }


def _rope_theta(config: Mapping) -> float:
    """The rotary base, from the top level or from `rope_parameters` or `rope_scaling`."""
    found = {}
    for name in ("rope_parameters", "rope_scaling"):
        rope = config.get(name) or {}
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind != "default":
            raise UserError(f"config.json: {name} asks for {kind!r}, only 'default' is supported")
        found[f"{name}.rope_theta"] = rope.get("rope_theta")
    found["rope_theta"] = config.get("rope_theta")
    values = {float(value) for value in found.values() if value is not None}
    if len(values) != 1:
        raise UserError(f"config.json: expected one rope_theta, found {found}")
    return values.pop()


def rotation(positions: Int32[Array, "B T"], head_dim: int, theta: float) -> Rotation:
    """Cosines and sines, float32, by which the H/2 pairs of a head turn at each position."""
    frequencies = theta ** (-np.arange(0, head_dim, 2) / head_dim)
    angles = positions[..., None, None].astype(jnp.float32) * frequencies.astype(np.float32)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: Float[Array, "B T N H"], by: Rotation) -> Float[Array, "B T N H"]:
    """Turns the pairs (i, i + H/2) of every head, in float32; returns the dtype of `x`."""
    cos, sin = by
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)


def _linear(
    name: str, in_dim: int, out_dim: int, config: Qwen3Config, rngs: nnx.Rngs
) -> nnx.Linear:
    """The map of this name, with an adapter where the configuration asks for one."""
    init = nnx.initializers.normal(in_dim**-0.5)
    if config.lora is not None and name in config.lora.targets:
        return LoraLinear(in_dim, out_dim, config.lora, kernel_init=init, rngs=rngs)
    return nnx.Linear(in_dim, out_dim, use_bias=False, kernel_init=init, rngs=rngs)


def _applied(linear: nnx.Linear, x: Array, key: jax.Array | None, place: int) -> Array:
    """The map of `x`; maps in other places of a layer draw their dropout from other keys."""
    if key is None or not isinstance(linear, LoraLinear):
        return linear(x)
    return linear(x, jax.random.fold_in(key, place))


def _rms_norm(dim: int, config: Qwen3Config, rngs: nnx.Rngs) -> nnx.RMSNorm:
    return nnx.RMSNorm(dim, epsilon=config.rms_norm_eps, rngs=rngs)


class Attention(nnx.Module):
    """Grouped-query self-attention with normalised, rotated queries and keys."""

    def __init__(self, config: Qwen3Config, *, rngs: nnx.Rngs):
        self.head_dim = config.head_dim
        query_dim = config.num_heads * config.head_dim
        key_dim = config.num_kv_heads * config.head_dim
        self.q_proj = _linear("q_proj", config.hidden_size, query_dim, config, rngs)
        self.k_proj = _linear("k_proj", config.hidden_size, key_dim, config, rngs)
        self.v_proj = _linear("v_proj", config.hidden_size, key_dim, config, rngs)
        self.o_proj = _linear("o_proj", query_dim, config.hidden_size, config, rngs)
        self.q_norm = _rms_norm(config.head_dim, config, rngs)
        self.k_norm = _rms_norm(config.head_dim, config, rngs)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        by: Rotation,
        attend: Attend,
        key: jax.Array | None = None,
    ) -> Float[Array, "B T D"]:
        """Maps tokens to queries, keys and values, has them attended, and maps what comes back."""
        batch = x.shape[:2]
        x, heads = flat(x), (*batch, -1, self.head_dim)
        queries = rotate(self.q_norm(_applied(self.q_proj, x, key, 0).reshape(heads)), by)
        keys = rotate(self.k_norm(_applied(self.k_proj, x, key, 1).reshape(heads)), by)
        values = _applied(self.v_proj, x, key, 2).reshape(heads)
        attended = attend(queries, keys, values).reshape(len(x), -1)
        return _applied(self.o_proj, attended, key, 3).reshape(*batch, -1)


class Mlp(nnx.Module):
    """Feed-forward network with a SiLU gate."""

    def __init__(self, config: Qwen3Config, *, rngs: nnx.Rngs):
        width, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = _linear("gate_proj", width, inner, config, rngs)
        self.up_proj = _linear("up_proj", width, inner, config, rngs)
        self.down_proj = _linear("down_proj", inner, width, config, rngs)

    def __call__(self, x: Float[Array, "B T D"], key: jax.Array | None) -> Float[Array, "B T D"]:
        """Maps every token by itself."""
        shape, x = x.shape, flat(x)
        gate = jax.nn.silu(_applied(self.gate_proj, x, key, 4))
        out = _applied(self.down_proj, gate * _applied(self.up_proj, x, key, 5), key, 6)
        return out.reshape(shape)


class Block(nnx.Module):
    """One decoder layer: attention and feed-forward, each behind an RMSNorm and a residual."""

    def __init__(self, config: Qwen3Config, *, rngs: nnx.Rngs):
        self.input_norm = _rms_norm(config.hidden_size, config, rngs)
        self.attn = Attention(config, rngs=rngs)
        self.post_attention_norm = _rms_norm(config.hidden_size, config, rngs)
        self.mlp = Mlp(config, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        by: Rotation,
        attend: Attend,
        key: jax.Array | None = None,
    ) -> Float[Array, "B T D"]:
        """See `Attention`; `key` draws dropout."""
        x = batch_sharded(x + self.attn(self.input_norm(x), by, attend, key))
        return batch_sharded(x + self.mlp(self.post_attention_norm(x), key))


class Qwen3(nnx.Module):
    """The decoder: tokens → `embed` → hidden states → `logits`.

    It computes in the dtype of parameters and inputs; norms, rotation and softmax in float32.
    The layers' parameters are stacked on a first axis L.
    """

    def __init__(self, config: Qwen3Config, *, rngs: nnx.Rngs):
        self.config = config
        self.embed_tokens = nnx.Embed(
            config.vocab_size,
            config.hidden_size,
            # 0.02, as in the released models, at a width of 2,560.
            embedding_init=nnx.initializers.normal(config.hidden_size**-0.5),
            rngs=rngs,
        )

        def stack(count: int, sizes: Qwen3Config) -> Block:
            return nnx.vmap(lambda stream: Block(sizes, rngs=stream))(rngs.split(count))

        if config.frozen_layers:
            # Adapters would learn.
            plain = dataclasses.replace(config, lora=None)
            self.frozen_layers = stack(config.frozen_layers, plain)
        self.layers = stack(config.num_layers - config.frozen_layers, config)
        self.norm = _rms_norm(config.hidden_size, config, rngs)
        if not config.tie_embeddings:
            self.lm_head = _linear("lm_head", config.hidden_size, config.vocab_size, config, rngs)

    def embed(self, tokens: Int32[Array, "B T"]) -> Float[Array, "B T D"]:
        """The tokens' embeddings."""
        table = gathered(self.embed_tokens.embedding[...])
        return _looked_up(table, tokens, len(table))

    def __call__(
        self,
        x: Float[Array, "B T D"],
        positions: Int32[Array, "B T"],
        segment_ids: Int32[Array, "B T"],
        *,
        remat: str = "none",
        dropout_key: jax.Array | None = None,
    ) -> Float[Array, "B T D"]:
        """Hidden states after the final norm.

        Args:
          x: embeddings, of tokens or of anything else.
          positions: place of each token in its segment; drives the rotation only.
          segment_ids: tokens see their own and earlier indices of their own segment; 0 = padding,
            which sees padding only, and which nothing else sees.
          remat: what the backward pass recomputes, see `rematerialised`.
          dropout_key: key of the adapters' dropout; None for none.
        """
        config = self.config
        by = rotation(positions, config.head_dim, config.rope_theta)
        attend = functools.partial(attention, causal=True, segments=segment_ids)

        def body(x, scanned):
            layer, index = scanned
            key = None if dropout_key is None else jax.random.fold_in(dropout_key, index)
            return gathered(layer)(x, by, attend, key), None

        # The scan carries one dtype: that of the wider of inputs and parameters.
        x = batch_sharded(x.astype(jnp.result_type(x, self.norm.scale[...])))
        body = rematerialised(body, remat)
        indices = jnp.arange(config.num_layers)
        if config.frozen_layers:
            frozen = (self.frozen_layers, indices[: config.frozen_layers])
            x, _ = jax.lax.scan(body, x, frozen)
        x, _ = jax.lax.scan(body, x, (self.layers, indices[config.frozen_layers :]))
        return self.norm(x)

    def logits(self, hidden: Float[Array, "*A D"]) -> Float[Array, "*A W"]:
        """Scores of the next token, in float32."""
        if self.config.tie_embeddings:
            rows, product = self.embed_tokens.embedding[...], "...d,wd->...w"
        else:
            rows, product = self.lm_head.kernel[...], "...d,dw->...w"
        return jnp.einsum(product, hidden, gathered(rows), preferred_element_type=jnp.float32)
