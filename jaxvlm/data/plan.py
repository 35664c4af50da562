"""The plan: which samples stand in which row, as a function of the seed and the row's number.

An epoch draws as many samples as the sources hold, each source its share, and passes over a
source's samples in a new order each time; the samples of an epoch are packed into rows.
"""

import bisect
import dataclasses
import threading
from collections.abc import Callable, Sequence

import numpy as np

from jaxvlm.data.packing import Capacity, Group, Packer
from jaxvlm.data.sequence import Sample
from jaxvlm.data.views import Views
from jaxvlm.errors import UserError

# Raised whenever the same seed makes other rows: a run that was begun before does not go on.
VERSION = 1
# Reading threads share a plan; a module's lock, unlike an attribute, needs no pickling.
_LOCK = threading.Lock()


class Plan:
    """Random access over an endless sequence of packed rows."""

    def __init__(
        self,
        samples: Sequence[Sample],
        sources: Sequence[tuple[float, Sequence[int]]],
        capacity: Capacity,
        visual_tokens: Callable[[int, bool], int],
        views: Views,
        seed: int,
    ):
        """Makes a plan.

        Args:
          samples: all samples, with answers.
          sources: `(weight, sample indices)` of each source.
          capacity: what fits into a row.
          visual_tokens: visual tokens of a sample as a function of its kept views, and of whether
            its image set has geometry.
          views: chooses the views of an image set.
          seed: of the order, the mixture and the views.

        Raises:
          UserError: a capacity that a single sample exceeds.
        """
        self._visual_tokens = visual_tokens
        self._packer = Packer(samples, capacity, visual_tokens, views)
        self._sources = sources
        self._seed = seed
        self._starts = [0]
        self._epochs: dict[int, list[list[Group]]] = {}
        most = max(len(sample.answer) for sample in samples)
        if most > capacity.labels:
            raise UserError(
                f"data.row_labels={capacity.labels} is less than the longest answer ({most} tokens)"
            )
        visual = {known: visual_tokens(views.most, known) for known in (False, True)}
        longest = max(sample.length(visual[sample.has_geometry]) for sample in samples)
        if longest > capacity.tokens:
            raise UserError(
                f"data.row_length={capacity.tokens} is less than the longest sample "
                f"({longest} tokens)"
            )

    def row(self, index: int) -> list[Group]:
        """The groups of row `index` (from 0, without end)."""
        with _LOCK:
            while self._starts[-1] <= index:
                self._starts.append(self._starts[-1] + len(self._epoch(len(self._starts) - 1)))
            epoch = bisect.bisect_right(self._starts, index) - 1
            return self._epoch(epoch)[index - self._starts[epoch]]

    def rows_in_epoch(self, epoch: int) -> int:
        """Number of rows of an epoch; it varies a little with the draws."""
        with _LOCK:
            return len(self._epoch(epoch))

    def rows_with(self, views: int) -> int:
        """Number of rows of the first epoch, if a row had so many places for views."""
        of = self._packer
        capacity = dataclasses.replace(of.capacity, views=views)
        packer = Packer(of.samples, capacity, self._visual_tokens, of.views)
        return len(packer.pack(self._draw(0), np.random.default_rng((self._seed, 0))))

    def size(self, group: Group) -> tuple[int, int]:
        """Tokens and labels that a group takes."""
        return self._packer.size(group)

    def _epoch(self, epoch: int) -> list[list[Group]]:
        if epoch not in self._epochs:
            # Prefetching threads may stand on both sides of an epoch's end.
            latest = {e: rows for e, rows in self._epochs.items() if e == epoch - 1}
            rng = np.random.default_rng((self._seed, epoch))
            self._epochs = {**latest, epoch: self._packer.pack(self._draw(epoch), rng)}
        return self._epochs[epoch]

    def _draw(self, epoch: int) -> list[int]:
        """The samples of an epoch: each source's share of its own endless shuffled sequence."""
        total = sum(len(indices) for _, indices in self._sources)
        weights = np.array([weight for weight, _ in self._sources])
        shares = weights / weights.sum() * total
        drawn: list[int] = []
        for number, (share, (_, indices)) in enumerate(zip(shares, self._sources, strict=True)):
            first, last = round(epoch * share), round((epoch + 1) * share)
            drawn += self._slice(number, indices, first, last)
        return drawn

    def _slice(self, number: int, indices: Sequence[int], first: int, last: int) -> list[int]:
        """Items `first:last` of the concatenated permutations of a source."""
        drawn: list[int] = []
        for turn in range(first // len(indices), -(-last // len(indices))):
            order = np.random.default_rng((self._seed, number, turn)).permutation(len(indices))
            start = turn * len(indices)
            part = order[max(first - start, 0) : min(last - start, len(indices))]
            drawn += [indices[i] for i in part]
        return drawn
