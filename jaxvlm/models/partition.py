"""Keeps activations split over the batch axes when a mesh is set; does nothing otherwise."""

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array

BATCH_AXES = ("data", "fsdp")


def batch_sharded(x: Array) -> Array:
    """Constrains axis 0 of `x` to the mesh axes `data` and `fsdp`, the other axes unsplit.

    Without this the partitioner is free to replicate the residual stream on every device.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or not set(BATCH_AXES) <= set(mesh.axis_names):
        return x
    spec = PartitionSpec(BATCH_AXES, *[None] * (x.ndim - 1))
    return jax.lax.with_sharding_constraint(x, spec)
