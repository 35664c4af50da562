"""The choice of the next token, with the semantics of transformers' logits processors.

Axes: B rows, W vocabulary, S slots.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from jaxvlm.errors import UserError


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
      temperature: 0 takes the likeliest token.
      top_k: draws from so many of the likeliest; 0 for all.
      top_p: draws from the likeliest that have this much probability together.
      repetition_penalty: tokens of the prompt and the answer so far have their logit divided by it
        where it is positive, else multiplied (CTRL, arXiv 1909.05858); 1 for none.
      no_repeat_ngram: no n-gram of prompt and answer comes twice; 0 for no such rule.
      seed: of the draws.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    no_repeat_ngram: int = 0
    seed: int = 0

    def __post_init__(self):
        for name, right, expected in (
            ("temperature", self.temperature >= 0, "0 or more"),
            ("top_k", self.top_k >= 0, "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "more than 0, at most 1"),
            ("repetition_penalty", self.repetition_penalty > 0, "more than 0"),
            ("no_repeat_ngram", self.no_repeat_ngram >= 0, "0 or more"),
        ):
            if not right:
                raise UserError(
                    f"evaluation.sampling.{name}={getattr(self, name)}: expected {expected}"
                )

    def choose(
        self,
        logits: Float[Array, "B W"],
        tokens: Int32[Array, "B S"],
        lengths: Int32[Array, "B"],
        serials: Int32[Array, "B"],
        allowed: Bool[Array, "B W"] | None = None,
    ) -> Int32[Array, "B"]:
        """The next token of every row.

        Args:
          logits: its scores; -inf where a token is out of the question.
          tokens: of the texts so far.
          lengths: how many those are.
          serials: numbers of the texts: what is drawn depends on them and on the length alone.
          allowed: tokens in question. Where they are not all, n-grams may repeat: the form of the
            text decides.
        """
        if self.repetition_penalty != 1:
            logits = penalised(logits, tokens, lengths, self.repetition_penalty)
        if self.no_repeat_ngram:
            banned = repeating(tokens, lengths, self.no_repeat_ngram, logits.shape[-1])
            if allowed is not None:
                banned &= allowed.all(-1, keepdims=True)
            logits = jnp.where(banned, -jnp.inf, logits)
        if allowed is not None:
            logits = jnp.where(allowed, logits, -jnp.inf)
        if not self.temperature:
            return logits.argmax(-1).astype(jnp.int32)
        logits = likeliest(logits / self.temperature, self.top_k, self.top_p)

        def draw(serial, length, row):
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(self.seed), serial), length)
            return jax.random.categorical(key, row)

        return jax.vmap(draw)(serials, lengths, logits).astype(jnp.int32)


def penalised(
    logits: Float[Array, "B W"], tokens: Int32[Array, "B S"], lengths: Int32[Array, "B"], by: float
) -> Float[Array, "B W"]:
    """Lowers the scores of tokens that have come."""
    come = _marked(tokens, jnp.arange(tokens.shape[1]) < lengths[:, None], logits.shape[-1])
    return jnp.where(come, jnp.where(logits < 0, logits * by, logits / by), logits)


def repeating(
    tokens: Int32[Array, "B S"], lengths: Int32[Array, "B"], size: int, vocabulary: int
) -> Bool[Array, "B W"]:
    """Tokens that would make the last `size` ones a run that has come before."""
    slots = tokens.shape[1]
    ends = jnp.arange(slots)
    same = (ends >= size - 1) & (ends < lengths[:, None])
    for back in range(1, size):
        last = jnp.take_along_axis(tokens, jnp.maximum(lengths - back, 0)[:, None], axis=1)
        # What `roll` brings round from the other end is ruled out by `ends`.
        same &= jnp.roll(tokens, back, axis=1) == last
    return _marked(tokens, same & (lengths >= size - 1)[:, None], vocabulary)


def likeliest(logits: Float[Array, "B W"], top_k: int, top_p: float) -> Float[Array, "B W"]:
    """Scores of the likeliest tokens, -inf for the others; one at least is left."""
    vocabulary = logits.shape[-1]
    if 0 < top_k < vocabulary:
        least = jax.lax.top_k(logits, top_k)[0][:, -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if top_p < 1:
        order = jnp.argsort(logits, axis=-1)
        rising = jnp.take_along_axis(logits, order, axis=-1)
        below = jnp.cumsum(jax.nn.softmax(rising, axis=-1), axis=-1) <= 1 - top_p
        below = below.at[:, -1].set(False)
        rows = jnp.arange(logits.shape[0])[:, None]
        logits = logits.at[rows, order].set(jnp.where(below, -jnp.inf, rising))
    return logits


def _marked(
    tokens: Int32[Array, "B S"], which: Bool[Array, "B S"], vocabulary: int
) -> Bool[Array, "B W"]:
    rows = jnp.arange(tokens.shape[0])[:, None]
    marks = jnp.zeros((tokens.shape[0], vocabulary), bool)
    # Beyond the vocabulary nothing is written.
    return marks.at[rows, jnp.where(which, tokens, vocabulary)].set(True, mode="drop")
