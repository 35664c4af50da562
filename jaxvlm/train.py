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
from jaxvlm.errors import UserError, memory_is_short
from jaxvlm.training.cluster import add_flags
from jaxvlm.training.cluster import place as find_place


def main(flags: argparse.Namespace) -> None:
    """Checks the configuration and the workdir, then trains."""
    config = load(flags.config, flags.overrides)
    check(config)
    if flags.print_config:
        print(to_json(config), end="")
        return
    if flags.devices is not None and flags.devices < 1:
        raise UserError(f"--devices {flags.devices}: expected at least 1")
    place = find_place(flags)
    # Not before: a wrong flag should be answered at once.
    from jaxvlm.planning.at_start import settled, takes_less
    from jaxvlm.training.checkpoints import update_to_resume
    from jaxvlm.training.compilation import keep_compiled
    from jaxvlm.training.loop import train
    from jaxvlm.training.missing import check_named
    from jaxvlm.training.processes import check_devices, joined
    from jaxvlm.training.profile import traced_updates
    from jaxvlm.training.run import find_checkpoint
    from jaxvlm.training.signals import stop_requests
    from jaxvlm.workdir import open_workdir

    updates = None if flags.profile is None else traced_updates(flags.profile)
    name = flags.config.removesuffix(".py").replace(".py:", "_")
    folder = flags.workdir or Path("runs") / Path(name).name
    with contextlib.ExitStack() as stack:
        first = place is None or place.index == 0
        workdir = stack.enter_context(open_workdir(folder, locks=first))
        if place is not None:
            stack.enter_context(joined(place, flags.join_seconds))
        check_devices(flags.devices)
        keep_compiled(workdir)
        # Before the planning, which takes half a minute at full size.
        if update_to_resume(workdir, flags.resume_from) is None:
            if config.init_from is not None:
                find_checkpoint(Path(config.init_from), "init_from")
            check_named(config)
        with stop_requests():
            config = settled(config)
        with memory_is_short(takes_less(config)):
            train(config, workdir, flags.resume_from, updates)


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
        "--devices", type=int, metavar="N", help="how many there must be, of all processes together"
    )
    flags.add_argument(
        "--profile", metavar="N:M", help="trace updates N to M into the workdir's profile folder"
    )
    add_flags(flags)
    flags.add_argument("--print_config", action="store_true", help="print all fields and stop")
    return flags


if __name__ == "__main__":
    entry.run(parser(), main)
