r"""Makes place_anchor records of RoomPlan exports, or of planes and cameras metadata.

    python scripts/prep/synth_roomplan_instructions.py --input scans/*.json --render \
        --output data/processed/roomplan/train.jsonl

    python scripts/prep/synth_roomplan_instructions.py --input data/processed/ARKit/Training \
        --output data/processed/arkit_synth/train.json --num-instructions-per-scene 5

--input takes RoomPlan exports (CapturedRoom or CapturedStructure as JSON) or folders of them;
folders with <scene>/annotations/planes.json and <scene>/cameras.json; or a file of action records
whose photographs are absent. RoomPlan exports carry no photographs: --render draws views from
walls, openings and boxes, and the records say "rendered": true.
"""

import argparse
from pathlib import Path

from jaxvlm import entry
from jaxvlm.data.prep.anchor_scenes import AnchorScenes
from jaxvlm.data.prep.flags import (
    add_anchors,
    add_run,
    add_views,
    anchor_options,
    output_file,
    script,
)
from jaxvlm.data.prep.job import Job, file_hash
from jaxvlm.data.prep.stand_ins import StandIns
from jaxvlm.data.prep.synth import Inputs, find_inputs
from jaxvlm.data.records import RecordFile
from jaxvlm.errors import UserError


def main(flags: argparse.Namespace) -> None:
    """Looks at the input, makes the records."""
    options = anchor_options(flags)
    inputs = find_inputs(flags.input)
    settings = {"command": "synth_roomplan_instructions", **vars(options)}
    settings["input"] = {
        name: file_hash(path) if path.is_file() else str(path)
        for name, path in inputs.scenes.items()
    }
    if inputs.kind == "records":
        scenes, work = _stand_ins(flags, inputs)
    else:
        scenes, work = sorted(inputs.scenes), AnchorScenes(inputs.kind, inputs.scenes, options)
    Job(flags.output, settings, scenes, work, work.inputs, flags.view_table, flags.shard).run(
        flags.workers, flags.overwrite
    )


def _stand_ins(flags: argparse.Namespace, inputs: Inputs) -> tuple[list[str], StandIns]:
    if len(inputs.scenes) > 1:
        raise UserError("--input: give one record file at a time")
    if not flags.render:
        raise UserError("--input is a record file: pass --render to draw views where it has none")
    (path,) = inputs.scenes.values()
    members: dict[str, list[int]] = {}
    for index, record in enumerate(RecordFile(path)):
        members.setdefault(record.scene_id, []).append(index)
    options, roots = anchor_options(flags), tuple(flags.image_root)
    work = StandIns(path, members, options.draw, options.num_views, options.image_size, roots)
    return list(members), work


def parser() -> argparse.ArgumentParser:
    """The command line."""
    flags = script("synth_roomplan_instructions.py", __doc__)
    flags.add_argument("--input", required=True, nargs="+", type=Path, help="files or folders")
    flags.add_argument("--output", required=True, type=output_file, help=".jsonl or .json")
    add_views(flags, 10)
    add_anchors(flags)
    flags.add_argument(
        "--image-root",
        nargs="+",
        default=[".", "data/raw"],
        help="folders of a record file's image paths, after its own (default: . data/raw)",
    )
    flags.add_argument("--floor-plans", type=Path, metavar="DIR", help="draw a plan of each scene")
    add_run(flags)
    return flags


if __name__ == "__main__":
    entry.run(parser(), main, configured=False)
