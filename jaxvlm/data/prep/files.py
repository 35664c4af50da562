"""Reading the small files of data sets: JSON and tables of numbers."""

import hashlib
import json
import re
from pathlib import Path

import numpy as np

from jaxvlm.data.items import half_of_a_pair
from jaxvlm.errors import UserError


def read_json(path: Path) -> object:
    """A decoded file; a byte order mark is passed over.

    Raises:
      UserError: it cannot be read, is no UTF-8, or malformed, with the line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        found = json.loads(text)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; check the path") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is no UTF-8 text; is it the right file?") from None
    except json.JSONDecodeError as error:
        hint = "; is the download broken off?" if error.pos >= len(error.doc.rstrip()) else ""
        raise UserError(f"{path}:{error.lineno}: malformed JSON: {error.msg}{hint}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: malformed JSON: {error}") from None
    if half_of_a_pair(text, found):
        raise UserError(f"{path}: it holds half of a surrogate pair (\\ud800 …), which is no text")
    return found


def numbers_of(entry: object, field: str, counts: tuple[int, ...], where: str) -> np.ndarray:
    """A field that holds so many finite numbers, however they are nested.

    Raises:
      UserError: with `where`, for anything else.
    """
    try:
        values = np.array(entry[field], np.float64).reshape(-1)
    except (KeyError, TypeError, ValueError, OverflowError):
        values = np.zeros(0)
    if len(values) not in counts or not (np.abs(values) < 1e9).all():
        expected = " or ".join(map(str, counts))
        raise UserError(f"{where}: {field!r} must be {expected} finite numbers")
    return values


def folder_name(scene: str) -> str:
    """A scene's name as a folder's: one that could lead elsewhere gets a hash in its place."""
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_. -]{0,79}", scene):
        return scene
    kept = re.sub(r"[^A-Za-z0-9_-]+", "-", scene)[:40].strip("-")
    digest = hashlib.sha256(scene.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return f"{kept}-{digest}" if kept else digest


def read_numbers(path: Path, count: int | None = None) -> list[float]:
    """The numbers of a text file; inf and nan are numbers.

    Raises:
      UserError: it cannot be read, holds something else, or another count of numbers.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    for number, line in enumerate(text.splitlines(), 1):
        for word in line.split():
            try:
                float(word)
            except ValueError:
                raise UserError(f"{path}:{number}: {word!r} is no number") from None
    values = [float(word) for word in text.split()]
    if count is not None and len(values) != count:
        raise UserError(f"{path}: expected {count} numbers, found {len(values)}")
    return values
