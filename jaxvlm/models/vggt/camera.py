"""VGGT's camera head: refines one pose encoding a view, four times (arXiv:2503.11651).

Axes: B batch, V views, P tokens a view, C width of the aggregator, I iterations.
A pose encoding is translation 3, quaternion 4 (x y z w), field of view 2 (vertical, horizontal,
radians), of the camera-from-world transform in the first view's frame.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxvlm.models.tree import in_float32
from jaxvlm.models.vggt.blocks import TORCH_INIT, Block, Mlp, layer_norm, run, stack
from jaxvlm.models.vggt.config import VGGTConfig

ITERATIONS = 4
ENCODING = 9


def activate(encoding: Float[Array, "*axes 9"]) -> Float[Array, "*axes 9"]:
    """Translation and quaternion as they are, the field of view not below zero."""
    return jnp.concatenate([encoding[..., :7], jax.nn.relu(encoding[..., 7:])], axis=-1)


class CameraHead(nnx.Module):
    """Predicts pose encodings from the camera tokens of the last layer."""

    def __init__(self, config: VGGTConfig, *, rngs: nnx.Rngs):
        width = 2 * config.embed_dim

        def block(rngs: nnx.Rngs) -> Block:
            return Block(
                width,
                config.camera_heads,
                mlp_ratio=config.mlp_ratio,
                layer_scale=config.init_values,
                rngs=rngs,
            )

        self.token_norm = layer_norm(width, 1e-5, rngs=rngs)
        self.empty_pose_tokens = nnx.Param(jnp.zeros((1, 1, ENCODING)))
        self.embed_pose = nnx.Linear(ENCODING, width, kernel_init=TORCH_INIT, rngs=rngs)
        self.modulation = nnx.Linear(width, 3 * width, kernel_init=TORCH_INIT, rngs=rngs)
        self.adaptive_norm = layer_norm(width, 1e-6, affine=False, rngs=rngs)
        self.trunk = stack(block, config.camera_trunk_depth, rngs)
        self.trunk_norm = layer_norm(width, 1e-5, rngs=rngs)
        self.pose_branch = Mlp(width, width // 2, ENCODING, kernel_init=TORCH_INIT, rngs=rngs)

    def __call__(
        self, tokens: Float[Array, "B V P 2C"], view_counts: Int[Array, " B"] | None = None
    ) -> Float[Array, "I B V 9"]:
        """The activated encoding (float32) after each iteration; the last is the prediction.

        An iteration's gradient does not reach the iterations before it: the encoding it starts
        from is detached. Views at or behind `view_counts` are padding, unseen by the real ones.
        """
        # As the official code does it: a pose adds up over iterations, and its errors with it.
        return in_float32(self)._poses(tokens.astype(jnp.float32), view_counts)

    def _poses(self, tokens: Float[Array, "B V P 2C"], view_counts) -> Float[Array, "I B V 9"]:
        camera = self.token_norm(tokens[:, :, 0])

        def iterate(carry, _):
            given, total = carry
            delta = self._delta(camera, given.astype(camera.dtype), view_counts)
            total = jax.lax.stop_gradient(total) + delta.astype(jnp.float32)
            return (jax.lax.stop_gradient(total), total), activate(total)

        shape = (*camera.shape[:2], ENCODING)
        empty = jnp.broadcast_to(self.empty_pose_tokens[...].astype(jnp.float32), shape)
        start = (empty, jnp.zeros(shape, jnp.float32))
        return jax.lax.scan(iterate, start, length=ITERATIONS)[1]

    def _delta(self, camera: Float[Array, "B V 2C"], given: Float[Array, "B V 9"], view_counts):
        """The correction [B, V, 9] to the encoding `given`, which modulates the tokens."""
        modulation = self.modulation(jax.nn.silu(self.embed_pose(given)))
        shift, scale, gate = jnp.split(modulation, 3, axis=-1)
        x = gate * (self.adaptive_norm(camera) * (1 + scale) + shift) + camera
        return self.pose_branch(self.trunk_norm(run(self.trunk, x, lengths=view_counts)))
