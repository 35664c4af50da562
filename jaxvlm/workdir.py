"""The folder of a run: writable, and used by one run at a time."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from jaxvlm.errors import UserError


@contextlib.contextmanager
def open_workdir(
    folder: Path | str, field: str = "--workdir", locks: bool = True, shared: bool = False
) -> Iterator[Path]:
    """Creates the folder, and locks it for this process.

    Args:
      folder: where.
      field: which names it, for messages.
      locks: False for the other processes of a run that share it.
      shared: lets others in that are too, but no run that is not.

    Raises:
      UserError: it cannot be written, or another run works in it.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # To be read and written: network file systems lock for both only what is open for both.
        lock = (folder / ".lock").open("a+")
    except OSError as error:
        raise UserError(f"{field} {folder} cannot be written: {error.strerror}") from None
    with lock:
        try:
            if locks:
                kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
                fcntl.flock(lock, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another run works in {folder}; stop it or choose another {field}"
            ) from None
        except OSError as error:
            raise UserError(f"{field} {folder} cannot be locked: {error.strerror}") from None
        yield folder
