"""The audit: every check over whole files of records, in one pass and a look at each image."""

import dataclasses
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from jaxvlm.data.checks import (
    CHECKS,
    ERROR,
    SMALLEST_IMAGE,
    WARNING,
    Problem,
    check_record,
    other_scene,
)
from jaxvlm.data.images import check_image
from jaxvlm.data.items import RecordError
from jaxvlm.data.record import Record
from jaxvlm.data.records import RecordFile
from jaxvlm.errors import UserError

_READERS = 16
_SAME_GEOMETRY = 4096
Advance = Callable[[int], object]


def _nothing(count: int = 1) -> None:
    pass


@dataclasses.dataclass
class Findings:
    """What the audit of one file found.

    Attributes:
      file: the file.
      rows: its records.
      problems: of each record that has any, by its index; those of the whole file under -1.
      question_ids: the distinct ones, hashed.
      scenes: scene ids, each with the index of its first record.
      tasks: how many records each task has.
      images: of each image path that was looked at: size in bytes and time of change (None where
        it does not exist), to know later whether it is still the same.
    """

    file: RecordFile
    rows: int
    problems: dict[int, list[Problem]]
    question_ids: set[bytes]
    scenes: dict[str, int]
    tasks: Counter[str]
    images: dict[str, tuple[int, int] | None]

    def counts(self) -> Counter:
        """Findings of each check."""
        return Counter(p.check for found in self.problems.values() for p in found)

    def bad(self) -> dict[int, Problem]:
        """The first error of each record that has one."""
        first = {
            index: next((p for p in found if p.level == ERROR), None)
            for index, found in self.problems.items()
            if index >= 0
        }
        return {index: problem for index, problem in sorted(first.items()) if problem}

    def add(self, index: int, check: str, text: str, level: str = ERROR) -> None:
        """Adds a finding about a record."""
        origin = self.file.items.origin(index)
        self.problems.setdefault(index, []).append(Problem(check, level, f"{origin}: {text}"))


@dataclasses.dataclass(frozen=True)
class _Use:
    """How a record uses an image; records of one scene share it."""

    folder: str
    image: str
    scene_id: str
    image_size: tuple[int, int] | None


@dataclasses.dataclass(frozen=True)
class _Flaw:
    """What is wrong with the use of an image."""

    check: str
    text: str
    level: str = ERROR


def audit_file(
    file: RecordFile,
    image_roots: Sequence[str],
    look_at_images: bool,
    advance: Advance = _nothing,
) -> Findings:
    """Checks every record of a file.

    Args:
      file: the records.
      image_roots: folders that relative image paths are tried in, after the record file's own.
      look_at_images: look for every image and decode it.
      advance: called with the number of records or images that are done.
    """
    findings = Findings(file, len(file), {}, set(), {}, Counter(), {})
    for note in file.items.notes:
        findings.problems.setdefault(-1, []).append(
            Problem(note, WARNING, f"{file.path}:1: {CHECKS[note]}; it is read all the same")
        )
    uses: dict[_Use, None] = {}
    memory = _Memory()
    answered = False
    for index in range(len(file)):
        advance(1)
        try:
            record = file[index]
        except RecordError as error:
            found = Problem(error.check, ERROR, str(error))
            findings.problems.setdefault(index, []).append(found)
            continue
        problems = memory.check(record)
        if problems:
            findings.problems.setdefault(index, []).extend(problems)
        answered |= bool(record.answer)
        memory.check_row(findings, index, record)
        findings.scenes.setdefault(record.scene_id, index)
        findings.tasks[record.task] += 1
        uses.update(dict.fromkeys(_uses(record)))
    if not answered:
        _soften(findings, "answer-empty")
    problems = _check_uses(findings, uses, image_roots, look_at_images, advance)
    if problems:
        _attach(findings, problems)
    return findings


def _uses(record: Record) -> Iterator[_Use]:
    folder = str(Path(record.origin.rsplit(":", 1)[0]).parent)
    for image in record.images:
        yield _Use(folder, image, record.scene_id, record.image_size)


class _Memory:
    """What was seen of a file so far: rows, question ids, and geometry that many rows share."""

    def __init__(self):
        self._rows: dict[bytes, int] = {}
        self._ids: dict[bytes, int] = {}
        self._geometry: dict[bytes, bool] = {}

    def check(self, record: Record) -> list[Problem]:
        """`check_record`, where rows of one scene repeat its geometry only once."""
        if record.geometry is None or record.action is not None:
            return check_record(record)
        parts = [value.tobytes() for value in record.geometry.values()]
        key = _digest(repr((record.image_size, record.up, list(record.geometry))), *parts)
        if self._geometry.get(key):
            return check_record(dataclasses.replace(record, geometry=None))
        if len(self._geometry) > _SAME_GEOMETRY:
            self._geometry.clear()
        problems = check_record(record)
        self._geometry[key] = not problems
        return problems

    def check_row(self, findings: Findings, index: int, record: Record) -> None:
        """Finds rows and question ids that stood before."""
        row = row_key(record)
        if record.question_id:
            findings.question_ids.add(_digest(record.question_id))
        first = self._rows.setdefault(row, index)
        if first != index:
            # With an id of its own, it may be the data set's intention.
            own = record.question_id and record.question_id != findings.file[first].question_id
            line = findings.file.items.origin(first).rsplit(":", 1)[1]
            text = f"the same question, answer, scene and situation as line {line}"
            findings.add(index, "duplicate-row", text, WARNING if own else ERROR)
        elif record.question_id:
            before = self._ids.setdefault(_digest(record.question_id), index)
            if before != index:
                line = findings.file.items.origin(before).rsplit(":", 1)[1]
                text = f"the question_id {record.question_id!r} stands in line {line} already"
                findings.add(index, "duplicate-question-id", text, WARNING)


