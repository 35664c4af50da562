"""The compiled half of decoding: rows of texts on the devices, admitted and continued.

Axes: B rows of a device, P prompts admitted at a time, T prompt tokens, S slots of a row, M visual
vectors a prompt, D width, W vocabulary; of constraints N places and K tokens
(`jaxvlm/data/actions/constraint.py`).
"""

import dataclasses
import functools
import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int32

from jaxvlm.data.actions.constraint import NOWHERE
from jaxvlm.generation.sampling import Sampling
from jaxvlm.models.action_head import BOX
from jaxvlm.models.decoder import Cache, Decoder, DecoderWeights
from jaxvlm.models.partition import BATCH_AXES

_ROWS, _WHOLE = PartitionSpec(BATCH_AXES), PartitionSpec()
# Tokens that keep products busy: more are not read together, for an empty place costs as much.
_BUSY = 128


class Held(NamedTuple):
    """Constraints of texts, each at the place where it stands.

    Attributes:
      tokens: see `Constraint`.
      places: likewise.
      plain: likewise.
      at: the place, `NOWHERE` for a text without constraint.
    """

    tokens: Int32[Array, "B N K"]
    places: Int32[Array, "B N K"]
    plain: Int32[Array, "B N"]
    at: Int32[Array, "B"]

    def here(self) -> tuple[Int32[Array, "B K"], Int32[Array, "B K"], Int32[Array, "B"]]:
        """Tokens, places and plain of where the texts stand."""
        rows, at = jnp.arange(self.at.shape[0]), jnp.maximum(self.at, 0)
        return self.tokens[rows, at], self.places[rows, at], self.plain[rows, at]

    def allowed(self, letters: Bool[Array, "W"]) -> Bool[Array, "B W"]:
        """The tokens that may follow, of which `letters` are the plain ones."""
        tokens, _, plain = self.here()
        rows, size = jnp.arange(tokens.shape[0])[:, None], letters.shape[0]
        mask = jnp.zeros((tokens.shape[0], size), bool)
        mask = mask.at[rows, jnp.where(tokens >= 0, tokens, size)].set(True, mode="drop")
        return mask | ((plain >= 0)[:, None] & letters) | (self.at < 0)[:, None]

    def after(self, token: Int32[Array, "B"]) -> "Held":
        """The same texts with one token more."""
        tokens, places, plain = self.here()
        same = tokens == token[:, None]
        listed = jnp.take_along_axis(places, same.argmax(1)[:, None], axis=1)[:, 0]
        then = jnp.where(same.any(1), listed, plain)
        return self._replace(at=jnp.where(self.at < 0, self.at, then))


