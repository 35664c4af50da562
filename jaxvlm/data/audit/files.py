"""The audit: every check over a whole file of records, in one pass and a look at each image."""

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence

from jaxvlm.data.audit.checks import CHECKS, ERROR, WARNING, Problem, check_record, room_of
from jaxvlm.data.audit.duplicates import Rows, digest
from jaxvlm.data.audit.findings import Findings
from jaxvlm.data.audit.images import ImageUse, Progress, attach, check_uses, image_uses
from jaxvlm.data.items import RecordError
from jaxvlm.data.record import Record
from jaxvlm.data.records import RecordFile

_SAME_GEOMETRY = 4096


def _silent(title: str, total: int) -> contextlib.AbstractContextManager:
    return contextlib.nullcontext(lambda count=1: None)


def audit_file(
    file: RecordFile,
    image_roots: Sequence[str],
    look_at_images: bool,
    progress: Progress = _silent,
) -> Findings:
    """Checks every record of a file.

    Args:
      file: the records.
      image_roots: folders that relative image paths are tried in, after the record file's own.
      look_at_images: look for every image and decode it.
      progress: shows how far the records are, then the images, like `jaxvlm.console.progress`.
    """
    findings = Findings(file, len(file), {}, set(), {}, Counter(), {})
    for note in file.items.notes:
        findings.problems.setdefault(-1, []).append(
            Problem(note, WARNING, f"{file.path}:1: {CHECKS[note]}; it is read all the same")
        )
    uses: dict[ImageUse, None] = {}
    rows, geometries = Rows(), _Geometries()
    answered = False
    with progress(f"records of {file.path.name}", len(file)) as advance:
        for index in range(len(file)):
            advance()
            try:
                record = file[index]
            except RecordError as error:
                found = Problem(error.check, ERROR, str(error))
                findings.problems.setdefault(index, []).append(found)
                continue
            problems = geometries.check(record)
            if problems:
                findings.problems.setdefault(index, []).extend(problems)
            answered |= bool(record.answer)
            rows.add(index, record)
            findings.scenes.setdefault(record.scene_id, index)
            findings.tasks[record.task] += 1
            uses.update(dict.fromkeys(image_uses(record)))
    rows.report(findings)
    if not answered:
        _soften(findings, "answer-empty")
    problems = check_uses(findings, uses, image_roots, look_at_images, progress)
    if problems:
        attach(findings, problems)
    return findings


def _soften(findings: Findings, check: str) -> None:
    """Makes the findings of a check warnings: a file without any answer is one to predict."""
    for found in findings.problems.values():
        found[:] = [dataclasses.replace(p, level=WARNING) if p.check == check else p for p in found]


def check_shared_scenes(
    train: Sequence[Findings], test: Sequence[Findings], rooms: Mapping[str, str] | None = None
) -> None:
    """Adds a finding to the first record of every scene of `test` whose room is in `train` too.

    Args:
      train: of the training files.
      test: of the others; one that is on both sides is not compared with itself.
      rooms: see `room_of`.
    """
    rooms = rooms or {}
    for other in train:
        there = {room_of(scene, rooms): scene for scene in other.scenes if scene}
        for findings in test:
            if findings is other:
                continue
            for scene, index in findings.scenes.items():
                if scene and (shared := there.get(room_of(scene, rooms))) is not None:
                    text = f"the scene {scene!r} is in {other.file.path}, too"
                    if shared != scene:
                        text = f"the room of {scene!r} is in {other.file.path}, too, as {shared!r}"
                    findings.add(index, "scene-in-both", text)


class _Geometries:
    """Geometry that was checked before: the questions of a scene repeat it."""

    def __init__(self):
        self._good: set[bytes] = set()

    def check(self, record: Record) -> list[Problem]:
        """`check_record`, each geometry that is good only once."""
        if record.geometry is None or record.action is not None:
            return check_record(record)
        parts = [value.tobytes() for value in record.geometry.values()]
        key = digest(repr((record.image_size, list(record.geometry))), *parts)
        if key in self._good:
            return check_record(dataclasses.replace(record, geometry=None))
        problems = check_record(record)
        if not problems:
            if len(self._good) >= _SAME_GEOMETRY:
                self._good.clear()
            self._good.add(key)
        return problems
