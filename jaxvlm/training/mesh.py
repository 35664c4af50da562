"""The device mesh and the rule that says how a parameter is split over it."""

import math
from collections.abc import Container, Mapping

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxvlm.errors import UserError
from jaxvlm.models.partition import BATCH_AXES, WHOLE_BELOW, split_spec
from jaxvlm.training.hardware import MACHINE


def make_mesh(data: int, fsdp: int) -> Mesh:
    """A mesh with the axes `data` and `fsdp` over all devices; see `mesh_sizes`."""
    sizes = mesh_sizes(data, fsdp, jax.device_count())
    return jax.make_mesh(sizes, BATCH_AXES, axis_types=(AxisType.Auto,) * 2)


def mesh_sizes(data: int, fsdp: int, devices: int) -> tuple[int, int]:
    """The sizes of the axes `data` and `fsdp`, one of which may be -1: what is left.

    Where both are, parameters are split over the devices of one machine, whose links are fast, and
    copied among machines, which then only sum gradients.

    Raises:
      UserError: the axes do not multiply to the number of devices.
    """
    if data == fsdp == -1:
        share = max(n for n in range(1, min(devices, MACHINE) + 1) if devices % n == 0)
        return devices // share, share
    sizes = [data, fsdp]
    if -1 in sizes:
        known = max(data, fsdp)
        sizes[sizes.index(-1)] = devices // known if known > 0 else 0
    if min(sizes) < 1 or sizes[0] * sizes[1] != devices:
        raise UserError(
            f"mesh.data={data} x mesh.fsdp={fsdp} does not make {devices} devices; their product "
            "must, and -1 takes what is left"
        )
    return sizes[0], sizes[1]


def parameter_spec(path: str, shape: tuple[int, ...], size: int, learns: bool) -> PartitionSpec:
    """How one parameter is split over `size` devices: its longest axis that fits, or not at all.

    The first axis of stacked layers is never split, so that one layer can be gathered at a time.
    Every device encodes its own images: frozen VGGT, 1.8 GB, is better not sent around.
    """
    if math.prod(shape) < WHOLE_BELOW or (path.startswith("vision/") and not learns):
        return PartitionSpec()
    return split_spec(shape, size, 1 if is_stacked(path) else 0)


def is_stacked(path: str) -> bool:
    """Whether the parameter's first axis counts layers."""
    return any(part == "trunk" or part.endswith(("layers", "blocks")) for part in path.split("/"))


def shardings(
    leaves: Mapping[str, jax.ShapeDtypeStruct], mesh: Mesh, trained: Container[str] = ()
) -> dict[str, NamedSharding]:
    """The sharding of every parameter of a flat tree, of which those `trained` learn."""
    size = mesh.shape["fsdp"]
    return {
        path: NamedSharding(mesh, parameter_spec(path, leaf.shape, size, path in trained))
        for path, leaf in leaves.items()
    }


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows are split over both axes of the mesh."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))
