"""ScanQA and SQA3D with views of their ScanNet scans: multi-view records with geometry."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from jaxvlm.data.prep.job import Part, scene_rng
from jaxvlm.data.prep.questions import Question
from jaxvlm.data.prep.scan import choose_frames, measured, relative_path, view_rows
from jaxvlm.data.prep.scannet import find_scene, read_scene
from jaxvlm.data.record import Record
from jaxvlm.errors import UserError


@dataclasses.dataclass(frozen=True)
class ScanNetQuestions:
    """Makes the records of a scene's questions.

    Attributes:
      dataset: "scanqa" or "sqa3d", the records' task.
      questions: of each scene.
      scan_root: where the scans lie.
      num_views: views a record at most.
      views: method of `choose_views`.
      with_depth: add depth histograms.
      aligned: scenes must have their axisAlignment.
      seed: for random views.
    """

    dataset: str
    questions: dict[str, list[Question]]
    scan_root: Path
    num_views: int
    views: str
    with_depth: bool
    aligned: bool
    seed: int

    def __call__(self, scene_id: str) -> Part:
        """The records of a scene."""
        folder = find_scene(self.scan_root, scene_id)
        if folder is None:
            raise UserError(f"{self.scan_root / scene_id} has gone")
        scene = read_scene(folder, self.with_depth, self.aligned)
        part = Part(counts=Counter({"frames looked at": len(scene.frames) + scene.lost}))
        if scene.lost:
            part.counts["frames without a finite pose, left out"] = scene.lost
        if not scene.frames:
            raise UserError(f"{folder / 'pose'}: no frame has a finite pose")
        rng = scene_rng(self.seed, scene_id)
        chosen = choose_frames(scene.frames, self.num_views, self.views, rng)
        if len(chosen) < self.num_views:
            part.counts[f"scenes with fewer than {self.num_views} frames"] = 1
        shared = {
            "images": tuple(relative_path(frame.image) for frame in chosen),
            "geometry": measured(chosen),
            "image_size": chosen[0].size,
        }
        part.records = [
            question_record(question, self.dataset, **shared)
            for question in self.questions[scene_id]
        ]
        part.views = view_rows(scene_id, chosen)
        return part

    def inputs(self, scene_id: str) -> list[Path]:
        """What a scene's records are made from."""
        folder = find_scene(self.scan_root, scene_id) or self.scan_root / scene_id
        names = ("color", "depth", "pose", "intrinsic/intrinsic_color.txt", f"{scene_id}.txt")
        return [folder / name for name in names]


def question_record(question: Question, task: str, images: tuple[str, ...], **fields) -> Record:
    """The record of a question; every accepted answer is kept, the first is learnt."""
    return Record(
        images=images,
        question=question.question,
        answer=question.answers[0] if question.answers else "",
        answers=question.answers,
        situation=question.situation,
        task=task,
        scene_id=question.scene_id,
        question_id=question.question_id,
        object_ids=question.object_ids,
        object_names=question.object_names,
        **fields,
    )


def by_scene(questions: Sequence[Question]) -> dict[str, list[Question]]:
    """Questions of each scene, scenes in the order of their names."""
    found: dict[str, list[Question]] = {}
    for question in questions:
        found.setdefault(question.scene_id, []).append(question)
    return dict(sorted(found.items()))


def present_scenes(
    questions: dict[str, list[Question]], scan_root: Path, skip_missing: bool
) -> tuple[list[str], list[str]]:
    """Scenes whose scans are there, and those without.

    Raises:
      UserError: one is missing and must not be.
    """
    if not scan_root.is_dir():
        raise UserError(f"--scan-root {scan_root} is no folder; it holds one folder a scene")
    missing = [scene for scene in questions if find_scene(scan_root, scene) is None]
    if missing and not skip_missing:
        raise UserError(
            f"{scan_root} lacks {len(missing):,} of {len(questions):,} scenes: "
            f"{', '.join(missing[:5])}{' …' if len(missing) > 5 else ''} (looked for "
            f"{scan_root}/{missing[0]} and {scan_root}/scans/{missing[0]}); export them, or pass "
            "--skip-missing to leave their questions out"
        )
    return [scene for scene in questions if scene not in set(missing)], missing