class Slots(NamedTuple):
    """Texts under way, one a row. The newest token of a text is not in the cache yet.

    Attributes:
      cache: keys and values of their tokens.
      tokens: of prompt and answer.
      lengths: how many those are.
      limits: at which length a text ends, at the latest.
      serials: their numbers.
      live: rows whose text goes on.
      boxes: what the action head made of their prompts.
      held: their constraints; None as long as no text has one.
    """

    cache: Cache
    tokens: Int32[Array, "B S"]
    lengths: Int32[Array, "B"]
    limits: Int32[Array, "B"]
    serials: Int32[Array, "B"]
    live: Bool[Array, "B"]
    boxes: Float[Array, "B 9"]
    held: Held | None


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
      held: likewise.
    """

    tokens: Int32[Array, "P T"]
    lengths: Int32[Array, "P"]
    visual_index: Int32[Array, "P T"]
    visual: Float[Array, "P M D"]
    rows: Int32[Array, "P"]
    limits: Int32[Array, "P"]
    serials: Int32[Array, "P"]
    held: Held | None


@dataclasses.dataclass(frozen=True)
class Program:
    """What is compiled: every device of a mesh has all weights, and rows of its own.

    Attributes:
      decoder: of some sizes.
      sampling: how tokens are chosen.
      mesh: devices.
      end_id: the token that ends a text.
      own_ids: tokens from here on are reserved and never chosen.
      plain_ids: tokens that are plain letters, see `Constraint`.
      other_ends: more tokens that end a text, as transformers' `eos_token_id` may name several.
    """

    decoder: Decoder
    sampling: Sampling
    mesh: Mesh
    end_id: int
    own_ids: int
    plain_ids: tuple[int, ...] = ()
    other_ends: tuple[int, ...] = ()

    def ends(self, tokens: Int32[Array, "*A"]) -> Bool[Array, "*A"]:
        """Which tokens end a text."""
        return functools.reduce(
            operator.or_, (tokens == end for end in (self.end_id, *self.other_ends))
        )

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
                jnp.zeros((len(zeros), BOX)),
                None,
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
    def hold(self):
        """The same texts with room for constraints: `hold(slots, places, tokens)`."""

        def hold(state: Slots, places: int, tokens: int) -> Slots:
            rows = state.live.shape[0]
            held = state.held
            if held is None:
                nothing = jnp.zeros((rows, 0, 0), jnp.int32)
                nowhere = jnp.full(rows, NOWHERE, jnp.int32)
                held = Held(nothing, nothing, jnp.zeros((rows, 0), jnp.int32), nowhere)
            here = held.tokens.shape[1:]
            more = ((0, 0), (0, places - here[0]), (0, tokens - here[1]))
            wide = [jnp.pad(leaf, more, constant_values=NOWHERE) for leaf in held[:2]]
            plain = jnp.pad(held.plain, more[:2], constant_values=NOWHERE)
            return state._replace(held=Held(*wide, plain, held.at))

        placed = NamedSharding(self.mesh, _ROWS)
        return jax.jit(hold, static_argnums=(1, 2), out_shardings=placed)

    @functools.cached_property
    def admit(self):
        """`admit(weights, slots, prompts, count)`: reads prompts, chooses the first token of each.

        Of each device's prompts the first `count` are any.
        """
        mapped = self._mapped(self._admit, (_WHOLE, _ROWS, _ROWS, _WHOLE))
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

    def _admit(self, weights: DecoderWeights, state: Slots, prompts: Prompts, count) -> Slots:
        most, length = prompts.tokens.shape
        together = min(-(-_BUSY // length), most)

        def some(carry):
            start, state = carry
            read = jax.tree.map(
                lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, together), prompts
            )
            return start + together, self._read(weights, state, read)

        return jax.lax.while_loop(lambda carry: carry[0] < count, some, (jnp.int32(0), state))[1]

    def _read(self, weights: DecoderWeights, state: Slots, prompts: Prompts) -> Slots:
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
        first, held = self._choose(
            weights, last[:, 0], tokens, prompts.lengths, prompts.serials, prompts.held
        )
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
            put(state.live, ~self.ends(first) & (lengths < prompts.limits)),
            put(state.boxes, self.decoder.measure(weights, last[:, 0])),
            jax.tree.map(put, state.held, held),
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
            token, held = self._choose(
                weights, hidden, state.tokens, state.lengths, state.serials, state.held
            )
            lengths = jnp.where(state.live, state.lengths + 1, state.lengths)
            kept = jnp.where(state.live, token, newest)
            tokens = state.tokens.at[rows, jnp.maximum(lengths - 1, 0)].set(kept)
            live = state.live & ~self.ends(token) & (lengths < state.limits)
            new = state._replace(cache=cache, tokens=tokens, lengths=lengths, live=live, held=held)
            return made + 1, new

        return jax.lax.while_loop(unfinished, step, (jnp.int32(0), state))[1]

    def _choose(
        self, weights, hidden, tokens, lengths, serials, held: Held | None
    ) -> tuple[Int32[Array, "B"], Held | None]:
        """The next token of every row, and where its constraint stands then."""
        logits = self.decoder.logits(weights, hidden)
        vocabulary = jnp.arange(logits.shape[-1])
        logits = jnp.where(vocabulary < self.own_ids, logits, -jnp.inf)
        if held is None:
            return self.sampling.choose(logits, tokens, lengths, serials), None
        letters = jnp.zeros(logits.shape[-1], bool).at[jnp.array(self.plain_ids, int)].set(True)
        allowed = held.allowed(letters)
        token = self.sampling.choose(logits, tokens, lengths, serials, allowed)
        return token, held.after(token)
