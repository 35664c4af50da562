"""The JSON items of a file, found by their places: nothing is held in memory but offsets.

`.jsonl` holds one item a line; `.json` holds a list, or an object with a list under `data` or
`samples`.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from jaxvlm.errors import UserError

_CHUNK = 1 << 26
# White space is looked for in pieces that grow: mostly there is none, or one sign.
_LEAST, _MOST = 1 << 6, 1 << 20
_BOM = b"\xef\xbb\xbf"
_SPACE = re.compile(r"[ \t\r\n]*")
_LISTS = ("data", "samples")
# A number with so large an exponent may be infinite; an escape may be half of a pair.
_HUGE = re.compile(rb"[eE]\+?\d{3}")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_NUMBERS = ("center", "normal", "extent", "axis")
# What other formats begin with, and what to do about it.
_FOREIGN = {
    b"\x1f\x8b": "is compressed; unpack it first (gunzip)",
    b"PK\x03\x04": "is a zip archive; unpack it first",
    b"\xff\xfe": "is UTF-16 text; save it as UTF-8",
    b"\xfe\xff": "is UTF-16 text; save it as UTF-8",
}


class RecordError(UserError):
    """Something wrong with one record; `check` is the name of the check that it fails."""

    def __init__(self, check: str, message: str):
        super().__init__(message)
        self.check = check

    def __reduce__(self):
        return RecordError, (self.check, str(self))


class ItemFile:
    """Random access to a file's JSON items.

    Attributes:
      path: the file.
      notes: "byte-order-mark" and "windows-line-ends" where the file has them; both are read.
    """

    def __init__(self, path: str | Path):
        """Finds the items; a file of a gigabyte takes about a second.

        Raises:
          UserError: a file that is missing, a folder, empty, of another kind, or whose list is
            broken off.
        """
        self.path = Path(path)
        self._data: np.ndarray | None = None
        data = self._open()
        head = bytes(data[:4])
        for magic, problem in _FOREIGN.items():
            if head.startswith(magic):
                raise UserError(f"{self.path} {problem}")
        first = len(_BOM) if head.startswith(_BOM) else 0
        newlines = _newlines(data)
        if self.path.suffix == ".jsonl":
            self._starts, self._ends, self._lines = _line_items(data, newlines, first)
        else:
            self._starts, self._ends = _list_items(self.path, data, newlines, first)
            self._lines = np.searchsorted(newlines, self._starts) + 1
        if not len(self._starts):
            raise UserError(f"{self.path}: the file holds no records")
        windows = len(newlines) > 0 and newlines[0] > 0 and data[newlines[0] - 1] == ord("\r")
        found = {"byte-order-mark": first > 0, "windows-line-ends": windows}
        self.notes = tuple(name for name, there in found.items() if there)

    def __len__(self) -> int:
        return len(self._starts)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_data": None}

    def origin(self, index: int) -> str:
        """`file:line` of an item; in a list, with its number, for many may share a line."""
        item = "" if self.path.suffix == ".jsonl" else f" (item {index})"
        return f"{self.path}:{self._lines[index]}{item}"

    def raw(self, index: int) -> bytes:
        """An item as it stands in the file."""
        return bytes(self._open()[self._starts[index] : self._ends[index]])

    def entry(self, index: int) -> dict:
        """A decoded item.

        Raises:
          RecordError: malformed JSON, bytes that are no UTF-8, something else than an object, NaN.
        """
        return decode(self.raw(index), self.origin(index))

    def _open(self) -> np.ndarray:
        if self._data is None:
            self._data = _mapped(self.path)
        return self._data


def _mapped(path: Path) -> np.ndarray:
    if path.is_dir():
        raise UserError(
            f"{str(path)!r} is a folder; give a record file, or a pattern such as '{path}/*.jsonl'"
        )
    try:
        empty = path.stat().st_size == 0
        if not empty:
            return np.memmap(path, np.uint8, "r")
    except FileNotFoundError:
        raise UserError(
            f"record file {str(path)!r} does not exist"
            f"{'' if path.is_absolute() else f' in {Path.cwd()}'}; make it (docs/data.md; "
            "`make demo` makes those of runs/demo), or check the path"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"record file {str(path)!r} cannot be read: {error}") from None
    raise UserError(f"{path}: the file holds no records (it is empty)")


def _newlines(data: np.ndarray) -> Int64[np.ndarray, "N"]:
    found = [
        np.flatnonzero(data[start : start + _CHUNK] == ord("\n")) + start
        for start in range(0, len(data), _CHUNK)
    ]
    return np.concatenate(found).astype(np.int64)


def _line_items(data: np.ndarray, newlines: np.ndarray, first: int) -> tuple[np.ndarray, ...]:
    """Starts, ends and line numbers of the lines that hold something."""
    starts = np.concatenate([[first], newlines + 1])
    ends = np.concatenate([newlines, [len(data)]])
    lines = np.arange(1, len(starts) + 1)
    # Only short lines can be blank in a file of records; looking at each would take long.
    short = np.flatnonzero(ends - starts < 64)
    blank = [i for i in short if not bytes(data[starts[i] : ends[i]]).strip()]
    kept = np.setdiff1d(np.arange(len(starts)), blank, assume_unique=True)
    return starts[kept], ends[kept], lines[kept]


def _list_items(
    path: Path, data: np.ndarray, newlines: np.ndarray, first: int
) -> tuple[np.ndarray, np.ndarray]:
    """Starts and ends of the items of a list, decoded one by one to find where they end."""
    text = _Text(data)

    def fail(at: int, problem: str) -> UserError:
        line = int(np.searchsorted(newlines, at)) + 1
        return RecordError("malformed-json", f"{path}:{line}: malformed JSON: {problem}")

    at = text.skip_space(first)
    inside = text[at] == "{"
    if inside:
        at = _find_list(path, text, at, fail)
    elif text[at] != "[":
        raise UserError(
            f"{path}:1: expected a list of records, or an object with a list 'data' or 'samples'"
        )
    starts, ends = [], []
    at = text.skip_space(at + 1)
    while text[at] != "]":
        end = text.value_end(at, fail)
        starts.append(at)
        ends.append(end)
        at = text.skip_space(end)
        if text[at] == ",":
            at = text.skip_space(at + 1)
            if text[at] == "]":
                raise fail(at, "a comma before the end of the list")
        elif text[at] != "]":
            cut = "the list is not closed (is the file cut off?)"
            raise fail(at, "expected a comma between records" if text[at] else cut)
    at = text.skip_space(at + 1)
    if inside:
        at = _end_of_object(text, at, fail)
    if text[at]:
        raise fail(at, "something stands behind the records")
    return np.array(starts, np.int64), np.array(ends, np.int64)


def _find_list(path: Path, text: "_Text", at: int, fail) -> int:
    """Where the list of records begins in an object."""
    at = text.skip_space(at + 1)
    while text[at] == '"':
        end = text.value_end(at, fail)
        name = text[at + 1 : end - 1]
        at = text.skip_space(end)
        if text[at] != ":":
            raise fail(at, "expected a colon")
        at = text.skip_space(at + 1)
        if name in _LISTS and text[at] == "[":
            return at
        at = text.skip_space(text.value_end(at, fail))
        if text[at] == ",":
            at = text.skip_space(at + 1)
    if text[at] != "}":
        raise fail(at, "expected a comma or the end of the object")
    after = text.skip_space(at + 1)
    hint = "; a file with one record a line must end in .jsonl" if text[after] == "{" else ""
    raise UserError(
        f"{path}:1: expected a list of records, or an object with a list 'data' or 'samples'{hint}"
    )


def _end_of_object(text: "_Text", at: int, fail) -> int:
    """Behind an object, of which `at` stands behind a value."""
    while text[at] == ",":
        at = text.skip_space(text.value_end(text.skip_space(at + 1), fail))
        if text[at] != ":":
            raise fail(at, "expected a colon")
        at = text.skip_space(text.value_end(text.skip_space(at + 1), fail))
    if text[at] != "}":
        raise fail(at, "the object is not closed (is the file cut off?)")
    return text.skip_space(at + 1)


class _Text:
    """A file as characters, one a byte: JSON's own signs are the same in UTF-8."""

    def __init__(self, data: np.ndarray):
        self._data = data
        self._decoder = json.JSONDecoder()

    def __getitem__(self, key: int | slice) -> str:
        part = self._data[key : key + 1] if isinstance(key, int) else self._data[key]
        return bytes(part).decode("latin-1")

    def skip_space(self, at: int) -> int:
        """The next place that is no white space."""
        size = _LEAST
        while True:
            window = self[at : at + size]
            step = _SPACE.match(window).end()
            at += step
            if step < len(window) or not window:
                return at
            size = min(4 * size, _MOST)

    def value_end(self, at: int, fail) -> int:
        """Where the value that begins at `at` ends."""
        if at >= len(self._data):
            raise fail(at, "the file ends here (is it cut off?)")
        size = 1 << 12
        while True:
            window = self[at : at + size]
            whole = at + size >= len(self._data)
            try:
                end = self._decoder.raw_decode(window)[1]
                # A number at the window's end may go on behind it.
                if whole or end < len(window):
                    return at + end
            except json.JSONDecodeError as error:
                # An error well before the window's end is none of the window.
                if whole or (error.pos < len(window) - 16 and "string" not in error.msg):
                    raise fail(at + error.pos, error.msg) from None
            except (ValueError, RecursionError) as error:
                raise fail(at, str(error)) from None
            size *= 4


