"""The plan: which samples stand in which row, as a function of the seed and the row's number.

An epoch draws as many samples as the sources hold, each source its share, and passes over a
source's samples in a new order each time. Up to `questions_per_set` questions of one image set form
a group, whose views are drawn once; groups are packed first-fit into rows with three capacities:
tokens, image sets and labels.
"""

import bisect
import dataclasses
import threading
from collections.abc import Callable, Sequence

import numpy as np

from jaxvlm.data.sequence import Sample
from jaxvlm.data.views import keep_views
from jaxvlm.errors import UserError

# Rows that are still filled while the plan is made; more pack tighter and slower.
_OPEN_ROWS = 64
# Reading threads share a plan; a module's lock, unlike an attribute, needs no pickling.
_LOCK = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Group:
    """Questions of one image set with the views they are shown."""

    samples: tuple[int, ...]
    views: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Capacity:
    """What fits into a row.

    Attributes:
      tokens: T, the row's length.
      sets: S, image sets a row.
      labels: L, label tokens a row.
      questions_per_set: questions that share one encoding of an image set.
    """

    tokens: int
    sets: int
    labels: int
    questions_per_set: int


class Plan:
    """Random access over an endless sequence of packed rows."""

    def __init__(
        self,
        samples: Sequence[Sample],
        sources: Sequence[tuple[float, range]],
        view_counts: Sequence[int],
        keep_first: Sequence[bool],
        capacity: Capacity,
        visual_tokens: Callable[[int], int],
        *,
        num_views: int,
        view_dropout: float,
        seed: int,
    ):
        """Makes a plan.

        Args:
          samples: all samples, with answers.
          sources: `(weight, range of sample indices)` of each source.
          view_counts: views that each sample's image set has.
          keep_first: samples whose first view must stay.
          capacity: what fits into a row.
          visual_tokens: visual tokens of a sample as a function of its kept views.
          num_views: views a sample is shown at most.
          view_dropout: probability of leaving a view out.
          seed: of the order, the mixture and the dropout.

        Raises:
          UserError: a capacity that a single sample exceeds.
        """
        self._samples = samples
        self._sources = sources
        self._view_counts = view_counts
        self._keep_first = keep_first
        self._capacity = capacity
        self._visual_tokens = visual_tokens
        self._num_views = num_views
        self._view_dropout = view_dropout
        self._seed = seed
        self._starts = [0]
        self._epochs: dict[int, list[list[Group]]] = {}
        most = max(len(s.answer) for s in samples)
        if most > capacity.labels:
            raise UserError(
                f"data.row_labels={capacity.labels} is less than the longest answer ({most} tokens)"
            )
        most_visual = visual_tokens(num_views)
        longest = max(s.length(most_visual) for s in samples)
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

    def _epoch(self, epoch: int) -> list[list[Group]]:
        if epoch not in self._epochs:
            rng = np.random.default_rng((self._seed, epoch))
            # Prefetching threads may stand on both sides of an epoch's end.
            latest = {e: rows for e, rows in self._epochs.items() if e == epoch - 1}
            self._epochs = {**latest, epoch: self._pack(self._groups(self._draw(epoch), rng))}
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

    def _slice(self, number: int, indices: range, first: int, last: int) -> list[int]:
        """Items `first:last` of the concatenated permutations of a source."""
        drawn: list[int] = []
        for turn in range(first // len(indices), -(-last // len(indices))):
            order = np.random.default_rng((self._seed, number, turn)).permutation(len(indices))
            start = turn * len(indices)
            part = order[max(first - start, 0) : min(last - start, len(indices))]
            drawn += [indices[i] for i in part]
        return drawn

    def _groups(self, drawn: list[int], rng: np.random.Generator) -> list[Group]:
        """Gathers the questions of a set, draws its views and mixes the groups."""
        by_set: dict[int, list[int]] = {}
        for index in drawn:
            by_set.setdefault(self._samples[index].set_id, []).append(index)
        groups = []
        for members in by_set.values():
            while members:
                views = self._views(members[: self._capacity.questions_per_set], rng)
                count = self._fitting(members, len(views))
                groups.append(Group(tuple(members[:count]), tuple(views)))
                members = members[count:]
        return [groups[i] for i in rng.permutation(len(groups))]

    def _views(self, members: list[int], rng: np.random.Generator) -> list[int]:
        keep_first = any(self._keep_first[i] for i in members)
        available = self._view_counts[members[0]]
        return keep_views(available, self._num_views, self._view_dropout, keep_first, rng)

    def _fitting(self, members: list[int], views: int) -> int:
        """How many of the first questions fit into an empty row."""
        tokens = labels = 0
        for count, index in enumerate(members[: self._capacity.questions_per_set]):
            size = self._size(index, views)
            tokens, labels = tokens + size[0], labels + size[1]
            if tokens > self._capacity.tokens or labels > self._capacity.labels:
                return count
        return min(len(members), self._capacity.questions_per_set)

    def _size(self, index: int, views: int) -> tuple[int, int]:
        sample = self._samples[index]
        return sample.length(self._visual_tokens(views)), len(sample.answer)

    def _pack(self, groups: list[Group]) -> list[list[Group]]:
        """First-fit over a window of open rows."""
        capacity = (self._capacity.tokens, self._capacity.labels, self._capacity.sets)
        rows: list[list[Group]] = []
        open_rows: list[tuple[int, list[int]]] = []
        for group in groups:
            sizes = [self._size(index, len(group.views)) for index in group.samples]
            need = [sum(s[0] for s in sizes), sum(s[1] for s in sizes), 1]
            for row, used in open_rows:
                if all(u + n <= c for u, n, c in zip(used, need, capacity, strict=True)):
                    rows[row].append(group)
                    used[:] = [u + n for u, n in zip(used, need, strict=True)]
                    break
            else:
                open_rows = [*open_rows[-(_OPEN_ROWS - 1) :], (len(rows), need)]
                rows.append([group])
        return rows
