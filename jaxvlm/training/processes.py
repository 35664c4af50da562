"""Several processes that train together: how they find each other, and stay together."""

import contextlib
import hashlib
from collections.abc import Iterator, Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxvlm.console import silence
from jaxvlm.errors import Requeue, UserError, first_line
from jaxvlm.training.mesh import batch_sharding

# How long those that leave wait for the others.
_PARTING_SECONDS = 60


@contextlib.contextmanager
def joined(coordinator: str, count: int, index: int) -> Iterator[None]:
    """Joins the other processes; all but the first say nothing but errors from then on.

    They part together, at the end and where they stop. An error ends the others instead.

    Args:
      coordinator: `host:port` of the first process.
      count: of all processes.
      index: this one's, from 0.

    Raises:
      UserError: they do not find each other.
    """
    if index:
        silence()
    try:
        jax.distributed.initialize(
            coordinator, count, index, shutdown_timeout_seconds=_PARTING_SECONDS
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"process {index} of {count} did not find the others at {coordinator}: "
            f"{first_line(error)}"
        ) from error
    try:
        yield
    except (Requeue, KeyboardInterrupt):
        # The others are killed if the first, with which they keep in touch, leaves before them.
        jax.distributed.shutdown()
        raise
    jax.distributed.shutdown()


def is_first() -> bool:
    """Whether this process is the one that writes files and speaks."""
    return jax.process_index() == 0


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
