"""What a person sees of a run: a table, a progress bar with lines, TensorBoard, JSON lines."""

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

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
from tensorboardX import SummaryWriter

from jaxvlm.files import write_text


def console() -> Console:
    """A console that does not fold lines when its output goes to a file."""
    found = Console(highlight=False)
    return found if found.is_terminal else Console(highlight=False, width=160)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Prints a small table; numbers stand right."""
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        numeric = all(not isinstance(row[index], str) for row in rows)
        table.add_column(column, justify="right" if numeric else "left")
    for row in rows:
        table.add_row(*(f"{v:,}" if isinstance(v, int) else str(v) for v in row))
    console().print(table)


@contextlib.contextmanager
def progress(title: str, total: int, done: int = 0):
    """A progress bar; yields `advance(n=1)`. Silent where the output is no terminal."""
    columns = (
        TextColumn(title),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    out = console()
    with Progress(*columns, console=out, disable=not out.is_terminal) as bar:
        task = bar.add_task(title, total=total, completed=done)
        yield lambda n=1: bar.advance(task, n)


@contextlib.contextmanager
def progress_bytes(title: str, total: int):
    """A progress bar of bytes with their rate; yields `advance(count)`."""
    columns = (
        TextColumn(title),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    out = console()
    with Progress(*columns, console=out, disable=not out.is_terminal) as bar:
        task = bar.add_task(title, total=total)
        yield lambda count: bar.advance(task, count)


class MetricLog:
    """Metrics of a run in `metrics.jsonl` and TensorBoard, and a line on the console."""

    def __init__(self, workdir: Path, step: int, max_steps: int):
        """Opens the logs; lines behind `step` are of a run that was cut off and are dropped."""
        self._path = workdir / "metrics.jsonl"
        self._max_steps = max_steps
        write_text(self._path, "".join(_lines(self._path, step)))
        self._file = self._path.open("a", encoding="utf-8")
        purge = step + 1 if step else None
        self._board = SummaryWriter(str(workdir / "logs"), purge_step=purge)
        self._console = console()

    def write(self, step: int, metrics: Mapping[str, float], eta: str) -> None:
        """Records the metrics since the last time."""
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        self._file.flush()
        for name, value in metrics.items():
            self._board.add_scalar(name, value, step)
        self._console.print(
            f"Step {step}/{self._max_steps}  Loss {metrics['loss']:.4f}  "
            f"token accuracy {metrics['token_accuracy']:.3f}  "
            f"lr×{metrics['schedule']:.3f}  grad {metrics['gradient_norm']:.2f}  "
            f"{metrics['updates_per_second']:.2f} updates/s  ETA {eta}"
        )

    def close(self) -> None:
        """Flushes everything."""
        self._file.close()
        self._board.close()


def _lines(path: Path, step: int) -> list[str]:
    """The file's lines up to `step`; what a crash left of a line is dropped, and said."""
    if not path.exists():
        return []
    kept, damaged = [], 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, TypeError, KeyError):
            damaged += 1
    if damaged:
        console().print(f"{path}: {damaged} damaged line(s) dropped")
    return kept


def duration(seconds: float) -> str:
    """Seconds as `h:mm:ss`."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
