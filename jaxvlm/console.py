"""What a person sees while a command works: tables and progress."""

import contextlib
import functools
import sys
import time
from collections.abc import Sequence

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

# Seconds between the lines of a progress that is written to a file.
_LINES_APART = 10
# Columns of a table in a file at most; it is as wide as it needs.
_FILE_WIDTH = 240
_silent = False


def silence() -> None:
    """From now on nothing is printed here: another process of the same run says it."""
    global _silent
    _silent = True


def console() -> Console:
    """A console that does not fold lines when its output goes to a file."""
    found = Console(highlight=False, quiet=_silent)
    return (
        found if found.is_terminal else Console(highlight=False, width=_FILE_WIDTH, quiet=_silent)
    )


def say(message: str, *, warns: bool = False) -> None:
    """Prints a line as it is, folded nowhere; what `warns` goes to the error output."""
    if not _silent:
        print(message, file=sys.stderr if warns else sys.stdout, flush=True)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Prints a small table; numbers stand right."""
    table = Table(title=Text(title), title_justify="left")
    for index, column in enumerate(columns):
        numeric = all(not isinstance(row[index], str) for row in rows)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        # As text: what stands in brackets is no style here.
        table.add_row(*(Text(f"{v:,}" if isinstance(v, int) else str(v)) for v in row))
    console().print(table)


@functools.cache
def say_once(message: str) -> None:
    """Prints a message on the error output; the same again is not said by this process."""
    say(message, warns=True)


@contextlib.contextmanager
def progress(title: str, total: int, done: int = 0, *, lines: bool = True):
    """A progress bar; yields `advance(n=1)`.

    Where the output is no terminal it is a line now and then, or nothing without `lines`.
    """
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    out = console()
    if not out.is_terminal:
        yield _Lines(title, total, done) if lines else lambda n=1: None
        return
    with Progress(*columns, console=out) as bar:
        task = bar.add_task(title, total=total, completed=done)
        yield lambda n=1: bar.advance(task, n)


class _Lines:
    """Prints how far the work is, at most every ten seconds."""

    def __init__(self, title: str, total: int, done: int):
        self._title, self._total, self._done = title, total, done
        self._printed = time.monotonic()

    def __call__(self, count: int = 1) -> None:
        self._done += count
        now = time.monotonic()
        if now - self._printed >= _LINES_APART:
            self._printed = now
            say(f"{self._title}: {self._done:,} of {self._total:,}")


@contextlib.contextmanager
def progress_bytes(title: str, total: int):
    """A progress bar of bytes with their rate; yields `advance(count)`."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    out = console()
    with Progress(*columns, console=out, disable=not out.is_terminal) as bar:
        task = bar.add_task(title, total=total)
        yield lambda count: bar.advance(task, count)


def duration(seconds: float) -> str:
    """Seconds as `h:mm:ss`."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
