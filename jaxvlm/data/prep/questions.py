"""The official question files: ScanQA v1.0, and SQA3D's questions joined with its annotations."""

import dataclasses
from pathlib import Path

from jaxvlm.data.prep.files import read_json
from jaxvlm.errors import UserError

DATASETS = ("scanqa", "sqa3d")


@dataclasses.dataclass(frozen=True)
class Question:
    """A question about a scene.

    Attributes:
      question_id, scene_id, question, situation: as in the file; no situation in ScanQA.
      answers: all of them; empty in files for prediction.
      object_ids, object_names: what ScanQA says the question is about.
    """

    question_id: str
    scene_id: str
    question: str
    answers: tuple[str, ...]
    situation: str = ""
    object_ids: tuple[int, ...] = ()
    object_names: tuple[str, ...] = ()


def question_files(dataset: str, qa_file: Path, annotations: Path | None) -> list[Path]:
    """The files that questions are read from: one, or SQA3D's two.

    Raises:
      UserError: SQA3D's annotations are not given and not found.
    """
    if dataset == "sqa3d":
        return [qa_file, annotations or _beside(qa_file)]
    if annotations is not None:
        raise UserError("--annotations: ScanQA's answers stand in its question file")
    return [qa_file]


def read_questions(dataset: str, qa_file: Path, annotations: Path | None) -> list[Question]:
    """Reads an official file.

    Args:
      dataset: "scanqa" or "sqa3d".
      qa_file: ScanQA's list, or SQA3D's `v1_balanced_questions_*`.
      annotations: SQA3D's `v1_balanced_sqa_annotations_*`; found beside the questions by its name
        where it is not given.

    Raises:
      UserError: a missing or foreign file, or a question without one of its fields.
    """
    files = question_files(dataset, qa_file, annotations)
    return _scanqa(*files) if dataset == "scanqa" else _sqa3d(*files)


def _scanqa(path: Path) -> list[Question]:
    rows = read_json(path)
    if not isinstance(rows, list):
        hint = "; is this SQA3D? pass --dataset sqa3d" if _has(rows, "questions") else ""
        raise UserError(f"{path}: expected ScanQA's list of questions{hint}")
    return [
        Question(
            question_id=_text(row, "question_id", f"{path}: item {number}"),
            scene_id=_text(row, "scene_id", f"{path}: item {number}"),
            question=_text(row, "question", f"{path}: item {number}"),
            answers=_items(row, "answers", str, f"{path}: item {number}"),
            object_ids=_items(row, "object_ids", int | str, f"{path}: item {number}"),
            object_names=_items(row, "object_names", str, f"{path}: item {number}"),
        )
        for number, row in enumerate(rows)
    ]


def _sqa3d(path: Path, annotations: Path) -> list[Question]:
    rows, answers = read_json(path), read_json(annotations)
    if not _has(rows, "questions"):
        hint = "; is this ScanQA? pass --dataset scanqa" if isinstance(rows, list) else ""
        raise UserError(f"{path}: expected SQA3D's object with a list 'questions'{hint}")
    if not _has(answers, "annotations"):
        raise UserError(f"{annotations}: expected SQA3D's object with a list 'annotations'")
    answer_of: dict[str, dict] = {}
    for number, row in enumerate(answers["annotations"]):
        answer_of[_text(row, "question_id", f"{annotations}: annotation {number}")] = row
    questions = []
    for number, row in enumerate(rows["questions"]):
        where = f"{path}: question {number}"
        key = _text(row, "question_id", where)
        found = answer_of.get(key)
        if found is None:
            raise UserError(
                f"{where}: question_id {key} has no annotation in {annotations}; are the two "
                "files of the same split?"
            )
        if found.get("scene_id") != row.get("scene_id"):
            raise UserError(
                f"{where}: question_id {key} is about {row.get('scene_id')!r}, its annotation "
                f"about {found.get('scene_id')!r}"
            )
        try:
            texts = [answer["answer"] for answer in found["answers"]]
        except (KeyError, TypeError):
            texts = [None]
        if not all(isinstance(text, str) and text.strip() for text in texts):
            raise UserError(f"{annotations}: the annotation of {key} has no text answers[].answer")
        questions.append(
            Question(
                question_id=key,
                scene_id=_text(row, "scene_id", where),
                question=_text(row, "question", where),
                answers=tuple(dict.fromkeys(texts)),
                situation=_optional(row, "situation", where),
            )
        )
    return questions


def _items(row: dict, field: str, kind, where: str) -> tuple:
    """An optional list; an answer that holds nothing is no answer."""
    values = row.get(field) or []
    if not isinstance(values, list) or not all(
        isinstance(v, kind) and not isinstance(v, bool) for v in values
    ):
        raise UserError(f"{where}: {field!r} must be a list, found {values!r}")
    return tuple(v for v in values if str(v).strip())


def _beside(questions: Path) -> Path:
    """SQA3D's annotations, which lie beside the questions with one word another."""
    path = questions.with_name(questions.name.replace("questions", "sqa_annotations"))
    if path == questions:
        raise UserError(
            f"{questions} has no 'questions' in its name: is it the annotations, or ScanQA's file "
            "(pass --dataset scanqa)? Else name SQA3D's annotations with --annotations"
        )
    if not path.is_file():
        raise UserError(
            f"the annotations of {questions} do not lie beside it as {path.name}; pass "
            "--annotations v1_balanced_sqa_annotations_..._scannetv2.json"
        )
    return path


def _has(value: object, name: str) -> bool:
    return isinstance(value, dict) and isinstance(value.get(name), list)


def _optional(row: dict, field: str, where: str) -> str:
    return _text(row, field, where) if row.get(field) else ""


def _text(row: object, field: str, where: str) -> str:
    value = row.get(field) if isinstance(row, dict) else None
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise UserError(f"{where}: needs {field!r}, found {value!r}")
    return str(value).strip()
