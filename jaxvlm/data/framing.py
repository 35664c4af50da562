"""Where an image lies in the model's frame: how it is scaled, then cropped or padded.

| resize | scaled so that | then |
| --- | --- | --- |
| `"short_side"` | it covers the frame | the centre is cropped (the original's way) |
| `"crop"` | its width is the frame's | too high: the centre is cropped; too low: padded white |
| `"pad"` | it fits into the frame | padded white |

`"crop"` and `"pad"` are VGGT's own; they round the height (or the shorter side) to whole patches.
"""

import dataclasses

import numpy as np
from jaxtyping import Float

RESIZES = ("short_side", "crop", "pad")


@dataclasses.dataclass(frozen=True)
class Window:
    """A part of the frame that is shown instead of the whole.

    Attributes:
      zoom: 1 or more; the window's sides are the frame's divided by it.
      x: where it lies, from 0 (left) to 1 (right).
      y: from 0 (top) to 1 (bottom).
    """

    zoom: float
    x: float
    y: float


@dataclasses.dataclass(frozen=True)
class Placement:
    """An image scaled to `width` x `height` pixels, of which the frame begins at (left, top).

    Where the offset is negative, or the frame reaches further than the image, there is padding.
    """

    width: int
    height: int
    left: int
    top: int


@dataclasses.dataclass(frozen=True)
class Framing:
    """How images of all sizes become `height` x `width` pixels.

    Attributes:
      height: of the frame in pixels.
      width: of the frame in pixels.
      resize: see the module.
      patch: side of a patch in pixels; "crop" and "pad" round to it.
      draft: JPEG files may be decoded to a half, a quarter or an eighth where that is still large
        enough: faster, and about one grey level in 255 off.
    """

    height: int
    width: int
    resize: str = "short_side"
    patch: int = 14
    draft: bool = False

    def place(self, width: int, height: int, window: Window | None = None) -> Placement:
        """Where an image of `width` x `height` pixels lies."""
        scaled = self._scaled(width, height)
        if window is None:
            return Placement(
                *scaled, _centred(scaled[0] - self.width), _centred(scaled[1] - self.height)
            )
        wide, high = (max(1, round(side * window.zoom)) for side in scaled)
        left = _offset(wide - self.width, window.x)
        return Placement(wide, high, left, _offset(high - self.height, window.y))

    def _scaled(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) after scaling."""
        across, down = self.width / width, self.height / height
        if self.resize == "short_side":
            scale = max(across, down)
            return max(self.width, round(width * scale)), max(self.height, round(height * scale))
        if self.resize == "crop" or across <= down:
            return self.width, self._whole_patches(height * across)
        return self._whole_patches(width * down), self.height

    def _whole_patches(self, side: float) -> int:
        return max(1, round(side / self.patch)) * self.patch

    def intrinsics(
        self,
        k: Float[np.ndarray, "3 3"],
        width: int,
        height: int,
        window: Window | None = None,
    ) -> Float[np.ndarray, "3 3"]:
        """Pixel intrinsics of a `width` x `height` image for the frame, divided by its sides.

        Focal lengths and principal point come out as fractions of the frame's width and height.
        """
        placed = self.place(width, height, window)
        k = k.astype(np.float64).copy()
        k[0] *= placed.width / width
        k[1] *= placed.height / height
        k[0, 2] -= placed.left
        k[1, 2] -= placed.top
        k[0] /= self.width
        k[1] /= self.height
        return k.astype(np.float32)


def _centred(spare: int) -> int:
    """The offset that leaves as much on both sides; of an odd rest the smaller part comes first."""
    return spare // 2 if spare >= 0 else -(-spare // 2)


def _offset(spare: int, share: float) -> int:
    return round(spare * share) if spare > 0 else _centred(spare)
