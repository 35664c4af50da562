"""`status.json` of a workdir: how its run stands, for those who look from outside."""

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

from jaxvlm.errors import Requeue, UserError
from jaxvlm.files import write_text
from jaxvlm.training.leaving import last_words


@contextlib.contextmanager
def status(workdir: Path) -> Iterator[Callable[[], None]]:
    """Says within that the run goes on, and behind how it ended: finished, stopped or failed.

    A start that is refused, before the yielded function was called, leaves what an earlier run has
    said. Of several processes the first one to fail has the reason, which this one may learn only
    when it leaves. A process that is killed leaves "running" behind, with its number.
    """
    path = workdir / "status.json"
    facts = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "processes": jax.process_count(),
        "devices": jax.device_count(),
        "device": jax.devices()[0].device_kind,
        "started": time.time(),
    }

    def write(state: str, reason: str = "") -> None:
        nonlocal begun
        begun = True
        told = {"state": state, "reason": reason, **facts, "time": time.time()}
        # Of use to those who look; a full disk is no reason to stop.
        with contextlib.suppress(OSError):
            write_text(path, json.dumps(told, indent=2) + "\n")

    begun = False
    last_words(lambda reason: write("failed", reason))
    if not path.exists():
        write("running")
    try:
        yield lambda: write("running")
    except (Requeue, KeyboardInterrupt) as stop:
        write("stopped", _reason(stop))
        raise
    except Exception as error:
        if begun or not isinstance(error, UserError):
            write("failed", f"{type(error).__name__}: {_reason(error)}")
        raise
    write("finished")


def _reason(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "")
