"""What a run asks the planner: how many rows fit, and what would take less memory."""

import dataclasses

import jax
import numpy as np
import psutil
from jax.experimental import multihost_utils

from jaxvlm.config import AUTO
from jaxvlm.console import say
from jaxvlm.errors import UserError, first_line
from jaxvlm.planning.choice import best_rows, smaller
from jaxvlm.planning.compiled import cuda_compiles, in_a_child
from jaxvlm.training.hardware import Accelerator, by_kind, gib
from jaxvlm.training.mesh import make_mesh

# The share of a device's memory that the launchers give JAX.
_GIVEN = 0.9


def with_rows(config):
    """The configuration with a number for `train.rows_per_device="auto"`, chosen for these devices.

    An update has `train.accumulation` rows a device, as with one row a micro-batch; they are spread
    over fewer micro-batches where more fit. All processes take the first one's choice.

    Raises:
      UserError: not even one row fits, or the step does not compile.
    """
    if config.train.rows_per_device != AUTO:
        return config
    config = config.copy_and_resolve_references()
    with config.ignore_type():
        config.train.rows_per_device = 1
    chosen = _chosen_rows(config) if jax.process_index() == 0 else 0
    if jax.process_count() > 1:
        chosen = int(multihost_utils.broadcast_one_to_all(np.int32(chosen)))
    config.train.accumulation //= chosen
    config.train.rows_per_device = chosen
    return config


def _chosen_rows(config) -> int:
    mesh = tuple(make_mesh(config.mesh.data, config.mesh.fsdp).shape.values())
    device = this_device()
    target = device.name if by_kind(device.kind) and cuda_compiles() else None
    best = best_rows(config, mesh, device, lambda setting, mesh: in_a_child(setting, mesh, target))
    if best is None and target is None and device.kind != "cpu":
        say(
            "warning: train.rows_per_device=auto takes 1: the step was compiled for CPU, which "
            f"needs more than the {gib(device.memory)} of {device.kind} (docs/scaling.md tells "
            "what to install)",
            warns=True,
        )
        return 1
    if best is None:
        raise UserError(
            f"train.rows_per_device='auto': not one row a device fits {gib(device.memory)} of "
            f"{device.kind}; {_advice(config)}"
        )
    found = best[1]
    rows = found.rows_per_device * found.accumulation * found.devices
    say(
        f"train.rows_per_device=auto: {found.rows_per_device} row(s) x {found.accumulation} "
        f"micro-batches, {rows} rows an update, "
        f"planned to take {gib(found.peak)} of {gib(device.memory)} "
        f"(compiled for {target or 'cpu'})"
    )
    return found.rows_per_device


def this_device() -> Accelerator:
    """What JAX has here; of a CPU's memory each fake device has a share."""
    kind = jax.devices()[0].device_kind
    known = by_kind(kind)
    if known:
        limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
        # What JAX was given, of which a plan would not use all.
        return dataclasses.replace(known, memory=int(limit / _GIVEN)) if limit else known
    if jax.default_backend() != "cpu":
        raise UserError(
            f"train.rows_per_device='auto': the memory of {kind!r} is not known; give a number"
        )
    share = psutil.virtual_memory().available // jax.local_device_count()
    return Accelerator("cpu", kind, 1e11, share, 1e10, 1e10, 1e10, (0, 0), 0, "")


def out_of_memory(config, error: Exception) -> UserError | None:
    """What to say of an error, if it is that a device has no memory left."""
    if "RESOURCE_EXHAUSTED" not in str(error):
        return None
    return UserError(f"out of memory: {first_line(error)}. {_advice(config)}")


def _advice(config) -> str:
    settings = list(smaller(config))
    if not settings:
        return "Nothing smaller is known but more devices"
    rest = f"; then, one after the other: {'; '.join(settings[1:])}" if settings[1:] else ""
    return f"What takes less: {settings[0]}{rest}; or more devices"
