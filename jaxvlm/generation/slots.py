"""The compiled half of decoding: rows of texts on the devices, admitted and continued.

Axes: B rows of a device, P prompts admitted at a time, T prompt tokens, S slots of a row, M visual
vectors a prompt, D width.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int32

from jaxvlm.generation.sampling import Sampling
from jaxvlm.models.decoder import Cache, Decoder, DecoderWeights
from jaxvlm.models.partition import BATCH_AXES

_ROWS, _WHOLE = PartitionSpec(BATCH_AXES), PartitionSpec()


class Slots(NamedTuple):
    """Texts under way, one a row. The newest token of a text is not in the cache yet.

    Attributes:
      cache: keys and values of their tokens.
      tokens: of prompt and answer.
      lengths: how many those are.
      limits: at which length a text ends, at the latest.
      serials: their numbers.
      live: rows whose text goes on.
    """

    cache: Cache
    tokens: Int32[Array, "B S"]
    lengths: Int32[Array, "B"]
    limits: Int32[Array, "B"]
    serials: Int32[Array, "B"]
    live: Bool[Array, "B"]


class Prompts(NamedTuple):
    """Prompts for some rows.

    Attributes:
      tokens: padded behind their end.
      lengths: how many each has.
      visual_index: which visual vector stands for a token, or -1.
      visual: visual vectors.
      rows: where they go; B for padding.
      limits: see `Slots`.
      serials: see `Slots`.
    """

    tokens: Int32[Array, "P T"]
    lengths: Int32[Array, "P"]
    visual_index: Int32[Array, "P T"]
    visual: Float[Array, "P M D"]
    rows: Int32[Array, "P"]
    limits: Int32[Array, "P"]
    serials: Int32[Array, "P"]


@dataclasses.dataclass(frozen=True)
class Program:
    """What is compiled: every device of a mesh has all weights, and rows of its own.

    Attributes:
      decoder: of some sizes.
      sampling: how tokens are chosen.
      mesh: devices.
      end_id: the token that ends a text.
      own_ids: tokens from here on are reserved and never chosen.
    """

    decoder: Decoder
    sampling: Sampling
    mesh: Mesh
    end_id: int
    own_ids: int

    def empty(self, rows: int, slots: int, dtype: jnp.dtype) -> Slots:
        """No texts, for `rows` on every device."""
        return self._empty(rows, slots, jnp.dtype(dtype))

    @functools.cached_property
    def _empty(self):
        def empty(rows, slots, dtype):
            zeros = jnp.zeros(rows * self.mesh.size, jnp.int32)
            return Slots(
                self.decoder.empty_cache(len(zeros), slots, dtype),
                jnp.zeros((len(zeros), slots), jnp.int32),
                zeros,
                zeros,
                zeros,
                zeros > 0,
            )

        placed = NamedSharding(self.mesh, _ROWS)
        return jax.jit(empty, static_argnums=(0, 1, 2), out_shardings=placed)

    @functools.cached_property
    def grow(self):
        """The same texts with more slots: `grow(slots, count)`."""

        def grow(state: Slots, count: int) -> Slots:
            more = count - state.tokens.shape[1]
            cache = jax.tree.map(
                lambda leaf: jnp.pad(leaf, ((0, 0), (0, 0), (0, more), (0, 0))), state.cache
            )
            return state._replace(cache=cache, tokens=jnp.pad(state.tokens, ((0, 0), (0, more))))

        placed = NamedSharding(self.mesh, _ROWS)
        return jax.jit(grow, static_argnums=1, out_shardings=placed)

    @functools.cached_property
    def admit(self):
        """`admit(weights, slots, prompts)`: reads prompts, chooses the first token of each."""
        mapped = self._mapped(self._admit, (_WHOLE, _ROWS, _ROWS))
        return jax.jit(mapped, donate_argnums=1)

    @functools.cached_property
    def go_on(self):
        """`go_on(weights, slots, steps, ended)`: continues the texts.

        It stops after so many steps, or when so many rows of a device have ended.
        """
        mapped = self._mapped(self._go_on, (_WHOLE, _ROWS, _WHOLE, _WHOLE))
        return jax.jit(mapped, donate_argnums=1)

    def _mapped(self, function, specs):
        return jax.shard_map(
            function, mesh=self.mesh, in_specs=specs, out_specs=_ROWS, check_vma=False
        )

    def _admit(self, weights: DecoderWeights, state: Slots, prompts: Prompts) -> Slots:
        decoder, (count, length) = self.decoder, prompts.tokens.shape
        text = decoder.embed(weights, prompts.tokens)
        index = jnp.maximum(prompts.visual_index, 0)[..., None]
        seen = jnp.take_along_axis(prompts.visual.astype(text.dtype), index, axis=1)
        hidden, cache = decoder.prefill(
            weights, jnp.where((prompts.visual_index >= 0)[..., None], seen, text)
        )
        last = jnp.take_along_axis(hidden, jnp.maximum(prompts.lengths - 1, 0)[:, None, None], 1)
        slots = state.tokens.shape[1]
        tokens = jnp.pad(prompts.tokens, ((0, 0), (0, slots - length)))
        first = self._choose(weights, last[:, 0], tokens, prompts.lengths, prompts.serials)
        tokens = tokens.at[jnp.arange(count), prompts.lengths].set(first)
        lengths = prompts.lengths + 1

        def put(rows, new):
            return rows.at[prompts.rows].set(new.astype(rows.dtype), mode="drop")

        def put_cache(rows, new):
            return rows.at[prompts.rows, :, :length].set(new.astype(rows.dtype), mode="drop")

        return Slots(
            jax.tree.map(put_cache, state.cache, cache),
            put(state.tokens, tokens),
            put(state.lengths, lengths),
            put(state.limits, prompts.limits),
            put(state.serials, prompts.serials),
            put(state.live, (first != self.end_id) & (lengths < prompts.limits)),
        )

    def _go_on(self, weights, state: Slots, steps, ended) -> Slots:
        rows = jnp.arange(state.live.shape[0])
        before = state.live.sum()

        def unfinished(carry):
            made, state = carry
            living = state.live.sum()
            return (made < steps) & (living > 0) & (before - living < ended)

        def step(carry):
            made, state = carry
            # Rows without a text write where they have written before, or into their first slot.
            last = jnp.maximum(state.lengths - 1, 0)
            newest = state.tokens[rows, last]
            hidden, cache = self.decoder.step(
                weights, self.decoder.embed(weights, newest), state.cache, last
            )
            token = self._choose(weights, hidden, state.tokens, state.lengths, state.serials)
            lengths = jnp.where(state.live, state.lengths + 1, state.lengths)
            kept = jnp.where(state.live, token, newest)
            tokens = state.tokens.at[rows, jnp.maximum(lengths - 1, 0)].set(kept)
            live = state.live & (token != self.end_id) & (lengths < state.limits)
            new = state._replace(cache=cache, tokens=tokens, lengths=lengths, live=live)
            return made + 1, new

        return jax.lax.while_loop(unfinished, step, (jnp.int32(0), state))[1]

    def _choose(self, weights, hidden, tokens, lengths, serials) -> Int32[Array, "B"]:
        logits = self.decoder.logits(weights, hidden)
        allowed = jnp.arange(logits.shape[-1]) < self.own_ids
        logits = jnp.where(allowed, logits, -jnp.inf)
        return self.sampling.choose(logits, tokens, lengths, serials)
