"""Rows: the arrays a model reads, built from groups of samples.

Axes: B rows, T tokens a row, S image sets a row, M visual vectors a set (geometry first, then
latents), L labels a row, A actions a row.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxvlm.console import say_once
from jaxvlm.data.boxes import BOX
from jaxvlm.data.packing import Capacity, Group
from jaxvlm.data.readers import LostImage, SetReader
from jaxvlm.data.record import Record
from jaxvlm.data.sequence import Sample, prompt

_OF_A_ROW = ("tokens", "positions", "segment_ids", "visual_index", "label_positions", "labels",
             "label_weights", "label_sources")  # fmt: skip
_OF_ACTIONS = ("action_positions", "action_sets", "action_targets", "action_weights")


@dataclasses.dataclass(frozen=True)
class VisualLayout:
    """The M visual vectors of an image set: `geometry` slots, then `latents`.

    Attributes:
      mode: "per_view" (one geometry token a kept view), "pooled" or "none".
      geometry: slots for geometry tokens (num_views, the pooled count, or 0).
      latents: latents of the projector.
    """

    mode: str
    geometry: int
    latents: int

    @property
    def size(self) -> int:
        """M."""
        return self.geometry + self.latents

    def index(self, views: int, has_geometry: bool) -> np.ndarray:
        """Which of the M vectors a sample with `views` kept views is shown, in order."""
        used = min(views, self.geometry) if self.mode == "per_view" else self.geometry
        slots = np.arange(used if has_geometry else 0)
        return np.concatenate([slots, self.geometry + np.arange(self.latents)]).astype(np.int32)


# A number has no more digits; what has, is a name.
_DIGITS = 4


def digits_before(is_digit: Bool[np.ndarray, "L"]) -> Int[np.ndarray, "L"]:
    """How many digits of its number each token follows on, be it one of them or what ends it."""
    before = np.zeros(len(is_digit) + 1, np.int64)
    edges = np.flatnonzero(np.diff(is_digit, prepend=False, append=False))
    for start, end in edges.reshape(-1, 2):
        if end - start <= _DIGITS:
            before[start + 1 : end + 1] = np.arange(1, end - start + 1)
    return before[:-1]


@dataclasses.dataclass(frozen=True)
class RowBuilder:
    """Builds packed rows of the contract from groups of samples.

    Attributes:
      records: all records.
      samples: all samples, which name their records.
      capacity: of a row.
      layout: of a set's visual vectors.
      reader: of image sets.
      placeholder: id where a visual vector stands.
      pad: id behind a row's samples.
      sources: the number of the source that each record is of.
      skip: leave samples out whose images cannot be read, instead of stopping.
      digits: the ids of digits, and
      finer_weight: how much of the one before it each token counts that follows on a digit of a
        number in an action.
      answer_weight: what a label of an answer counts.
      boxes: the batch has the arrays of actions, for the action head.
    """

    records: Sequence[Record]
    samples: Sequence[Sample]
    capacity: Capacity
    layout: VisualLayout
    reader: SetReader
    placeholder: int
    pad: int
    sources: Sequence[int]
    skip: bool = False
    digits: Sequence[int] = ()
    finer_weight: float = 1.0
    answer_weight: float = 1.0
    boxes: bool = False

    def batch(
        self, rows: Sequence[Sequence[Group]], tokens: int | None = None, labels: int | None = None
    ) -> dict[str, np.ndarray]:
        """A batch of B rows.

        Args:
          rows: the groups of each row.
          tokens: T, the capacity's by default.
          labels: L, the capacity's by default.

        Returns:
          `tokens`, `positions`, `segment_ids`, `visual_index` int32[B,T]; `label_positions`,
          `labels`, `label_sources` int32[B,L], `label_weights` f32[B,L];
          the reader's arrays of rows;
          `lost int32[B]`, how many samples of a row were left out;
          with `boxes`, `action_positions`, `action_sets` int32[B,A]: where the tokens `<action>`
          stand, and about which image set; `action_targets f32[B,A,9]`, their boxes in the first
          camera's frame (centre, extent, normal; metres); and `action_weights f32[B,A]`, the
          weights of their labels together, 0 where there is no box.

        Raises:
          UserError: an image that cannot be read, unless such samples are left out.
        """
        length, labels = tokens or self.capacity.tokens, labels or self.capacity.labels
        count = len(rows)
        batch = {
            "tokens": np.full((count, length), self.pad, np.int32),
            "positions": np.zeros((count, length), np.int32),
            "segment_ids": np.zeros((count, length), np.int32),
            "visual_index": np.full((count, length), -1, np.int32),
            "label_positions": np.zeros((count, labels), np.int32),
            "labels": np.zeros((count, labels), np.int32),
            "label_weights": np.zeros((count, labels), np.float32),
            "label_sources": np.zeros((count, labels), np.int32),
            "lost": np.zeros(count, np.int32),
            **(self._no_boxes(count) if self.boxes else {}),
            **self.reader.empty_rows(count, self.capacity.sets, self.capacity.views),
        }
        for number, groups in enumerate(rows):
            self._fill(batch, number, groups)
        return batch

    def _no_boxes(self, count: int) -> dict[str, np.ndarray]:
        shape = count, self.capacity.sets * self.capacity.questions_per_set
        return {
            "action_positions": np.zeros(shape, np.int32),
            "action_sets": np.zeros(shape, np.int32),
            "action_targets": np.zeros((*shape, BOX), np.float32),
            "action_weights": np.zeros(shape, np.float32),
        }

    def _fill(self, batch: dict[str, np.ndarray], number: int, groups: Sequence[Group]) -> None:
        """Writes the groups into row `number`."""
        row = {name: batch[name][number] for name in _OF_A_ROW}
        start = label_start = segment = 0
        for set_index, group in enumerate(groups):
            seen = self._read(batch, (number, set_index), group)
            if not seen:
                batch["lost"][number] += len(group.samples)
            for index in group.samples:
                segment += 1
                used = self._write(row, index, len(group.views), set_index, start, label_start)
                row["segment_ids"][start : start + used[0]] = segment
                weights = self._weights(self.samples[index]) * seen
                row["label_weights"][label_start : label_start + used[1]] = weights
                box = self.samples[index].box
                if self.boxes and box is not None:
                    # The first label of an action follows on its token.
                    token = row["label_positions"][label_start]
                    values = token, set_index, box, weights.sum()
                    for name, value in zip(_OF_ACTIONS, values, strict=True):
                        batch[name][number, segment - 1] = value
                start, label_start = start + used[0], label_start + used[1]

    def _weights(self, sample: Sample) -> Float[np.ndarray, "L"]:
        """What the labels of a sample count."""
        if not sample.is_action:
            return np.full(len(sample.answer), self.answer_weight, np.float32)
        before = digits_before(np.isin(sample.answer, self.digits))
        return np.float32(self.finer_weight) ** before.astype(np.float32)

    def _read(self, batch: dict[str, np.ndarray], at: tuple[int, int], group: Group) -> bool:
        """Reads the group's image set; False where it cannot be read and is left out."""
        record = self.records[self.samples[group.samples[0]].record]
        try:
            self.reader.read(batch, at, record, group.views, group.seed)
        except LostImage as error:
            if not self.skip:
                raise
            say_once(f"{error}; the samples that show it are left out")
            return False
        return True

    def _write(
        self, row: dict, index: int, views: int, set_index: int, start: int, label_start: int
    ) -> tuple[int, int]:
        """Writes one sample at `start`; returns the tokens and labels it took."""
        sample = self.samples[index]
        has_geometry = sample.has_geometry and not self.reader.blind
        visual = set_index * self.layout.size + self.layout.index(views, has_geometry)
        tokens, visual_index = prompt(sample, visual, self.placeholder)
        first_label = start + len(tokens) - 1
        # The end token is predicted, never read.
        tokens = np.concatenate([tokens, sample.answer[:-1]])
        end = start + len(tokens)
        row["tokens"][start:end] = tokens
        row["positions"][start:end] = np.arange(len(tokens))
        row["visual_index"][start : start + len(visual_index)] = visual_index
        labels = slice(label_start, label_start + len(sample.answer))
        row["labels"][labels] = sample.answer
        row["label_sources"][labels] = self.sources[sample.record]
        row["label_positions"][labels] = first_label + np.arange(len(sample.answer))
        return len(tokens), len(sample.answer)
