"""What is read for an image set: its images, or their features out of a cache; and its geometry.

Axes: N image sets, B rows, S image sets a row, X views a row, V views a set, H W pixels, C context
tokens, F their width.
"""

import abc
import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32

from jaxvlm.data.augment import Augment, Change
from jaxvlm.data.features.cache import FeatureCache
from jaxvlm.data.framing import Framing, Window
from jaxvlm.data.geometry import FEATURES, geometry_features
from jaxvlm.data.images import load_image
from jaxvlm.data.record import Record
from jaxvlm.errors import UserError


def places_in_row(counts: Int32[np.ndarray, "S"], number: int, count: int) -> slice:
    """Where the views of a row's image set stand: behind those of the sets before."""
    first = int(counts[:number].sum())
    return slice(first, first + count)


class LostImage(UserError):
    """An image that could be read when the data was checked, and cannot be any more."""


Sets = dict[str, np.ndarray]
_PLAIN = Augment()
# A set's number among sets, or its row and its number there.
At = int | tuple[int, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SetReader(abc.ABC):
    """Reads what is shown of image sets, and their geometry.

    Attributes:
      framing: how images become H x W pixels.
      views: V, views a set holds at most.
      blind: show black images and no geometry: the text-only control.
      convention: of the geometry features.
    """

    framing: Framing
    views: int
    blind: bool = False
    convention: str = "first_camera"

    @abc.abstractmethod
    def empty(self, count: int) -> Sets:
        """Arrays of `count` image sets without views."""

    def empty_rows(self, rows: int, sets: int, views: int) -> Sets:
        """Arrays of rows for so many image sets, with so many views together, without views."""
        del views
        found = self.empty(rows * sets)
        return {name: array.reshape(rows, sets, *array.shape[1:]) for name, array in found.items()}

    @abc.abstractmethod
    def read(self, sets: Sets, at: At, record: Record, kept: Sequence[int], seed: int = 0) -> None:
        """Puts a record's image set at a place of `sets`, which is empty there.

        Args:
          sets: of `empty`, or of `empty_rows`, where a row's sets are read one after the other.
          at: the place.
          record: whose images and geometry are shown.
          kept: views that are; they move to the front, behind them stay zeros.
          seed: of random changes.

        Raises:
          LostImage: an image cannot be read; the place is empty as before.
          UserError: anything else that cannot be read.
        """

    def has_geometry(self, record: Record) -> bool:
        """Whether the record's samples are shown geometry tokens."""
        return record.geometry is not None and not self.blind

    def _empty_geometry(self, *count: int) -> Sets:
        return {
            "view_counts": np.zeros(count, np.int32),
            "geometry": np.zeros((*count, self.views, FEATURES), np.float32),
        }

    def _read_geometry(
        self,
        sets: Sets,
        at: At,
        record: Record,
        kept: Sequence[int],
        windows: Sequence[Window | None] | None = None,
    ) -> None:
        sets["view_counts"][at] = len(kept)
        if self.blind:
            return
        features = geometry_features(record, kept, self.framing, self.convention, windows)
        if features is not None:
            sets["geometry"][at][: len(kept)] = features


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageReader(SetReader):
    """Reads images.

    Attributes:
      augment: random changes of them.
    """

    augment: Augment = _PLAIN

    def empty(self, count: int) -> Sets:
        """Arrays of `count` image sets without views.

        Returns:
          `images uint8[N,V,H,W,3]`, `view_counts int32[N]`, `geometry f32[N,V,37]`.
        """
        return {"images": self._black(count, self.views), **self._empty_geometry(count)}

    def empty_rows(self, rows: int, sets: int, views: int) -> Sets:
        """Arrays of rows without views.

        Returns:
          `images uint8[B,X,H,W,3]`, the views of all sets of a row behind each other;
          `view_counts int32[B,S]`, `geometry f32[B,S,V,37]`.
        """
        return {"images": self._black(rows, views), **self._empty_geometry(rows, sets)}

    def _black(self, *count: int) -> np.ndarray:
        return np.zeros((*count, self.framing.height, self.framing.width, 3), np.uint8)

    def read(self, sets: Sets, at: At, record: Record, kept: Sequence[int], seed: int = 0) -> None:
        """See `SetReader.read`."""
        changes = self.augment.draw(seed, len(kept))
        if not self.blind:
            pixels = self._pixels(sets, at, len(kept))
            try:
                for slot, (view, change) in enumerate(zip(kept, changes, strict=True)):
                    pixels[slot] = self._image(record, view, change)
            except UserError:
                pixels[...] = 0
                raise
        windows = [change.window for change in changes]
        self._read_geometry(sets, at, record, kept, windows)

    def _pixels(self, sets: Sets, at: At, count: int) -> np.ndarray:
        """Where the views of a set stand: in a row behind those of the sets before."""
        if isinstance(at, int):
            return sets["images"][at][:count]
        row, number = at
        return sets["images"][row, places_in_row(sets["view_counts"][row], number, count)]

    def _image(self, record: Record, view: int, change: Change) -> np.ndarray:
        try:
            return load_image(record.images[view], self.framing, change)
        except UserError as error:
            raise LostImage(f"{record.origin}: {error}") from None


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureReader(SetReader):
    """Reads what VGGT made of the images before.

    Attributes:
      cache: of the features.
    """

    cache: FeatureCache

    def empty(self, count: int) -> Sets:
        """Arrays of `count` image sets without views.

        Returns:
          `features [N,C,F]` in the cache's dtype, `feature_counts int32[N]`, `view_counts
          int32[N]`, `geometry f32[N,V,37]`.
        """
        shape = (count, self.views * self.cache.tokens, self.cache.width)
        return {
            "features": np.zeros(shape, self.cache.dtype),
            "feature_counts": np.zeros(count, np.int32),
            **self._empty_geometry(count),
        }

    def read(self, sets: Sets, at: At, record: Record, kept: Sequence[int], seed: int = 0) -> None:
        """See `SetReader.read`."""
        features = self.cache.read(record.images, kept)
        sets["features"][at][: len(features)] = features
        sets["feature_counts"][at] = len(features)
        self._read_geometry(sets, at, record, kept)
