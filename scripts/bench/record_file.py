"""The flag `--output` of benchmarks."""

import argparse
from pathlib import Path

from jaxvlm.files import draft_of


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
