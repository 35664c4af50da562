"""Packing: an epoch's samples in as few rows as they fill, each image set in as few as it needs.

Of every image set at most `questions_per_set` samples stand in a row, which are shown the same
views. The number of rows follows from the tokens, labels and image sets there are; every set is
given to the rows that hold least, and its samples go to the emptiest of its rows. So rows are
filled alike and none is left half empty, as with packing one row after the other. What finds no
place, for its set's views have none, is packed into more rows in the same way.
"""

import dataclasses
import heapq
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from jaxvlm.data.sequence import Sample
from jaxvlm.data.views import Views

# How full rows are meant to be; the rest lets samples of all lengths find a place. All are tried:
# with fuller rows more samples find none, and these make rows of their own.
_FILLS = (0.98, 0.965, 0.95)
# Samples, and image sets, that are packed together at least.
_TOGETHER = 12_000, 60
# How often all samples are placed anew, each set knowing where the others stand.
_SWEEPS = 4


@dataclasses.dataclass(frozen=True)
class Capacity:
    """What fits into a row.

    Attributes:
      tokens: T, the row's length.
      sets: S, image sets a row.
      views: X, views a row, of all its image sets together.
      labels: L, label tokens a row.
      questions_per_set: questions of one image set a row.
    """

    tokens: int
    sets: int
    views: int
    labels: int
    questions_per_set: int


@dataclasses.dataclass(frozen=True)
class Group:
    """Questions of one image set in one row.

    Attributes:
      samples: the questions.
      views: which of the set's views they are shown.
      seed: of everything random about how they are shown.
    """

    samples: tuple[int, ...]
    views: tuple[int, ...]
    seed: int = 0


@dataclasses.dataclass
class _Part:
    """An image set's place in a row."""

    row: int
    views: tuple[int, ...]
    seed: int
    samples: list[int]


