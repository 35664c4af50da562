"""Which views of an image set are shown."""

import abc
import dataclasses
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from jaxvlm.data.sequence import Sample


@dataclasses.dataclass(frozen=True, kw_only=True)
class Views(abc.ABC):
    """Chooses the views of an image set, anew each time.

    Attributes:
      most: views a set is shown at most.
    """

    most: int

    @abc.abstractmethod
    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sequence[int]:
        """Indices of the views that the questions of a sample's image set are shown, in order."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomViews(Views):
    """The first views, of which each may be left out.

    Attributes:
      dropout: probability of leaving a view out.
      keep_first: sets of which view 0 is never left out: an action is stated in its frame.
    """

    dropout: float = 0.0
    keep_first: Collection[int] = ()

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sequence[int]:
        """See `Views`."""
        first = sample.set_id in self.keep_first
        return keep_views(sample.views, self.most, self.dropout, first, rng)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ListedViews(Views):
    """One of a few subsets of the views: those that a feature cache holds.

    Attributes:
      subsets: of each image set.
    """

    subsets: Mapping[int, Sequence[tuple[int, ...]]]

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sequence[int]:
        """See `Views`."""
        subsets = self.subsets[sample.set_id]
        return subsets[int(rng.integers(len(subsets)))]


def say_cut_views(views: Sequence[int], num_views: int) -> None:
    """Prints how many records, given by their numbers of images, have more than are shown."""
    cut = sum(count > num_views for count in views)
    if cut:
        print(
            f"{cut} of {len(views)} records have more than data.num_views={num_views} images; "
            f"the first ones are shown; raise it to {max(views)} to show all"
        )


def keep_views(
    available: int, num_views: int, dropout: float, keep_first: bool, rng: np.random.Generator
) -> list[int]:
    """Indices of the kept views, in order; never empty.

    Args:
      available: views the record has.
      num_views: at most this many, the first ones.
      dropout: probability of leaving out each view; one is kept if all would go.
      keep_first: never leave out view 0 (an action is stated in its frame).
      rng: drawn from once a view, whatever the dropout.
    """
    count = min(available, num_views)
    draws = rng.random(count)
    kept = [v for v in range(count) if draws[v] >= dropout or (keep_first and v == 0)]
    return kept or [int(np.argmax(draws))]
