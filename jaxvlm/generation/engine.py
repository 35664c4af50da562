"""The host's half of decoding: texts that end leave their row at once, and others enter.

Axes: T prompt tokens, M visual vectors, D width, G generated tokens.
"""

import collections
import itertools
import time
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Float, Int32

from jaxvlm.data.actions.constraint import NOWHERE, Constraint
from jaxvlm.generation.slots import Held, Program, Prompts, Slots
from jaxvlm.models.decoder import DecoderWeights
from jaxvlm.models.partition import BATCH_AXES

# Prompts that a device reads at a time, of those that wait.
_PROMPTS = 8
# The most steps between looks at what has ended, and how many rows that end are looked at sooner.
_STEPS, _ENDED = 16, 2
_SMALLEST = 32


class Request(NamedTuple):
    """A text to be continued.

    Attributes:
      key: what the answer comes back with.
      serial: a number of its own, on which draws depend.
      tokens: of the prompt.
      visual_index: which visual vector stands for a token, or -1.
      visual: the vectors; requests of one engine have as many.
      most: tokens that the answer may have, its end among them.
      constraint: of what may follow, or None.
    """

    key: Hashable
    serial: int
    tokens: Int32[np.ndarray, "T"]
    visual_index: Int32[np.ndarray, "T"]
    visual: Float[np.ndarray, "M D"]
    most: int
    constraint: Constraint | None = None


class Answer(NamedTuple):
    """What was generated.

    Attributes:
      key: of the request.
      tokens: without the one that ends them.
      ended: whether the text came to its end, rather than to its limit.
      seconds: from its entering to its end.
      box: what the action head made of the prompt; None without a head.
    """

    key: Hashable
    tokens: Int32[np.ndarray, "G"]
    ended: bool
    seconds: float
    box: Float[np.ndarray, "9"] | None


