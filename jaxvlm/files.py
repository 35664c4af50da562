"""Files that are whole or not there."""

import contextlib
import os
import secrets
from collections.abc import Iterable
from pathlib import Path


def draft_of(path: Path) -> Path:
    """A name beside a file that no other process, here or on another host, uses."""
    return path.with_name(f"{path.name}.{secrets.token_hex(6)}.draft")


def write_text(path: Path, text: str) -> None:
    """Writes the file beside its place and renames it, so that no reader sees a part of it."""
    write_parts(path, (text,))


def write_parts(path: Path, parts: Iterable[str]) -> None:
    """`write_text` of a text that comes in parts, and is never held whole."""
    draft = draft_of(path)
    try:
        with draft.open("w", encoding="utf-8") as file:
            file.writelines(parts)
        os.replace(draft, path)
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)


def cache_folder() -> Path:
    """Where things are kept that can be made again: `$JAXVLM_CACHE`, or `.cache/jaxvlm` here."""
    return Path(os.environ.get("JAXVLM_CACHE") or ".cache/jaxvlm")
