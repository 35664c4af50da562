"""Rows of a file that say the same, found with a few bytes of memory a row."""

import dataclasses
import hashlib
from array import array

import numpy as np

from jaxvlm.data.audit.checks import ERROR, WARNING
from jaxvlm.data.audit.findings import Findings
from jaxvlm.data.record import Record


def row_key(record: Record) -> bytes:
    """What makes two rows the same: question, answer, scene and situation, hashed.

    Where no scene is named, the images are the scene.
    """
    scene = record.scene_id or repr(record.images)
    return digest(record.question, record.answer, scene, record.situation)


def digest(*parts: str | bytes) -> bytes:
    """A hash of texts and bytes that keeps apart where one ends and the next begins."""
    made = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        made.update(len(data).to_bytes(8, "little") + data)
    return made.digest()


class Rows:
    """What the rows of a file say, eight bytes each, to find those that say the same."""

    def __init__(self):
        self._index, self._row, self._id = array("q"), array("Q"), array("Q")
        self._asked = array("Q")

    def add(self, index: int, record: Record) -> None:
        """Remembers a record."""
        self._index.append(index)
        self._row.append(_short(row_key(record)))
        # Zero stands for what several actions may answer: a question.
        asked = dataclasses.replace(record, answer="") if record.action is not None else None
        self._asked.append(_short(row_key(asked)) if asked else 0)
        # Zero stands for no id.
        self._id.append(_short(digest(record.question_id)) if record.question_id else 0)

    def report(self, findings: Findings) -> None:
        """Finds rows and question ids that stood before."""
        index, ids = np.array(self._index), np.array(self._id)
        again = _earlier(np.array(self._row))
        for place, before in again.items():
            self._same_row(findings, int(index[place]), int(index[before]))
        for place, before in _earlier(ids).items():
            if ids[place] and place not in again:
                text = f"its question_id stands in line {_line(findings, index[before])} already"
                findings.add(int(index[place]), "duplicate-question-id", text, WARNING)
        asked = np.array(self._asked)
        for place, before in _earlier(asked).items():
            if asked[place] and place not in again:
                text = f"line {_line(findings, index[before])} answers this with another action"
                findings.add(int(index[place]), "instruction-conflict", text, WARNING)
        findings.question_ids = {int(i) for i in np.unique(ids[ids > 0])}

    def _same_row(self, findings: Findings, index: int, before: int) -> None:
        record, first = findings.file[index], findings.file[before]
        # With an id of its own, it may be the data set's intention.
        own = record.question_id and record.question_id != first.question_id
        text = f"says the same as line {_line(findings, before)}"
        findings.add(index, "duplicate-row", text, WARNING if own else ERROR)
        findings.same[index] = before


def _earlier(values: np.ndarray) -> dict[int, int]:
    """Of each place whose value stood before: the first place that has it."""
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    repeated = np.flatnonzero(first[inverse] != np.arange(len(values)))
    return dict(zip(repeated.tolist(), first[inverse][repeated].tolist(), strict=True))


def _line(findings: Findings, index: int) -> str:
    return findings.file.items.origin(int(index)).rsplit(":", 1)[1]


def _short(digest: bytes) -> int:
    return int.from_bytes(digest[:8], "little") or 1
