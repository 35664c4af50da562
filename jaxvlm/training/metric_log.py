"""Metrics of a run: lines on the console, JSON lines, TensorBoard."""

import contextlib
import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path

from tensorboardX import SummaryWriter

from jaxvlm.console import console
from jaxvlm.files import write_text


class MetricLog:
    """Metrics of a run in `metrics.jsonl` and TensorBoard, and a line on the console."""

    def __init__(self, workdir: Path, step: int, max_steps: int):
        """Opens the logs; lines behind `step` are of a run that was cut off and are dropped."""
        self._path, self._logs = workdir / "metrics.jsonl", workdir / "logs"
        self._max_steps = max_steps
        write_text(self._path, "".join(_lines(self._path, step)))
        self._waiting: list[dict] = []
        self._board = self._open_board(step + 1 if step else None)

    def write(self, step: int, metrics: Mapping[str, float | None], eta: str) -> None:
        """Records the metrics since the last time; None is what no update had.

        What cannot be written, on a full disk, waits for the next time.
        """
        self._waiting.append({"step": step, **metrics})
        try:
            before = self._path.stat().st_size
            self._append(before)
        except OSError as error:
            if len(self._waiting) == 1:
                console().print(
                    f"warning: {self._path} cannot be written: {error.strerror}; its lines wait"
                )
        else:
            self._show_board()
        self._print(step, metrics, eta)

    def _append(self, before: int) -> None:
        """Writes the lines that wait behind the `before` bytes of the file, or none of them."""
        lines = "".join(json.dumps(line) + "\n" for line in self._waiting)
        try:
            with self._path.open("ab", buffering=0) as file:
                written = file.write(lines.encode())
            if written < len(lines.encode()):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            os.truncate(self._path, before)
            raise

    def _show_board(self) -> None:
        """Hands the lines that waited to TensorBoard."""
        if len(self._waiting) > 1:
            # A writer that could not write has ended.
            self._board = self._open_board(None)
        for line in self._waiting:
            for name, value in line.items():
                if name != "step" and value is not None:
                    self._board.add_scalar(name, value, line["step"])
        self._waiting = []

    def _open_board(self, purge: int | None) -> SummaryWriter:
        # Without a limit of what may wait: a writer that has ended would make training wait for it.
        return SummaryWriter(str(self._logs), purge_step=purge, max_queue=0)

    def _print(self, step: int, metrics: Mapping[str, float | None], eta: str) -> None:
        console().print(
            f"Step {step}/{self._max_steps}  Loss {_shown(metrics['loss'], 4)}  "
            f"token accuracy {_shown(metrics['token_accuracy'], 3)}  "
            f"lr×{metrics['schedule']:.3f}  grad {_shown(metrics['gradient_norm'], 2)}  "
            f"{metrics['updates_per_second']:.2f} updates/s  "
            f"input wait {metrics['input_wait']:.1%}  ETA {eta}"
            + (
                f"  held out: loss {metrics['val_loss']:.4f}, "
                f"exact match {metrics['val_exact_match']:.3f}"
                if "val_loss" in metrics
                else ""
            )
            + (f"  {metrics['skipped']} updates skipped" if metrics["skipped"] else "")
            + (f"  {metrics['lost_samples']:,} samples left out" if metrics["lost_samples"] else "")
        )

    def close(self) -> None:
        """Flushes everything."""
        with contextlib.suppress(OSError):
            self._board.close()


class NoLog:
    """In place of a `MetricLog` in processes that write none."""

    def write(self, step: int, metrics: Mapping[str, float | None], eta: str) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def _shown(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


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
