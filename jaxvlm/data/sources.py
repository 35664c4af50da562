"""Sources: record files with weights, checked completely before anything is computed."""

import bisect
import dataclasses
import difflib
import hashlib
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxvlm.console import say
from jaxvlm.data.audit.verdicts import Verdict, verdict
from jaxvlm.data.images import find_image
from jaxvlm.data.record import Record
from jaxvlm.data.records import RecordFile, open_records
from jaxvlm.errors import UserError

FIELDS = ("path", "weight", "task")
POLICIES = ("error", "skip")


class RecordSet(Sequence[Record]):
    """Records of several files, read when asked for, image paths resolved to files that exist."""

    def __init__(
        self, parts: Sequence[tuple[RecordFile, Sequence[int]]], image_roots: Sequence[str]
    ):
        """Holds the records of each file that are in its list of indices."""
        self._files = [file for file, _ in parts]
        self._indices = [np.asarray(kept, np.int64) for _, kept in parts]
        self._ends = np.cumsum([len(kept) for kept in self._indices])
        self._roots = tuple(image_roots)
        self._found: dict[tuple[str, str], str] = {}

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(index)
        part = int(np.searchsorted(self._ends, index, "right"))
        within = index - int(self._ends[part]) + len(self._indices[part])
        record = self._files[part][int(self._indices[part][within])]
        folder = str(self._files[part].path.parent)
        images = tuple(self._resolve(folder, image) for image in record.images)
        return dataclasses.replace(record, images=images)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_found": {}}

    def _resolve(self, folder: str, image: str) -> str:
        if (folder, image) not in self._found:
            # A file that has gone since the audit is named when it is read.
            self._found[folder, image] = find_image(image, (folder, *self._roots)) or image
        return self._found[folder, image]


class Joined(Sequence[Record]):
    """Several sequences of records, one behind the other."""

    def __init__(self, parts: Sequence[Sequence[Record]]):
        self._parts = parts
        self._ends = list(itertools.accumulate(map(len, parts)))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(index)
        part = bisect.bisect_right(self._ends, index)
        return self._parts[part][index - self._ends[part] + len(self._parts[part])]


class Chosen(Sequence[Record]):
    """Some of a sequence's records."""

    def __init__(self, records: Sequence[Record], indices: Sequence[int]):
        self._records, self._indices = records, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Record:
        return self._records[self._indices[index]]


@dataclasses.dataclass(frozen=True)
class Source:
    """Records that are drawn with one weight.

    Attributes:
      path: the path or glob they came from.
      weight: share of the samples drawn from this source, relative to the others'.
      records: the records, image paths resolved to files that exist.
      fingerprint: SHA-256 of the files' contents and of which records are left out; where files
        and images lie is not part of it.
      left_out: how many records fail a check of the audit.
    """

    path: str
    weight: float
    records: Sequence[Record]
    fingerprint: str
    left_out: int = 0


def source_names(specs: Sequence[Mapping]) -> list[str]:
    """What each source is called in metrics: its task, else its file; a number tells the same."""
    names = [spec.get("task") or Path(spec["path"]).stem for spec in specs]
    often = Counter(names)
    return [
        name if often[name] == 1 else f"{name}_{names[:index].count(name)}"
        for index, name in enumerate(names)
    ]


def load_sources(
    specs: Sequence[Mapping],
    image_roots: Sequence[str],
    on_bad_record: str,
    unanswered: bool = False,
) -> list[Source]:
    """Opens every record file of a split and audits it, images included.

    Args:
      specs: mappings with `path` (or a glob), `weight` and optionally `task`, which
        keeps the records of that task only.
      image_roots: folders that relative image paths are tried in, after the record file's own.
      on_bad_record: "error" stops at the first record with an error of the audit; "skip" leaves
        such records out, counted.
      unanswered: records without an answer are as good as others.

    Raises:
      UserError: naming the file and line, the image, the field, or the glob that matches nothing.
    """
    if on_bad_record not in POLICIES:
        raise UserError(f"data.on_bad_record is {on_bad_record!r}; expected one of {POLICIES}")
    if not specs:
        raise UserError("the split names no source; give at least one {'path': …, 'weight': …}")
    for spec in specs:
        if not isinstance(spec, Mapping):
            raise UserError(
                f"a data source is a mapping like {{'path': 'train.jsonl', 'weight': 1.0}}, "
                f"found {spec!r}"
            )
    return [_load(dict(spec), image_roots, on_bad_record, unanswered) for spec in specs]


