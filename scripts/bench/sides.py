"""Two sides beside each other: each case in a process of its own, one at a time and in turn.

A benchmark's `measure(case)` returns figures (numbers, of which the median of the rounds counts)
and facts (texts); it runs in a child process, for JAX and PyTorch each take a GPU's memory, and
peak memory is a process's.
"""

import argparse
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import result
from command_line import count

from jaxvlm import entry
from jaxvlm.console import say
from jaxvlm.errors import UserError
from jaxvlm.training.hardware import GIB

_NO_MEMORY = "out of memory"
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
    flags.add_argument("--rounds", type=count, default=3, help="how often each case is measured")
    flags.add_argument("--case", help=argparse.SUPPRESS)

    def begin(given: argparse.Namespace) -> None:
        leave_when_told()
        if given.case:
            print(json.dumps(measure(json.loads(given.case))))
            return
        main(given)

    entry.run(flags, begin, configured=False)


def leave_when_told() -> None:
    """SIGTERM ends this process like Ctrl-C, so that on the way out children are ended too."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def in_turn(script: str, cases: Sequence[dict], rounds: int) -> list[dict]:
    """Measures every case once, then again; each with its medians, and `spread` of its seconds.

    A case that did not run has `failed` instead.

    Raises:
      UserError: some run on a GPU and some do not.
    """
    found: list[list[dict]] = [[] for _ in cases]
    devices: dict[bool, str] = {}
    for number in range(rounds):
        for place, (case, made) in enumerate(zip(cases, found, strict=True)):
            if made and "failed" in made[-1]:
                continue
            where = f"round {number + 1} of {rounds}, {place + 1} of {len(cases)}"
            print(f"{where}: {_named(case)}", file=sys.stderr, flush=True)
            made.append(_child(script, case) | {"load": os.getloadavg()[0]})
            if "device" in made[-1]:
                devices[made[-1]["device"] == "cpu"] = case["side"]
            if len(devices) > 1:
                raise UserError(
                    f"{devices[False]} runs on a GPU and {devices[True]} on a CPU: install both "
                    "JAX and PyTorch for GPUs, or hide the GPU (CUDA_VISIBLE_DEVICES=)"
                )
    return [case | _medians(made) for case, made in zip(cases, found, strict=True)]


def spread(case: Mapping) -> str:
    """How far the rounds of a case lie apart, behind its figure; nothing for one round."""
    return f" ±{case['spread']:.0%}" if case["spread"] is not None else ""


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
    """Writes the cases with what they were measured on.

    Raises:
      UserError: afterwards, if a case failed for another reason than memory.
    """
    load, cores = os.getloadavg()[0], os.cpu_count()
    if load > cores + 0.5:
        say(
            f"warning: {load:.1f} threads wanted to run on {cores} cores: measure again when the "
            "machine is idle (beside other programs PyTorch is slowed much more than JAX)",
            warns=True,
        )
    result.write(path, **more, cases=list(cases))
    failed = [case for case in cases if case.get("failed", _NO_MEMORY) != _NO_MEMORY]
    if failed:
        raise UserError(f"{len(failed)} cases failed, the first ({_named(failed[0])})")


def _child(script: str, case: dict) -> dict:
    _COMPILED.mkdir(parents=True, exist_ok=True)
    # One GPU on every side.
    defaults = {"JAX_COMPILATION_CACHE_DIR": str(_COMPILED), "CUDA_VISIBLE_DEVICES": "0", **_MEMORY}
    environment = defaults | os.environ
    done = subprocess.run(
        [sys.executable, script, "--case", json.dumps(case)],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    said, lines = done.stdout.strip().splitlines(), done.stderr.strip().splitlines()
    if done.returncode == 0 and said:
        return json.loads(said[-1])
    # The system kills what takes too much.
    full = done.returncode == -9 or any(word in line for word in _FULL for line in lines[-3:])
    print(f"{_named(case)}: {'does not fit' if full else done.stderr[-1500:]}", file=sys.stderr)
    last = lines[-1] if lines else "it said nothing"
    return {"failed": _NO_MEMORY if full else f"exit code {done.returncode}: {last}"}


def _medians(rounds: Sequence[dict]) -> dict:
    if "failed" in rounds[-1]:
        return rounds[-1]
    found = {}
    for name, value in rounds[0].items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        found[name] = statistics.median(each[name] for each in rounds) if number else value
    taken = [each["seconds"] for each in rounds]
    apart = (max(taken) - min(taken)) / 2 / found["seconds"]
    return found | {"spread": apart if len(taken) > 1 else None}


def _named(case: Mapping) -> str:
    return ", ".join(f"{name} {value}" for name, value in case.items() if value is not None)
