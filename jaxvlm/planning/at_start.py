"""What a run asks the planner: what fits, and what would take less memory."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
import psutil
from jax.experimental import multihost_utils

from jaxvlm.config import AUTO
from jaxvlm.console import say
from jaxvlm.errors import UserError
from jaxvlm.planning.choice import REMAT, ROWS, best_rows, smaller, with_setting
from jaxvlm.planning.compiled import cuda_compiles, in_a_child
from jaxvlm.training.hardware import Accelerator, by_kind, gib
from jaxvlm.training.mesh import make_mesh

# The share of a device's memory that the launchers give JAX.
_GIVEN = 0.9


def settled(config):
    """The configuration with values for what is "auto", chosen for these devices.

    With `train.rows_per_device="auto"` an update has `train.accumulation` rows a device, as with
    one row a micro-batch; they are spread over fewer micro-batches where more fit. With
    `train.remat="auto"` no more is recomputed than must be. All processes take the first one's
    choice.

    Raises:
      UserError: nothing fits, or the step does not compile.
    """
    train = config.train
    if AUTO not in (train.rows_per_device, train.remat):
        return config
    config = config.copy_and_resolve_references()
    rows = ROWS if train.rows_per_device == AUTO else (train.rows_per_device,)
    remats = REMAT if train.remat == AUTO else (train.remat,)
    with config.ignore_type():
        config.train.rows_per_device = min(rows)
    config.train.remat = remats[-1]
    if jax.process_index() == 0:
        chosen = _chosen(config, rows, remats)
    else:
        chosen = (0, 0)
    if jax.process_count() > 1:
        chosen = multihost_utils.broadcast_one_to_all(np.array(chosen, np.int32))
    count, remat = map(int, chosen)
    total = config.train.rows_per_device * config.train.accumulation
    config.train.rows_per_device, config.train.accumulation = count, total // count
    config.train.remat = remats[remat]
    return config


def _chosen(config, rows: Sequence[int], remats: Sequence[str]) -> tuple[int, int]:
    """Rows a device and micro-batch, and which of the rematerialisations."""
    mesh = tuple(make_mesh(config.mesh.data, config.mesh.fsdp).shape.values())
    device = this_device()
    target = device.name if by_kind(device.kind) and cuda_compiles() else None

    def compiled(setting, mesh):
        return in_a_child(setting, mesh, target)

    if target is None and device.kind != "cpu":
        say(
            f"warning: the step is planned for a CPU, where it takes more than on {device.kind}: "
            "less may seem to fit than does (docs/scaling.md tells what to install)",
            warns=True,
        )
    asked = " and ".join(
        f"train.{name}=auto"
        for name, choices in (("rows_per_device", rows), ("remat", remats))
        if len(choices) > 1
    )
    say(f"{asked}: compiling the step to see what fits, for half a minute to some minutes")
    best = None
    for remat in remats:
        setting = with_setting(config, remat, config.optimizer.offload)
        try:
            best = best_rows(setting, mesh, device, compiled, rows)
        except UserError as error:
            # What takes too much to compile, takes too much.
            if remat == remats[-1]:
                raise
            say(f"warning: remat {remat} is left out: {error}", warns=True)
        if best is not None:
            break
    if best is None and target is None and device.kind != "cpu":
        say(
            f"warning: {asked} takes {config.train.rows_per_device} row(s) and remat "
            f"{config.train.remat}: on a CPU the step needs more than the {gib(device.memory)} of "
            f"{device.kind}",
            warns=True,
        )
        return config.train.rows_per_device, len(remats) - 1
    if best is None:
        raise UserError(
            f"{asked}: not one row a device fits {gib(device.memory)} of {device.kind}. "
            f"{takes_less(config)}"
        )
    found = best[1]
    total = found.rows_per_device * found.accumulation * found.devices
    say(
        f"{asked}: {found.rows_per_device} row(s) x {found.accumulation} micro-batches, "
        f"{total} rows an update, remat {found.remat}, planned to take {gib(found.peak)} of "
        f"{gib(device.memory)} (compiled for {target or 'cpu'})"
    )
    return found.rows_per_device, remats.index(found.remat)


def this_device() -> Accelerator:
    """What JAX has here; of a CPU's memory each fake device has a share."""
    kind = jax.devices()[0].device_kind
    known = by_kind(kind)
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    # What JAX was given, of which a plan would not use all.
    memory = int(limit / _GIVEN) if limit else None
    if known:
        return dataclasses.replace(known, memory=memory or known.memory)
    if memory and jax.default_backend() != "cpu":
        return _unknown(kind, kind, memory)
    if jax.default_backend() != "cpu":
        raise UserError(
            f"the memory of {kind!r} is not known: give train.rows_per_device and train.remat"
        )
    share = psutil.virtual_memory().available // jax.local_device_count()
    return _unknown("cpu", kind, share)


def _unknown(name: str, kind: str, memory: int) -> Accelerator:
    """A device of which only the memory is known; what fits does not depend on the rest."""
    return Accelerator(name, kind, 1e11, memory, 1e10, 1e10, 1e10, (0, 0), 0, "")


def takes_less(config) -> str:
    """What of a configuration would take less memory, as a sentence."""
    settings = list(smaller(config))
    if not settings:
        return "Nothing smaller is known but more devices"
    rest = f"; then, one after the other: {'; '.join(settings[1:])}" if settings[1:] else ""
    return f"What takes less: {settings[0]}{rest}; or more devices"
