"""Which mesh, rows, accumulation and rematerialisation to take on so many devices."""

import itertools
from collections.abc import Callable, Iterator, Sequence

from jaxvlm.errors import UserError
from jaxvlm.planning.compiled import StepBytes
from jaxvlm.planning.estimate import USABLE, Estimate, estimate, fits
from jaxvlm.planning.state_bytes import state_bytes
from jaxvlm.training.hardware import Accelerator
from jaxvlm.training.mesh import mesh_sizes

Compile = Callable[[object, tuple[int, int]], dict[str, StepBytes]]

# From what is fastest to what takes least memory.
REMAT = ("none", "dots", "full")
# Rows a device and micro-batch that are tried.
ROWS = (1, 2, 4, 8, 16)


def meshes(config, devices: int) -> list[tuple[int, int]]:
    """The mesh of a run, its axes `data` and `fsdp`, and those that hold less on each device.

    Raises:
      UserError: the configured axes do not make so many devices.
    """
    found = [mesh_sizes(config.mesh.data, config.mesh.fsdp, devices)]
    if (config.mesh.data, config.mesh.fsdp) != (-1, -1):
        return found
    held = sum(state_bytes(config, found[0][1]))
    for fsdp in (n for n in range(found[0][1] + 1, devices + 1) if devices % n == 0):
        less = sum(state_bytes(config, fsdp))
        if less < held:
            found.append((devices // fsdp, fsdp))
            held = less
    return found


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
    for offload in dict.fromkeys((config.optimizer.offload, "host")):
        for mesh, remat in itertools.product(meshes(config, devices), REMAT):
            setting = with_setting(config, remat, offload)
            resident = sum(state_bytes(setting, mesh[1]))
            if offload == "device" and resident > USABLE * device.memory:
                continue
            best = best_rows(setting, mesh, device, compiled)
            if best:
                return best
    return None


def best_rows(
    config,
    mesh: tuple[int, int],
    device: Accelerator,
    compiled: Compile,
    choices: Sequence[int] = ROWS,
) -> tuple[object, Estimate] | None:
    """As many rows a device and micro-batch as fit, or None: fewer micro-batches gather less.

    Args:
      config: whose rows x accumulation, the rows of an update, stand.
      mesh: sizes of its axes.
      device: what computes.
      compiled: see `recommend`.
      choices: numbers of rows to try, from the smallest.
    """
    best = None
    total = config.train.rows_per_device * config.train.accumulation
    for rows in (n for n in choices if total % n == 0):
        candidate = config.copy_and_resolve_references()
        candidate.train.rows_per_device, candidate.train.accumulation = rows, total // rows
        try:
            found = estimate(candidate, *mesh, compiled(candidate, mesh), device)
        except UserError:
            # What takes too much to compile, takes too much.
            if best is None:
                raise
            break
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
    for remat in REMAT[REMAT.index(train.remat) + 1 :]:
        yield f"--config.train.remat={remat}"
    if config.optimizer.offload == "device":
        yield "--config.optimizer.offload=host"
    if config.data.features.folder is None:
        yield "--config.data.features.folder=… (python -m jaxvlm.cache_features)"
    if config.data.row_sets > 1:
        yield f"--config.data.row_sets={config.data.row_sets - 1}"
    if config.data.row_length > config.text.max_length:
        yield f"--config.data.row_length={max(config.data.row_length // 2, config.text.max_length)}"
