"""What a run carries from update to update, created already sharded."""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from jaxvlm.models.tree import pure
from jaxvlm.models.vlm import VLM, VLMConfig, abstract_vlm
from jaxvlm.paths import flatten
from jaxvlm.training.mesh import shardings
from jaxvlm.training.optimizer import Optimizer, Params, States, on_host
from jaxvlm.training.parameters import Group, trainable


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
    return dict(_abstract_parameters(config))


@functools.cache
def _abstract_parameters(config: VLMConfig) -> dict[str, jax.ShapeDtypeStruct]:
    return flatten(pure(abstract_vlm(config)))


def placed_parameters(
    config: VLMConfig, groups: Mapping[str, Group], frozen_dtype: jnp.dtype, mesh: Mesh
) -> dict[str, jax.ShapeDtypeStruct]:
    """Every parameter by path as a run holds it: frozen ones in `frozen_dtype`, the others in
    float32, each with its sharding.
    """
    shapes, learning = abstract_parameters(config), trainable(groups)
    placed = shardings(shapes, mesh, learning)
    return {
        path: jax.ShapeDtypeStruct(
            leaf.shape, jnp.float32 if path in learning else frozen_dtype, sharding=placed[path]
        )
        for path, leaf in shapes.items()
    }


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
    likes = placed_parameters(config, groups, frozen_dtype, mesh)
    likes = {path: like for path, like in likes.items() if path in wanted}

    def init() -> Params:
        leaves = flatten(pure(VLM(config, rngs=nnx.Rngs(seed))))
        return {path: leaves[path].astype(like.dtype) for path, like in likes.items()}

    return jax.jit(init, out_shardings={path: like.sharding for path, like in likes.items()})()


def new_state(params: Params, optimizer: Optimizer, mesh: Mesh) -> TrainState:
    """The state before the first update; moments are split like their parameters."""
    placed = optimizer_shardings(optimizer, params, mesh)
    state = jax.jit(optimizer.init, out_shardings=placed)(params)
    step = jax.device_put(np.zeros([], np.int32), NamedSharding(mesh, PartitionSpec()))
    return TrainState(step, params, state)


def abstract_state(
    params: Mapping[str, jax.ShapeDtypeStruct], optimizer: Optimizer, mesh: Mesh
) -> TrainState:
    """The shapes, dtypes and shardings of `new_state`, for a checkpoint to fill."""
    placed = optimizer_shardings(optimizer, params, mesh)
    state = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        jax.eval_shape(optimizer.init, params),
        placed,
    )
    whole = NamedSharding(mesh, PartitionSpec())
    return TrainState(jax.ShapeDtypeStruct([], jnp.int32, sharding=whole), params, state)


def optimizer_shardings(optimizer: Optimizer, params: Params, mesh: Mesh) -> States:
    """Shardings of the optimiser's states: a parameter's for its moments, whole for counters."""
    whole = NamedSharding(mesh, PartitionSpec())

    def place(path, leaf):
        param = params[path[0].key]
        placed = param.sharding if leaf.shape == param.shape else whole
        host = optimizer.on_host and on_host(leaf)
        return placed.with_memory_kind("pinned_host") if host else placed

    return jax.tree_util.tree_map_with_path(place, jax.eval_shape(optimizer.init, params))
