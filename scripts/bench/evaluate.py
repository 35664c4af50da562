"""Seconds and memory of an evaluation by the number of its questions.

    python scripts/bench/evaluate.py [--questions 1000,7231] [--output FILE.json] [--config.…]

A model of the demo's size that has made one update answers questions about procedural rooms, each
number in a process of its own, with all controls. Peak memory is the system's count of the process.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import result
from command_line import counts, new_parser

from jaxvlm import entry
from jaxvlm.console import print_table
from jaxvlm.errors import UserError

QUESTIONS_A_ROOM = 12
# Kept from the first of two evaluations to the second, which counts.
_COMPILED = {"JAX_COMPILATION_CACHE_DIR": ".cache/bench",
             "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}  # fmt: skip


def main(flags: argparse.Namespace) -> None:
    found = []
    with tempfile.TemporaryDirectory(dir=flags.folder) as name:
        folder = Path(name)
        rooms = -(-max(flags.questions) // QUESTIONS_A_ROOM)
        run("jaxvlm.rooms", "--output", folder / "rooms", "--train-rooms", 8, "--val-rooms", 1,
            "--test-rooms", rooms, "--no-sheet")  # fmt: skip
        data = [f"--config.data.{split}={folder}/rooms/{split}.jsonl"
                for split in ("train", "val", "test")]  # fmt: skip
        more = [f"--config.{override}" for override in flags.overrides]
        run("jaxvlm.train", "--config", "configs/demo.py", "--workdir", folder / "run", *data,
            "--config.train.max_steps=1", *more)  # fmt: skip
        for count in flags.questions:
            # What is compiled and checked once is no part of it.
            for _ in range(2):
                seconds, megabytes = run("jaxvlm.evaluate", "--checkpoint", folder / "run",
                                         "--limit", count, "--output", folder / f"out{count}",
                                         *more)  # fmt: skip
                (folder / f"out{count}" / "summary.json").replace(folder / f"out{count}.json")
                for path in (folder / f"out{count}").glob("predictions*"):
                    path.unlink()
            summary = json.loads((folder / f"out{count}.json").read_text(encoding="utf-8"))
            if summary["count"] != count:
                raise UserError(f"{summary['count']} of {count} questions were answered")
            found.append({"questions": count, "seconds": seconds, "peak_megabytes": megabytes})
    rows = [(f"{f['questions']:,}", f"{f['seconds']:.1f} s", f"{f['peak_megabytes']:,.0f} MB")
            for f in found]  # fmt: skip
    print_table("An evaluation with three controls", ("questions", "time", "peak memory"), rows)
    result.write(flags.output, cases=found, overrides=flags.overrides)


def run(module: str, *arguments: object) -> tuple[float, float]:
    """Runs a command; returns its seconds and its peak memory in megabytes."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, **_COMPILED},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise UserError(f"{module}: {errors.decode()[-1500:]}")
    return time.perf_counter() - began, usage.ru_maxrss / 1024


def parser() -> argparse.ArgumentParser:
    flags = new_parser(__file__, __doc__)
    flags.add_argument("--questions", type=counts, default=[1000, 7231], help="of a test split")
    flags.add_argument("--folder", type=Path, help="for temporary files (default: the system's)")
    return flags


if __name__ == "__main__":
    entry.run(parser(), main)