def decode(raw: bytes, origin: str) -> dict:
    """Decodes one item.

    Raises:
      RecordError: naming `origin`.
    """
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RecordError(
            "invalid-utf8",
            f"{origin}: byte {error.start + 1} of the record (0x{raw[error.start]:02x}) is no "
            "UTF-8; save the file as UTF-8",
        ) from None
    constants: list[str] = []

    def constant(name: str) -> float:
        constants.append(name)
        return float(name)

    try:
        entry = json.loads(text, parse_constant=constant)
    except json.JSONDecodeError as error:
        broken = text.strip() in ("[", "{", "[{")
        hint = "; a .jsonl file holds one whole record a line, a list must end in .json"
        hint = hint if broken else ""
        raise RecordError(
            "malformed-json", f"{origin}: malformed JSON: {error.msg} at column {error.colno}{hint}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise RecordError("malformed-json", f"{origin}: malformed JSON: {error}") from None
    if not isinstance(entry, dict):
        hint = ""
        if isinstance(entry, list) and origin.rsplit(":", 1)[0].endswith(".jsonl"):
            hint = "; a file that holds one list must end in .json"
        raise RecordError(
            "schema", f"{origin}: expected a JSON object, found {type(entry).__name__}{hint}"
        )
    if constants or _HUGE.search(raw):
        for name, value in _plain_fields(entry):
            if _not_finite(value):
                raise RecordError(
                    "malformed-json",
                    f"{origin}: {name!r} holds {(*constants, 'a number without bounds')[0]}, which "
                    "is no JSON; write null or leave it out",
                )
    if half_of_a_pair(text, entry):
        raise RecordError(
            "invalid-utf8", f"{origin}: it holds half of a surrogate pair, which is no text"
        )
    return entry


def half_of_a_pair(text: str, value: object) -> bool:
    """Whether a decoded JSON text holds what no encoding can write."""
    if not _SURROGATE.search(text):
        return False
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def _plain_fields(entry: dict) -> Iterator[tuple[str, object]]:
    """Fields but the numbers of geometry and actions, whose own checks say it better."""
    for name, value in entry.items():
        if name == "action_json" and isinstance(value, dict):
            yield from ((f"action_json.{k}", v) for k, v in value.items() if k not in _NUMBERS)
        elif name != "geom_token":
            yield name, value


def _not_finite(value: object) -> bool:
    if isinstance(value, dict | list):
        return any(map(_not_finite, value.values() if isinstance(value, dict) else value))
    return isinstance(value, float) and not np.isfinite(value)
