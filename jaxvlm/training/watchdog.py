"""Ends a run in which nothing happens any more, and shows where it stood."""

import contextlib
import faulthandler
import sys
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def watchdog(minutes: float) -> Iterator[Callable[[], None]]:
    """Yields a function to be called whenever something happened.

    Where it was not called for so many minutes, the stacks of all threads go to the error output
    and the process ends with exit code 1. It is a timer of the interpreter's own: a thread of
    Python would wait with the rest for whoever holds the interpreter. 0 minutes watch nothing.
    """
    if not minutes:
        yield lambda: None
        return

    def again() -> None:
        faulthandler.dump_traceback_later(60 * minutes, exit=True, file=sys.__stderr__)

    again()
    try:
        yield again
    finally:
        faulthandler.cancel_dump_traceback_later()
