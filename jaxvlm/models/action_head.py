"""The action head: a box in metres from the hidden state of one token.

Axes: D width of the language model, F hidden width, B rows, A actions a row, V views.

A box is nine numbers: centre 3, extent 3 and normal 3, metres in the first camera's frame
(`jaxvlm/data/frames.py`).
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int32

# Numbers of a box.
BOX = 9
CENTRE, EXTENT, NORMAL = slice(0, 3), slice(3, 6), slice(6, 9)
# Metres that a point must lie in front of a camera to be seen by it.
NEAREST = 0.1


@dataclasses.dataclass(frozen=True)
class ActionHeadConfig:
    """Sizes: the language model's width, and that of the layer between."""

    in_dim: int
    ffn_dim: int


class ActionHead(nnx.Module):
    """Linear, SiLU, Linear; extents are made positive and normals of length 1."""

    def __init__(self, config: ActionHeadConfig, *, rngs: nnx.Rngs):
        self.in_proj = nnx.Linear(config.in_dim, config.ffn_dim, rngs=rngs)
        # In bfloat16 what is 4 to 8 m away would be known to 3 cm.
        self.out_proj = nnx.Linear(config.ffn_dim, BOX, dtype=jnp.float32, rngs=rngs)

    def __call__(self, hidden: Float[Array, "*A D"]) -> Float[Array, "*A 9"]:
        """Boxes in float32."""
        raw = self.out_proj(jax.nn.silu(self.in_proj(hidden)))
        normal = raw[..., NORMAL]
        # The square root has no gradient at 0.
        length = jnp.sqrt((normal**2).sum(-1, keepdims=True) + 1e-12)
        return jnp.concatenate(
            [raw[..., CENTRE], jax.nn.softplus(raw[..., EXTENT]), normal / length], axis=-1
        )


def projected(
    points: Float[Array, "B A 3"], views: Float[Array, "B A V 37"]
) -> tuple[Float[Array, "B A V 2"], Float[Array, "B A V"]]:
    """Where points lie in views, as fractions of the images' sides, and at which depth in metres.

    Args:
      points: in the frame of the views' poses.
      views: geometry features with the convention "first_camera" (`jaxvlm/data/geometry.py`).
    """
    rotation = views[..., :9].reshape(*views.shape[:-1], 3, 3)
    intrinsics = views[..., 12:21].reshape(rotation.shape)
    offset = points[..., None, :] - views[..., 9:12]
    # Products of few numbers, in full precision on every device.
    local = (rotation * offset[..., None]).sum(-2)
    pixel = (intrinsics * local[..., None, :]).sum(-1)
    depth = local[..., 2]
    return pixel[..., :2] / jnp.maximum(depth, NEAREST)[..., None], depth


def seen(
    points: Float[Array, "B A 3"],
    views: Float[Array, "B A V 37"],
    counts: Int32[Array, "B A"],
) -> Bool[Array, "B A V"]:
    """Which of the first `counts` views look at the points; what stands before them is not asked.

    A view without pose or intrinsics looks at nothing.
    """
    at, depth = projected(points, views)
    inside = ((at >= 0) & (at < 1)).all(-1)
    there = jnp.arange(views.shape[-2]) < counts[..., None]
    return there & inside & (depth > NEAREST) & (jnp.abs(views[..., 12:21]).sum(-1) > 0)
