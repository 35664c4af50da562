"""Greedy answers: visual vectors once an image set, then a prefill and one step a token.

Axes: N image sets, M visual vectors a set, B questions, T prompt tokens, D language width.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32

from jaxvlm.data.rows import VisualLayout
from jaxvlm.data.sequence import Sample, prompt
from jaxvlm.data.tokenizer import Tokenizer
from jaxvlm.models.tree import load
from jaxvlm.models.vlm import VLM, VLMConfig, abstract_vlm
from jaxvlm.paths import unflatten

# Prompts are padded to a multiple of this, so that few lengths are compiled.
_BUCKET = 32


class Generator:
    """Answers batches of questions with fixed parameters."""

    def __init__(
        self,
        config: VLMConfig,
        params: dict[str, Array],
        tokenizer: Tokenizer,
        layout: VisualLayout,
        max_new_tokens: int,
    ):
        """Compiles nothing yet; shapes are compiled when they are first seen."""
        self.params = params
        self._tokenizer = tokenizer
        self._layout = layout
        abstract = abstract_vlm(config)

        def encode(params, images, view_counts, geometry):
            return load(abstract, unflatten(params)).encode(images, view_counts, geometry)

        def answer(params, visual, set_index, tokens, visual_index, lengths):
            model = load(abstract, unflatten(params))
            x = model.embed(tokens, visual_index, visual[set_index])
            return greedy(
                model, x, lengths, max_new_tokens, tokenizer.end_id, tokenizer.placeholder_id
            )

        self._encode = jax.jit(encode)
        self._answer = jax.jit(answer)

    def encode(self, sets: dict[str, np.ndarray]) -> Float[Array, "N M D"]:
        """Visual vectors of image sets: `images`, `view_counts`, `geometry` with an axis N."""
        return self._encode(self.params, **sets)

    def answer(
        self,
        visual: Float[Array, "N M D"],
        set_index: Sequence[int],
        samples: Sequence[Sample],
        views: Sequence[int],
        has_geometry: Sequence[bool],
        batch: int,
    ) -> list[str]:
        """The answers to `samples`, at most `batch` of them, in order.

        Args:
          visual: of the image sets.
          set_index: which of them each sample asks about.
          samples: the questions.
          views: kept views of each sample's set.
          has_geometry: whether it shows geometry tokens.
          batch: questions a compiled batch holds; the rest is padding.
        """
        prompts = [
            prompt(sample, self._layout.index(count, geometry), self._tokenizer.placeholder_id)
            for sample, count, geometry in zip(samples, views, has_geometry, strict=True)
        ]
        longest = max(len(tokens) for tokens, _ in prompts)
        length = -(-longest // _BUCKET) * _BUCKET
        tokens = np.full((batch, length), self._tokenizer.pad_id, np.int32)
        visual_index = np.full((batch, length), -1, np.int32)
        # A row of padding has no tokens and is done before it begins.
        lengths = np.zeros(batch, np.int32)
        sets = np.zeros(batch, np.int32)
        for row, (ids, index) in enumerate(prompts):
            tokens[row, : len(ids)], visual_index[row, : len(ids)] = ids, index
            lengths[row], sets[row] = len(ids), set_index[row]
        generated = jax.device_get(
            self._answer(self.params, visual, sets, tokens, visual_index, lengths)
        )
        return [self._text(row) for row in generated[: len(samples)]]

    def _text(self, ids: np.ndarray) -> str:
        (ends,) = np.nonzero(ids == self._tokenizer.end_id)
        return self._tokenizer.decode(ids[: ends[0]] if len(ends) else ids)


def greedy(
    model: VLM,
    x: Float[Array, "B T D"],
    lengths: Int32[Array, "B"],
    max_new_tokens: int,
    end_id: int,
    own_ids: int,
) -> Int32[Array, "B G"]:
    """The likeliest token, again and again, until every row has ended.

    Args:
      model: the model.
      x: embedded prompts, padded behind `lengths`.
      lengths: real tokens of each prompt; 0 for a row of padding.
      max_new_tokens: G, the most tokens an answer has.
      end_id: ends a row; it is put out, and so is whatever follows until the others have ended.
      own_ids: ids from here on are reserved and never put out.

    Returns:
      Token ids.
    """
    language = model.language
    batch, length, _ = x.shape
    places = jnp.broadcast_to(jnp.arange(length), (batch, length))
    real = (places < lengths[:, None]).astype(jnp.int32)
    cache = language.empty_cache(batch, length + max_new_tokens)
    hidden, cache = language.extend(x, places, real, cache)
    last = jnp.take_along_axis(hidden, jnp.maximum(lengths - 1, 0)[:, None, None], axis=1)

    def choose(hidden: Float[Array, "B 1 D"]) -> Int32[Array, "B"]:
        logits = language.logits(hidden[:, 0])
        allowed = jnp.arange(logits.shape[-1]) < own_ids
        return jnp.where(allowed, logits, -jnp.inf).argmax(-1).astype(jnp.int32)

    def unfinished(carry):
        count, _, _, done, _ = carry
        return (count < max_new_tokens) & ~done.all()

    def step(carry):
        count, token, out, done, cache = carry
        out = jax.lax.dynamic_update_slice(out, token[:, None], (0, count))
        done = done | (token == end_id)
        embedded = language.embed(token[:, None])
        ones = jnp.ones((batch, 1), jnp.int32)
        hidden, cache = language.extend(embedded, (lengths + count)[:, None], ones, cache)
        return count + 1, choose(hidden), out, done, cache

    out = jnp.full((batch, max_new_tokens), end_id, jnp.int32)
    start = (jnp.int32(0), choose(last), out, lengths == 0, cache)
    return jax.lax.while_loop(unfinished, step, start)[2]
