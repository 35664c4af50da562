"""A record: one question (or instruction) about one set of images, from JSON and back.

The format is described in docs/data.md.
"""

import dataclasses
import difflib
import json

import numpy as np
from jaxtyping import Float

from jaxvlm.data.actions import language
from jaxvlm.data.frames import (
    FRAMES,
    Frame,
    action_fields,
    first_camera_frame,
    is_rotation,
    move_action,
    with_axis,
)
from jaxvlm.data.items import RecordError
from jaxvlm.errors import shown

# Numbers a view of each part of `geom_token`.
GEOMETRY_PARTS = {"R": 9, "t": 3, "K": 9, "depth_hist": 16}
# Beyond this, metres and pixels are a mistake, and the features made of them would overflow.
_LARGEST = 1e6


@dataclasses.dataclass(frozen=True)
class Record:
    """One record.

    Attributes:
      images: image paths as written in the file.
      question: the question or instruction.
      answer: the text to learn; for an action that of `learnt_action`, in the action language.
      answers: every accepted answer, `answer` first; empty where the file gives none.
      situation: where the asker stands (SQA3D); empty without one.
      instructs: it has an `instruction` without an answer, and so asks for an action.
      action: the `action_json` of an instruction in the record's frame, else None.
      geometry: arrays `R [V,9]`, `t [V,3]`, `K [V,9]`, `depth_hist [V,16]` (float32, metres and
        pixels, camera-to-world), a missing part absent; None without geometry.
      image_size: `(width, height)` that K refers to, or None.
      up: the world's vertical axis, "z" or "y".
      frame: what poses and action are measured from, "world" or "first_camera" (`frames.py`).
      frame_to_world: matrix that takes points of `frame` to the data set's world, or None.
      rendered: the images were drawn from the scene's boxes, no camera took them.
      task, kind, scene_id, question_id: names from the file; kind is the question's kind.
      object_ids, object_names: the objects that the question is about.
      origin: `file:line` for messages.
    """

    images: tuple[str, ...]
    question: str
    answer: str = ""
    answers: tuple[str, ...] = ()
    situation: str = ""
    instructs: bool = False
    action: dict | None = None
    geometry: dict[str, Float[np.ndarray, "V N"]] | None = None
    image_size: tuple[int, int] | None = None
    up: str = "z"
    frame: str = "world"
    frame_to_world: Float[np.ndarray, "4 4"] | None = None
    rendered: bool = False
    task: str = ""
    kind: str = ""
    scene_id: str = ""
    question_id: str = ""
    object_ids: tuple[int | str, ...] = ()
    object_names: tuple[str, ...] = ()
    origin: str = ""

    def poses(self) -> tuple[Float[np.ndarray, "V 3 3"], Float[np.ndarray, "V 3"]] | None:
        """Camera-to-world rotations and positions in float64, or None without poses."""
        if self.geometry is None or "R" not in self.geometry:
            return None
        rotation = self.geometry["R"].reshape(-1, 3, 3).astype(np.float64)
        return rotation, self.geometry["t"].astype(np.float64)

    @property
    def is_action(self) -> bool:
        """Whether what it asks for is an action."""
        return self.instructs or self.action is not None

    def first_views(self, count: int) -> "Record":
        """The record with no more images than its first `count`."""
        geometry = self.geometry and {name: of[:count] for name, of in self.geometry.items()}
        return dataclasses.replace(self, images=self.images[:count], geometry=geometry)

    def learnt_action(self) -> dict:
        """The action in the first camera's frame; as it stands where no pose tells that frame."""
        frame = self.model_frame()
        if frame is None:
            return self.action
        return move_action(with_axis(self.action, self.up), frame)

    def model_frame(self) -> Frame | None:
        """The first camera's frame in that of the record; None without poses."""
        if self.geometry is None or "R" not in self.geometry:
            return None
        rotation, translation = self.geometry["R"][0].reshape(3, 3), self.geometry["t"][0]
        return first_camera_frame(rotation, translation, self.up)


def scene_of(record: Record) -> str:
    """The scene a record is of, or its first image where it does not tell."""
    return record.scene_id or record.images[0]


