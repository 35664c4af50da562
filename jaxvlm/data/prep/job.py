"""A preparation: many scenes to one record file, in parallel, continued where it stopped.

Every scene's records are a part of their own under `<output>.parts/` until all are there; then they
are joined, in the scenes' order. Beside the output, `<output>.meta` tells what it was made from; a
hidden `.<output>.lock` keeps a second run out.
"""

import contextlib
import csv
import dataclasses
import fcntl
import functools
import glob
import hashlib
import io
import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from jaxvlm.console import progress
from jaxvlm.data.audit.checks import ERROR, check_record
from jaxvlm.data.prep.workers import made_of
from jaxvlm.data.record import Record, parse_record, record_entry
from jaxvlm.data.records import record_writer
from jaxvlm.errors import UserError
from jaxvlm.files import write_text
from jaxvlm.shares import WHOLE, Share

# Seconds that a job with a share waits for another that begins.
_PATIENCE = 60.0
# Raised whenever the same input and settings would make other records.
VERSION = 1
# Of the table of chosen views; positions in metres in the record's frame.
VIEW_COLUMNS = ("scene", "view", "image", "x", "y", "z")


class _Busy(UserError):
    """Another run holds a lock."""


@dataclasses.dataclass
class Part:
    """What was made of one scene.

    Attributes:
      records: its records.
      counts: what is worth adding up over scenes ("frames without a pose", say).
      notes: sentences for the user.
      views: rows of the table of views, see `VIEW_COLUMNS`.
      files: images that were drawn for it.
    """

    records: list[Record] = dataclasses.field(default_factory=list)
    counts: Counter = dataclasses.field(default_factory=Counter)
    notes: list[str] = dataclasses.field(default_factory=list)
    views: list[tuple] = dataclasses.field(default_factory=list)
    files: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Job:
    """A preparation.

    Attributes:
      output: the record file.
      settings: everything that decides what the records are, as JSON; another value of it makes
        another file.
      scenes: names of the scenes, in the order of their records.
      work: makes the part of a scene; called in other processes.
      inputs: files and folders that a scene is made from; a scene whose inputs changed in size or
        time since is made anew.
      view_table: where a table of the chosen views is written (CSV), or None.
      share: of the scenes, which are made; the last of several jobs joins what all have made.
    """

    output: Path
    settings: dict
    scenes: Sequence[str]
    work: Callable[[str], Part]
    inputs: Callable[[str], Sequence[Path]]
    view_table: Path | None = None
    share: Share = WHOLE

    def run(self, workers: int, overwrite: bool) -> None:
        """Makes the file, or says that it is there.

        Raises:
          UserError: a file of other settings or of unknown origin stands at the output, another
            run writes it, a scene's data is wrong, or the disk is full. Finished scenes are kept.
        """
        if overwrite and not self.share.whole:
            raise UserError("--overwrite would remove what the other shards make; remove the file")
        if workers < 1:
            raise UserError(f"--workers {workers}: expected at least 1")
        if not self.scenes:
            raise UserError(f"{self.output}: there is no scene to make records of")
        try:
            self.output.parent.mkdir(parents=True, exist_ok=True)
            if self.view_table is not None:
                self.view_table.parent.mkdir(parents=True, exist_ok=True)
            if self.share.whole:
                with self._lock(fcntl.LOCK_EX):
                    if self._begin(overwrite):
                        self._make(workers, self.scenes)
                        self._join()
                return
            # Others with shares come in; one that makes the whole does not.
            with self._lock(fcntl.LOCK_SH):
                with self._lock(fcntl.LOCK_EX, "begin", _PATIENCE):
                    begun = self._begin(overwrite)
                if begun:
                    self._make(workers, self.share.of(self.scenes))
            if begun:
                self._join_if_last()
        except OSError as error:
            place = error.filename or self.output
            raise UserError(
                f"{place} cannot be read or written: {error.strerror}; once that is mended, the "
                "same command goes on"
            ) from None

    @property
    def _parts(self) -> Path:
        return self.output.with_name(self.output.name + ".parts")

    @property
    def _meta(self) -> Path:
        return self.output.with_name(self.output.name + ".meta")

    @property
    def _identity(self) -> dict:
        settings = json.loads(json.dumps(self.settings, default=str))
        return {"version": VERSION, "settings": settings}

    @functools.cached_property
    def _stamps(self) -> dict[str, str]:
        """What each scene's inputs are now."""
        return {scene: _stamp(self.inputs(scene)) for scene in self.scenes}

    @property
    def _digest(self) -> str:
        """Which scenes, of which inputs, in which order."""
        return hashlib.sha256(repr(list(self._stamps.items())).encode()).hexdigest()[:16]

    @contextlib.contextmanager
    def _lock(self, kind: int, what: str = "", patience: float = 0.0) -> Iterator[None]:
        """Holds a lock of the output, whose file stays: removing it would let two runs in."""
        path = self.output.with_name(f".{self.output.name}.{what}lock")
        end = time.monotonic() + patience
        # To be read and written: network file systems lock for both only what is open for both.
        with path.open("a+") as lock:
            while True:
                try:
                    fcntl.flock(lock, kind | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= end:
                        raise _Busy(f"another run is making {self.output}; wait for it") from None
                    time.sleep(0.1)
            yield

    def _begin(self, overwrite: bool) -> bool:
        """Whether there is something to do."""
        begun = self._claim(overwrite)
        if not begun:
            print(f"{self.output}: up to date")
        return begun

    def _claim(self, overwrite: bool) -> bool:
        """False where the output stands already; parts of other settings are removed."""
        begun = self._parts / "identity.json"
        ours = _read(begun) == self._identity
        # Where all parts are there, a run ended while it joined them.
        joining = ours and all(self._part(scene).exists() for scene in self.scenes)
        if self.output.exists() and not overwrite and not joining:
            changed = self._changed()
            if changed is None:
                return False
            raise UserError(
                f"{self.output} {changed}; name another --output, or pass --overwrite to replace it"
            )
        if not ours:
            if begun.exists() and not self.share.whole:
                raise UserError(
                    f"{self._parts} holds what shards with other settings have made; remove it, or "
                    "name another --output"
                )
            shutil.rmtree(self._parts, ignore_errors=True)
            self._parts.mkdir()
            write_text(begun, json.dumps(self._identity))
        return True

    def _changed(self) -> str | None:
        """What makes the output another than would be made now; None where it is the same."""
        meta = _read(self._meta)
        if meta is None:
            return "exists and was not made by this command"
        difference = _difference({key: meta.get(key) for key in self._identity}, self._identity)
        if difference is not None:
            return f"was made otherwise ({difference})"
        if meta.get("inputs") != self._digest:
            return "was made of scenes or files that have changed since"
        if meta.get("sha256") != file_hash(self.output):
            return "was changed after it was made"
        gone = [name for name in meta.get("files", ()) if not Path(name).is_file()]
        return f"has lost {gone[0]}" if gone else None

    def _join_if_last(self) -> None:
        """Joins the parts where all are there and nobody else works; says what is missing else."""
        missing = sum(not self._part(scene).exists() for scene in self.scenes)
        with contextlib.suppress(_Busy), self._lock(fcntl.LOCK_EX):
            # Where another was the last, nothing is left of the parts.
            missing = sum(not self._part(scene).exists() for scene in self.scenes)
            if self._parts.exists() and not missing:
                self._join()
        if self._parts.exists():
            print(
                f"{self.output}: shard {self.share} is made; {missing:,} of "
                f"{len(self.scenes):,} scenes are still to be made by others"
            )

    def _make(self, workers: int, scenes: Sequence[str]) -> None:
        missing = [scene for scene in scenes if not self._part(scene).exists()]
        done = len(scenes) - len(missing)
        if done:
            print(f"{self.output}: {done:,} of {len(scenes):,} scenes are there, going on")
        with progress("scenes", len(scenes), done) as advance:
            for scene, part in made_of(_Entries(self.work), missing, workers):
                write_text(self._part(scene), json.dumps(part))
                advance()

    def _join(self) -> None:
        """Writes the records of all parts, the table of views, and what they were made from."""
        for left in self.output.parent.glob(f"{glob.escape(self.output.name)}.*.draft"):
            # Of a run that was killed while it joined the parts; nobody else writes here now.
            left.unlink(missing_ok=True)
        totals = self._write_records()
        shutil.rmtree(self._parts)
        for line in _told(totals):
            print(f"  {line}")

    def _part(self, scene: str) -> Path:
        # A scene's name may be a path, or as long as no file's name may be.
        name = hashlib.sha256(repr((scene, self._stamps[scene])).encode()).hexdigest()[:24]
        return self._parts / f"part-{name}.json"

    def _write_records(self) -> Part:
        totals = Part()
        with record_writer(self.output) as write:
            count = 0
            for scene in self.scenes:
                part = json.loads(self._part(scene).read_text(encoding="utf-8"))
                for entry in part["records"]:
                    write(entry)
                count += len(part["records"])
                totals.counts.update(part["counts"])
                for name in ("notes", "views", "files"):
                    getattr(totals, name).extend(part[name])
            if not count:
                # In here, so that nothing is written over what may stand there.
                raise UserError(
                    f"{self.output}: no record could be made of {len(self.scenes)} scene(s)"
                    + "".join(f"\n  {line}" for line in _told(totals))
                )
        if self.view_table is not None:
            table = io.StringIO()
            csv.writer(table, lineterminator="\n").writerows([VIEW_COLUMNS, *totals.views])
            write_text(self.view_table, table.getvalue())
        meta = {
            **self._identity,
            "inputs": self._digest,
            "scenes": len(self.scenes),
            "sha256": file_hash(self.output),
            "records": count,
            "counts": dict(totals.counts),
            "notes": totals.notes,
            "files": totals.files,
        }
        write_text(self._meta, json.dumps(meta, indent=2) + "\n")
        print(f"{self.output}: {count:,} records of {len(self.scenes):,} scenes")
        return totals


def _told(totals: Part) -> list[str]:
    return [*(f"{count:,} {name}" for name, count in totals.counts.items()), *totals.notes]


@dataclasses.dataclass(frozen=True)
class _Entries:
    """The work of a job, its part as JSON; no record comes out that the audit would refuse."""

    work: Callable[[str], Part]

    def __call__(self, scene: str) -> dict:
        part = self.work(scene)
        entries = [record_entry(record) for record in part.records]
        for number, entry in enumerate(entries):
            where = f"scene {scene}, record {number}"
            found = check_record(parse_record(entry, where))
            # Files for prediction have no answers.
            wrong = (p for p in found if p.level == ERROR and p.check != "answer-empty")
            problem = next(wrong, None)
            if problem is not None:
                raise UserError(f"{problem.message} ({problem.check})")
        return {**vars(part), "records": entries}


def _read(path: Path) -> dict | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _stamp(paths: Sequence[Path]) -> str:
    """Sizes and times of change; a folder's time tells of files that came or went."""
    found = []
    for path in paths:
        try:
            status = path.stat()
        except OSError:
            found.append((str(path), None))
        else:
            found.append((str(path), status.st_size, status.st_mtime_ns))
    return hashlib.sha256(repr(found).encode()).hexdigest()[:16]


def _difference(before: dict, now: dict) -> str | None:
    """What settings changed, in words; None where all are the same."""
    if before == now:
        return None
    if before["version"] != now["version"]:
        return "by another version of jaxvlm"
    old, new = before["settings"] or {}, now["settings"]
    changed = [name for name in new if old.get(name) != new[name]]
    words = [f"{name} {old.get(name)!r}, now {new[name]!r}" for name in changed[:3]]
    return "; ".join(words) or "with other settings"


def file_hash(path: Path) -> str:
    """The first 16 digits of a file's SHA-256: which file a record file was made from.

    Raises:
      UserError: the file does not exist or cannot be read.
    """
    if not path.is_file():
        raise UserError(f"{path} is no file; check the path")
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; check the path") from None


def scene_rng(seed: int, scene: str) -> np.random.Generator:
    """A generator for one scene, whichever process makes it and in whatever order."""
    digest = hashlib.sha256(scene.encode("utf-8", "surrogateescape")).digest()
    return np.random.default_rng([seed, int.from_bytes(digest[:8], "little")])
