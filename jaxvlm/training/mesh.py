"""The device mesh and the rule that says how a parameter is split over it."""

from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxvlm.errors import UserError
from jaxvlm.models.partition import BATCH_AXES

# Smaller leaves are kept whole on every device: splitting them saves nothing and costs messages.
_WHOLE_BELOW = 2**16


def make_mesh(data: int, fsdp: int) -> Mesh:
    """A mesh with the axes `data` and `fsdp` over all devices; one of them may be -1.

    Raises:
      UserError: the axes do not multiply to the number of devices.
    """
    devices = jax.device_count()
    sizes = [data, fsdp]
    if sizes.count(-1) == 1:
        known = max(data, fsdp)
        sizes[sizes.index(-1)] = devices // known if known > 0 else 0
    if min(sizes) < 1 or sizes[0] * sizes[1] != devices:
        raise UserError(f"mesh.data={data} x mesh.fsdp={fsdp} does not make {devices} devices")
    return jax.make_mesh(tuple(sizes), BATCH_AXES, axis_types=(AxisType.Auto,) * 2)


def parameter_spec(path: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """How one parameter is split: its longest axis that `fsdp` divides; small ones stay whole.

    The first axis of stacked layers is never split, so that one layer can be gathered at a time.
    """
    size = mesh.shape["fsdp"]
    if size == 1 or np.prod(shape) < _WHOLE_BELOW:
        return PartitionSpec()
    first = 1 if is_stacked(path) else 0
    fitting = [a for a in range(first, len(shape)) if shape[a] % size == 0]
    if not fitting:
        return PartitionSpec()
    longest = max(fitting, key=lambda a: (shape[a], a))
    return PartitionSpec(*[None] * longest, "fsdp")


def is_stacked(path: str) -> bool:
    """Whether the parameter's first axis counts layers."""
    return any(part in ("layers", "trunk") or part.endswith("blocks") for part in path.split("/"))


def shardings(leaves: Mapping[str, jax.ShapeDtypeStruct], mesh: Mesh) -> dict[str, NamedSharding]:
    """The sharding of every parameter of a flat tree; frozen vision weights are replicated."""
    return {
        path: NamedSharding(
            mesh,
            PartitionSpec()
            if path.startswith("vision/")
            else parameter_spec(path, leaf.shape, mesh),
        )
        for path, leaf in leaves.items()
    }


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows are split over both axes of the mesh."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))