def record_entry(record: Record) -> dict:
    """The JSON object of a record; `parse_record` gives the record back."""
    entry: dict = {"images": list(record.images), "geom_token": None}
    if record.geometry is not None:
        entry["geom_token"] = {
            # The shortest text of a float32 keeps it and the file small.
            name: [[float(str(number)) for number in row] for row in value]
            for name, value in record.geometry.items()
        }
        entry["up"], entry["frame"] = record.up, record.frame
    if record.image_size is not None:
        entry["image_size"] = list(record.image_size)
    if record.frame_to_world is not None:
        entry["frame_to_world"] = record.frame_to_world.tolist()
    if record.rendered:
        entry["rendered"] = True
    entry["task"] = record.task
    if record.kind and record.kind != record.task:
        entry["kind"] = record.kind
    if record.situation:
        entry["situation"] = record.situation
    if record.is_action:
        entry["instruction"] = record.question
        if record.action is not None:
            entry["action_json"] = record.action
        entry |= {"up": record.up, "frame": record.frame}
    else:
        entry["question"] = record.question
        if record.answer:
            entry["answer"] = record.answer
        if record.answers:
            entry["answers"] = list(record.answers)
    entry |= {"scene_id": record.scene_id, "question_id": record.question_id}
    if record.object_ids:
        entry["object_ids"] = list(record.object_ids)
    if record.object_names:
        entry["object_names"] = list(record.object_names)
    return entry


def parse_record(entry: object, origin: str) -> Record:
    """Checks one JSON object and makes a `Record` of it.

    Raises:
      RecordError: naming `origin`, the field, and what was expected.
    """
    if not isinstance(entry, dict):
        raise _wrong(origin, f"expected a JSON object, found {type(entry).__name__}")
    images = entry.get("images")
    if not isinstance(images, list) or not images or not all(isinstance(i, str) for i in images):
        found = shown(images)
        if images is None:
            close = difflib.get_close_matches("images", map(str, entry), 1)
            found = f"nothing; did you mean {close[0]!r}?" if close else "nothing"
        raise _wrong(origin, f"'images' must be a non-empty list of paths, found {found}")
    if not all(images) or any("\0" in image for image in images):
        raise _wrong(origin, "'images' holds a path that is empty or has a NUL in it")
    question = entry.get("question")
    question = entry.get("instruction") if question is None else question
    if not isinstance(question, str) or not question.strip():
        raise _wrong(origin, "'question' (or 'instruction') must be a non-empty text")
    action = entry.get("action_json")
    if action is not None and not isinstance(action, dict):
        raise _wrong(origin, f"'action_json' must be an object, found {shown(action)}")
    up = entry.get("up", "z")
    if up not in ("z", "y"):
        raise _wrong(origin, f'\'up\' must be "z" or "y", found {shown(up)}')
    frame = entry.get("frame", "world")
    if frame not in FRAMES:
        raise _wrong(origin, f"'frame' must be one of {FRAMES}, found {shown(frame)}")
    rendered = entry.get("rendered", False)
    if not isinstance(rendered, bool):
        raise _wrong(origin, f"'rendered' must be true or false, found {shown(rendered)}")
    geometry = _geometry(entry.get("geom_token"), len(images), origin)
    _check_action(action or {}, origin)
    answer, answers = ("", ()) if action is not None else _answers(entry, origin)
    for text in (question, answer, *answers, str(entry.get("situation")), *images):
        if _unpaired(text):
            raise RecordError("invalid-utf8", f"{origin}: {text!r} holds bytes that are no text")
    instructs = action is None and entry.get("question") is None and not answers
    record = Record(
        images=tuple(images),
        question=question.strip(),
        answer=answer,
        answers=answers,
        situation=_text(entry, "situation", origin).strip(),
        instructs=instructs,
        action=action,
        geometry=geometry,
        image_size=_image_size(entry.get("image_size"), origin),
        up=up,
        frame=frame,
        frame_to_world=_matrix(entry.get("frame_to_world"), origin),
        rendered=rendered,
        task=_text(entry, "task", origin),
        kind=_text(entry, "kind", origin) or _text(entry, "task", origin),
        # The original's ARKit records name their scene in the action alone.
        scene_id=_name(entry.get("scene_id") or (action or {}).get("scene"), "scene_id", origin),
        question_id=_name(entry.get("question_id"), "question_id", origin),
        object_ids=_items(entry, "object_ids", int | str, origin),
        object_names=_items(entry, "object_names", str, origin),
        origin=origin,
    )
    if instructs and any(letter < " " for letter in record.scene_id):
        raise _wrong(origin, f"'scene_id' {record.scene_id!r} holds a control character")
    if instructs and _unpaired(record.scene_id):
        raise _wrong(origin, f"'scene_id' {record.scene_id!r} holds bytes that are no text")
    if instructs and not record.scene_id:
        raise _wrong(origin, "an 'instruction' asks for an action, which needs a 'scene_id'")
    if action is None:
        return record
    answer = _action_text(record.learnt_action())
    return dataclasses.replace(record, answer=answer, answers=(answer,))


def _wrong(origin: str, problem: str) -> RecordError:
    return RecordError("schema", f"{origin}: {problem}")


def _text(entry: dict, field: str, origin: str) -> str:
    """An optional text; empty where it is absent or null."""
    value = entry.get(field)
    if value is not None and not isinstance(value, str):
        raise _wrong(origin, f"{field!r} must be a text, found {type(value).__name__}")
    return value or ""