def known_records(config) -> Iterator[Record]:
    """Records of the files that a configuration names, those of the test split first.

    Raises:
      UserError: see `load_sources`.
    """
    data = config.data
    for split in (data.test, data.val, data.train):
        for source in load_sources(split, data.image_roots, "skip", True) if split else ():
            yield from source.records


def _load(spec: dict, image_roots: Sequence[str], on_bad_record: str, unanswered: bool) -> Source:
    for name in spec:
        if name not in FIELDS:
            close = difflib.get_close_matches(name, FIELDS, 1) or FIELDS
            raise UserError(f"a data source has the unknown field {name!r}; did you mean {close}?")
    path, weight = spec.get("path"), spec.get("weight", 1.0)
    if not isinstance(path, str) or not path:
        raise UserError(f"a data source needs a 'path', found {path!r}")
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < 1e9:
        raise UserError(
            f"the weight of source {path!r} must be a positive number below 1e9, found {weight}"
        )
    files = open_records(path)
    verdicts = [verdict(file, image_roots) for file in files]
    if unanswered:
        verdicts = [found.without("answer-empty") for found in verdicts]
    _report(path, files, verdicts, on_bad_record)
    kept = [
        (file, _kept(file, found, spec.get("task")))
        for file, found in zip(files, verdicts, strict=True)
    ]
    if not any(indices for _, indices in kept):
        if spec.get("task") and all(spec["task"] not in found.tasks for found in verdicts):
            raise UserError(f"source {path!r} holds no record of the task {spec['task']!r}")
        raise UserError(f"{path}: no record is left; every one fails a check")
    left_out = sum(len(found.bad) for found in verdicts)
    fingerprint = _fingerprint(verdicts, kept)
    return Source(path, float(weight), RecordSet(kept, image_roots), fingerprint, left_out)


def _report(path: str, files: list[RecordFile], verdicts: list[Verdict], policy: str) -> None:
    """Stops at a bad record, or says how many are left out; says what the audit warns of."""
    checks = Counter(check for found in verdicts for check, _ in found.bad.values())
    bad, total = checks.total(), sum(map(len, files))
    command = f"python scripts/prep/audit_data.py {path}"
    if bad and policy == "error":
        first = next(message for found in verdicts for _, message in found.bad.values())
        more = f" ({bad - 1:,} more such records)" if bad > 1 else ""
        raise UserError(
            f"{first}{more}. `{command}` shows everything that is wrong and --fix writes a file "
            "without it; "
            "data.on_bad_record='skip' leaves such records out"
        )
    if bad:
        counted = ", ".join(f"{check} {count:,}" for check, count in checks.most_common())
        say(f"{path}: left out {bad:,} of {total:,} records ({counted})", warns=True)
    warnings = sum((Counter(found.warnings) for found in verdicts), Counter())
    if warnings:
        counted = ", ".join(f"{check} {count:,}" for check, count in warnings.most_common())
        say(f"{path}: the audit warns of {counted} (`{command}` shows them)", warns=True)


def _kept(file: RecordFile, found: Verdict, task: str | None) -> list[int]:
    """Indices of the records without an error, of the task alone where one is named."""
    good = [index for index in range(len(file)) if index not in found.bad]
    if not task or set(found.tasks) == {task}:
        return good
    return [index for index in good if file[index].task == task]


def _fingerprint(
    verdicts: Sequence[Verdict], kept: Sequence[tuple[RecordFile, Sequence[int]]]
) -> str:
    digest = hashlib.sha256()
    for found, (file, indices) in zip(verdicts, kept, strict=True):
        digest.update(found.sha256.encode())
        if len(indices) < len(file):
            digest.update(np.asarray(indices, np.int64).tobytes())
    return digest.hexdigest()
