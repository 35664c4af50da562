"""What a run carries from update to update, created already sharded."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from jaxvlm.models.tree import pure
from jaxvlm.models.vlm import VLM, VLMConfig, abstract_vlm
from jaxvlm.paths import flatten
from jaxvlm.training.mesh import shardings
from jaxvlm.training.parameters import FROZEN, Group

Params = dict[str, Array]


class TrainState(NamedTuple):
    """Trained parameters and their optimiser state, as flat dicts by path.

    Attributes:
      step: updates made.
      params: float32 masters of the trainable parameters.
      optimizer: optax state.
    """

    step: Array
    params: Params
    optimizer: optax.OptState


def abstract_parameters(config: VLMConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Every parameter of the model by path, float32."""
    return flatten(pure(abstract_vlm(config)))


def initial_parameters(
    config: VLMConfig,
    groups: Mapping[str, Group],
    wanted: set[str],
    frozen_dtype: jnp.dtype,
    seed: int,
    mesh: Mesh,
) -> Params:
    """Random values of the parameters in `wanted`, each born with its sharding.

    Args:
      config: sizes.
      groups: frozen leaves are stored in `frozen_dtype`, the others in float32.
      wanted: paths to initialise; no memory is taken for the others.
      frozen_dtype: dtype of the computation.
      seed: of all values.
      mesh: devices.
    """
    shapes = {p: leaf for p, leaf in abstract_parameters(config).items() if p in wanted}

    def init() -> Params:
        leaves = flatten(pure(VLM(config, rngs=nnx.Rngs(seed))))
        return {
            path: leaves[path].astype(frozen_dtype if groups[path].name == FROZEN else jnp.float32)
            for path in shapes
        }

    return jax.jit(init, out_shardings=shardings(shapes, mesh))()


def new_state(params: Params, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """The state before the first update; moments are split like their parameters."""
    placed = optimizer_shardings(optimizer, params, mesh)
    state = jax.jit(optimizer.init, out_shardings=placed)(params)
    step = jax.device_put(jnp.zeros([], jnp.int32), NamedSharding(mesh, PartitionSpec()))
    return TrainState(step, params, state)


def optimizer_shardings(optimizer: optax.GradientTransformation, params: Params, mesh: Mesh):
    """Shardings of the optimiser state: a parameter's for its moments, whole for counters."""
    placed = {path: leaf.sharding for path, leaf in params.items()}
    whole = NamedSharding(mesh, PartitionSpec())

    def place(path, leaf):
        name = getattr(path[-1], "key", None)
        return placed[name] if name in placed and leaf.ndim else whole

    return jax.tree_util.tree_map_with_path(place, jax.eval_shape(optimizer.init, params))
