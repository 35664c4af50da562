"""Random changes of what is shown: colours and windows. Never flips: left would become right."""

import dataclasses

import numpy as np
from PIL import Image, ImageEnhance

from jaxvlm.data.framing import Window


@dataclasses.dataclass(frozen=True)
class Change:
    """What happens to one view.

    Attributes:
      window: the part of the frame that is shown, or None for the whole.
      colours: factors of brightness, contrast and saturation, or None.
    """

    window: Window | None = None
    colours: tuple[float, float, float] | None = None

    def recoloured(self, image: Image.Image) -> Image.Image:
        """The image with its colours changed."""
        if self.colours is None:
            return image
        enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
        for enhance, factor in zip(enhancers, self.colours, strict=True):
            image = enhance(image).enhance(factor)
        return image


@dataclasses.dataclass(frozen=True)
class Augment:
    """How strongly views are changed.

    Attributes:
      color_jitter: brightness, contrast and saturation are multiplied by up to 1 ± this.
      random_crop: a window is shown whose sides are shorter by up to this fraction.
    """

    color_jitter: float = 0.0
    random_crop: float = 0.0

    @property
    def active(self) -> bool:
        """Whether anything is changed."""
        return self.color_jitter > 0 or self.random_crop > 0

    def draw(self, seed: int, views: int) -> list[Change]:
        """The changes of an image set's views, a function of the seed.

        Colours are drawn once a set, whose photographs share their light; windows for each view.
        """
        if not self.active:
            return [Change()] * views
        rng = np.random.default_rng(seed)
        factors = tuple(1 + self.color_jitter * rng.uniform(-1, 1, 3))
        colours = factors if self.color_jitter else None
        return [Change(self._window(rng), colours) for _ in range(views)]

    def _window(self, rng: np.random.Generator) -> Window | None:
        side, x, y = 1 - self.random_crop * rng.random(), rng.random(), rng.random()
        return Window(1 / side, x, y) if self.random_crop else None
