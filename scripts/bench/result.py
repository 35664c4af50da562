"""A benchmark's record: its figures beside what they were measured on and with."""

import json
import os
import platform
import shlex
import subprocess
import sys
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from jaxvlm.files import write_text

_PACKAGES = ("jax", "jaxlib", "flax", "grain", "torch", "transformers", "numpy", "pillow")
# What changes the figures besides flags.
_SETTINGS = ("JAXVLM_ATTENTION", "JAX_OPTIMIZATION_LEVEL", "XLA_FLAGS", "OMP_NUM_THREADS",
             "OMP_WAIT_POLICY")  # fmt: skip


def write(path: Path | None, **figures: object) -> None:
    """Writes the figures, and says so; nothing for no path."""
    if path is None:
        return
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    record = {
        "date": date.today().isoformat(),
        "command": shlex.join(["python", *sys.argv]),
        "machine": platform.platform(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "environment": {name: os.environ[name] for name in _SETTINGS if name in os.environ},
        "revision": _revision(),
        "versions": versions,
        **figures,
    }
    write_text(path, json.dumps(record, indent=1) + "\n")
    print(f"record: {path}")


def _cpu() -> str:
    """The name that Linux has for it, and its widest vectors."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    fields = {name.strip(): value.strip() for name, _, value in (x.partition(":") for x in lines)}
    vectors = [flag for flag in ("avx512f", "avx2") if flag in fields.get("flags", "").split()]
    return " ".join([fields.get("model name", platform.machine()), *vectors[:1]])


def _revision() -> str:
    """What of the code was measured."""
    command = ["git", "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else "unknown"
