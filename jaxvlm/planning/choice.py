"""Which mesh, rows, accumulation and rematerialisation to take on so many devices."""

from collections.abc import Callable, Iterator

from jaxvlm.errors import UserError
from jaxvlm.planning.compiled import StepBytes
from jaxvlm.planning.estimate import Estimate, estimate, fits
from jaxvlm.planning.state_bytes import state_bytes
from jaxvlm.training.hardware import MACHINE, Accelerator

Compile = Callable[[object, tuple[int, int]], dict[str, StepBytes]]

# From what is fastest to what takes least memory.
_REMAT = ("none", "dots", "full")
# Rows a device and micro-batch that are tried.
_ROWS = (1, 2, 4, 8, 16)
# The share of memory that what stays may take, the rest being for activations.
_STATE_SHARE = 0.6


def mesh_for(config, devices: int, device: Accelerator) -> tuple[int, int]:
    """The mesh's axes `data` and `fsdp`: as configured, else as chosen for the traffic.

    Parameters are split over one machine, whose links are fast, and copied among machines, which
    sum gradients only; over more machines where they would not fit.

    Raises:
      UserError: the configured axes do not make so many devices.
    """
    sizes = config.mesh.data, config.mesh.fsdp
    if sizes != (1, -1):
        known = max(sizes)
        data, fsdp = (devices // known if size == -1 else size for size in sizes)
        if data * fsdp != devices:
            raise UserError(
                f"mesh.data={sizes[0]} x mesh.fsdp={sizes[1]} does not make {devices} devices"
            )
        return data, fsdp
    least = min(devices, MACHINE)
    shares = [n for n in range(least, devices + 1) if devices % n == 0]
    held = {fsdp: sum(state_bytes(config, fsdp)) for fsdp in shares}
    enough = [fsdp for fsdp in shares if held[fsdp] <= _STATE_SHARE * device.memory]
    fsdp = enough[0] if enough else min(shares, key=lambda fsdp: (held[fsdp], fsdp))
    return devices // fsdp, fsdp


def with_setting(config, remat: str, offload: str):
    """A copy of a configuration with another setting."""
    config = config.copy_and_resolve_references()
    config.train.remat, config.optimizer.offload = remat, offload
    return config


def recommend(
    config, devices: int, device: Accelerator, compiled: Compile
) -> tuple[object, Estimate] | None:
    """The fastest setting that fits and leaves the update as it is, or None.

    Rows of an update stay as many: what a device takes at once is taken from the accumulation.

    Args:
      config: whose rows x accumulation stand.
      devices: how many.
      device: of which kind.
      compiled: gives the bytes of a configuration's steps on a mesh.
    """
    mesh = mesh_for(config, devices, device)
    for offload in dict.fromkeys((config.optimizer.offload, "host")):
        for remat in _REMAT:
            best = best_rows(with_setting(config, remat, offload), mesh, device, compiled)
            if best:
                return best
    return None


def best_rows(
    config, mesh: tuple[int, int], device: Accelerator, compiled: Compile
) -> tuple[object, Estimate] | None:
    """As many rows a device and micro-batch as fit, or None: fewer micro-batches gather less.

    Args:
      config: whose rows x accumulation, the rows of an update, stand.
      mesh: sizes of its axes.
      device: what computes.
      compiled: see `recommend`.
    """
    best = None
    total = config.train.rows_per_device * config.train.accumulation
    for rows in (n for n in _ROWS if total % n == 0):
        candidate = config.copy_and_resolve_references()
        candidate.train.rows_per_device, candidate.train.accumulation = rows, total // rows
        found = estimate(candidate, *mesh, compiled(candidate, mesh), device)
        if not fits(found, device):
            break
        best = candidate, found
    return best


def smaller(config) -> Iterator[str]:
    """Settings that take less memory, the mildest first, as flags."""
    train = config.train
    if train.rows_per_device > 1:
        rows = next(
            n for n in range(2, train.rows_per_device + 1) if train.rows_per_device % n == 0
        )
        yield (
            f"--config.train.rows_per_device={train.rows_per_device // rows} "
            f"--config.train.accumulation={train.accumulation * rows}"
        )
    for remat in _REMAT[_REMAT.index(train.remat) + 1 :]:
        yield f"--config.train.remat={remat}"
    if config.optimizer.offload == "device":
        yield "--config.optimizer.offload=host"
    if config.data.features.folder is None:
        yield "--config.data.features.folder=… (python -m jaxvlm.cache_features)"
    if config.data.row_sets > 1:
        yield f"--config.data.row_sets={config.data.row_sets - 1}"
    if config.data.row_length > config.text.max_length:
        yield f"--config.data.row_length={max(config.data.row_length // 2, config.text.max_length)}"
