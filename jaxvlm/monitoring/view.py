"""A run as a picture for the terminal."""

import statistics

import numpy as np
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from jaxvlm.console import duration
from jaxvlm.monitoring.curve import curve
from jaxvlm.monitoring.health import WINDOW, State, health, seconds_apart, step_seconds
from jaxvlm.monitoring.reading import Run

_COLOURS = {
    State.WAITING: "dim",
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
# Lines that the curve of the loss takes.
_CURVE_HEIGHT = 10


def view(run: Run, now: float, width: int) -> RenderableType:
    """The picture of a run, for a terminal of `width` columns at the time `now`."""
    found = health(run, now)
    heading = Text.assemble(
        (found.state.value, f"bold {_COLOURS[found.state]}"), "  ", (found.reason, "")
    )
    parts: list[RenderableType] = [heading]
    if run.lines:
        parts += [_progress(run, now), *_losses(run, width - 4), _figures(run)]
    parts += [Text(note, style="dim") for note in _notes(run)]
    return Panel(Group(*parts), title=Text(str(run.folder)), width=width, title_align="left")


def _progress(run: Run, now: float) -> RenderableType:
    line = run.lines[-1]
    if run.last is None:
        return Text(f"update {line.step:,}")
    eta = line.values.get("eta_seconds")
    if eta is None and line.values.get("updates_per_second"):
        eta = (run.last - line.step) / line.values["updates_per_second"]
    grid = Table.grid(padding=(0, 1), expand=True)
    grid.add_column(ratio=1)
    grid.add_column(no_wrap=True)
    left = f"  ETA {duration(eta)}" if eta and line.step < run.last else ""
    grid.add_row(
        ProgressBar(total=run.last, completed=line.step),
        f"update {line.step:,} of {run.last:,}{left}",
    )
    return grid


def _losses(run: Run, width: int) -> list[RenderableType]:
    shown: list[RenderableType] = []
    for name, title in (("loss", "loss"), ("val_loss", "held out")):
        points = [(line.step, line.values[name]) for line in run.lines if name in line.values]
        if not points:
            continue
        text = Text(f"{title} {points[-1][1]:.4f}")
        if name == "val_loss":
            exact = [line.values["val_exact_match"] for line in run.lines
                     if "val_exact_match" in line.values]  # fmt: skip
            text.append(f", exact match {exact[-1]:.3f}, best {max(exact):.3f}" if exact else "")
        shown.append(text)
        if len(points) > 1:
            height = _CURVE_HEIGHT if name == "loss" else _CURVE_HEIGHT // 2
            xs, ys = zip(*points, strict=True)
            shown.append(Text("\n".join(curve(xs, ys, width, height)), no_wrap=True))
    return shown


def _figures(run: Run) -> Table:
    """Rows of names and numbers."""
    values = run.lines[-1].values
    table = Table.grid(padding=(0, 2))
    rows = [
        ("seconds an update", _statistics(step_seconds(run.lines))),
        ("throughput", _joined(values, _THROUGHPUT)),
        ("memory", _joined(values, {"memory_gib": "{:.1f} GiB at the most"})),
        ("learning rate", _named(values, "lr/", "{:.2g}")),
        ("loss by source", _named(values, "loss/", "{:.4f}")),
        ("gradient norm", _joined(values, {"gradient_norm": "{:.3g}"})),
        ("skipped updates", _counted(sum(line.values.get("skipped", 0) for line in run.lines))),
        ("samples left out", _counted(values.get("lost_samples", 0))),
        ("checkpoints", _checkpoints(run)),
        ("devices", _devices(run)),
    ]
    for name, text in rows:
        if text:
            table.add_row(Text(name, style="bold"), Text(text))
    return table


_THROUGHPUT = {
    "samples_per_second": "{:,.3g} samples/s",
    "tokens_per_second": "{:,.0f} tokens/s",
    "mfu": "MFU {:.1%}",
    "input_wait": "{:.1%} waiting for input",
}


def _statistics(seconds: list[float]) -> str:
    if not seconds:
        return ""
    low, high = np.percentile(seconds, [10, 90])
    return (
        f"median {statistics.median(seconds):.3g}, 10% below {low:.3g}, 10% above {high:.3g}, "
        f"last {seconds[-1]:.3g}"
    )


def _joined(values, forms: dict[str, str]) -> str:
    return ", ".join(form.format(values[name]) for name, form in forms.items() if name in values)


def _named(values, prefix: str, form: str) -> str:
    return ", ".join(
        f"{name.removeprefix(prefix)} {form.format(value)}"
        for name, value in values.items()
        if name.startswith(prefix)
    )


def _counted(count: float) -> str:
    return f"{count:,.0f}" if count else ""


def _checkpoints(run: Run) -> str:
    if not run.checkpoints:
        return ""
    best = f", best {run.best:,}" if run.best is not None else ""
    return f"newest {run.checkpoints[-1]:,}{best}"


def _devices(run: Run) -> str:
    status = run.status
    if "devices" not in status:
        return ""
    return f"{status['devices']} x {status.get('device')}, {status.get('processes')} process(es)"


def _notes(run: Run) -> list[str]:
    notes = []
    if run.damaged:
        notes.append(
            f"{run.damaged} damaged line(s) ignored, the first is line {run.first_damaged}"
        )
    apart = seconds_apart(run.lines)
    if run.lines and apart:
        notes.append(
            f"figures are of the last {min(len(run.lines), WINDOW):,} lines, "
            f"{statistics.median(apart):,.3g} seconds apart"
        )
    return notes