class Engine:
    """Continues texts, many at a time."""

    def __init__(self, program: Program, weights: DecoderWeights, rows: int):
        """Allocates when the first text comes.

        Args:
          program: what is compiled; shapes are when they are first seen.
          weights: whole on every device.
          rows: texts under way on each device.
        """
        self._program, self._weights, self._rows = program, weights, rows
        self._prompts = min(_PROMPTS, rows)
        self._state: Slots | None = None
        self._split = NamedSharding(program.mesh, PartitionSpec(BATCH_AXES))
        # Of the rows of every device, the request whose text stands there, and since when.
        self._taken: dict[tuple[int, int], tuple[Request, float]] = {}

    def run(self, requests: Iterable[Request]) -> Iterator[Answer]:
        """Answers requests, in the order in which they come to their end."""
        # What a run that was broken off has left.
        self._taken.clear()
        waiting, more = iter(requests), True
        while True:
            while more and (free := self._free()):
                entering = list(itertools.islice(waiting, len(free)))
                more = len(entering) == len(free)
                if entering:
                    self._admit(entering, free)
                    # Those that end with their first token leave at once.
                    yield from self._ended()
            if not self._taken:
                return
            # With nobody waiting no row need be looked at before all have ended.
            ended = _ENDED if more else self._rows
            self._state = self._program.go_on(self._weights, self._state, _STEPS, ended)
            yield from self._ended()

    def stream(self, request: Request) -> Iterator[Int32[np.ndarray, "G"]]:
        """The answer to one request as far as it is known, token after token."""
        self._taken.clear()
        self._admit([request], self._free())
        while True:
            (place,) = self._taken
            row = place[0] * self._rows + place[1]
            tokens, lengths, live = jax.device_get(
                (self._state.tokens[row], self._state.lengths[row], self._state.live[row])
            )
            known = tokens[len(request.tokens) : lengths]
            yield known[:-1] if self._program.ends(known[-1]) else known
            if not live:
                del self._taken[place]
                return
            self._state = self._program.go_on(self._weights, self._state, 1, 1)

    def _free(self) -> list[tuple[int, int]]:
        """Free rows, as device and row, of each device as many as are filled at a time."""
        found = [
            [place for row in range(self._rows) if (place := (device, row)) not in self._taken]
            for device in range(self._program.mesh.size)
        ]
        # One device after the other, so that a few requests are spread.
        turns = itertools.zip_longest(*(places[: self._prompts] for places in found))
        return [place for turn in turns for place in turn if place is not None]

    def _admit(self, requests: list[Request], free: list[tuple[int, int]]) -> None:
        """Puts requests into free rows, the first ones first."""
        devices = self._program.mesh.size
        longest = max(len(request.tokens) for request in requests)
        need = max(len(request.tokens) + request.most for request in requests)
        self._make_room(max(need, bucket(longest) + 1))
        self._make_room_for([r.constraint for r in requests if r.constraint is not None])
        length, shape = bucket(longest), (devices, self._prompts)
        prompts = Prompts(
            np.zeros((*shape, length), np.int32),
            np.zeros(shape, np.int32),
            np.full((*shape, length), -1, np.int32),
            np.zeros((*shape, *requests[0].visual.shape), requests[0].visual.dtype),
            np.full(shape, self._rows, np.int32),
            np.zeros(shape, np.int32),
            np.zeros(shape, np.int32),
            self._no_constraints(shape),
        )
        filled = collections.Counter()
        for request, (device, row) in zip(requests, free, strict=False):
            at, size = (device, filled[device]), len(request.tokens)
            filled[device] += 1
            self._taken[device, row] = request, time.perf_counter()
            prompts.tokens[at][:size] = request.tokens
            prompts.visual_index[at][:size] = request.visual_index
            prompts.visual[at] = request.visual
            prompts.lengths[at], prompts.rows[at] = size, row
            prompts.limits[at], prompts.serials[at] = size + request.most, request.serial
            if request.constraint is not None:
                put_constraint(prompts.held, at, request.constraint)
        flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), prompts)
        self._state = self._program.admit(
            self._weights, self._state, jax.device_put(flat, self._split), max(filled.values())
        )

    def _make_room(self, need: int) -> None:
        slots = bucket(need)
        if self._state is None:
            self._state = self._program.empty(self._rows, slots, self._weights.embedding.dtype)
        elif slots > self._state.tokens.shape[1]:
            self._state = self._program.grow(self._state, slots)

    def _make_room_for(self, constraints: Sequence[Constraint]) -> None:
        if not constraints:
            return
        here = (0, 0) if self._state.held is None else self._state.held.tokens.shape[1:]
        most = [max(c.tokens.shape[axis] for c in constraints) for axis in (0, 1)]
        if most[0] > here[0] or most[1] > here[1]:
            need = [bucket(max(pair)) for pair in zip(most, here, strict=True)]
            self._state = self._program.hold(self._state, *need)

    def _no_constraints(self, shape: tuple[int, int]) -> Held | None:
        """For prompts of that shape."""
        if self._state.held is None:
            return None
        like = Held(*(leaf.shape[1:] for leaf in self._state.held))
        return Held(*(np.full((*shape, *rest), NOWHERE, np.int32) for rest in like))

    def _ended(self) -> Iterator[Answer]:
        """The texts that have come to their end; their rows are free."""
        live, lengths = jax.device_get((self._state.live, self._state.lengths))
        over = [place for place in self._taken if not live[place[0] * self._rows + place[1]]]
        if not over:
            return
        tokens, boxes = jax.device_get((self._state.tokens, self._state.boxes))
        for place in over:
            row, (request, since) = place[0] * self._rows + place[1], self._taken.pop(place)
            made = tokens[row, len(request.tokens) : lengths[row]]
            ended = bool(self._program.ends(made[-1]))
            seconds = time.perf_counter() - since
            box = None if self._program.decoder.action is None else boxes[row]
            yield Answer(request.key, made[:-1] if ended else made, ended, seconds, box)


def put_constraint(held: Held, at: int | tuple[int, ...], constraint: Constraint) -> None:
    """Puts a constraint where a prompt stands; its text begins at place 0."""
    places, tokens = constraint.tokens.shape
    held.tokens[at][:places, :tokens] = constraint.tokens
    held.places[at][:places, :tokens] = constraint.places
    held.plain[at][:places] = constraint.plain
    held.at[at] = 0


def bucket(length: int) -> int:
    """The length that prompts are padded to: one of few; beyond 32, a third at most is padding."""
    size = _SMALLEST
    while size < length:
        size = size * 3 // 2 if size & (size - 1) == 0 else size // 3 * 4
    return size
