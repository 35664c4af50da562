"""The audit's verdict on a record file, kept by the file's hash, so that a start costs a second."""

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

from jaxvlm.console import progress, say
from jaxvlm.data.actions import language
from jaxvlm.data.audit.files import audit_file
from jaxvlm.data.audit.images import stamp
from jaxvlm.data.records import RecordFile
from jaxvlm.files import cache_folder, write_text

# Raised whenever a check changes.
VERSION = 4
_READERS = 16


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What training must know of a record file.

    Attributes:
      sha256: of the file.
      bad: of each record with an error, its check and message.
      warnings: how often each check warned.
      tasks: how many records each task has.
    """

    sha256: str
    bad: dict[int, tuple[str, str]]
    warnings: dict[str, int]
    tasks: dict[str, int]

    def without(self, check: str) -> Self:
        """The same where records may fail a check."""
        bad = {index: found for index, found in self.bad.items() if found[0] != check}
        warnings = {name: count for name, count in self.warnings.items() if name != check}
        return dataclasses.replace(self, bad=bad, warnings=warnings)


def verdict(file: RecordFile, image_roots: Sequence[str]) -> Verdict:
    """Audits a file, its images included; what is known of the same file is taken from the cache.

    An image that has changed, come or gone since makes the audit run again.
    """
    with file.path.open("rb") as opened:
        sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
    place = (VERSION, sha256, str(file.path), str(file.path.resolve()), *map(str, image_roots))
    # What is an action depends on those that are registered.
    place = (*place, repr(language.ACTIONS))
    key = hashlib.sha256(repr((place, str(Path.cwd()))).encode()).hexdigest()
    path = cache_folder() / "audit" / f"{key}.json"
    known = _read(path, sha256)
    if known is not None:
        return known
    say(f"{file.path}: checking {len(file):,} records and their images")
    findings = audit_file(file, image_roots, True, progress)
    levels = Counter(
        p.check for found in findings.problems.values() for p in found if p.level == "warning"
    )
    bad = {index: (p.check, p.message) for index, p in findings.bad().items()}
    made = Verdict(sha256, bad, dict(levels), dict(findings.tasks))
    _write(path, made, findings.images)
    return made


def _read(path: Path, sha256: str) -> Verdict | None:
    """The verdict that is kept, where every image is still as it was."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        bad = {int(index): tuple(problem) for index, problem in kept["bad"].items()}
        found = Verdict(sha256, bad, dict(kept["warnings"]), dict(kept["tasks"]))
        before = {str(image): stamp and tuple(stamp) for image, stamp in kept["images"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    with ThreadPoolExecutor(_READERS) as pool:
        same = list(before.values()) == list(pool.map(stamp, before))
    return found if same else None


def _write(path: Path, made: Verdict, images: dict) -> None:
    kept = {**dataclasses.asdict(made), "images": images}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(kept))
    except OSError as error:
        say(
            f"warning: the audit cannot be kept in {path.parent} ({error.strerror}) and will run "
            "again at the next start; set JAXVLM_CACHE to a folder that can be written",
            warns=True,
        )
