"""Two sides beside each other: each case in a process of its own, one at a time and in turn.

A benchmark's `measure(case)` returns figures (numbers, of which the median of the rounds counts)
and facts (texts); it runs in a child process, for JAX and PyTorch each take a GPU's memory, and
peak memory is a process's.
"""

import argparse
import json
import os
import platform
import resource
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from jaxvlm import entry
from jaxvlm.files import write_text
from jaxvlm.training.hardware import GIB

_PACKAGES = ("jax", "jaxlib", "flax", "torch", "transformers", "numpy")
_FULL = ("RESOURCE_EXHAUSTED", "OutOfMemoryError", "MemoryError", "can't allocate memory")
_COMPILED = Path(".cache/bench").resolve()
# As in the Makefile: on a CPU, blocks of memory stay with the process, on all sides.
_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "68719476736",
    "MALLOC_TOP_PAD_": "67108864",
}


def run(
    flags: argparse.ArgumentParser,
    main: Callable[[argparse.Namespace], None],
    measure: Callable[[dict], dict],
) -> None:
    """Runs a benchmark from the command line, or in a child one of its cases."""
    flags.add_argument("--rounds", type=int, default=3, help="how often each case is measured")
    flags.add_argument("--output", type=Path, help="write the record as JSON")
    flags.add_argument("--case", help=argparse.SUPPRESS)

    def begin(given: argparse.Namespace) -> None:
        if given.case:
            print(json.dumps(measure(json.loads(given.case))))
        else:
            main(given)

    entry.run(flags, begin, configured=False)


def in_turn(script: str, cases: Sequence[dict], rounds: int) -> list[dict]:
    """Measures every case once, then again; each with its medians, and `spread` of its seconds.

    A case that does not fit has `failed` instead.
    """
    found: list[list[dict]] = [[] for _ in cases]
    for number in range(rounds):
        for case, made in zip(cases, found, strict=True):
            if not made or "failed" not in made[-1]:
                print(f"round {number + 1}: {_named(case)}", file=sys.stderr, flush=True)
                made.append(_child(script, case))
    return [case | _medians(made) for case, made in zip(cases, found, strict=True)]


def seconds_of(work: Callable[[], None], repeats: int) -> float:
    """The median time of some work, which is done twice beforehand."""
    for _ in range(2):
        work()
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def peak_gib(gpu: int | None) -> float:
    """The most memory that was held: `gpu` bytes of a GPU or, without one, this process's."""
    held = gpu if gpu is not None else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return held / GIB


def write_record(path: Path | None, cases: Sequence[Mapping], **more: object) -> None:
    """Writes the cases with what they were measured on."""
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
        "cores": os.cpu_count(),
        "revision": _revision(),
        "versions": versions,
        **more,
        "cases": list(cases),
    }
    write_text(path, json.dumps(record, indent=1) + "\n")
    print(f"record: {path}")


def _revision() -> str:
    """What of the code was measured."""
    command = ["git", "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def _child(script: str, case: dict) -> dict:
    _COMPILED.mkdir(parents=True, exist_ok=True)
    # One GPU on every side.
    defaults = {"JAX_COMPILATION_CACHE_DIR": str(_COMPILED), "CUDA_VISIBLE_DEVICES": "0", **_MEMORY}
    environment = defaults | os.environ
    done = subprocess.run(
        [sys.executable, script, "--case", json.dumps(case)],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    full = done.returncode == -9 or any(word in done.stderr for word in _FULL)
    print(f"{_named(case)}: {'does not fit' if full else done.stderr[-1500:]}", file=sys.stderr)
    return {"failed": "out of memory" if full else done.stderr.strip().splitlines()[-1]}


def _medians(rounds: Sequence[dict]) -> dict:
    if "failed" in rounds[-1]:
        return rounds[-1]
    found = {}
    for name, value in rounds[0].items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        found[name] = statistics.median(each[name] for each in rounds) if number else value
    taken = [each["seconds"] for each in rounds]
    return found | {"spread": (max(taken) - min(taken)) / 2 / found["seconds"]}


def _named(case: Mapping) -> str:
    return ", ".join(f"{name} {value}" for name, value in case.items() if value is not None)
