"""The flags that preparation scripts share."""

import argparse
import os
from pathlib import Path

from jaxvlm.data.frames import FRAMES
from jaxvlm.data.prep.anchor_scenes import Options
from jaxvlm.data.prep.view_choice import METHODS
from jaxvlm.errors import UserError
from jaxvlm.shares import add_shard

# More would fill a record, and no model is shown as many.
_MOST_VIEWS = 256


def output_file(text: str) -> Path:
    """The type of a flag that names a file to write."""
    path = Path(text)
    if not path.name or path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is no file's name; expected one like out.jsonl")
    return path


def script(name: str, description: str) -> argparse.ArgumentParser:
    """A parser whose help shows the script's own examples as they are written."""
    return argparse.ArgumentParser(
        name, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_run(parser: argparse.ArgumentParser) -> None:
    """The seed, and how the work is done."""
    parser.add_argument("--seed", type=int, default=0, help="of everything drawn (default: 0)")
    add_work(parser, "replace what --output holds")
    add_shard(parser)


def add_work(parser: argparse.ArgumentParser, overwrite: str) -> None:
    """How the work is done; it decides nothing about the result."""
    parser.add_argument(
        "--workers",
        type=int,
        default=len(os.sched_getaffinity(0)),
        help="processes (default: as many as there are cores)",
    )
    parser.add_argument("--overwrite", action="store_true", help=overwrite)


def add_views(parser: argparse.ArgumentParser, num_views: int) -> None:
    """Which views are shown."""
    parser.add_argument(
        "--num-views", type=int, default=num_views, help=f"views a record (default: {num_views})"
    )
    parser.add_argument(
        "--views",
        choices=METHODS,
        default="coverage",
        help="how views are chosen: to see most of the room (default), evenly, or at random",
    )
    parser.add_argument(
        "--view-table", type=output_file, metavar="CSV", help="write which views were chosen"
    )


def check_views(flags: argparse.Namespace) -> None:
    """Raises a UserError for an impossible number of views."""
    if not 1 <= flags.num_views <= _MOST_VIEWS:
        raise UserError(f"--num-views {flags.num_views}: expected 1 to {_MOST_VIEWS}")
    if flags.seed < 0:
        raise UserError(f"--seed {flags.seed}: expected at least 0")


def add_anchors(parser: argparse.ArgumentParser) -> None:
    """How place_anchor records are made; read them with `anchor_options`."""
    parser.add_argument(
        "--num-instructions-per-scene",
        type=int,
        help="instructions of a scene at most (default: all, at least one a thing)",
    )
    parser.add_argument(
        "--frame",
        choices=FRAMES,
        default="first_camera",
        help="what poses and actions are measured from (default: first_camera)",
    )
    parser.add_argument(
        "--render",
        action="store_true",
        help="draw views from the boxes where a scene has no photographs; records say so",
    )
    parser.add_argument(
        "--image-size", type=int, default=448, help="side of drawn views in pixels (default: 448)"
    )
    parser.add_argument(
        "--unseen",
        choices=("keep", "drop"),
        help="things that no view shows (default: drop them where there are photographs, keep "
        "them where views are drawn)",
    )


def anchor_options(flags: argparse.Namespace) -> Options:
    """What the flags of `add_views` and `add_anchors` say.

    Raises:
      UserError: an impossible number.
    """
    check_views(flags)
    most = flags.num_instructions_per_scene
    if most is not None and most < 1:
        raise UserError(f"--num-instructions-per-scene {most}: expected at least 1")
    if not 32 <= flags.image_size <= 4096:
        raise UserError(f"--image-size {flags.image_size}: expected 32 to 4096 pixels")
    return Options(
        num_views=flags.num_views,
        views=flags.views,
        frame=flags.frame,
        instructions=most,
        draw=flags.output.with_name(flags.output.name + ".views") if flags.render else None,
        image_size=flags.image_size,
        unseen=flags.unseen,
        plans=getattr(flags, "floor_plans", None),
        seed=flags.seed,
    )
