"""Folders of runs as the monitor finds them, and what it says of them."""

import io
import json
import os
import socket

from rich.console import Console

from jaxvlm.monitoring.health import health
from jaxvlm.monitoring.reading import RunFiles
from jaxvlm.monitoring.view import view

# Behind the times of the files that are written here.
NOW = 4_000_000_000.0
HERE = {"host": socket.gethostname(), "pid": os.getpid(), "devices": 16, "device": "NVIDIA H200",
        "processes": 2, "started": NOW - 3600}  # fmt: skip


def line(step, seconds_ago=0.0, **values):
    """A line of `metrics.jsonl`."""
    made = {"step": step, "time": NOW - seconds_ago, "loss": 2.0 / step, "skipped": 0}
    made |= {"updates_per_second": 0.5, "samples_per_second": 90.0, "tokens_per_second": 16000.0}
    made |= {"mfu": None, "memory_gib": 61.25, "lr/language": 5e-6, "loss/scanqa": 1.5}
    return made | values


def every_two_seconds(count, **values):
    return [line(step, 2.0 * (count - step), **values) for step in range(1, count + 1)]


def written(folder, lines, last=100, **status):
    """Writes a run; a line may be text, as damaged ones are."""
    folder.mkdir(exist_ok=True)
    text = "".join(each if isinstance(each, str) else json.dumps(each) + "\n" for each in lines)
    (folder / "metrics.jsonl").write_text(text)
    (folder / "config.json").write_text(json.dumps({"train": {"max_steps": last, "log_every": 1}}))
    if status:
        (folder / "status.json").write_text(json.dumps(status))
    return folder


def state_of(folder, now=NOW):
    return health(RunFiles(folder).read(), now)


def picture(folder, width=100, now=NOW, height=None):
    out = Console(file=io.StringIO(), width=width)
    out.print(view(RunFiles(folder).read(), now, width, height))
    return out.file.getvalue()
