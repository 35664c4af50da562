"""Rows: the arrays a model reads, built from groups of samples.

Axes: T tokens a row, S image sets a row, V views, H W pixels, M visual vectors a set (geometry
first, then latents), L labels a row.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxvlm.data.geometry import FEATURES, geometry_features
from jaxvlm.data.images import load_image
from jaxvlm.data.plan import Capacity, Group
from jaxvlm.data.record import Record
from jaxvlm.data.sequence import Sample, prompt
from jaxvlm.errors import UserError


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


@dataclasses.dataclass(frozen=True)
class SetReader:
    """Reads the images and geometry of an image set.

    Attributes:
      size: side of the square images in pixels.
      views: V, views a set holds at most.
      blind: show black images and no geometry: the text-only control.
      convention: of the geometry features.
    """

    size: int
    views: int
    blind: bool
    convention: str = "first_camera"

    def __call__(self, record: Record, kept: Sequence[int]) -> dict[str, np.ndarray]:
        """`images uint8[V,H,W,3]`, `view_counts int32[]` and `geometry f32[V,37]`.

        Kept views move to the front; the rest is zero.
        """
        images = np.zeros((self.views, self.size, self.size, 3), np.uint8)
        geometry = np.zeros((self.views, FEATURES), np.float32)
        if not self.blind:
            for slot, view in enumerate(kept):
                images[slot] = _image(record, view, self.size)
            features = geometry_features(record, list(kept), self.size, self.convention)
            if features is not None:
                geometry[: len(kept)] = features
        return {"images": images, "view_counts": np.int32(len(kept)), "geometry": geometry}

    def has_geometry(self, record: Record) -> bool:
        """Whether the record's samples are shown geometry tokens."""
        return record.geometry is not None and not self.blind


def _image(record: Record, view: int, size: int) -> np.ndarray:
    try:
        return load_image(record.images[view], size)
    except UserError as error:
        raise UserError(f"{record.origin}: {error}") from None


@dataclasses.dataclass(frozen=True)
class RowBuilder:
    """Builds packed rows of the contract from groups of samples."""

    records: Sequence[Record]
    samples: Sequence[Sample]
    capacity: Capacity
    layout: VisualLayout
    reader: SetReader
    placeholder: int
    pad: int

    def __call__(self, groups: Sequence[Group]) -> dict[str, np.ndarray]:
        """One row.

        Returns:
          `tokens`, `positions`, `segment_ids`, `visual_index` int32[T]; `label_positions`,
          `labels` int32[L], `label_weights` f32[L]; `images uint8[S,V,H,W,3]`, `view_counts
          int32[S]`, `geometry f32[S,V,37]`.
        """
        length, labels = self.capacity.tokens, self.capacity.labels
        row = {
            "tokens": np.full(length, self.pad, np.int32),
            "positions": np.zeros(length, np.int32),
            "segment_ids": np.zeros(length, np.int32),
            "visual_index": np.full(length, -1, np.int32),
            "label_positions": np.zeros(labels, np.int32),
            "labels": np.zeros(labels, np.int32),
            "label_weights": np.zeros(labels, np.float32),
        }
        start = label_start = segment = 0
        for set_index, group in enumerate(groups):
            for index in group.samples:
                segment += 1
                used = self._write(row, index, len(group.views), set_index, start, label_start)
                row["segment_ids"][start : start + used[0]] = segment
                start, label_start = start + used[0], label_start + used[1]
        return row | self._sets(groups)

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
        row["label_positions"][labels] = first_label + np.arange(len(sample.answer))
        row["label_weights"][labels] = 1.0
        return len(tokens), len(sample.answer)

    def _sets(self, groups: Sequence[Group]) -> dict[str, np.ndarray]:
        """Images and geometry of the row's sets, zero where the row has fewer."""
        parts = [
            self.reader(self.records[self.samples[g.samples[0]].record], g.views) for g in groups
        ]
        stacked = {name: np.stack([part[name] for part in parts]) for name in parts[0]}
        return {
            name: np.pad(v, [(0, self.capacity.sets - len(v))] + [(0, 0)] * (v.ndim - 1))
            for name, v in stacked.items()
        }
