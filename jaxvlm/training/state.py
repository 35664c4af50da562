"""What a run carries from update to update, created already sharded."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from jaxvlm.models.tree import pure
from jaxvlm.models.vlm import VLM, VLMConfig, abstract_vlm
from jaxvlm.paths import flatten
from jaxvlm.training.mesh import shardings
from jaxvlm.training.optimizer import Optimizer, Params, States, on_host
from jaxvlm.training.parameters import FROZEN, Group, trainable


class TrainState(NamedTuple):
    """Trained parameters and their optimiser state, as flat dicts by path.

    Attributes:
      step: updates made.
      params: float32 masters of the trainable parameters.
      optimizer: the optimiser's state of each parameter.
    """

    step: Array
    params: Params
    optimizer: States


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

    placed = shardings(shapes, mesh, trainable(groups))
    return jax.jit(init, out_shardings=placed)()


def new_state(params: Params, optimizer: Optimizer, mesh: Mesh) -> TrainState:
    """The state before the first update; moments are split like their parameters."""
    placed = optimizer_shardings(optimizer, params, mesh)
    state = jax.jit(optimizer.init, out_shardings=placed)(params)
    step = jax.device_put(jnp.zeros([], jnp.int32), NamedSharding(mesh, PartitionSpec()))
    return TrainState(step, params, state)


def optimizer_shardings(optimizer: Optimizer, params: Params, mesh: Mesh) -> States:
    """Shardings of the optimiser's states: a parameter's for its moments, whole for counters."""
    whole = NamedSharding(mesh, PartitionSpec())

    def place(path, leaf):
        placed = params[path[0].key].sharding if leaf.ndim else whole
        host = optimizer.on_host and on_host(leaf)
        return placed.with_memory_kind("pinned_host") if host else placed

    return jax.tree_util.tree_map_with_path(place, jax.eval_shape(optimizer.init, params))
