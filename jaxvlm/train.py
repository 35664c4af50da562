"""Trains a model: `python -m jaxvlm.train --config configs/stage1.py [--workdir DIR] [--config.…]`.

The same command resumes from the newest checkpoint of the workdir. SIGTERM, SIGUSR1 and Ctrl-C
finish the update, save, and end with exit code 75 ("start me again"); Ctrl-C with 130.
"""

import argparse
from pathlib import Path

from jaxvlm import entry
from jaxvlm.config import load, to_json
from jaxvlm.config_checks import check


def main(flags: argparse.Namespace) -> None:
    """Checks the configuration and the workdir, then trains."""
    config = load(flags.config, flags.overrides)
    check(config)
    if flags.print_config:
        print(to_json(config), end="")
        return
    # Not before: a wrong flag should be answered at once.
    from jaxvlm.training.loop import train
    from jaxvlm.workdir import open_workdir

    name = flags.config.removesuffix(".py").replace(".py:", "_")
    with open_workdir(flags.workdir or Path("runs") / Path(name).name) as workdir:
        train(config, workdir, flags.resume_from)


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
    flags.add_argument("--print_config", action="store_true", help="print all fields and stop")
    return flags


if __name__ == "__main__":
    entry.run(parser(), main)
