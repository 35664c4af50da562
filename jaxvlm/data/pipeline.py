"""The input pipeline: Grain over the plan's rows, from any position, one slice a process."""

import dataclasses
from collections.abc import Iterator

import grain.python as grain
import numpy as np
from absl import flags

from jaxvlm.data.plan import Capacity, Plan
from jaxvlm.data.rows import RowBuilder, SetReader, VisualLayout
from jaxvlm.data.sequence import tokenize
from jaxvlm.data.sources import Joined, load_sources
from jaxvlm.data.tokenizer import load_tokenizer
from jaxvlm.data.views import say_cut_views
from jaxvlm.errors import UserError


@dataclasses.dataclass(frozen=True)
class Rows:
    """Random access to the first `count` rows of a plan (a Grain data source).

    Attributes:
      plan: which samples a row has.
      builder: makes the arrays.
      count: rows of the whole run.
      fingerprint: tells the records of one run from another's.
    """

    plan: Plan
    builder: RowBuilder
    count: int
    fingerprint: list[str]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self.builder(self.plan.row(int(index)))


def visual_layout(config) -> VisualLayout:
    """The layout of a set's visual vectors that a configuration asks for."""
    mode = config.model.geometry.mode
    slots = {
        "per_view": config.data.num_views,
        "pooled": config.model.geometry.num_tokens,
        "none": 0,
    }
    return VisualLayout(mode, slots[mode], config.model.projector.num_latents)


def set_reader(config) -> SetReader:
    """The reader of images and geometry that a configuration asks for."""
    data = config.data
    return SetReader(data.image_size, data.num_views, data.blind, data.geometry_convention)


def training_rows(config, count: int) -> Rows:
    """The training split as `count` packed rows, everything checked.

    Raises:
      UserError: whatever is wrong with the records, images, tokenizer or sizes.
    """
    data = config.data
    sources = load_sources(data.train, data.image_roots, data.on_bad_record)
    records = Joined([source.records for source in sources])
    tokenizer = load_tokenizer(config.text.tokenizer)
    layout, reader = visual_layout(config), set_reader(config)
    most_visual = len(layout.index(data.num_views, True))
    samples, shortened = tokenize(
        records, tokenizer, config.text.template, config.text.max_length, most_visual
    )
    for sample in samples:
        if not len(sample.answer):
            raise UserError(f"{records[sample.record].origin}: a training record needs an 'answer'")
    say_cut_views([sample.views for sample in samples], data.num_views)
    if shortened:
        print(f"{shortened} of {len(samples)} questions were shortened to text.max_length")
    capacity = Capacity(data.row_length, data.row_sets, data.row_labels, data.questions_per_set)
    ends = np.cumsum([0] + [len(source.records) for source in sources])
    weighted = [
        (s.weight, range(a, b)) for s, a, b in zip(sources, ends[:-1], ends[1:], strict=True)
    ]
    with_geometry = not data.blind and any(sample.has_geometry for sample in samples)
    plan = Plan(
        samples,
        weighted,
        [sample.views for sample in samples],
        [sample.keep_first for sample in samples],
        capacity,
        lambda views: len(layout.index(views, with_geometry)),
        num_views=data.num_views,
        view_dropout=data.view_dropout,
        seed=config.seed,
    )
    builder = RowBuilder(
        records, samples, capacity, layout, reader, tokenizer.placeholder_id, tokenizer.pad_id
    )
    return Rows(plan, builder, count, [source.fingerprint for source in sources])


@dataclasses.dataclass(frozen=True)
class _Share:
    """The rows of one process: its slice of every global batch from row `first` on."""

    rows: Rows
    first: int
    batch: int
    share: int
    process: int

    def __len__(self) -> int:
        return (len(self.rows) - self.first) // self.batch * self.share

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        step, offset = divmod(int(index), self.share)
        return self.rows[self.first + step * self.batch + self.process * self.share + offset]


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
    dataset = grain.MapDataset.source(_Share(rows, first_row, batch_size, share, process))
    dataset = dataset.batch(share, drop_remainder=True)
    iterator = dataset.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4))
    if num_workers:
        if not flags.FLAGS.is_parsed():
            # Grain asks absl for flags of its own, which the entry points here do not parse.
            flags.FLAGS.mark_as_parsed()
        iterator = iterator.mp_prefetch(grain.MultiprocessingOptions(num_workers=num_workers))
    return iter(iterator)
