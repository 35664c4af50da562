"""Metrics of a run: lines on the console and in `train.log`, JSON lines, TensorBoard."""

import contextlib
import errno
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path

from jaxvlm.console import console, duration
from jaxvlm.errors import UserError
from jaxvlm.files import write_text
from jaxvlm.training.board import SummaryWriter
from jaxvlm.training.histograms import Histogram


class MetricLog:
    """Metrics of a run in `metrics.jsonl` and TensorBoard, and a line for people.

    That stands on the console, beside a progress bar where it is a terminal, and in `train.log`.
    """

    def __init__(self, workdir: Path, step: int, max_steps: int):
        """Opens the logs; lines behind `step` are of a run that was cut off and are dropped."""
        self._path, self._logs = workdir / "metrics.jsonl", workdir / "logs"
        self._lines = workdir / "train.log"
        self._max_steps = max_steps
        write_text(self._path, "".join(_lines(self._path, step)))
        self._waiting: list[dict] = []
        self._board = self._open_board(step + 1 if step else None)

    def write(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Records the metrics since the last time; None is what no update had.

        What cannot be written, on a full disk, waits for the next time.
        """
        self._waiting.append({"step": step, "time": time.time(), **metrics})
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
        line = shown(step, self._max_steps, metrics)
        console().print(line, soft_wrap=True)
        with contextlib.suppress(OSError), self._lines.open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {line}\n")

    def histograms(self, step: int, found: Mapping[str, Histogram]) -> None:
        """Shows histograms in TensorBoard."""
        for name, each in found.items():
            self._board.add_histogram_raw(name, **each.of_tensorboard(), global_step=step)

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
                if name not in ("step", "time") and value is not None:
                    self._board.add_scalar(name, value, line["step"], line["time"])
        self._waiting = []

    def _open_board(self, purge: int | None) -> SummaryWriter:
        # Without a limit of what may wait: a writer that has ended would make training wait for it.
        return SummaryWriter(str(self._logs), purge_step=purge, max_queue=0)

    def close(self) -> None:
        """Flushes everything."""
        with contextlib.suppress(OSError):
            self._board.close()


class NoLog:
    """In place of a `MetricLog` in processes that write none."""

    def write(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Nothing."""

    def histograms(self, step: int, found: Mapping[str, Histogram]) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def shown(step: int, last: int, metrics: Mapping[str, float | None]) -> str:
    """The line that people read after update `step` of `last`."""
    rates = {n.removeprefix("lr/"): v for n, v in metrics.items() if n.startswith("lr/")}
    if len(set(rates.values())) == 1:
        rates = {"": next(iter(rates.values()))}
    parts = [
        f"Step {step}/{last}",
        f"Loss {_number(metrics['loss'], '.4f')}",
        f"token accuracy {_number(metrics['token_accuracy'], '.3f')}",
        " ".join(["lr", *(f"{name} {rate:.2g}".strip() for name, rate in rates.items())]),
        f"grad {_number(metrics['gradient_norm'], '.2f')}",
        f"{metrics['updates_per_second']:.3g} updates/s",
        f"{metrics['samples_per_second']:,.3g} samples/s",
        f"{metrics['tokens_per_second']:,.0f} tokens/s",
    ]
    if metrics["mfu"] is not None:
        parts.append(f"MFU {metrics['mfu']:.1%}")
    if metrics["memory_gib"] is not None:
        parts.append(f"{metrics['memory_gib']:.1f} GiB")
    parts += [f"input wait {metrics['input_wait']:.1%}", f"ETA {duration(metrics['eta_seconds'])}"]
    if "action_center_error" in metrics:
        parts.append(f"action head off by {metrics['action_center_error']:.2f} m")
    if "val_loss" in metrics:
        parts.append(
            f"held out: loss {metrics['val_loss']:.4f}, "
            f"exact match {metrics['val_exact_match']:.3f}"
        )
    if metrics["skipped"]:
        parts.append(f"{metrics['skipped']} updates skipped")
    if metrics["lost_samples"]:
        parts.append(f"{metrics['lost_samples']:,} samples left out")
    return "  ".join(parts)


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _lines(path: Path, step: int) -> list[str]:
    """The file's lines up to `step`; what a crash left of a line is dropped, and said."""
    if not path.exists():
        return []
    kept, damaged = [], 0
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(
            f"{path} cannot be read: {error.strerror}; the run's metrics stand in it"
        ) from None
    for line in text.splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, TypeError, KeyError):
            damaged += 1
    if damaged:
        console().print(f"{path}: {damaged} damaged line(s) dropped")
    return kept