def row_key(record: Record) -> bytes:
    """What makes two rows the same: question, answer, scene and situation, hashed."""
    return _digest(record.question, record.answer, record.scene_id, record.situation)


def _digest(*parts: str | bytes) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.digest()


def _soften(findings: Findings, check: str) -> None:
    """Makes the findings of a check warnings: a file without any answer is one to predict."""
    for found in findings.problems.values():
        found[:] = [dataclasses.replace(p, level=WARNING) if p.check == check else p for p in found]


def _check_uses(
    findings: Findings,
    uses: dict[_Use, None],
    image_roots: Sequence[str],
    look: bool,
    advance: Advance,
) -> dict[_Use, list[_Flaw]]:
    """What is wrong with each use of an image."""
    problems: dict[_Use, list[_Flaw]] = {}
    for use in uses:
        other = other_scene(use.image, use.scene_id, findings.scenes)
        if other is not None:
            text = f"the image {use.image!r} is of {other!r}, the record of {use.scene_id!r}"
            problems.setdefault(use, []).append(_Flaw("image-scene-mismatch", text))
    if not look:
        return problems
    where = {(use.folder, use.image): None for use in uses}
    looked = look_at_images(where, image_roots, advance)
    for use in uses:
        look_result = looked[use.folder, use.image]
        findings.images |= look_result.seen
        flaw = look_result.flaw(use)
        if flaw is not None:
            problems.setdefault(use, []).append(flaw)
    return problems


def _attach(findings: Findings, problems: dict[_Use, list[_Flaw]]) -> None:
    """Finds the records of the uses; records are read again, for few files need it."""
    for index in range(len(findings.file)):
        try:
            record = findings.file[index]
        except RecordError:
            continue
        found = [p for use in dict.fromkeys(_uses(record)) for p in problems.get(use, ())]
        # One finding of a kind is enough for a record, however many views it has.
        for flaw in {flaw.check: flaw for flaw in reversed(found)}.values():
            findings.add(index, flaw.check, flaw.text, flaw.level)


@dataclasses.dataclass(frozen=True)
class Look:
    """What looking at an image file gave.

    Attributes:
      path: where it was found, or None.
      size: (width, height) in pixels, or None.
      error: why it cannot be read, or None.
      seen: of each path that was tried, bytes and time of change, or None.
      tried: the folders it was looked for in.
    """

    path: str | None
    size: tuple[int, int] | None
    error: str | None
    seen: dict[str, tuple[int, int] | None]
    tried: tuple[str, ...]

    def flaw(self, use: _Use) -> _Flaw | None:
        """What is wrong with a record's use of the image."""
        if self.path is None:
            text = (
                f"the image {use.image!r} does not exist (looked in {', '.join(self.tried)}); "
                "name its folder as an image root"
            )
            return _Flaw("image-missing", text)
        if self.error is not None:
            return _Flaw("image-unreadable", self.error)
        found = f"the image {use.image!r} has {self.size[0]} x {self.size[1]} pixels"
        if use.image_size is not None and use.image_size != self.size:
            width, height = use.image_size
            return _Flaw("image-size", f"{found}, image_size says {width} x {height}")
        if min(self.size) < SMALLEST_IMAGE:
            return _Flaw("image-size", f"{found}; little can be seen on it", WARNING)
        return None


def look_at_images(
    images: Sequence[tuple[str, str]] | dict, image_roots: Sequence[str], advance: Advance
) -> dict[tuple[str, str], Look]:
    """Finds and decodes images, many at a time, for a network's file system is slow.

    Args:
      images: (folder of the record file, path as written).
      image_roots: folders to look in after the record file's own.
      advance: called for every image.
    """

    def look(item: tuple[str, str]) -> Look:
        folder, image = item
        path = Path(image)
        roots = () if path.is_absolute() else tuple(dict.fromkeys((folder, *image_roots)))
        candidates = [str(path)] if path.is_absolute() else [str(Path(r, image)) for r in roots]
        seen: dict[str, tuple[int, int] | None] = {}
        for candidate in candidates:
            seen[candidate] = stamp(candidate)
            if seen[candidate] is not None:
                break
        else:
            return Look(None, None, None, seen, roots)
        try:
            return Look(candidate, check_image(candidate), None, seen, roots)
        except UserError as error:
            return Look(candidate, None, str(error), seen, roots)

    looked = {}
    with ThreadPoolExecutor(_READERS) as pool:
        for item, result in zip(images, pool.map(look, images), strict=True):
            looked[item] = result
            advance(1)
    return looked


def stamp(path: str) -> tuple[int, int] | None:
    """Bytes and time of change of a file, or None where there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return (status.st_size, status.st_mtime_ns) if Path(path).is_file() else None


def check_shared_scenes(train: Sequence[Findings], test: Sequence[Findings]) -> None:
    """Adds a finding to the first record of every scene of `test` that `train` has too."""
    for findings in test:
        for other in train:
            for scene in findings.scenes.keys() & other.scenes.keys() - {""}:
                findings.add(
                    findings.scenes[scene],
                    "scene-in-both",
                    f"the scene {scene!r} is in {other.file.path}, too",
                )
