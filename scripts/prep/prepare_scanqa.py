r"""Makes multi-view records with geometry of ScanQA or SQA3D and a ScanNet export.

    python scripts/prep/prepare_scanqa.py --dataset scanqa \
        --scan-root data/raw/scannet --qa-file data/raw/scanqa/ScanQA_v1.0_train.json \
        --output data/processed/scanqa/train_split.jsonl --num-views 8

    python scripts/prep/prepare_scanqa.py --dataset sqa3d \
        --scan-root data/raw/scannet \
        --qa-file data/raw/sqa3d/v1_balanced_questions_train_scannetv2.json \
        --output data/processed/sqa3d/train_split.jsonl --num-views 8

The same command goes on where it was stopped. docs/data.md describes the folders.
"""

import argparse
from pathlib import Path

from jaxvlm import entry
from jaxvlm.data.prep.flags import add_run, add_views, check_views, output_file, script
from jaxvlm.data.prep.job import Job, file_hash
from jaxvlm.data.prep.questions import DATASETS, question_files, read_questions
from jaxvlm.data.prep.scanqa import ScanNetQuestions, by_scene, present_scenes


def main(flags: argparse.Namespace) -> None:
    """Reads the questions, finds the scans, makes the records."""
    check_views(flags)
    questions = by_scene(read_questions(flags.dataset, flags.qa_file, flags.annotations))
    scenes, missing = present_scenes(questions, flags.scan_root, flags.skip_missing)
    if missing:
        count = sum(len(questions[scene]) for scene in missing)
        print(
            f"left out {count:,} questions of {len(missing):,} scenes without a scan: "
            f"{', '.join(missing)}"
        )
    files = question_files(flags.dataset, flags.qa_file, flags.annotations)
    settings = {
        "command": "prepare_scanqa",
        "dataset": flags.dataset,
        "qa_file": flags.qa_file.name,
        "sha256": [file_hash(path) for path in files],
        "scan_root": flags.scan_root,
        "num_views": flags.num_views,
        "views": flags.views,
        "depth": flags.depth,
        "unaligned": flags.unaligned,
        "seed": flags.seed,
        "missing_scenes": missing,
    }
    work = ScanNetQuestions(
        flags.dataset,
        questions,
        flags.scan_root,
        flags.num_views,
        flags.views,
        flags.depth,
        not flags.unaligned,
        flags.seed,
    )
    Job(flags.output, settings, scenes, work, work.inputs, flags.view_table, flags.shard).run(
        flags.workers, flags.overwrite
    )


def parser() -> argparse.ArgumentParser:
    """The command line."""
    flags = script("prepare_scanqa.py", __doc__)
    flags.add_argument("--dataset", required=True, choices=DATASETS)
    flags.add_argument(
        "--scan-root", required=True, type=Path, help="ScanNet export, a folder a scene"
    )
    flags.add_argument("--qa-file", required=True, type=Path, help="official question file")
    flags.add_argument(
        "--annotations", type=Path, help="SQA3D's answers (default: beside the questions)"
    )
    flags.add_argument("--output", required=True, type=output_file, help=".jsonl or .json")
    add_views(flags, 8)
    flags.add_argument(
        "--depth",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="add depth histograms (default); --no-depth where depth was not exported",
    )
    flags.add_argument(
        "--unaligned",
        action="store_true",
        help="take scenes without <scene>.txt as they stand, not turned by its axisAlignment",
    )
    flags.add_argument(
        "--skip-missing", action="store_true", help="leave out questions whose scan is not there"
    )
    add_run(flags)
    return flags


if __name__ == "__main__":
    entry.run(parser(), main, configured=False)