def _unpaired(text: str) -> bool:
    """Whether it holds half of a surrogate pair, which no encoding can write."""
    return not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text)


def _name(value: object, field: str, origin: str) -> str:
    """An optional text or number as text."""
    if isinstance(value, dict | list | bool):
        raise _wrong(origin, f"{field!r} must be a text or a number, found {shown(value)}")
    return "" if value is None else str(value)


def _items(entry: dict, field: str, kind, origin: str) -> tuple:
    value = entry.get(field) or []
    if not isinstance(value, list) or not all(isinstance(item, kind) for item in value):
        raise _wrong(origin, f"{field!r} must be a list, found {shown(value)}")
    return tuple(value)


def _answers(entry: dict, origin: str) -> tuple[str, tuple[str, ...]]:
    answers = entry.get("answers", [])
    if not isinstance(answers, list) or not all(isinstance(a, str) for a in answers):
        raise _wrong(origin, f"'answers' must be a list of texts, found {shown(answers)}")
    answer = entry.get("answer", answers[0] if answers else "")
    if not isinstance(answer, str):
        raise _wrong(origin, f"'answer' must be a text, found {type(answer).__name__}")
    answer = answer.strip()
    stripped = dict.fromkeys(a.strip() for a in (answer, *answers) if a.strip())
    return answer or next(iter(stripped), ""), tuple(stripped)


def _action_text(action: dict) -> str:
    """In the action language; what is no action of it is another check's, and stays JSON."""
    if language.problem(action) is None:
        return language.write(action)
    return json.dumps(action, separators=(",", ":"))


def _check_action(action: dict, origin: str) -> None:
    """The fields of an action can be moved to another frame; the rest is another check's."""
    if not isinstance(action.get("action", ""), str):
        found = shown(action["action"])
        raise RecordError("action-fields", f"{origin}: action_json.action {found} is no name")
    for name, kind in action_fields(action).items():
        value = action.get(name)
        wrong = None if name == "scene" or value is None else kind.malformed(value)
        if wrong is not None:
            raise RecordError("action-fields", f"{origin}: action_json.{name} {wrong}")


def _geometry(token: object, views: int, origin: str) -> dict[str, np.ndarray] | None:
    if token is None:
        return None
    if not isinstance(token, dict):
        raise _wrong(origin, f"'geom_token' must be an object or null, found {shown(token)}")
    unknown = sorted(set(token) - set(GEOMETRY_PARTS))
    if unknown:
        raise _wrong(origin, f"geom_token has the unknown part {unknown[0]!r}")
    parts = {}
    for name, width in GEOMETRY_PARTS.items():
        if token.get(name) is None:
            continue
        try:
            value = np.asarray(token[name])
            if value.dtype.kind not in "iuf":
                raise ValueError
            value = value.astype(np.float32).reshape(len(token[name]), -1)
        except (TypeError, ValueError, OverflowError):
            raise _wrong(origin, f"geom_token.{name} is not a list of numbers") from None
        if value.shape != (views, width):
            raise _wrong(
                origin,
                f"geom_token.{name} has shape {list(value.shape)}, "
                f"expected [{views}, {width}] (one row a view)",
            )
        if not np.isfinite(value).all():
            view = int(np.argmin(np.isfinite(value).all(-1)))
            raise RecordError(
                "geometry-not-finite",
                f"{origin}: geom_token.{name} holds a number that is not finite (view {view}); "
                "leave that view out",
            )
        if np.abs(value).max() > _LARGEST:
            raise RecordError(
                "geometry-not-finite",
                f"{origin}: geom_token.{name} holds {np.abs(value).max():g}; expected metres and "
                f"pixels, at most {_LARGEST:g}",
            )
        parts[name] = value
    if ("R" in parts) != ("t" in parts):
        raise _wrong(origin, "geom_token has one of R and t; a pose needs both or neither")
    return parts or None


def _matrix(value: object, origin: str) -> np.ndarray | None:
    if value is None:
        return None
    try:
        matrix = np.asarray(value, np.float64).reshape(4, 4)
    except (TypeError, ValueError, OverflowError):
        matrix = np.full((4, 4), np.nan)
    if not np.isfinite(matrix).all():
        raise _wrong(origin, "'frame_to_world' must be a 4 x 4 matrix of finite numbers")
    if not is_rotation(matrix[:3, :3]) or (matrix[3] != [0, 0, 0, 1]).any():
        raise _wrong(origin, "'frame_to_world' must be a rotation and a translation in metres")
    return matrix


def _image_size(size: object, origin: str) -> tuple[int, int] | None:
    if size is None:
        return None
    if not (isinstance(size, list) and len(size) == 2 and all(_positive_int(v) for v in size)):
        raise _wrong(origin, "'image_size' must be [width, height] in pixels")
    return size[0], size[1]


def _positive_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _LARGEST
