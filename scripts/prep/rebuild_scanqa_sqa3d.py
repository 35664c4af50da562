"""Makes single-view records: each question with the bird's-eye image of its own scene.

    python scripts/prep/rebuild_scanqa_sqa3d.py

reads the official files in data/raw/scanqa and data/raw/sqa3d and the images in
data/processed/SQA3D/bird/<scene>_bird.png, and writes data/processed/{scanqa,sqa3d}/*_split.jsonl.
ScanQA's val file becomes its test split, for its test files have no public answers. Questions of a
scene without an image are left out, and the scene is listed.
"""

import argparse
from pathlib import Path

from jaxvlm import entry
from jaxvlm.data.prep.bird import SPLITS, BirdQuestions, bird_image, official_file
from jaxvlm.data.prep.flags import add_run, script
from jaxvlm.data.prep.job import Job, file_hash
from jaxvlm.data.prep.questions import question_files, read_questions
from jaxvlm.data.prep.scanqa import by_scene
from jaxvlm.errors import UserError


def main(flags: argparse.Namespace) -> None:
    """Rebuilds every split whose official file is there."""
    if not flags.bird_dir.is_dir():
        raise UserError(
            f"--bird-dir {flags.bird_dir} is no folder; download SQA3D's bird views, or draw them "
            "with scripts/prep/render_bird_views.py"
        )
    folders = {"scanqa": flags.scanqa_dir, "sqa3d": flags.sqa3d_dir}
    found = {
        (dataset, split): path
        for dataset in flags.dataset
        for split, pattern in SPLITS[dataset].items()
        if (path := official_file(folders[dataset], pattern)) is not None
    }
    if not found:
        patterns = [str(folders[d] / p) for d in flags.dataset for p in SPLITS[d].values()]
        raise UserError(f"no official file is there; looked for {', '.join(patterns)}")
    for (dataset, split), path in found.items():
        _rebuild(flags, dataset, split, path)


def _rebuild(flags: argparse.Namespace, dataset: str, split: str, path: Path) -> None:
    questions = by_scene(read_questions(dataset, path, None))
    scenes = [scene for scene in questions if bird_image(flags.bird_dir, scene) is not None]
    missing = sorted(questions.keys() - scenes)
    if missing:
        count = sum(len(questions[scene]) for scene in missing)
        print(
            f"{path.name}: left out {count:,} questions of {len(missing):,} scenes without an "
            f"image <scene>_bird.png in {flags.bird_dir}: {', '.join(missing)}"
        )
    if not scenes:
        raise UserError(f"{flags.bird_dir} holds no image of any scene of {path}")
    settings = {
        "command": "rebuild_scanqa_sqa3d",
        "dataset": dataset,
        "qa_file": path.name,
        "sha256": [file_hash(path) for path in question_files(dataset, path, None)],
        "bird_dir": flags.bird_dir,
        "missing_scenes": missing,
    }
    output = flags.output_dir / dataset / f"{split}_split.jsonl"
    work = BirdQuestions(dataset, questions, flags.bird_dir)
    Job(output, settings, scenes, work, work.inputs, share=flags.shard).run(
        flags.workers, flags.overwrite
    )


def parser() -> argparse.ArgumentParser:
    """The command line."""
    flags = script("rebuild_scanqa_sqa3d.py", __doc__)
    flags.add_argument("--dataset", nargs="+", choices=tuple(SPLITS), default=list(SPLITS))
    flags.add_argument("--scanqa-dir", type=Path, default=Path("data/raw/scanqa"))
    flags.add_argument("--sqa3d-dir", type=Path, default=Path("data/raw/sqa3d"))
    flags.add_argument("--bird-dir", type=Path, default=Path("data/processed/SQA3D/bird"))
    flags.add_argument("--output-dir", type=Path, default=Path("data/processed"))
    add_run(flags)
    return flags


if __name__ == "__main__":
    entry.run(parser(), main, configured=False)
