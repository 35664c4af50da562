"""Predictions in a file: one JSON object a line, the original's fields and ours."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from jaxvlm.data.actions import language
from jaxvlm.data.items import half_of_a_pair
from jaxvlm.errors import UserError, shown
from jaxvlm.metrics.actions import is_action
from jaxvlm.metrics.kinds import question_type

_NAMED = 5
_TEXTS = ("question", "task", "kind", "situation")


def check_ids(path: Path, known: Mapping[str, Mapping]) -> None:
    """Checks that a predictions file answers certain questions, all of them and each once.

    Raises:
      UserError: it does not; it lists those that differ.
    """
    seen: dict[str, str] = {}
    strange, lacking = [], dict.fromkeys(known)
    for line in read_lines(path, known, strict=False):
        key = "" if line.get("question_id") is None else str(line["question_id"])
        if not key:
            raise UserError(f"{line['origin']}: no question_id, by which --data would know it")
        if key in seen:
            raise UserError(f"{line['origin']}: {key} stands there and at {seen[key]}")
        seen[key] = line["origin"]
        lacking.pop(key, None)
        if key not in known:
            strange.append(key)
    problems = [
        f"{what} {', '.join(keys[:_NAMED])}"
        + (f" and {len(keys) - _NAMED:,} more" if len(keys) > _NAMED else "")
        for what, keys in (("the records lack", strange), ("the file lacks", list(lacking)))
        if keys
    ]
    if problems:
        raise UserError(f"{path} does not match --data: {'; '.join(problems)}")


def check_alike(lines: Iterable[Mapping], path: Path) -> None:
    """Checks that a file holds only questions or only actions: their figures are of other things.

    Raises:
      UserError: it holds both.
    """
    counts = Counter(is_action(line) for line in lines)
    if len(counts) > 1:
        raise UserError(
            f"{path} holds {counts[False]:,} questions and {counts[True]:,} actions; score them "
            "apart, in a file each"
        )


def read_lines(
    path: Path, known: Mapping[str, Mapping] | None = None, strict: bool = True
) -> Iterator[dict]:
    """The lines of a predictions file, one after the other.

    Each has `prediction`, `references` (a list of texts), `reference` (its own, or the first),
    `question`, `task`, `kind`, `scene_id`, whatever else the file has, and `origin`, its place.

    Args:
      path: of the file.
      known: fields by `question_id`: their references take the place of the file's own, the others
        are added where the file lacks them.
      strict: a line without a reference is an error.

    Raises:
      UserError: a file that cannot be read, or a line that is none; it names file and line.
    """
    found = 0
    try:
        # What is no UTF-8 is found line by line.
        with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
            for number, text in enumerate(file, 1):
                if text.strip():
                    found += 1
                    yield _line(text, f"{path}:{number}", known, strict)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if not found:
        raise UserError(f"{path} holds no line")


def _line(text: str, origin: str, known: Mapping[str, Mapping] | None, strict: bool) -> dict:
    try:
        text.encode("utf-8")
        line = json.loads(text, parse_constant=_no_number, parse_float=_finite)
    except UnicodeEncodeError:
        raise UserError(f"{origin}: the line is no text in UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{origin}: no JSON ({error}); expected an object with 'prediction' and "
            "'reference' a line (docs/evaluation.md)"
        ) from None
    if not isinstance(line, dict):
        raise UserError(f"{origin}: expected a JSON object a line, found {type(line).__name__}")
    if half_of_a_pair(text, line):
        raise UserError(f"{origin}: it holds half of a surrogate pair, which is no text")
    if "prediction" not in line:
        raise UserError(
            f"{origin}: the line has no 'prediction'; has {', '.join(line) or 'nothing'}"
        )
    if isinstance(line["prediction"], dict):
        line["prediction"] = json.dumps(line["prediction"])
    if not isinstance(line["prediction"], str):
        raise UserError(
            f"{origin}: 'prediction' should be a text, is {json.dumps(line['prediction'])}"
        )
    if known is not None:
        fields = known.get(str(line.get("question_id")), {"references": []})
        there = {name: value for name, value in line.items() if value not in (None, "")}
        line = {**fields, **there, "references": fields["references"]}
        if "up" in fields:
            line["up"] = fields["up"]
        line["reference"] = fields.get("reference") or next(iter(line["references"]), None)
    for name in _TEXTS:
        line[name] = line.get(name) or ""
        if not isinstance(line[name], str):
            raise UserError(f"{origin}: {name!r} should be a text, is {json.dumps(line[name])}")
    if (line.get("up") or "z") not in ("z", "y"):
        raise UserError(f'{origin}: \'up\' must be "z" or "y", found {shown(line["up"])}')
    references = _references(line, origin, strict)
    line["reference"] = _as_action(line.get("reference") or next(iter(references), None))
    action = _true_action(line, origin)
    if not isinstance(line.get("predicted_action"), dict | None):
        raise UserError(f"{origin}: 'predicted_action' should be an action in metres, or null")
    return line | {
        "references": references,
        "kind": kind_of(line["question"], line["kind"], line["task"]),
        "scene_id": str(line.get("scene_id") or action.get("scene") or ""),
        "origin": origin,
    }


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{shown(text)} is too large for a number")
    return number


def _as_action(reference: object) -> object:
    """A reference, which is an action too where it is one written as a text of JSON."""
    if not isinstance(reference, str) or not reference.lstrip().startswith("{"):
        return reference
    try:
        action = json.loads(reference)
    except (ValueError, RecursionError):
        return reference
    return action if "action" in action else reference


def _true_action(line: Mapping, origin: str) -> Mapping:
    """The action that is a line's reference; empty where that is a text."""
    action = line["reference"] if is_action(line) else {}
    name = action.get("action", "")
    if not isinstance(name, str):
        raise UserError(f"{origin}: 'reference.action' should be the name of an action")
    wrong = language.problem(action, anywhere=True) if name in language.ACTIONS else None
    if wrong is not None:
        raise UserError(f"{origin}: {wrong.replace('action_json', 'reference', 1)}")
    return action


def kind_of(question: str, kind: str, task: str) -> str:
    """The kind of a question: its own, where it says more than the task, or SQA3D's type."""
    return kind if kind and kind != task else question_type(question)


def _references(line: dict, origin: str, strict: bool) -> list[str]:
    found = line.get("references")
    if found is None:
        found = line.get("reference")
        found = [] if found is None else [found]
    if not isinstance(found, list) or not all(isinstance(each, str | dict) for each in found):
        raise UserError(
            f"{origin}: expected 'references', a list of texts, or 'reference', a text or an action"
        )
    texts = [each if isinstance(each, str) else json.dumps(each) for each in found]
    texts = [text for text in texts if text.strip()]
    if not texts and strict:
        raise UserError(f"{origin}: no reference to score against ('reference' or 'references')")
    return texts
