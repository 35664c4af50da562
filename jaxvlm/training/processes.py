"""Several processes that train together: how they find each other, and stay together."""

import contextlib
import hashlib
import signal
import socket
import threading
from collections.abc import Iterator, Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxvlm.console import say, silence
from jaxvlm.errors import Requeue, UserError, first_line
from jaxvlm.training.cluster import Place
from jaxvlm.training.failures import Failures, first_word
from jaxvlm.training.leaving import leave
from jaxvlm.training.mesh import batch_sharding

# A process of which nothing was heard for so long is gone.
_SILENT_SECONDS = 40
_PATIENT_SECONDS = 10
# How long those that leave wait for the others.
_PARTING_SECONDS = 60


@contextlib.contextmanager
def joined(place: Place, seconds: int) -> Iterator[None]:
    """Joins the other processes; all but the first say nothing but errors from then on.

    They part together, at the end and where they stop. An error in one ends them all, within
    seconds, and each with the reason.

    Args:
      place: of this process.
      seconds: how long to wait for the others.

    Raises:
      UserError: another process has failed.
    """
    joins = f"process {place.index} of {place.count} joins the others at {place.coordinator}"
    if place.index:
        silence()
    say(joins)
    # Those that say nothing else do when it takes long.
    patience = threading.Timer(_PATIENT_SECONDS if place.index else seconds, print, (joins,))
    patience.daemon = True
    patience.start()
    _initialize(place, seconds)
    patience.cancel()
    failures = Failures(place.index)
    try:
        _check_count(place.count)
        yield
    except (Requeue, KeyboardInterrupt):
        # One that leaves has srun end the others, which must not hide that they have saved.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        failures.part(_PARTING_SECONDS)
        raise
    except Exception as error:
        failures.tell(error)
        raise
    failures.part(_PARTING_SECONDS)


def _initialize(place: Place, seconds: int) -> None:
    """JAX itself ends a process in which this takes too long, with no word to its user."""
    giving_up = threading.Timer(seconds, _give_up, (place, seconds))
    giving_up.daemon = True
    giving_up.start()
    try:
        jax.distributed.initialize(
            place.coordinator,
            place.count,
            place.index,
            place.local_devices,
            # It would give each task of Slurm one device.
            cluster_detection_method="deactivate",
            initialization_timeout=seconds + 60,
            heartbeat_timeout_seconds=_SILENT_SECONDS,
            shutdown_timeout_seconds=_PARTING_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"process {place.index} of {place.count} did not find the others at "
            f"{place.coordinator}: {first_line(error)}"
            + ("; is the port taken?" if place.index == 0 else "")
        ) from error
    finally:
        giving_up.cancel()


def _check_count(count: int) -> None:
    """JAX would wait for more processes than the first one knows of, or leave some out."""
    known = first_word("processes", str(count))
    if known != str(count):
        raise UserError(
            f"--num_processes {count}, but process 0 was told {known}; tell all the same"
        )


def _give_up(place: Place, seconds: int) -> None:
    host, _, port = place.coordinator.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        found = f"not all {place.count} processes have come to {place.coordinator}"
    # Whatever is wrong with the name or the port: this thread must come to its end.
    except Exception as error:
        why = getattr(error, "strerror", None) or first_line(error)
        found = f"nothing answers at {place.coordinator} ({why}), where process 0 should listen"
    leave(
        f"process {place.index} of {place.count}: {found} within {seconds} seconds; did one fail "
        "before, or start late (--join_seconds), or with another --coordinator?",
        2,
    )


def is_first() -> bool:
    """Whether this process is the one that writes files and speaks."""
    return jax.process_index() == 0


def check_devices(expected: int | None) -> None:
    """Checks that all processes together have as many devices as `expected`, or any.

    Raises:
      UserError: they do not.
    """
    found = jax.device_count()
    if expected is None or found == expected:
        return
    of = [d.process_index for d in jax.devices()]
    kind = f"{found} {jax.devices()[0].platform} device(s)"
    shares = ", ".join(f"process {p}: {of.count(p)}" for p in sorted(set(of)))
    raise UserError(
        f"--devices {expected}, but there are {kind} ({shares}). Does every process see its GPUs "
        "(nvidia-smi, CUDA_VISIBLE_DEVICES), and is JAX installed for them (pip install "
        "-c constraints.txt -e '.[cuda12]')?"
    )


def wait_for_all(name: str) -> None:
    """Returns when every process has come here."""
    multihost_utils.sync_global_devices(name)


def check_alike(facts: Mapping[str, str]) -> None:
    """Checks that all processes know the same, whose names are the same everywhere.

    Raises:
      UserError: the first fact of this process that differs from the first process's.
    """
    if jax.process_count() == 1:
        return
    digests = [hashlib.sha256(str(value).encode()).digest() for value in facts.values()]
    mine = np.frombuffer(b"".join(digests), np.uint8).reshape(len(facts), -1)
    everywhere = multihost_utils.process_allgather(mine)
    for index, name in enumerate(facts):
        others = [
            p for p, theirs in enumerate(everywhere) if (theirs != everywhere[0])[index].any()
        ]
        if others:
            raise UserError(
                f"process {others[0]} does not have the same {name} as process 0; start all "
                "processes with the same command, from the same files"
            )


class Agreement:
    """Lets all processes do the same where a single one wishes it.

    Of several processes a wish is granted one call later: it travels as an array of the devices,
    and what was wished before has arrived without waiting.
    """

    def __init__(self, mesh: Mesh):
        """Compiles nothing yet."""
        self._split = batch_sharding(mesh)
        whole = NamedSharding(mesh, PartitionSpec())
        self._any = jax.jit(lambda wishes: wishes.any(), out_shardings=whole)
        self._asked: jax.Array | None = None

    def __call__(self, wish: bool) -> bool:
        """Whether any process has the wish; every process must call it as often."""
        if jax.process_count() == 1:
            return wish
        mine = np.full(jax.local_device_count(), wish)
        before = self._asked
        self._asked = self._any(jax.make_array_from_process_local_data(self._split, mine))
        return before is not None and bool(before)
