r"""Makes place_anchor records of ARKitScenes 3DOD scenes.

    python scripts/prep/prepare_arkit_from_3dod.py \
        --arkit-training-root data/raw/arkitscenes/Training \
        --output data/processed/arkit/train.jsonl --num-views 10

Boxes are those of the annotation, poses those of lowres_wide.traj, intrinsics those of the .pincam
files. Poses and actions are written in one frame: the first camera's, levelled (the default), or
the scan's world. docs/data.md has the transform between them.
"""

import argparse
from pathlib import Path

from jaxvlm import entry
from jaxvlm.data.prep.anchor_scenes import AnchorScenes, Options
from jaxvlm.data.prep.arkit import find_scenes
from jaxvlm.data.prep.flags import (
    add_anchors,
    add_run,
    add_views,
    anchor_options,
    output_file,
    script,
)
from jaxvlm.data.prep.job import Job
from jaxvlm.errors import UserError


def main(flags: argparse.Namespace) -> None:
    """Finds the scenes, makes the records."""
    options: Options = anchor_options(flags)
    root = flags.arkit_training_root
    scenes = find_scenes(root)
    if flags.max_scenes is not None:
        if flags.max_scenes < 1:
            raise UserError(f"--max_scenes {flags.max_scenes}: expected at least 1")
        scenes = scenes[: flags.max_scenes]
    settings = {
        "command": "prepare_arkit_from_3dod",
        "arkit_training_root": root,
        "max_scenes": flags.max_scenes,
        **vars(options),
    }
    work = AnchorScenes("arkit", {scene: root / scene for scene in scenes}, options)
    Job(flags.output, settings, scenes, work, work.inputs, flags.view_table, flags.shard).run(
        flags.workers, flags.overwrite
    )


def parser() -> argparse.ArgumentParser:
    """The command line."""
    flags = script("prepare_arkit_from_3dod.py", __doc__)
    flags.add_argument(
        "--arkit-training-root",
        required=True,
        type=Path,
        help="folder with one folder a scene, <id>/<id>_3dod_annotation.json",
    )
    flags.add_argument("--output", required=True, type=output_file, help=".jsonl or .json")
    flags.add_argument("--max_scenes", "--max-scenes", type=int, help="only the first so many")
    add_views(flags, 10)
    add_anchors(flags)
    add_run(flags)
    return flags


if __name__ == "__main__":
    entry.run(parser(), main, configured=False)
