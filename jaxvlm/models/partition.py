"""How arrays lie on a mesh with the axes `data` and `fsdp`; without a mesh all stays as it is.

Rows are split over both axes, parameters over `fsdp`. A layer's parameters are gathered where the
layer computes and nowhere else, and their gradients are split again at once (fully sharded data
parallelism, as in ZeRO stage 3, arXiv 1910.02054).
"""

import math
from typing import TypeVar

import jax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import AbstractMesh, PartitionSpec
from jaxtyping import Array

BATCH_AXES = ("data", "fsdp")
# The name that parameters gathered for a layer have for rematerialisation: they are never kept.
GATHERED = "gathered"
# Smaller leaves are kept whole on every device: splitting them saves nothing and costs messages.
WHOLE_BELOW = 2**16

Tree = TypeVar("Tree")


def batch_sharded(x: Array) -> Array:
    """Constrains axis 0 of `x` to the mesh axes `data` and `fsdp`, the other axes unsplit.

    Without this the partitioner is free to replicate the residual stream on every device.
    """
    if _mesh() is None:
        return x
    spec = PartitionSpec(BATCH_AXES, *[None] * (x.ndim - 1))
    return jax.lax.with_sharding_constraint(x, spec)


def split_spec(shape: tuple[int, ...], size: int, first: int = 0) -> PartitionSpec:
    """The longest axis, from `first` on, that `size` divides is split over `fsdp`."""
    fitting = [a for a in range(first, len(shape)) if shape[a] % size == 0]
    if size == 1 or not fitting:
        return PartitionSpec()
    longest = max(fitting, key=lambda a: (shape[a], a))
    return PartitionSpec(*[None] * longest, "fsdp")


def gathered(tree: Tree) -> Tree:
    """Parameters whole on every device, to compute with now.

    Gradients come back split: the transpose of a plain constraint would leave them whole.
    """
    mesh = _mesh()
    if mesh is None or mesh.shape["fsdp"] == 1:
        return tree
    return jax.tree.map(lambda leaf: checkpoint_name(_gather(leaf), GATHERED), tree)


def _whole(leaf: Array) -> Array:
    return jax.lax.with_sharding_constraint(leaf, PartitionSpec())


_gather = jax.custom_vjp(_whole)


def _forward(leaf: Array) -> tuple[Array, None]:
    # Not by `_gather`: for rematerialisation that would be another value, which has no name.
    return _whole(leaf), None


def _backward(_: None, gradient: Array) -> tuple[Array]:
    mesh = _mesh()
    if math.prod(gradient.shape) < WHOLE_BELOW:
        return (gradient,)
    spec = split_spec(gradient.shape, mesh.shape["fsdp"])
    return (jax.lax.with_sharding_constraint(gradient, spec),)


_gather.defvjp(_forward, _backward)


def _mesh() -> AbstractMesh | None:
    mesh = jax.sharding.get_abstract_mesh()
    whole = not mesh.empty and set(BATCH_AXES) <= set(mesh.axis_names)
    # Inside a shard_map each device computes by itself.
    return mesh if whole and not mesh.manual_axes else None
