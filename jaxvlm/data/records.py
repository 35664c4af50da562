"""Records: one question (or instruction) about one set of images, read from JSON lines or JSON."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jaxvlm.errors import UserError

# Numbers a view of each part of `geom_token`.
GEOMETRY_PARTS = {"R": 9, "t": 3, "K": 9, "depth_hist": 16}
# Beyond this, metres and pixels are a mistake, and the features made of them would overflow.
_LARGEST = 1e6


@dataclasses.dataclass(frozen=True)
class Record:
    """One line of a record file.

    Attributes:
      images: image paths as written in the file.
      question: the question or instruction.
      answer: the text to learn; an action is its compact JSON.
      answers: every accepted answer, `answer` first; empty where the file gives none.
      situation: where the asker stands (SQA3D); empty without one.
      action: the `action_json` of an instruction, else None.
      geometry: arrays `R [V,9]`, `t [V,3]`, `K [V,9]`, `depth_hist [V,16]` (float32, metres and
        pixels, camera-to-world), a missing part absent; None without geometry.
      image_size: `(width, height)` that K refers to, or None.
      up: the world's vertical axis, "z" or "y".
      task, kind, scene_id, question_id: names from the file; kind is the question's kind.
      origin: `file:line` for messages.
    """

    images: tuple[str, ...]
    question: str
    answer: str
    answers: tuple[str, ...]
    situation: str
    action: dict | None
    geometry: dict[str, np.ndarray] | None
    image_size: tuple[int, int] | None
    up: str
    task: str
    kind: str
    scene_id: str
    question_id: str
    origin: str


def read_records(path: str | Path) -> list[Record]:
    """Reads a `.jsonl` file, a JSON array, or an object with a list under `data` or `samples`.

    Raises:
      UserError: a missing or empty file, malformed JSON, or a field that is absent or of the
        wrong type, with the file and line (or item).
    """
    path = Path(path)
    records = [parse_record(entry, origin) for entry, origin in _entries(path)]
    if not records:
        raise UserError(f"{path}: the file holds no records")
    return records


def _entries(path: Path) -> Iterator[tuple[object, str]]:
    """Yields every JSON object of the file with its `file:line`."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"record file {str(path)!r} does not exist; check data.* paths") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"record file {str(path)!r} cannot be read: {error}") from None
    if path.suffix == ".jsonl":
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                yield _decode(line, f"{path}:{number}"), f"{path}:{number}"
        return
    whole = _decode(text, str(path))
    if isinstance(whole, dict):
        whole = whole.get("data", whole.get("samples"))
    if not isinstance(whole, list):
        raise UserError(
            f"{path}: expected a list of records, or an object with a list 'data' or 'samples'"
        )
    for number, entry in enumerate(whole):
        yield entry, f"{path}: item {number}"


