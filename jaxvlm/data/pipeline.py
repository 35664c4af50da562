"""The input pipeline: Grain over the rows, from any position, one slice a process."""

import dataclasses
from collections.abc import Iterator

import grain.python as grain
import numpy as np
from absl import flags

from jaxvlm.data.training_set import Rows
from jaxvlm.data.watch import end_with_parent


@dataclasses.dataclass(frozen=True)
class _Batches:
    """One process's slices of the global batches from row `first` on (a Grain data source)."""

    rows: Rows
    first: int
    size: int
    mine: slice

    def __len__(self) -> int:
        return (len(self.rows) - self.first) // self.size

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        start = self.first + int(index) * self.size
        return self.rows.batch(start, start + self.size, self.mine)

    def __setstate__(self, state: dict) -> None:
        # Only a worker process gets a copy.
        end_with_parent()
        self.__dict__.update(state)


def batches(
    rows: Rows,
    batch_size: int,
    first_row: int = 0,
    num_workers: int = 0,
    process: int = 0,
    processes: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """This process's slices of the global batches from row `first_row` on.

    Args:
      rows: the rows of the whole run.
      batch_size: rows of a global batch, a multiple of `processes`.
      first_row: rows consumed before.
      num_workers: worker processes; 0 reads in threads.
      process: number of this process.
      processes: how many processes there are.

    Returns:
      An iterator over the rows' arrays with a leading axis of `batch_size // processes`.
    """
    share = batch_size // processes
    mine = slice(process * share, (process + 1) * share)
    dataset = grain.MapDataset.source(_Batches(rows, first_row, batch_size, mine))
    iterator = dataset.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=2))
    if num_workers:
        if not flags.FLAGS.is_parsed():
            # Grain asks absl for flags of its own, which the entry points here do not parse.
            flags.FLAGS.mark_as_parsed()
        iterator = iterator.mp_prefetch(grain.MultiprocessingOptions(num_workers=num_workers))
    return iter(iterator)
