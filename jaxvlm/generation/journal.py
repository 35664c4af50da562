"""Answers on disk while they are made: lines of JSON, whole ones only, each once.

A process that is killed leaves the lines that it has written, and the next one goes on behind them.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple, Self


class Journal:
    """A file of lines that have an `index`, in the order in which they were made."""

    def __init__(self, path: Path):
        """Opens a file behind its last whole line, or makes one."""
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = max((place.end for place in places(path)), default=0)
        self._file: IO[bytes] = path.open("ab")
        self._file.truncate(whole)

    def write(self, line: dict) -> None:
        """Adds a line, which is on its way to the disk when this returns."""
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        # What could not be written is not written now either; the first error tells.
        with contextlib.suppress(*([OSError] if kind else [])):
            self._file.close()


class Place(NamedTuple):
    """Where a line stands in its file.

    Attributes:
      index: of the question.
      start: its first byte.
      end: behind its last.
      lost: it has no answer, but why there is none.
    """

    index: int
    start: int
    end: int
    lost: bool


def places(path: Path, start: int = 0) -> Iterator[Place]:
    """Those of a file's whole lines that are any; what a killed process left of one is none.

    Args:
      path: of the file, which need not be there.
      start: of the first line that is looked at.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(start)
        for text in file:
            if not text.endswith(b"\n"):
                return
            end = start + len(text)
            try:
                line = json.loads(text)
                index, lost = line["index"], "lost" in line
            except (ValueError, KeyError, TypeError):
                index = None
            if isinstance(index, int) and index >= 0:
                yield Place(index, start, end, lost)
            start = end


def in_order(paths: list[Path]) -> Iterator[dict]:
    """The lines of several files by their index, each index once; only places are held.

    An answer goes before one that was lost.
    """
    found: dict[int, tuple[Path, Place]] = {}
    for path in paths:
        for place in places(path):
            if place.index not in found or found[place.index][1].lost:
                found[place.index] = path, place
    files = {path: path.open("rb") for path in paths if path.exists()}
    try:
        for index in sorted(found):
            path, place = found[index]
            files[path].seek(place.start)
            yield json.loads(files[path].read(place.end - place.start))
    finally:
        for file in files.values():
            file.close()
