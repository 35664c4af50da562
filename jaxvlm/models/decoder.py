"""Qwen3 for decoding: the plain model, its layers one by one, beside a cache of keys and values.

Decoding reads every weight once a token. A stack of layers would be cut apart on the way, and a
cut is a copy; so each layer's weights, and its part of the cache, are arrays of their own.

Every row of the cache is a text of its own, as long as it is: token i stands in slot i.

Axes: B rows of the cache, P prompts, T tokens, S slots, N query heads, K key/value heads, H head
dim, D width, W vocabulary.
"""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int32

from jaxvlm.models.action_head import BOX, ActionHead, ActionHeadConfig
from jaxvlm.models.attention import attend_cached, attention
from jaxvlm.models.qwen3 import Block, Qwen3Config, rotation
from jaxvlm.models.tree import load
from jaxvlm.paths import unflatten

_STACK = "layers/"


class LayerCache(NamedTuple):
    """Keys and values of one layer."""

    keys: Float[Array, "B K S H"]
    values: Float[Array, "B K S H"]


Cache = tuple[LayerCache, ...]


class DecoderWeights(NamedTuple):
    """Parameters of the plain model.

    Attributes:
      embedding: [W, D].
      layers: of each layer, a nested dict.
      norm: scale of the final norm, [D].
      head: [D, W], or None where the embedding serves.
      action: of the action head, a nested dict; None without one.
    """

    embedding: Float[Array, "W D"]
    layers: tuple[Mapping, ...]
    norm: Float[Array, "D"]
    head: Float[Array, "D W"] | None
    action: Mapping | None = None


def decoder_weights(params: dict[str, Array], layers: int) -> DecoderWeights:
    """The weights from the flat parameters of the language model, stacked as in training.

    Args:
      params: paths below `language/`. It is emptied: stacks are cut one after the other, so that
        none is held twice for long.
      layers: how many there are.
    """
    cut: list[dict[str, Array]] = [{} for _ in range(layers)]
    for path in [path for path in params if path.startswith(_STACK)]:
        for index, leaf in enumerate(jnp.unstack(params.pop(path))):
            cut[index][path.removeprefix(_STACK)] = leaf
    return DecoderWeights(
        params.pop("embed_tokens/embedding"),
        tuple(unflatten(leaves) for leaves in cut),
        params.pop("norm/scale"),
        params.pop("lm_head/kernel", None),
    )


@dataclasses.dataclass(frozen=True)
class Decoder:
    """The functions of a Qwen3 of some sizes, without adapters and with all layers in one stack.

    Attributes:
      config: its sizes.
      action: those of the action head, or None.
    """

    config: Qwen3Config
    action: ActionHeadConfig | None = None

    def empty_cache(self, rows: int, slots: int, dtype: jnp.dtype) -> Cache:
        """A cache without tokens."""
        config = self.config
        shape = (rows, config.num_kv_heads, slots, config.head_dim)
        return tuple(
            LayerCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))
            for _ in range(config.num_layers)
        )

    def embed(self, weights: DecoderWeights, tokens: Int32[Array, "*A"]) -> Float[Array, "*A D"]:
        """The tokens' embeddings."""
        return jnp.take(weights.embedding, tokens, axis=0)

    def prefill(
        self, weights: DecoderWeights, x: Float[Array, "P T D"]
    ) -> tuple[Float[Array, "P T D"], Cache]:
        """Reads whole prompts, which may be padded behind their end.

        Returns:
          Hidden states after the final norm, and a cache of P rows and T slots.
        """
        cache = []

        def attend(queries, keys, values):
            cache.append(LayerCache(keys.swapaxes(1, 2), values.swapaxes(1, 2)))
            return attention(queries, keys, values, causal=True)

        positions = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
        hidden = self._run(weights, x, positions, [attend] * self.config.num_layers)
        return hidden, tuple(cache)

    def step(
        self,
        weights: DecoderWeights,
        x: Float[Array, "B D"],
        cache: Cache,
        slots: Int32[Array, "B"],
    ) -> tuple[Float[Array, "B D"], Cache]:
        """Reads one token of every row, which goes into its slot; those behind it are not seen."""
        rows, written = jnp.arange(x.shape[0]), []

        def attend_with(layer: LayerCache):
            def attend(queries, keys, values):
                new = LayerCache(
                    layer.keys.at[rows, :, slots].set(keys[:, 0].astype(layer.keys.dtype)),
                    layer.values.at[rows, :, slots].set(values[:, 0].astype(layer.values.dtype)),
                )
                written.append(new)
                return attend_cached(queries[:, 0], *new, slots + 1)[:, None]

            return attend

        attends = [attend_with(layer) for layer in cache]
        hidden = self._run(weights, x[:, None], slots[:, None], attends)
        return hidden[:, 0], tuple(written)

    def logits(self, weights: DecoderWeights, hidden: Float[Array, "*A D"]) -> Float[Array, "*A W"]:
        """Scores of the next token, in float32."""
        if weights.head is None:
            rows, product = weights.embedding, "...d,wd->...w"
        else:
            rows, product = weights.head, "...d,dw->...w"
        return jnp.einsum(product, hidden, rows, preferred_element_type=jnp.float32)

    def measure(
        self, weights: DecoderWeights, hidden: Float[Array, "*A D"]
    ) -> Float[Array, "*A 9"]:
        """What the action head makes of hidden states, see `ActionHead`; zeros without one."""
        if self.action is None:
            return jnp.zeros((*hidden.shape[:-1], BOX))
        head = nnx.eval_shape(lambda: ActionHead(self.action, rngs=nnx.Rngs(0)))
        return load(head, weights.action)(hidden)

    def _run(self, weights, x, positions, attends):
        by = rotation(positions, self.config.head_dim, self.config.rope_theta)
        block = nnx.eval_shape(lambda: Block(self.config, rngs=nnx.Rngs(0)))
        x = x.astype(weights.norm.dtype)
        for layer, attend in zip(weights.layers, attends, strict=True):
            x = load(block, layer)(x, by, attend)
        norm = nnx.eval_shape(
            lambda: nnx.RMSNorm(
                self.config.hidden_size, epsilon=self.config.rms_norm_eps, rngs=nnx.Rngs(0)
            )
        )
        return load(norm, {"scale": weights.norm})(x)
