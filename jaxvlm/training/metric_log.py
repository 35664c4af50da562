"""Metrics of a run: lines on the console, JSON lines, TensorBoard."""

import json
from collections.abc import Mapping
from pathlib import Path

from tensorboardX import SummaryWriter

from jaxvlm.console import console
from jaxvlm.files import write_text


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

    def write(self, step: int, metrics: Mapping[str, float | None], eta: str) -> None:
        """Records the metrics since the last time; None is what no update had."""
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        self._file.flush()
        for name, value in metrics.items():
            if value is None:
                continue
            self._board.add_scalar(name, value, step)
        self._console.print(
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
        self._file.close()
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
