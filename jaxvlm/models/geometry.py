"""The geometry head: cameras and depths of the views become tokens of the language model.

Axes: B batch (image sets), V views, I geometry numbers a view, O output width, G geometry tokens.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int32

from jaxvlm.errors import UserError
from jaxvlm.models.flops import Flops

MODES = ("per_view", "pooled")


@dataclasses.dataclass(frozen=True)
class GeometryConfig:
    """What becomes a token.

    `"per_view"` makes one token of each view. `"pooled"` makes `num_tokens` copies of one token of
    the views' mean, as the original does.
    """

    mode: str = "per_view"
    in_dim: int = 37
    out_dim: int = 2560
    num_tokens: int = 8

    def __post_init__(self):
        if self.mode not in MODES:
            raise UserError(f"geometry.mode={self.mode!r} is unknown, expected one of {MODES}")

    def tokens(self, num_views: int) -> int:
        """G, the number of tokens for a set of `num_views` views."""
        return num_views if self.mode == "per_view" else self.num_tokens

    def flops(self, views: float) -> Flops:
        """Operations for so many views."""
        entry = 2.0 * views * self.in_dim * self.out_dim
        return Flops(2.0 * views * self.out_dim**2, entry=entry)


class GeometryHead(nnx.Module):
    """Linear, SiLU, Linear.

    The first map computes in the dtype that parameters and features promote to, for metres and
    rotations rounded to bfloat16 would be off by centimetres; the second in the parameters' own.
    """

    def __init__(self, config: GeometryConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.in_proj = nnx.Linear(config.in_dim, config.out_dim, rngs=rngs)
        self.out_proj = nnx.Linear(config.out_dim, config.out_dim, rngs=rngs)

    def __call__(
        self, features: Float[Array, "B V I"], view_counts: Int32[Array, "B"] | None = None
    ) -> Float[Array, "B G O"]:
        """Tokens for the language model.

        Args:
          features: the views' numbers; the views beyond a set's count are padding.
          view_counts: how many views each set has; None if all V. Per view, the padding's tokens
            come out too (the sequence has no place for them); pooled, the mean leaves it out.
        """
        pooled = self.config.mode == "pooled"
        if pooled:
            features = _mean(features, view_counts)
        hidden = jax.nn.silu(self.in_proj(features)).astype(self.out_proj.kernel[...].dtype)
        tokens = self.out_proj(hidden)
        return jnp.repeat(tokens, self.config.num_tokens, axis=1) if pooled else tokens


def _mean(
    features: Float[Array, "B V I"], view_counts: Int32[Array, "B"] | None
) -> Float[Array, "B 1 I"]:
    """The mean over each set's views; zero for a set without views."""
    if view_counts is None:
        return features.mean(axis=1, keepdims=True)
    real = jnp.arange(features.shape[1]) < view_counts[:, None]
    total = jnp.where(real[..., None], features, 0).sum(axis=1, keepdims=True)
    return total / jnp.maximum(view_counts, 1).astype(features.dtype)[:, None, None]
