"""Trains a model: `python -m jaxvlm.train --config configs/stage1.py [--workdir DIR] [--config.…]`.

The same command resumes from the newest checkpoint of the workdir. SIGTERM, SIGUSR1 and Ctrl-C
finish the update, save, and end with exit code 75 ("start me again"); Ctrl-C with 130.
"""

import argparse
import contextlib
from pathlib import Path

from jaxvlm import entry
from jaxvlm.config import load, to_json
from jaxvlm.config_checks import check
from jaxvlm.errors import UserError


def main(flags: argparse.Namespace) -> None:
    """Checks the configuration and the workdir, then trains."""
    config = load(flags.config, flags.overrides)
    check(config)
    if flags.print_config:
        print(to_json(config), end="")
        return
    _check_processes(flags)
    # Not before: a wrong flag should be answered at once.
    from jaxvlm.training.loop import train
    from jaxvlm.training.processes import joined
    from jaxvlm.workdir import open_workdir

    name = flags.config.removesuffix(".py").replace(".py:", "_")
    folder = flags.workdir or Path("runs") / Path(name).name
    with contextlib.ExitStack() as stack:
        workdir = stack.enter_context(open_workdir(folder, locks=not flags.process_id))
        if flags.coordinator is not None:
            stack.enter_context(joined(flags.coordinator, flags.num_processes, flags.process_id))
        train(config, workdir, flags.resume_from)


def _check_processes(flags: argparse.Namespace) -> None:
    """Several processes are told apart by all three flags."""
    given = (flags.coordinator, flags.num_processes, flags.process_id)
    if given == (None, None, None):
        return
    if None in given:
        raise UserError("--coordinator, --num_processes and --process_id belong together")
    if flags.num_processes < 1:
        raise UserError(f"--num_processes {flags.num_processes}: expected at least 1")
    if not 0 <= flags.process_id < flags.num_processes:
        raise UserError(
            f"--process_id {flags.process_id}: expected 0 to {flags.num_processes - 1}, less than "
            "--num_processes"
        )


def parser() -> argparse.ArgumentParser:
    """The command line."""
    flags = argparse.ArgumentParser("jaxvlm.train", description=__doc__)
    flags.add_argument("--config", required=True, help="configuration file, e.g. configs/demo.py")
    flags.add_argument(
        "--workdir", type=Path, help="where everything is written (default: runs/<configuration>)"
    )
    flags.add_argument(
        "--resume_from", type=int, metavar="UPDATE", help="go on from this update's checkpoint"
    )
    flags.add_argument(
        "--coordinator", metavar="HOST:PORT", help="of several processes: where the first listens"
    )
    flags.add_argument("--num_processes", type=int, metavar="N", help="how many they are")
    flags.add_argument("--process_id", type=int, metavar="I", help="which this is, from 0")
    flags.add_argument("--print_config", action="store_true", help="print all fields and stop")
    return flags


if __name__ == "__main__":
    entry.run(parser(), main)
