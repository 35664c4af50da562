"""The end of a process that cannot wait for its threads."""

import os
import sys
from collections.abc import Callable

_last_words: list[Callable[[str], None]] = []


def last_words(say: Callable[[str], None]) -> None:
    """Has `leave` say its message to this function too, in place of an earlier one."""
    _last_words[:] = [say]


def leave(message: str, code: int) -> None:
    """Ends this process at once, whatever its threads do."""
    print(f"jaxvlm: error: {message}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    for say in _last_words:
        say(message)
    os._exit(code)
