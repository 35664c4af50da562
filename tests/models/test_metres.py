"""Numbers in metres are not rounded where a model computes in bfloat16."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxvlm.models.action_head import ActionHead, ActionHeadConfig
from jaxvlm.models.geometry import GeometryConfig, GeometryHead


def halved(module):
    """The module with its parameters in bfloat16."""
    graph, state = nnx.split(module)
    return nnx.merge(graph, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), state))


def test_the_action_head_tells_centimetres_apart():
    head = halved(ActionHead(ActionHeadConfig(16, 16), rngs=nnx.Rngs(0)))
    hidden = jax.random.normal(jax.random.key(0), (8, 16), jnp.bfloat16)
    boxes = head(hidden)
    assert boxes.dtype == jnp.float32
    # Nearly no float32 is a bfloat16.
    centres = np.asarray(boxes[:, :3])
    assert (centres != centres.astype(jnp.bfloat16).astype(np.float32)).mean() > 0.9


def test_the_geometry_head_sees_a_centimetre():
    head = halved(GeometryHead(GeometryConfig(out_dim=64), rngs=nnx.Rngs(0)))
    here = jnp.zeros((1, 1, 37)).at[0, 0, 9].set(6.0)
    # Rounded to bfloat16 both are 6 m.
    assert jnp.bfloat16(6.01) == 6
    there = here.at[0, 0, 9].set(6.01)
    assert head(here).dtype == jnp.bfloat16
    assert (head(here) != head(there)).any()
