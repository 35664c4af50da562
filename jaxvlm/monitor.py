"""Shows how a training run does: `python -m jaxvlm.monitor --logdir runs/stage1 [--watch]`.

It reads what the run writes, `metrics.jsonl` and what lies beside it, and disturbs nothing; also
from another machine that sees the folder, and after the run has ended.
"""

import argparse
import contextlib
import time
from pathlib import Path

from rich.live import Live

from jaxvlm import entry
from jaxvlm.console import console
from jaxvlm.errors import UserError
from jaxvlm.monitoring.health import State, health
from jaxvlm.monitoring.reading import RunFiles
from jaxvlm.monitoring.view import view

_WIDEST = 120


def main(flags: argparse.Namespace) -> None:
    """Shows a run once, or until it has finished."""
    if not flags.every > 0:
        raise UserError(f"--every {flags.every}: expected a number of seconds above 0")
    files, out = RunFiles(flags.logdir), console()

    def picture():
        return view(files.read(), time.time(), min(out.width, _WIDEST))

    if not flags.watch:
        out.print(picture())
        return
    # Ctrl-C is how one stops looking.
    with (
        contextlib.suppress(KeyboardInterrupt),
        Live(picture(), console=out, auto_refresh=False) as live,
    ):
        while health(files.read(), time.time()).state is not State.FINISHED:
            time.sleep(flags.every)
            live.update(picture(), refresh=True)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    flags = argparse.ArgumentParser("jaxvlm.monitor", description=__doc__)
    flags.add_argument("--logdir", type=Path, required=True, help="the workdir of a run")
    flags.add_argument("--watch", action="store_true", help="look again and again")
    flags.add_argument(
        "--every", type=float, default=2.0, metavar="SECONDS", help="how often (default: 2)"
    )
    return flags


if __name__ == "__main__":
    entry.run(parser(), main, configured=False)
