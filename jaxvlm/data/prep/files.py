"""Reading the small files of data sets: JSON and tables of numbers."""

import json
from pathlib import Path

from jaxvlm.errors import UserError


def read_json(path: Path) -> object:
    """A decoded file; a byte order mark is passed over.

    Raises:
      UserError: it cannot be read, is no UTF-8, or malformed, with the line.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; check the path") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is no UTF-8 text; is it the right file?") from None
    except json.JSONDecodeError as error:
        hint = "; is the download broken off?" if error.pos >= len(error.doc.rstrip()) else ""
        raise UserError(f"{path}:{error.lineno}: malformed JSON: {error.msg}{hint}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: malformed JSON: {error}") from None


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
