"""What ends a command without a traceback."""

import contextlib
from collections.abc import Iterator


class UserError(ValueError):
    """Something the user can mend; the message says what, where, what was expected and what to do.

    Entry points print it without a traceback and leave with exit code 2.
    """


class Requeue(Exception):
    """A run was asked to stop and can go on later; a scheduler should start it again.

    Entry points print it and leave with exit code 75, "try again later" in sysexits.h.
    """


@contextlib.contextmanager
def memory_is_short(less: str) -> Iterator[None]:
    """Says `less`, what takes less memory, where there is none left; decorates functions too.

    Raises:
      UserError: of such an error; others pass.
    """
    try:
        yield
    # NumPy's errors, and those of JAX's devices.
    except (MemoryError, RuntimeError) as error:
        text = str(error)
        # The runtime calls a full disk so, too.
        on_a_device = "RESOURCE_EXHAUSTED" in text and "No space left" not in text
        if not (on_a_device or isinstance(error, MemoryError)):
            raise
        raise UserError(f"out of memory: {first_line(error).rstrip('.')}. {less}") from error


def first_line(error: BaseException | str) -> str:
    """What fits into a message of another's error."""
    return (str(error).splitlines() or [""])[0][:1000]


def shown(value: object) -> str:
    """A value in a message, cut short."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
