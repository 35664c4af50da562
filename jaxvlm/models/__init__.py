"""Models as Flax NNX modules; importing the package sets NNX to plain pytrees.

Without graph mode a module is an ordinary pytree: it goes through `jax.jit`, `jax.grad`,
`jax.lax.scan` and `jax.checkpoint` as it is.
"""

from flax import nnx

nnx.set_graph_mode(False)
nnx.set_graph_updates(False)
