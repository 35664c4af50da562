"""A run as a picture for the terminal."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from jaxvlm.console import duration
from jaxvlm.monitoring.curve import curve
from jaxvlm.monitoring.health import WINDOW, State, health, seconds_apart, step_seconds
from jaxvlm.monitoring.reading import Line, Run

_COLOURS = {
    State.WAITING: "cyan",
    State.STARTING: "cyan",
    State.RUNNING: "green",
    State.SLOWING: "yellow",
    State.STALLED: "red",
    State.SKIPPING: "red",
    State.FINISHED: "green",
    State.STOPPED: "yellow",
    State.FAILED: "red",
    State.CRASHED: "red",
}
# Lines that a curve takes, and takes at least where the terminal is low.
_CURVE_HEIGHT, _LOWEST = 10, 4
# Columns from which curves stand side by side.
_WIDE = 90
# Columns between them; beside the picture, its frame.
_GAP, _FRAME = 3, 4
# Seconds that an ETA can be trusted with: a hundred years.
_LONGEST = 3e9
_THROUGHPUT = {
    "samples_per_second": "{:,.1f} samples/s",
    "tokens_per_second": "{:,.0f} tokens/s",
    "mfu": "MFU {:.1%}",
    "input_wait": "{:.1%} waiting for input",
}


def view(run: Run, now: float, width: int, height: int | None = None) -> RenderableType:
    """The picture of a run.

    Args:
      run: what its files show.
      now: seconds since 1970.
      width: columns that it takes.
      height: lines that it should not exceed; its curves become lower.
    """
    curves = _curves(run.lines)
    shown = _panel(run, now, width, curves, _CURVE_HEIGHT)
    if height is None or not curves:
        return shown
    over = len(Console(width=width).render_lines(shown)) - height
    above = 1 if _wide(width) else len(curves)
    lower = _CURVE_HEIGHT - math.ceil(max(over, 0) / above)
    return _panel(run, now, width, curves, max(lower, _LOWEST))


class _Curve(NamedTuple):
    title: str
    xs: np.ndarray
    ys: np.ndarray


def _panel(run: Run, now: float, width: int, curves: Sequence[_Curve], height: int) -> Panel:
    found = health(run, now)
    parts: list[RenderableType] = [
        Text.assemble((found.state.value, f"bold {_COLOURS[found.state]}"), "  ", found.reason)
    ]
    if run.lines:
        parts += [_progress(run), _drawn(curves, width - _FRAME, height)]
    parts.append(_figures(run, now))
    parts += [Text(note, style="dim") for note in _notes(run)]
    return Panel(Group(*parts), title=Text(str(run.folder)), width=width, title_align="left")


def _progress(run: Run) -> RenderableType:
    line = run.lines[-1]
    if run.last is None:
        return Text(f"update {line.step:,}")
    eta = line.values.get("eta_seconds")
    if eta is None and line.values.get("updates_per_second", 0.0) > 0:
        eta = (run.last - line.step) / line.values["updates_per_second"]
    coming = eta is not None and 0 <= eta < _LONGEST and line.step < run.last
    grid = Table.grid(padding=(0, 1), expand=True)
    grid.add_column(ratio=1)
    grid.add_column(no_wrap=True)
    grid.add_row(
        ProgressBar(total=run.last, completed=line.step),
        f"update {line.step:,} of {run.last:,}" + (f"  ETA {duration(eta)}" if coming else ""),
    )
    return grid


def _curves(lines: Sequence[Line]) -> list[_Curve]:
    """The losses that there are."""
    found = []
    for name, title, beside in (
        ("loss", "loss", ("token_accuracy", "token accuracy")),
        ("val_loss", "held out loss", ("val_exact_match", "exact match")),
    ):
        having = [line for line in lines if name in line.values]
        if not having:
            continue
        xs = np.fromiter((line.step for line in having), float, len(having))
        ys = np.fromiter((line.values[name] for line in having), float, len(having))
        last = having[-1].values
        more = f", {beside[1]} {last[beside[0]]:.3f}" if beside[0] in last else ""
        if name == "loss" and having[-1] is not lines[-1]:
            more += f" at update {having[-1].step:,}, none since"
        found.append(_Curve(f"{title} {last[name]:.4f}{more}", xs, ys))
    return found


def _drawn(curves: Sequence[_Curve], width: int, height: int) -> RenderableType:
    """The curves, side by side where they find room."""
    beside = len(curves) > 1 and _wide(width + _FRAME)
    each = (width - _GAP) // 2 if beside else width
    drawn = [
        Text(
            "\n".join([title, *(curve(xs, ys, each, height) if len(xs) > 1 else [])]), no_wrap=True
        )
        for title, xs, ys in curves
    ]
    if not beside:
        return Group(*drawn)
    grid = Table.grid(padding=(0, _GAP, 0, 0), pad_edge=False)
    grid.add_row(*drawn)
    return grid


def _wide(width: int) -> bool:
    return width >= _WIDE


def _figures(run: Run, now: float) -> Table:
    """Rows of names and numbers."""
    values = run.lines[-1].values if run.lines else {}
    recent = run.lines[-WINDOW:]
    table = Table.grid(padding=(0, 2))
    rows = [
        ("step time", _step_time(step_seconds(recent))),
        ("throughput", _joined(values, _THROUGHPUT)),
        ("memory", _joined(values, {"memory_gib": "{:.1f} GiB on the fullest device"})),
        ("learning rate", _named([run.lines[-1]] if run.lines else [], "lr/", "{:.2g}")),
        # Not every line has a sample of every source.
        ("loss by source", _named(recent, "loss/", "{:.4f}")),
        ("gradient norm", _joined(values, {"gradient_norm": "{:.3g}"})),
        ("skipped updates", _counted(line.values.get("skipped", 0) for line in run.lines)),
        ("samples left out", _counted([values.get("lost_samples", 0)])),
        ("checkpoints", _checkpoints(run)),
        ("devices", _devices(run, now)),
    ]
    for name, text in rows:
        if text:
            table.add_row(Text(name, style="bold"), Text(text))
    return table


def _step_time(seconds: Sequence[float]) -> str:
    if not seconds:
        return ""
    low, high = np.percentile(seconds, [10, 90])
    return (
        f"median {statistics.median(seconds):.3g} s, p10 {low:.3g}, p90 {high:.3g}, "
        f"last {seconds[-1]:.3g} ({1 / seconds[-1]:.3g} updates/s)"
    )


def _joined(values: Mapping[str, float], forms: Mapping[str, str]) -> str:
    return ", ".join(form.format(values[name]) for name, form in forms.items() if name in values)


def _named(lines: Iterable[Line], prefix: str, form: str) -> str:
    """The last values whose names begin so."""
    last: dict[str, float] = {}
    for line in lines:
        last |= {name: value for name, value in line.values.items() if name.startswith(prefix)}
    return ", ".join(
        f"{name.removeprefix(prefix)} {form.format(last[name])}" for name in sorted(last)
    )


def _counted(counts: Iterable[float]) -> str:
    count = sum(counts)
    return f"{count:,.0f}" if count else ""


def _checkpoints(run: Run) -> str:
    if not run.checkpoints:
        return ""
    best = f", best by validation {run.best:,}" if run.best is not None else ""
    return f"newest {run.checkpoints[-1]:,}{best}"


def _devices(run: Run, now: float) -> str:
    status = run.status
    if status.devices is None:
        return ""
    several = status.processes is not None and status.processes > 1
    text = f"{status.devices:,} x {status.device}"
    text += f" in {status.processes:,} processes, the first on" if several else " on"
    text += f" {status.host}"
    if status.state == "running" and status.started is not None:
        text += f", for {duration(max(now - status.started, 0))}"
    return text


def _notes(run: Run) -> list[str]:
    notes = []
    if run.damaged:
        lines = "line" if run.damaged == 1 else "lines"
        notes.append(
            f"{run.damaged:,} damaged {lines} ignored, first at line {run.first_damaged:,}"
        )
    apart = seconds_apart(run.lines)
    if apart:
        notes.append(
            f"step time of the last {min(len(run.lines), WINDOW):,} lines, "
            f"{statistics.median(apart):,.3g} s apart"
        )
    return notes
