"""What the benchmarks' command lines have in common."""

import argparse
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from jaxvlm.files import draft_of


def new_parser(script: str, description: str) -> argparse.ArgumentParser:
    """A benchmark's parser, whose help shows every default, with `--output` for the record.

    Args:
      script: the benchmark's `__file__`.
      description: its docstring.
    """
    parser = argparse.ArgumentParser(
        Path(script).name, description=description, formatter_class=_Help
    )
    parser.add_argument("--output", type=record_file, help="write the record as JSON")
    return parser


class _Help(argparse.RawDescriptionHelpFormatter):
    """The description as it stands, and the default behind each flag that has one."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text, default = action.help or "", action.default
        # Flags that are on or off show theirs already.
        if any(default is no for no in (None, False, argparse.SUPPRESS)) or "(default" in text:
            return text
        if isinstance(default, Sequence) and not isinstance(default, str):
            between = "," if action.nargs is None else " "
            default = between.join(map(str, default)) or "none"
        return f"{text} (default: {default})"


def record_file(text: str) -> Path:
    """A file that can be written; found out before anything is measured, for that takes long."""
    path = Path(text)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = draft_of(path)
        draft.touch()
        draft.unlink()
    except OSError as error:
        why = f"{error.filename}: {error.strerror}"
        raise argparse.ArgumentTypeError(f"{path} cannot be written ({why})") from error
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{path} is a folder; expected a file")
    return path


def count(text: str) -> int:
    """A number of at least 1, from a flag."""
    if not re.fullmatch("[0-9]{1,9}", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number of at least 1")
    return int(text)


def counts(text: str) -> list[int]:
    """Such numbers with commas between them."""
    if not all(re.fullmatch("[0-9]{1,9}", part) and int(part) for part in text.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r}: expected numbers of at least 1, like 1,4")
    return [int(part) for part in text.split(",")]


def positive(text: str) -> float:
    """A finite number above 0, from a flag."""
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not 0 < found < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number above 0")
    return found


def some_of(names: Sequence[str], between: str) -> Callable[[str], list[str]]:
    """What reads several of some names from a flag."""

    def read(text: str) -> list[str]:
        unknown = [part for part in text.split(between) if part not in names]
        if unknown:
            known = f"{between} ".join(names)
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is unknown, expected some of {known}")
        return text.split(between)

    return read
