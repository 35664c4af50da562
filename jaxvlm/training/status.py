"""`status.json` of a workdir: how its run stands, for those who look from outside."""

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import jax

from jaxvlm.errors import Requeue, first_line
from jaxvlm.files import write_text
from jaxvlm.training.leaving import last_words


@contextlib.contextmanager
def status(workdir: Path) -> Iterator[None]:
    """Says within that the run goes on, and behind how it ended: finished, stopped or failed.

    Of several processes the first one to fail has the reason, which this one may learn only when
    it leaves. A process that is killed leaves "running" behind, with its number.
    """
    facts = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "processes": jax.process_count(),
        "devices": jax.device_count(),
        "device": jax.devices()[0].device_kind,
        "started": time.time(),
    }

    def write(state: str, reason: str = "") -> None:
        told = {"state": state, "reason": reason, **facts, "time": time.time()}
        # Of use to those who look; a full disk is no reason to stop.
        with contextlib.suppress(OSError):
            write_text(workdir / "status.json", json.dumps(told, indent=2) + "\n")

    last_words(lambda reason: write("failed", reason))
    write("running")
    try:
        yield
    except (Requeue, KeyboardInterrupt) as stop:
        write("stopped", first_line(stop))
        raise
    except Exception as error:
        write("failed", f"{type(error).__name__}: {first_line(error)}")
        raise
    write("finished")
