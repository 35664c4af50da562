"""Record files: read at random without being held in memory, written whole or not at all.

Files are `.jsonl` (one record a line), or `.json` with a list, or with an object that has a list
under `data` or `samples`.
"""

import contextlib
import glob
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from jaxvlm.data.items import ItemFile
from jaxvlm.data.record import Record, parse_record, record_entry
from jaxvlm.errors import UserError
from jaxvlm.files import draft_of


class RecordFile(Sequence[Record]):
    """The records of a file, each parsed when it is asked for.

    Attributes:
      items: the file's JSON items.
    """

    def __init__(self, path: str | Path):
        """Opens a file.

        Raises:
          UserError: see `ItemFile`.
        """
        self.items = ItemFile(path)

    @property
    def path(self) -> Path:
        """The file."""
        return self.items.path

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Record:
        """A record.

        Raises:
          RecordError: malformed, or a field that is absent or of the wrong type.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        return parse_record(self.items.entry(index), self.items.origin(index))


def read_records(path: str | Path) -> list[Record]:
    """All records of a file at once.

    Raises:
      UserError: the first thing that is wrong, with the file and line.
    """
    return list(RecordFile(path))


def open_records(pattern: str) -> list[RecordFile]:
    """The files that a path or a glob names, in the order of their names.

    Raises:
      UserError: nothing matches, or a file cannot be opened.
    """
    # A name with brackets in it may be a file's own.
    if not glob.has_magic(pattern) or Path(pattern).is_file():
        return [RecordFile(pattern)]
    paths = sorted(path for path in glob.glob(pattern, recursive=True) if Path(path).is_file())
    if not paths:
        folder = Path(pattern).parent
        there = f"; {folder} does not exist" if not _exists(folder) else ""
        raise UserError(f"no file matches {pattern!r}{there}; check the pattern")
    return [RecordFile(path) for path in paths]


def _exists(folder: Path) -> bool:
    return bool(glob.glob(str(folder))) if glob.has_magic(str(folder)) else folder.exists()


def write_records(path: Path | str, entries: Iterable[dict | Record]) -> int:
    """Writes records, whole or not at all; returns how many.

    A `.json` file gets a list with one record a line, any other one record a line.
    """
    count = 0
    with record_writer(Path(path)) as write:
        for entry in entries:
            write(entry)
            count += 1
    return count


def moved_entry(entry: dict, source: Path, destination: Path) -> dict:
    """A record for another folder: images that lie beside `source` are named from there.

    Args:
      entry: a decoded record.
      source: the file it is from.
      destination: the file it goes to.
    """
    here, there = source.parent.resolve(), destination.parent.resolve()
    images = entry.get("images")
    if here == there or not isinstance(images, list):
        return entry
    beside = [
        isinstance(i, str) and not Path(i).is_absolute() and (here / i).is_file() for i in images
    ]
    moved = [
        os.path.relpath(here / image, there) if own else image
        for image, own in zip(images, beside, strict=True)
    ]
    return {**entry, "images": moved}


@contextlib.contextmanager
def record_writer(path: Path) -> Iterator[Callable[[dict | Record], None]]:
    """Yields a function that adds a record; the file is there when all are written.

    Raises:
      UserError: the file cannot be written.
    """
    listed = path.suffix == ".json"
    draft = draft_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("w", encoding="utf-8") as file:
            count = 0

            def write(entry: dict | Record) -> None:
                nonlocal count
                entry = record_entry(entry) if isinstance(entry, Record) else entry
                text = json.dumps(entry, ensure_ascii=False, allow_nan=False)
                file.write(("[\n" if not count else ",\n") + text if listed else text + "\n")
                count += 1

            yield write
            if listed:
                file.write("\n]\n" if count else "[]\n")
        os.replace(draft, path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None
    except UnicodeEncodeError as error:
        raise UserError(
            f"{path} cannot be written: {error.object[:60]!r} holds a name that is no UTF-8"
        ) from None
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
