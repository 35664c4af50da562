"""Official question files, asked about the images that prepared records have of their scenes."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from jaxvlm.data.prep.files import read_json
from jaxvlm.data.prep.questions import read_questions
from jaxvlm.data.prep.scanqa import question_record
from jaxvlm.data.record import Record, record_entry
from jaxvlm.data.records import open_records
from jaxvlm.errors import UserError
from jaxvlm.files import cache_folder, write_text

_NAMED = 5


def dataset_of(path: Path) -> str | None:
    """Which data set's official questions a file holds, or None for records."""
    if path.suffix != ".json" or not path.is_file():
        return None
    rows = read_json(path)
    if isinstance(rows, list):
        first = rows[0] if rows else None
        official = isinstance(first, dict) and "question_id" in first and "images" not in first
        return "scanqa" if official else None
    return "sqa3d" if isinstance(rows, dict) and isinstance(rows.get("questions"), list) else None


def as_records(paths: Sequence[str], known: Iterable[Record]) -> list[str]:
    """Record files in place of the official ones among some files, which are named like them.

    Args:
      paths: record files and official ones.
      known: records, whose images and geometry are taken for the questions of their scenes; of
        several image sets of a scene the first. Not gone through without an official file.

    Raises:
      UserError: an official file that is broken, or asks about a scene of which no record is known.
    """
    found = {path: dataset_of(Path(path)) for path in paths}
    scenes: dict[str, Record] = {}
    if any(found.values()):
        for record in known:
            if record.scene_id:
                scenes.setdefault(record.scene_id, record)
    return [
        path if name is None else _made(Path(path), name, scenes) for path, name in found.items()
    ]


def _made(path: Path, dataset: str, scenes: Mapping[str, Record]) -> str:
    questions = read_questions(dataset, path, None)
    missing = sorted({q.scene_id for q in questions} - scenes.keys())
    if missing:
        raise UserError(
            f"{path} asks about {len(missing):,} scenes of which data.train, data.val and "
            f"data.test hold no record: {', '.join(missing[:_NAMED])}"
            f"{' …' if len(missing) > _NAMED else ''}; prepare it with their scans "
            "(scripts/prep/prepare_scanqa.py, docs/data.md)"
        )
    lines = []
    for question in questions:
        shown = scenes[question.scene_id]
        record = question_record(question, dataset, tuple(map(_absolute, shown.images)))
        seen = ("geometry", "image_size", "up", "frame", "frame_to_world", "rendered")
        record = dataclasses.replace(record, **{name: getattr(shown, name) for name in seen})
        lines.append(json.dumps(record_entry(record)) + "\n")
    text = "".join(lines)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    made = cache_folder() / "official" / f"{path.stem}-{digest}.jsonl"
    if not made.exists():
        made.parent.mkdir(parents=True, exist_ok=True)
        write_text(made, text)
    return str(made)


def questions_of(paths: Sequence[str]) -> dict[str, dict]:
    """The questions of record files and official ones, as fields of a line of predictions.

    Returns:
      By `question_id`: `references`, `question`, `situation`, `scene_id`, `task` and `kind`; of an
      instruction also `reference`, its action in metres, and `up`.

    Raises:
      UserError: a file that cannot be read, or two questions of one id.
    """
    found: dict[str, dict] = {}
    for path in paths:
        dataset = dataset_of(Path(path))
        asked = (
            read_questions(dataset, Path(path), None)
            if dataset
            else (record for file in open_records(path) for record in file)
        )
        for each in asked:
            if not each.question_id:
                where = getattr(each, "origin", path)
                raise UserError(f"{where}: no question_id, by which predictions would be known")
            if each.question_id in found:
                raise UserError(f"{path}: the question_id {each.question_id!r} stands twice")
            found[each.question_id] = {
                "references": list(each.answers),
                "question": each.question,
                "situation": each.situation,
                "scene_id": each.scene_id,
                "task": dataset or each.task,
                "kind": "" if dataset else each.kind,
            }
            action = None if dataset else each.action
            if action is not None:
                # An answer is the text that is learnt, or JSON in metres.
                references = [*each.answers, action]
                found[each.question_id] |= {
                    "references": references,
                    "reference": action,
                    "up": each.up,
                }
    return found


def _absolute(image: str) -> str:
    return str(Path(image).absolute())
