"""Several processes that train together: how they find each other, and agree on what to do next."""

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxvlm.console import silence
from jaxvlm.errors import UserError
from jaxvlm.training.mesh import batch_sharding


def join(coordinator: str, count: int, index: int) -> None:
    """Joins the other processes; all but the first say nothing but errors from then on.

    Args:
      coordinator: `host:port` of the first process.
      count: of all processes.
      index: this one's, from 0.

    Raises:
      UserError: they do not find each other.
    """
    try:
        jax.distributed.initialize(coordinator, count, index)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"process {index} of {count} did not find the others at {coordinator}: "
            f"{str(error).splitlines()[0]}"
        ) from error
    if index:
        silence()


def is_first() -> bool:
    """Whether this process is the one that writes files and speaks."""
    return jax.process_index() == 0


def wait_for_all(name: str) -> None:
    """Returns when every process has come here."""
    multihost_utils.sync_global_devices(name)


class Agreement:
    """Lets all processes do the same where a single one wishes it.

    Of several processes a wish is granted one call later: it travels as an array of the devices,
    and what was wished before has arrived without waiting.
    """

    def __init__(self, mesh: Mesh):
        """Compiles nothing yet."""
        self._split = batch_sharding(mesh)
        whole = NamedSharding(mesh, PartitionSpec())
        self._any = jax.jit(lambda wishes: wishes.any(0), out_shardings=whole)
        self._asked: jax.Array | None = None

    def __call__(self, *wishes: bool) -> tuple[bool, ...]:
        """Which of the wishes any process has; every process must call it as often."""
        if jax.process_count() == 1:
            return wishes
        mine = np.tile(np.array(wishes), (jax.local_device_count(), 1))
        before = self._asked
        self._asked = self._any(jax.make_array_from_process_local_data(self._split, mine))
        return (False,) * len(wishes) if before is None else tuple(np.asarray(before).tolist())
