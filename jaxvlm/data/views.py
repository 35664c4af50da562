"""Which views of an image set are shown."""

from collections.abc import Sequence

import numpy as np


def say_cut_views(views: Sequence[int], num_views: int) -> None:
    """Prints how many records, given by their numbers of images, have more than are shown."""
    cut = sum(count > num_views for count in views)
    if cut:
        print(
            f"{cut} of {len(views)} records have more than data.num_views={num_views} images; "
            "the first ones are shown"
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
