"""Makes the rooms data set: `python -m jaxvlm.rooms --output data/processed/rooms`."""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jaxvlm.errors import UserError
from jaxvlm.rooms.dataset import Parameters, RoomsFolder
from jaxvlm.rooms.sheet import SHEET_ROOMS, save_kind_sheet, save_room_sheet


def main(argv: Sequence[str] | None = None) -> int:
    """Reads the flags, makes what is missing; 2 for what the user has to mend."""
    flags = _parser().parse_args(argv)
    try:
        _make(flags)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        # Of a full disk, as a rule.
        print(f"error: --output {flags.output} cannot be written: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        return 130
    return 0


def _make(flags: argparse.Namespace) -> None:
    if flags.workers < 1:
        raise UserError(f"--workers must be at least 1, got {flags.workers}")
    values = {field.name: getattr(flags, field.name) for field in fields(Parameters)}
    folder = RoomsFolder(flags.output, Parameters(**values))
    console = Console()
    if not folder.prepare(flags.overwrite):
        console.print(f"{flags.output}: up to date", soft_wrap=True)
        return
    missing = folder.missing()
    parameters = folder.parameters
    total = parameters.train_rooms + parameters.val_rooms + parameters.test_rooms
    columns = (TextColumn("rooms"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("rooms", total=total, completed=total - len(missing))
        for _ in folder.write_rooms(missing, min(flags.workers, max(1, len(missing)))):
            progress.advance(task)
    if not flags.no_sheet:
        with console.status("contact sheet"):
            rooms = min(SHEET_ROOMS, parameters.train_rooms)
            save_room_sheet(flags.output / "contact_sheet.png", parameters.seed, "train", rooms)
            save_kind_sheet(flags.output / "kinds.png")
    folder.finish()
    console.print(f"{flags.output}: {total} rooms", soft_wrap=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m jaxvlm.rooms",
        description="Makes procedural furnished rooms: images, questions, anchors. "
        "A run that was stopped is continued by the same command.",
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    defaults = Parameters()
    parser.add_argument("--train-rooms", type=int, default=defaults.train_rooms)
    parser.add_argument("--val-rooms", type=int, default=defaults.val_rooms)
    parser.add_argument("--test-rooms", type=int, default=defaults.test_rooms)
    parser.add_argument("--views", type=int, default=defaults.views, help="the first is from above")
    parser.add_argument("--image-size", type=int, default=defaults.image_size, help="pixels a side")
    parser.add_argument("--questions-per-room", type=int, default=defaults.questions_per_room)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--depth", action="store_true", help="also write depth, uint16 millimetres")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--no-sheet", action="store_true", help="leave out the contact sheets")
    parser.add_argument("--overwrite", action="store_true", help="replace what --output holds")
    return parser


if __name__ == "__main__":
    sys.exit(main())
