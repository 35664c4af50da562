"""Which of several processes this is: told by flags, or by Slurm."""

import argparse
import dataclasses
import os
import re
from collections.abc import Mapping

from jaxvlm.errors import UserError

# Ports that systems hand out themselves begin above; a job takes one by its number.
_FIRST_PORT, _PORTS = 20_000, 10_000


# A day, in seconds.
_LONGEST = 86_400


@dataclasses.dataclass(frozen=True)
class Place:
    """One process among others.

    Attributes:
      coordinator: `host:port` of the first process.
      count: of all processes.
      index: this one's, from 0.
      local_devices: which of the machine's devices are this process's; None for all it sees.
    """

    coordinator: str
    count: int
    index: int
    local_devices: tuple[int, ...] | None = None


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that tell a process its place."""
    parser.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        help="of several processes: where the first listens (under srun nothing need be said)",
    )
    parser.add_argument("--num_processes", type=int, metavar="N", help="how many they are")
    parser.add_argument("--process_id", type=int, metavar="I", help="which this is, from 0")
    parser.add_argument(
        "--join_seconds", type=int, metavar="S", default=300, help="how long they wait for another"
    )


def place(flags: argparse.Namespace, environment: Mapping[str, str] = os.environ) -> Place | None:
    """This process's place by flags, else by Slurm; None if it is the only one.

    Raises:
      UserError: the flags, or Slurm's variables, are wrong.
    """
    if not 1 <= flags.join_seconds <= _LONGEST:
        raise UserError(f"--join_seconds {flags.join_seconds}: expected 1 to {_LONGEST}")
    given = (flags.coordinator, flags.num_processes, flags.process_id)
    if given == (None, None, None):
        return slurm_place(environment)
    if None in given:
        raise UserError("--coordinator, --num_processes and --process_id belong together")
    _check_address("--coordinator", flags.coordinator)
    if flags.num_processes < 1:
        raise UserError(f"--num_processes {flags.num_processes}: expected at least 1")
    if not 0 <= flags.process_id < flags.num_processes:
        raise UserError(
            f"--process_id {flags.process_id}: expected 0 to {flags.num_processes - 1}, less than "
            "--num_processes"
        )
    return Place(*given)


def _check_address(name: str, address: str) -> None:
    host, _, port = address.rpartition(":")
    if not host or not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 2**16:
        raise UserError(f"{name} {address}: expected host:port, like node1:12345")


def slurm_place(environment: Mapping[str, str] = os.environ) -> Place | None:
    """The place of a task of `srun`, by the variables of srun(1)."""
    # Set for the tasks of a step only, not for the batch script around them.
    if environment.get("SLURM_STEP_NUM_TASKS", "1") == "1":
        return None
    try:
        count = int(environment["SLURM_STEP_NUM_TASKS"])
        job, index = int(environment["SLURM_JOB_ID"]), int(environment["SLURM_PROCID"])
        local, node = int(environment["SLURM_LOCALID"]), int(environment["SLURM_NODEID"])
        first = first_host(environment["SLURM_STEP_NODELIST"])
        tasks = tasks_per_node(environment["SLURM_STEP_TASKS_PER_NODE"])[node]
        on_node = int(environment.get("SLURM_GPUS_ON_NODE", 0))
        if not (first and 0 <= index < count and 0 <= local < tasks):
            raise ValueError(f"task {index} of {count}, {local} of {tasks} on {first!r}")
    except (KeyError, ValueError, IndexError) as error:
        raise UserError(
            f"this is a task of srun, but what Slurm says of it is not whole ({error!r}); give "
            "--coordinator, --num_processes and --process_id"
        ) from None
    address = environment.get("JAX_COORDINATOR_ADDRESS") or f"{first}:{_FIRST_PORT + job % _PORTS}"
    _check_address("JAX_COORDINATOR_ADDRESS", address)
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    named = visible.count(",") + 1 if visible else 0
    if 0 < named < on_node:
        # Slurm has given this task its own.
        return Place(address, count, index)
    return Place(address, count, index, _share(named or on_node, local, tasks))


def first_host(nodes: str) -> str:
    """The first of Slurm's list, such as `gpu[07-09,12],login1`."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)[0]
    return re.sub(r"\[([^],-]*)[^]]*\]", r"\1", first)


def tasks_per_node(text: str) -> list[int]:
    """Slurm's counts, such as `2(x3),1` for four nodes."""
    counts = []
    for part in text.split(","):
        tasks, _, times = part.rstrip(")").partition("(x")
        counts += [int(tasks)] * int(times or 1)
    return counts


def _share(devices: int, local: int, tasks: int) -> tuple[int, ...] | None:
    """The GPUs of task `local` of a node's `tasks`, which all see the same ones."""
    if tasks == 1 or devices <= 1:
        return None
    if devices % tasks:
        raise UserError(
            f"{tasks} processes on a node cannot share its {devices} GPUs evenly; start one a "
            "node (--ntasks-per-node=1) or one a GPU"
        )
    share = devices // tasks
    return tuple(range(local * share, (local + 1) * share))
