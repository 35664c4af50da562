"""VGGT's dense prediction heads (DPT, arXiv:2103.13413; VGGT, arXiv:2503.11651).

Axes: B batch, V views, F images (B*V), P tokens a view, C width of the aggregator, H W pixels,
Y X rows and columns of a feature map, D channels, O output channels.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from jaxvlm.models.tree import in_float32
from jaxvlm.models.vggt.blocks import TORCH_INIT, Spread, layer_norm
from jaxvlm.models.vggt.config import DPTConfig, VGGTConfig

# Base and weight of the position embedding, and channels before the last convolution.
POSITION_BASE = 100.0
POSITION_WEIGHT = 0.1
LAST_CHANNELS = 32


def conv(inputs: int, outputs: int, side: int, *, stride=1, bias=True, rngs: nnx.Rngs) -> nnx.Conv:
    """A convolution with a square kernel, padded alike on all four sides."""
    padding = (side - 1) // 2
    return nnx.Conv(
        inputs,
        outputs,
        (side, side),
        strides=stride,
        padding=[(padding, padding)] * 2,
        use_bias=bias,
        kernel_init=TORCH_INIT,
        rngs=rngs,
    )


def _bilinear(size: int, out: int) -> np.ndarray:
    """Weights [out, size] of linear interpolation that maps the end points to the end points."""
    place = np.linspace(0, size - 1, out) if out > 1 else np.zeros(1)
    return np.maximum(0, 1 - np.abs(place[:, None] - np.arange(size))).astype(np.float32)


def upsample(x: Float[Array, "F Y X D"], rows: int, columns: int) -> Float[Array, "F Y2 X2 D"]:
    """Bilinear resizing to `rows` x `columns` with aligned corners."""
    highest = jax.lax.Precision.HIGHEST
    down = jnp.asarray(_bilinear(x.shape[1], rows), x.dtype)
    right = jnp.asarray(_bilinear(x.shape[2], columns), x.dtype)
    x = jnp.einsum("ry,fyxd->frxd", down, x, precision=highest)
    return jnp.einsum("cx,frxd->frcd", right, x, precision=highest)


def _sincos(places: np.ndarray, channels: int) -> np.ndarray:
    """Sines, then cosines [len(places), channels] of `places` at falling frequencies."""
    half = channels // 2
    angles = places[:, None] * POSITION_BASE ** -(np.arange(half) / half)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


def add_positions(x: Float[Array, "F Y X D"], image_size: tuple[int, int]):
    """Adds a sine-cosine embedding of each pixel's place: x in the first half of D, y in the other.

    The image's diagonal, corner to corner, spans -1 to 1, whatever its aspect; pixels stand at
    their centres.
    """
    _, rows, columns, channels = x.shape
    height, width = image_size
    diagonal = np.hypot(height, width)
    half = channels // 2

    def places(span: float, count: int) -> np.ndarray:
        edge = span / diagonal * (count - 1) / count
        return _sincos(np.linspace(-edge, edge, count), half)

    weight = POSITION_WEIGHT
    across = jnp.broadcast_to(weight * places(width, columns), (rows, columns, half))
    down = jnp.broadcast_to(weight * places(height, rows)[:, None], (rows, columns, half))
    return x + jnp.concatenate([across, down], axis=-1).astype(x.dtype)


class ResidualUnit(nnx.Module):
    """Two convolutions; the shortcut carries relu(x), as the released weights expect."""

    def __init__(self, features: int, *, rngs: nnx.Rngs):
        self.conv1 = conv(features, features, 3, rngs=rngs)
        self.conv2 = conv(features, features, 3, rngs=rngs)

    def __call__(self, x: Float[Array, "F Y X D"]) -> Float[Array, "F Y X D"]:
        """Keeps the shape."""
        x = jax.nn.relu(x)
        return self.conv2(jax.nn.relu(self.conv1(x))) + x


class Fusion(nnx.Module):
    """Adds a finer map to a coarser one, and resizes the sum."""

    def __init__(self, features: int, *, finer: bool, rngs: nnx.Rngs):
        self.unit1 = ResidualUnit(features, rngs=rngs) if finer else None
        self.unit2 = ResidualUnit(features, rngs=rngs)
        self.out_conv = conv(features, features, 1, rngs=rngs)

    def __call__(
        self, x: Float[Array, "F Y X D"], finer: Float[Array, "F Y X D"] | None, size
    ) -> Float[Array, "F Y2 X2 D"]:
        """Fuses `x` with `finer` (of the same shape) and resizes to `size`, rows and columns."""
        if finer is not None:
            x = x + self.unit1(finer)
        return self.out_conv(upsample(self.unit2(x), *size))


class DPTHead(nnx.Module):
    """Four layers of patch tokens, brought to four resolutions and fused from the coarsest on."""

    def __init__(self, config: VGGTConfig, sizes: DPTConfig, outputs: int, *, rngs: nnx.Rngs):
        self.config = config
        width, features = 2 * config.embed_dim, sizes.features
        c1, c2, c3, c4 = sizes.out_channels
        self.norm = layer_norm(width, 1e-5, rngs=rngs)
        self.project1 = conv(width, c1, 1, rngs=rngs)
        self.project2 = conv(width, c2, 1, rngs=rngs)
        self.project3 = conv(width, c3, 1, rngs=rngs)
        self.project4 = conv(width, c4, 1, rngs=rngs)
        self.resize1 = Spread(c1, 4, rngs=rngs)
        self.resize2 = Spread(c2, 2, rngs=rngs)
        self.resize4 = conv(c4, c4, 3, stride=2, rngs=rngs)
        self.layer1 = conv(c1, features, 3, bias=False, rngs=rngs)
        self.layer2 = conv(c2, features, 3, bias=False, rngs=rngs)
        self.layer3 = conv(c3, features, 3, bias=False, rngs=rngs)
        self.layer4 = conv(c4, features, 3, bias=False, rngs=rngs)
        self.fuse1 = Fusion(features, finer=True, rngs=rngs)
        self.fuse2 = Fusion(features, finer=True, rngs=rngs)
        self.fuse3 = Fusion(features, finer=True, rngs=rngs)
        self.fuse4 = Fusion(features, finer=False, rngs=rngs)
        self.output1 = conv(features, features // 2, 3, rngs=rngs)
        self.output2 = conv(features // 2, LAST_CHANNELS, 3, rngs=rngs)
        self.output3 = conv(LAST_CHANNELS, outputs, 1, rngs=rngs)

    def __call__(
        self, tokens: Sequence[Float[Array, "B V P 2C"]], image_size: tuple[int, int]
    ) -> Float[Array, "B V H W O"]:
        """Raw predictions (float32) for every pixel, before any activation.

        Args:
          tokens: four layers of the aggregator, the shallowest first.
          image_size: H and W of the images.
        """
        # As the official code does it; exponentials follow.
        return in_float32(self)._raw([x.astype(jnp.float32) for x in tokens], image_size)

    def _raw(self, tokens, image_size) -> Float[Array, "B V H W O"]:
        grid = self.config.grid(*image_size)
        maps = [self._patches(x, grid) for x in tokens]
        x = add_positions(
            upsample(self._fuse(*self._levels(maps, image_size)), *image_size), image_size
        )
        x = self.output3(jax.nn.relu(self.output2(x)))
        return x.reshape(*tokens[0].shape[:2], *x.shape[1:])

    def _patches(self, tokens: Float[Array, "B V P 2C"], grid) -> Float[Array, "F Y X 2C"]:
        """The normed patch tokens as a map."""
        x = self.norm(tokens[:, :, self.config.special_tokens :])
        return x.reshape(-1, *grid, x.shape[-1])

    def _levels(self, maps, image_size) -> list[Float[Array, "F Y X D"]]:
        """Maps at 4, 2, 1 and 1/2 times the resolution of the patches, all `features` wide."""
        one, two, three, four = maps
        one = self.resize1(add_positions(self.project1(one), image_size))
        two = self.resize2(add_positions(self.project2(two), image_size))
        three = add_positions(self.project3(three), image_size)
        four = self.resize4(add_positions(self.project4(four), image_size))
        return [self.layer1(one), self.layer2(two), self.layer3(three), self.layer4(four)]

    def _fuse(self, one, two, three, four) -> Float[Array, "F Y X D"]:
        """Fuses the maps from the coarsest to the finest, to 8 times the patches' resolution."""
        x = self.fuse4(four, None, three.shape[1:3])
        x = self.fuse3(x, three, two.shape[1:3])
        x = self.fuse2(x, two, one.shape[1:3])
        x = self.fuse1(x, one, (2 * one.shape[1], 2 * one.shape[2]))
        return self.output1(x)


def _confidence(raw: Float[Array, "*axes"]) -> Float[Array, "*axes"]:
    """From 1 upwards."""
    return 1 + jnp.exp(raw)


class DepthHead(DPTHead):
    """Depth of every pixel."""

    def __init__(self, config: VGGTConfig, *, rngs: nnx.Rngs):
        super().__init__(config, config.depth_head, 2, rngs=rngs)

    def __call__(self, tokens, image_size):
        """Depth [B, V, H, W, 1] (positive, in the model's units) and confidence [B, V, H, W]."""
        raw = super().__call__(tokens, image_size)
        return jnp.exp(raw[..., :-1]), _confidence(raw[..., -1])


class PointHead(DPTHead):
    """The point in the first view's frame that every pixel shows."""

    def __init__(self, config: VGGTConfig, *, rngs: nnx.Rngs):
        super().__init__(config, config.point_head, 4, rngs=rngs)

    def __call__(self, tokens, image_size):
        """Points [B, V, H, W, 3] (in the model's units) and confidence [B, V, H, W]."""
        raw = super().__call__(tokens, image_size)
        points = jnp.sign(raw[..., :-1]) * jnp.expm1(jnp.abs(raw[..., :-1]))
        return points, _confidence(raw[..., -1])
