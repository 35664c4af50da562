"""Histograms of parameters and gradients, for TensorBoard."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from jaxvlm.training.optimizer import Params

# Powers of two of either sign, and 0 between them: what is small is seen beside what is large.
_POWERS = 2.0 ** np.arange(-24, 5)
EDGES = np.concatenate([-_POWERS[::-1], [0.0], _POWERS]).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Histogram:
    """Counts of an array's values.

    Attributes:
      counts: values up to each of `EDGES` that the one before does not hold; the last has all
        that are larger.
      least: the smallest value.
      most: the largest.
      total: the values' sum.
      squares: the sum of their squares.
    """

    counts: np.ndarray
    least: float
    most: float
    total: float
    squares: float

    def of_tensorboard(self) -> dict:
        """The arguments of `SummaryWriter.add_histogram_raw`."""
        return {
            "min": self.least,
            "max": self.most,
            "num": int(self.counts.sum()),
            "sum": self.total,
            "sum_squares": self.squares,
            "bucket_limits": EDGES.tolist(),
            "bucket_counts": self.counts.tolist(),
        }


def histograms(arrays: Mapping[str, jax.Array]) -> dict[str, Histogram]:
    """The histogram of each array, wherever it lies; one array's work at a time."""
    return {name: Histogram(*map(_plain, _count(array))) for name, array in arrays.items()}


def _plain(value: jax.Array) -> np.ndarray | float:
    found = np.asarray(value)
    return found if found.ndim else float(found)


@jax.jit
def _count(array: Params):
    # Edge by edge, so that nothing of the array's size is made, and split arrays stay split.
    upto = jax.lax.map(lambda edge: (array <= edge).sum(dtype=jnp.int32), jnp.asarray(EDGES[:-1]))
    counts = jnp.diff(upto, prepend=0, append=array.size)
    return counts, array.min(), array.max(), array.sum(), (array * array).sum()
