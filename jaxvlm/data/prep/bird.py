"""The single-view route: questions paired with the bird's-eye image of their own scene."""

import dataclasses
import glob
from pathlib import Path

from jaxvlm.data.prep.job import Part
from jaxvlm.data.prep.questions import Question
from jaxvlm.data.prep.scan import relative_path
from jaxvlm.data.prep.scanqa import question_record
from jaxvlm.errors import UserError

# Which official file becomes which split. ScanQA's test files have no public answers; its val file
# is what papers report beside them.
SPLITS = {
    "scanqa": {"train": "ScanQA_v1.0_train*.json", "test": "ScanQA_v1.0_val*.json"},
    "sqa3d": {
        "train": "v1_balanced_questions_train*.json",
        "val": "v1_balanced_questions_val*.json",
        "test": "v1_balanced_questions_test*.json",
    },
}


@dataclasses.dataclass(frozen=True)
class BirdQuestions:
    """Makes the records of a scene's questions with its one image.

    Attributes:
      dataset: the records' task.
      questions: of each scene.
      bird_dir: holds `<scene>_bird.png`.
    """

    dataset: str
    questions: dict[str, list[Question]]
    bird_dir: Path

    def __call__(self, scene_id: str) -> Part:
        """The records of a scene."""
        image = bird_image(self.bird_dir, scene_id)
        if image is None:
            raise UserError(f"{self.bird_dir / scene_id}_bird.png has gone")
        images = (relative_path(image),)
        return Part([question_record(q, self.dataset, images) for q in self.questions[scene_id]])

    def inputs(self, scene_id: str) -> list[Path]:
        """What a scene's records are made from."""
        image = bird_image(self.bird_dir, scene_id)
        return [image] if image else []


def bird_image(folder: Path, scene_id: str) -> Path | None:
    """The image of exactly this scene."""
    paths = (folder / f"{scene_id}_bird{suffix}" for suffix in (".png", ".jpg", ".jpeg"))
    return next((path for path in paths if path.is_file()), None)


def official_file(folder: Path, pattern: str) -> Path | None:
    """The one file of a folder that fits; None without one.

    Raises:
      UserError: several fit.
    """
    found = sorted(glob.glob(f"{glob.escape(str(folder))}/{pattern}"))
    if len(found) > 1:
        raise UserError(f"{folder} holds several files {pattern}: {', '.join(found)}; keep one")
    return Path(found[0]) if found else None