def _decode(text: str, origin: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{origin}: malformed JSON: {error.msg} at column {error.colno}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{origin}: malformed JSON: {error}") from None


def parse_record(entry: object, origin: str) -> Record:
    """Checks one JSON object and makes a `Record` of it.

    Raises:
      UserError: naming `origin` and the field.
    """
    if not isinstance(entry, dict):
        raise UserError(f"{origin}: expected a JSON object, found {type(entry).__name__}")
    images = entry.get("images")
    if not isinstance(images, list) or not images or not all(isinstance(i, str) for i in images):
        raise UserError(f"{origin}: 'images' must be a non-empty list of paths")
    question = entry.get("question", entry.get("instruction"))
    if not isinstance(question, str) or not question.strip():
        raise UserError(f"{origin}: 'question' (or 'instruction') must be a non-empty text")
    action = entry.get("action_json")
    if action is not None and not isinstance(action, dict):
        raise UserError(f"{origin}: 'action_json' must be an object")
    answer, answers = _answers(entry, action, origin)
    for text in (question, answer, *answers, str(entry.get("situation"))):
        if _unpaired(text):
            raise UserError(f"{origin}: {text!r} holds bytes that are no UTF-8 text")
    up = entry.get("up", "z")
    if up not in ("z", "y"):
        raise UserError(f'{origin}: \'up\' must be "z" or "y", found {up!r}')
    return Record(
        images=tuple(images),
        question=question.strip(),
        answer=answer,
        answers=answers,
        situation=_text(entry, "situation", origin).strip(),
        action=action,
        geometry=_geometry(entry.get("geom_token"), len(images), origin),
        image_size=_image_size(entry.get("image_size"), origin),
        up=up,
        task=_text(entry, "task", origin),
        kind=_text(entry, "kind", origin) or _text(entry, "task", origin),
        # The original's ARKit records name their scene in the action alone.
        scene_id=_name(entry.get("scene_id") or (action or {}).get("scene")),
        question_id=_name(entry.get("question_id")),
        origin=origin,
    )


def _text(entry: dict, field: str, origin: str) -> str:
    """An optional text; empty where it is absent or null."""
    value = entry.get(field)
    if value is not None and not isinstance(value, str):
        raise UserError(f"{origin}: {field!r} must be a text, found {type(value).__name__}")
    return value or ""


def _unpaired(text: str) -> bool:
    """Whether it holds half of a surrogate pair, which no encoding can write."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def _name(value: object) -> str:
    """An optional text or number as text."""
    return "" if value is None else str(value)


def _answers(entry: dict, action: dict | None, origin: str) -> tuple[str, tuple[str, ...]]:
    if action is not None:
        text = json.dumps(action, separators=(",", ":"))
        return text, (text,)
    answers = entry.get("answers", [])
    if not isinstance(answers, list) or not all(isinstance(a, str) for a in answers):
        raise UserError(f"{origin}: 'answers' must be a list of texts")
    answer = entry.get("answer", answers[0] if answers else "")
    if not isinstance(answer, str):
        raise UserError(f"{origin}: 'answer' must be a text, found {type(answer).__name__}")
    answer = answer.strip()
    others = tuple(a.strip() for a in answers if a.strip() and a.strip() != answer)
    return answer, ((answer, *others) if answer else others)


def _geometry(token: object, views: int, origin: str) -> dict[str, np.ndarray] | None:
    if token is None:
        return None
    if not isinstance(token, dict):
        raise UserError(f"{origin}: 'geom_token' must be an object or null")
    unknown = sorted(set(token) - set(GEOMETRY_PARTS))
    if unknown:
        raise UserError(f"{origin}: geom_token has the unknown part {unknown[0]!r}")
    parts = {}
    for name, width in GEOMETRY_PARTS.items():
        if token.get(name) is None:
            continue
        try:
            value = np.asarray(token[name], np.float32).reshape(len(token[name]), -1)
        except (TypeError, ValueError, OverflowError):
            raise UserError(f"{origin}: geom_token.{name} is not a list of numbers") from None
        if value.shape != (views, width):
            raise UserError(
                f"{origin}: geom_token.{name} has shape {list(value.shape)}, "
                f"expected [{views}, {width}] (one row a view)"
            )
        if not np.isfinite(value).all():
            raise UserError(f"{origin}: geom_token.{name} holds a number that is not finite")
        if np.abs(value).max() > _LARGEST:
            raise UserError(
                f"{origin}: geom_token.{name} holds {np.abs(value).max():g}; expected metres and "
                f"pixels, at most {_LARGEST:g}"
            )
        parts[name] = value
    if ("R" in parts) != ("t" in parts):
        raise UserError(f"{origin}: geom_token has one of R and t; a pose needs both or neither")
    return parts or None


def _image_size(size: object, origin: str) -> tuple[int, int] | None:
    if size is None:
        return None
    if not (isinstance(size, list) and len(size) == 2 and all(_positive_int(v) for v in size)):
        raise UserError(f"{origin}: 'image_size' must be [width, height] in pixels")
    return size[0], size[1]


def _positive_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _LARGEST