class Packer:
    """Packs samples into rows.

    Attributes:
      samples, capacity, views: as given.
      sizes: tokens without visual ones, and labels, of every sample.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        capacity: Capacity,
        visual: Callable[[int, bool], int],
        views: Views,
    ):
        """Makes a packer.

        Args:
          samples: all samples.
          capacity: of a row.
          visual: visual tokens of a sample by the number of its kept views, and by whether its
            image set has geometry.
          views: chooses the views of an image set.
        """
        self.samples = samples
        self.sizes = [(sample.length(0), len(sample.answer)) for sample in samples]
        self.capacity = capacity
        self._visual = {
            known: [visual(count, known) for count in range(views.most + 1)]
            for known in (False, True)
        }
        self.views = views

    @property
    def fits_any_views(self) -> bool:
        """Whether a row has places for all views that its image sets can be shown."""
        return self.capacity.views >= self.capacity.sets * self.views.most

    def size(self, group: Group) -> tuple[int, int]:
        """Tokens and labels that a group takes."""
        sizes = [self.sizes[index] for index in group.samples]
        visual = len(sizes) * self.visual(group.samples[0], len(group.views))
        return visual + sum(text for text, _ in sizes), sum(labels for _, labels in sizes)

    def visual(self, index: int, views: int) -> int:
        """Visual tokens of a sample that is shown so many views."""
        return self._visual[self.samples[index].has_geometry][views]

    def pack(self, drawn: Sequence[int], rng: np.random.Generator) -> list[list[Group]]:
        """Rows that hold every drawn sample once for each time it was drawn, in random order."""
        waiting: dict[int, list[int]] = {}
        for index in drawn:
            waiting.setdefault(self.samples[index].set_id, []).append(index)
        rows: list[list[Group]] = []
        for part in self._parts(waiting, rng):
            rows += self._fewest(part, rng)
        return [rows[i] for i in rng.permutation(len(rows))]

    def _parts(
        self, waiting: Mapping[int, list[int]], rng: np.random.Generator
    ) -> Iterator[dict[int, list[int]]]:
        """Image sets by the thousands of samples, which are packed for themselves.

        The work grows with the square of what is packed together.
        """
        part: dict[int, list[int]] = {}
        size = 0
        for set_id in rng.permutation(list(waiting)).tolist():
            part[set_id] = waiting[set_id]
            size += len(waiting[set_id])
            if size >= _TOGETHER[0] and len(part) >= _TOGETHER[1]:
                yield part
                part, size = {}, 0
        if part:
            yield part

    def _fewest(self, waiting: Mapping[int, list[int]], rng: np.random.Generator) -> list:
        """The shortest of several packings; few samples, which fit together less well, try more."""
        counts = sorted({self._count(waiting, fill, rng) for fill in _FILLS})
        tries = min(4, 1 + _TOGETHER[0] // sum(map(len, waiting.values())))
        best: list[list[Group]] | None = None
        for count in counts * tries:
            rows = self._rows(waiting, count, rng)
            if best is None or len(rows) < len(best):
                best = rows
            if len(best) == counts[0]:
                break
        return best

    def _rows(
        self, waiting: Mapping[int, list[int]], count: int, rng: np.random.Generator
    ) -> list[list[Group]]:
        rows, left = _Level(self, waiting, count, rng).rows()
        while left:
            more, left = _Level(self, left, self._count(left, _FILLS[-1], rng), rng).rows()
            rows += more
        return rows

    def places(self, members: Sequence[int]) -> int:
        """In how many rows an image set must stand for all of its samples."""
        # A sample that was drawn twice stands in two rows.
        often = max(Counter(members).values())
        return max(-(-len(members) // self.capacity.questions_per_set), often)

    def _count(
        self, waiting: Mapping[int, list[int]], fill: float, rng: np.random.Generator
    ) -> int:
        """How many rows samples need, filled to the share `fill` with tokens or labels."""
        capacity = self.capacity
        places = [self.places(members) for members in waiting.values()]
        sizes = [self.sizes[index] for members in waiting.values() for index in members]
        # Which views will be shown is not known yet; those of one draw are as many on average.
        visual = sum(
            len(members) * self.visual(members[0], len(self.views(self.samples[members[0]], rng)))
            for members in waiting.values()
        )
        tokens = visual + sum(text for text, _ in sizes)
        labels = sum(count for _, count in sizes)
        return max(
            int(np.ceil(tokens / (fill * capacity.tokens))),
            int(np.ceil(labels / (fill * capacity.labels))),
            -(-sum(places) // capacity.sets),
            max(places),
        )


class _Level:
    """Rows that are filled side by side."""

    def __init__(
        self,
        packer: Packer,
        waiting: Mapping[int, list[int]],
        count: int,
        rng: np.random.Generator,
    ):
        self._count = count
        self._packer = packer
        self._capacity = packer.capacity
        self._waiting = waiting
        self._rng = rng
        # Longest first: the short ones even out.
        self._order = {
            set_id: sorted(members, key=lambda index: -packer.sizes[index][0])
            for set_id, members in waiting.items()
        }
        shares = self._shares()
        self._tokens = np.zeros(self._count)
        self._labels = np.zeros(self._count)
        self._sets = np.zeros(self._count, np.int64)
        self._views = np.zeros(self._count, np.int64)
        self._noise = rng.random(self._count)
        self._parts: dict[int, list[_Part]] = {}
        noise = dict(zip(waiting, rng.random(len(waiting)), strict=True))
        for set_id in sorted(waiting, key=lambda s: (-len(waiting[s]) / shares[s], noise[s])):
            self._parts[set_id] = self._places(set_id, shares[set_id])
            self._spread(set_id)
        for _ in range(_SWEEPS):
            for set_id in rng.permutation(list(self._parts)).tolist():
                self._take_back(set_id)
                self._spread(set_id)

    def rows(self) -> tuple[list[list[Group]], dict[int, list[int]]]:
        """The rows, and the samples that found no place, by image set."""
        rows: list[list[Group]] = [[] for _ in range(self._count)]
        left: dict[int, list[int]] = {}
        for set_id, parts in self._parts.items():
            rest = Counter(self._waiting[set_id])
            for part in parts:
                if part.samples:
                    rows[part.row].append(Group(tuple(part.samples), part.views, part.seed))
                rest.subtract(part.samples)
            if rest.total():
                left[set_id] = list(rest.elements())
        return [row for row in rows if row], left

    def _shares(self) -> dict[int, int]:
        """How many rows each image set is given."""
        shares = {s: self._packer.places(members) for s, members in self._waiting.items()}
        self._give_spare_places(shares)
        return shares

    def _give_spare_places(self, shares: dict[int, int]) -> None:
        """Lets the largest sets spread further, over places that would stay empty."""
        spare = self._count * self._capacity.sets - sum(shares.values())
        shown = self._shown()
        views = self._count * self._capacity.views - sum(shares[s] * shown[s] for s in shares)
        most = {s: min(self._count, len(members)) for s, members in self._waiting.items()}
        growing = [(-len(self._waiting[s]) / shares[s], s) for s in shares if shares[s] < most[s]]
        heapq.heapify(growing)
        while growing and spare > 0:
            _, set_id = heapq.heappop(growing)
            if shown[set_id] > views:
                continue
            spare, views = spare - 1, views - shown[set_id]
            shares[set_id] += 1
            if shares[set_id] < most[set_id]:
                key = -len(self._waiting[set_id]) / shares[set_id]
                heapq.heappush(growing, (key, set_id))

    def _shown(self) -> dict[int, int]:
        """Views that each set is shown in a place: as of one draw, or none where all fit anyway."""
        if self._packer.fits_any_views:
            return dict.fromkeys(self._waiting, 0)
        return {set_id: len(self._draw(set_id)) for set_id in self._waiting}

    def _draw(self, set_id: int) -> tuple[int, ...]:
        sample = self._packer.samples[self._waiting[set_id][0]]
        return tuple(self._packer.views(sample, self._rng))

    def _places(self, set_id: int, count: int) -> list[_Part]:
        """The set's places, in the rows that hold least."""
        free = self._sets < self._capacity.sets
        drawn = [
            (self._draw(set_id), int(self._rng.integers(2**31)))
            for _ in range(min(count, np.count_nonzero(free)))
        ]
        if not drawn:
            return []
        views = np.array([len(shown) for shown, _ in drawn])
        free &= self._views + views.max() <= self._capacity.views
        load = np.where(free, self._tokens + self._noise, np.inf)
        chosen = np.argpartition(load, count - 1)[:count]
        # In an order that does not depend on how the machine sorts.
        chosen = np.sort(chosen[np.isfinite(load[chosen])])
        self._sets[chosen] += 1
        self._views[chosen] += views[: len(chosen)]
        return [_Part(row, *part, []) for row, part in zip(chosen.tolist(), drawn, strict=False)]

    def _spread(self, set_id: int) -> None:
        """Puts each of the set's samples into the emptiest of its rows that can hold it."""
        capacity, sizes = self._capacity, self._packer.sizes
        first = self._waiting[set_id][0]
        rows = [(self._tokens[p.row], number) for number, p in enumerate(self._parts[set_id])]
        heapq.heapify(rows)
        for index in self._order[set_id]:
            text, labels = sizes[index]
            passed = []
            while rows:
                held, number = heapq.heappop(rows)
                part = self._parts[set_id][number]
                size = text + self._packer.visual(first, len(part.views))
                if len(part.samples) == capacity.questions_per_set:
                    continue
                passed.append((held, number))
                if (
                    held + size > capacity.tokens
                    or self._labels[part.row] + labels > capacity.labels
                    or index in part.samples
                ):
                    continue
                part.samples.append(index)
                self._tokens[part.row] += size
                self._labels[part.row] += labels
                passed[-1] = (held + size, number)
                break
            for row in passed:
                heapq.heappush(rows, row)

    def _take_back(self, set_id: int) -> None:
        """Takes the set's samples out of its rows."""
        for part in self._parts[set_id]:
            if not part.samples:
                continue
            group = Group(tuple(part.samples), part.views)
            tokens, labels = self._packer.size(group)
            self._tokens[part.row] -= tokens
            self._labels[part.row] -= labels
            part.samples.clear()
