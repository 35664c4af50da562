"""Shows how a training run does: `python -m jaxvlm.monitor --logdir runs/stage1 [--watch]`.

It reads what the run writes, `metrics.jsonl` and what lies beside it, and disturbs nothing; also
from another machine that sees the folder, and after the run has ended.
"""

import argparse
import contextlib
import sys
import threading
import time
from pathlib import Path

from rich.console import Console
from rich.live import Live

from jaxvlm import entry
from jaxvlm.console import console
from jaxvlm.errors import UserError
from jaxvlm.monitoring.health import State, health
from jaxvlm.monitoring.reading import RunFiles
from jaxvlm.monitoring.view import view

# Columns: of a terminal at the most, and of a file.
_WIDEST, _FILE = 200, 100


def main(flags: argparse.Namespace) -> None:
    """Shows a run once, or until it has finished."""
    if not 0 < flags.every <= threading.TIMEOUT_MAX:
        raise UserError(f"--every {flags.every}: expected a number of seconds above 0")
    # Where the output cannot show braille, the numbers still can be read.
    sys.stdout.reconfigure(errors="replace")
    out = console()
    if flags.watch and not flags.logdir.exists():
        out.print(f"waiting for {flags.logdir}")
        while not flags.logdir.exists():
            time.sleep(flags.every)
    files = RunFiles(flags.logdir)
    if flags.watch:
        # Ctrl-C is how one stops looking.
        with contextlib.suppress(KeyboardInterrupt):
            _watch(files, out, flags.every)
    out.print(view(files.read(), time.time(), _width(out)))


def _watch(files: RunFiles, out: Console, every: float) -> None:
    """Fills the terminal with the run until it has finished; what is no terminal stays empty."""
    with Live(console=out, screen=True, auto_refresh=False) as live:
        while True:
            run, now = files.read(), time.time()
            live.update(view(run, now, _width(out), out.height), refresh=True)
            if health(run, now).state is State.FINISHED:
                return
            time.sleep(every)


def _width(out: Console) -> int:
    return min(out.width, _WIDEST) if out.is_terminal else _FILE


def parser() -> argparse.ArgumentParser:
    """The command line."""
    flags = argparse.ArgumentParser("jaxvlm.monitor", description=__doc__)
    flags.add_argument(
        "--logdir",
        type=Path,
        required=True,
        help="the workdir of a run, its logs folder or its metrics.jsonl",
    )
    flags.add_argument(
        "--watch", action="store_true", help="look again and again, until the run has finished"
    )
    flags.add_argument(
        "--every", type=float, default=2.0, metavar="SECONDS", help="how often (default: 2)"
    )
    return flags


if __name__ == "__main__":
    entry.run(parser(), main, configured=False)
