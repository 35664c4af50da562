"""Answers on disk while they are made: lines of JSON, whole ones only, each once.

A process that is killed leaves the lines that it has written, and the next one goes on behind them.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Self


class Journal:
    """A file of lines that have an `index`, in the order in which they were made."""

    def __init__(self, path: Path):
        """Opens a file behind its last whole line, or makes one."""
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = max((end for _, _, end in places(path)), default=0)
        self._file: IO[bytes] = path.open("ab")
        self._file.truncate(whole)

    def write(self, line: dict) -> None:
        """Adds a line, which is on its way to the disk when this returns."""
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def places(path: Path, start: int = 0) -> Iterator[tuple[int, int, int]]:
    """Index, start and end of a file's whole lines; what a killed process left of one is none.

    Args:
      path: of the file, which need not be there.
      start: of the first line that is looked at.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(start)
        for text in file:
            end = start + len(text)
            try:
                index = json.loads(text)["index"] if text.endswith(b"\n") else None
            except (ValueError, KeyError, TypeError):
                index = None
            if not isinstance(index, int):
                return
            yield index, start, end
            start = end


def in_order(paths: list[Path]) -> Iterator[dict]:
    """The lines of several files by their index, each index once; only places are held."""
    found: dict[int, tuple[Path, int, int]] = {}
    for path in paths:
        for index, start, end in places(path):
            found.setdefault(index, (path, start, end))
    files = {path: path.open("rb") for path in paths if path.exists()}
    try:
        for index in sorted(found):
            path, start, end = found[index]
            files[path].seek(start)
            yield json.loads(files[path].read(end - start))
    finally:
        for file in files.values():
            file.close()
