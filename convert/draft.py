"""Folders that appear when they are complete: written beside, then renamed."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

from jaxvlm.errors import UserError

# Stands in a folder as long as it is not complete; locked by the process that writes it.
_UNFINISHED = "UNFINISHED"


def check_free(folder: Path, overwrite: bool, mark: str) -> None:
    """Raises a UserError if `folder` holds something that may not be replaced.

    Args:
      folder: that will be written.
      overwrite: whether it may be replaced.
      mark: a file that only folders of this kind have: what is replaced is not somebody's home.
    """
    if not folder.exists() and not folder.is_symlink():
        return
    if not overwrite:
        raise UserError(f"{folder} exists; pass --overwrite to replace it, or name another folder")
    if folder.is_symlink() or not (folder / mark).is_file():
        raise UserError(f"{folder} was not written by this command (no {mark}): not replaced")


@contextlib.contextmanager
def draft(folder: Path, room: int) -> Iterator[Path]:
    """A new folder `<folder>.part`, which takes the place of `folder` if the block succeeds.

    Args:
      folder: the final place.
      room: bytes that will be written.

    Raises:
      UserError: the disk has less room, or the folder cannot be written.
    """
    part = folder.with_name(folder.name + ".part")
    with contextlib.ExitStack() as stack:
        stack.enter_context(_writing(folder))
        _claim(part, stack)
        try:
            free = shutil.disk_usage(part).free
            if free < room:
                raise UserError(
                    f"{folder} cannot be written: it takes {room / 1e9:.3g} GB for a while, the "
                    f"disk has {free / 1e9:.3g} GB left"
                )
            yield part
            (part / _UNFINISHED).unlink()
            _replace(part, folder)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError) as error:  # A full disk is a ValueError of Orbax's.
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(f"{folder} cannot be written: {reason}") from error


def _claim(part: Path, stack: contextlib.ExitStack) -> None:
    mark = part / _UNFINISHED
    if part.exists() and not mark.is_file():
        raise UserError(f"{part} is in the way and was not written by this command; move it")
    part.mkdir(parents=True, exist_ok=True)
    lock = stack.enter_context(mark.open("a"))
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise UserError(f"{part} is being written by another process") from None
    for entry in part.iterdir():  # Of a process that was killed.
        if entry.name != _UNFINISHED:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def _replace(part: Path, folder: Path) -> None:
    if not folder.exists():
        part.rename(folder)
        return
    old = folder.with_name(folder.name + ".old")
    folder.rename(old)
    part.rename(folder)
    shutil.rmtree(old)


class Mapped(np.memmap):
    """A file in the place of memory; Orbax copies the arrays it is given, and need not copy it."""

    def __deepcopy__(self, memo: dict) -> "Mapped":
        return self


def mapped(file: Path, size: int, dtype: DTypeLike = np.uint8) -> Mapped:
    """`size` elements of zeros in a new file.

    Its room is reserved first: a disk that fills up while it is written would kill the process.
    """
    length = max(size, 1) * np.dtype(dtype).itemsize
    with file.open("wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, length)
    return Mapped(file, dtype, "r+", shape=(max(size, 1),))[:size]
