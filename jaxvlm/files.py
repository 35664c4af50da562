"""Files that are whole or not there."""

import os
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Writes the file beside its place and renames it, so that no reader sees a part of it."""
    draft = path.with_name(f"{path.name}.{os.getpid()}.draft")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, path)


def cache_folder() -> Path:
    """Where things are kept that can be made again: `$JAXVLM_CACHE`, or `.cache/jaxvlm` here."""
    return Path(os.environ.get("JAXVLM_CACHE") or ".cache/jaxvlm")
