"""Seconds from the command to the first update: cold, and with what was compiled before.

    python scripts/bench/startup.py [--config configs/demo.py] [--output FILE] [--config.F=VALUE]

Runs the training command twice into one new workdir, whose `compiled/` the second one finds, and
looks when `metrics.jsonl` gets its first line. Everything else is as a user has it: what was found
out about record files before is known to both.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import sides
from command_line import count, new_parser

from jaxvlm import entry
from jaxvlm.console import print_table
from jaxvlm.errors import UserError

_POLL = 0.02


def main(flags: argparse.Namespace) -> None:
    sides.leave_when_told()
    found: dict[str, list[float]] = {"cold": [], "compiled before": []}
    for number in range(flags.rounds):
        print(f"round {number + 1} of {flags.rounds}: two starts", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            workdir = Path(folder) / "run"
            found["cold"].append(_seconds(flags, workdir))
            for path in workdir.iterdir():
                if path.name != "compiled":
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            found["compiled before"].append(_seconds(flags, workdir))
    cases = [{"start": name, "seconds": statistics.median(each), "all": each}
             for name, each in found.items()]  # fmt: skip
    rows = [(case["start"], f"{case['seconds']:.1f}") for case in cases]
    print_table(f"to the first update of {flags.config}", ("start", "seconds"), rows)
    sides.write_record(flags.output, cases, config=flags.config, overrides=flags.overrides)


def _seconds(flags: argparse.Namespace, workdir: Path) -> float:
    command = [sys.executable, "-m", "jaxvlm.train", "--config", flags.config,
               "--workdir", str(workdir), "--config.train.log_every=1",
               "--config.train.max_steps=2", "--config.train.eval_every=0"]  # fmt: skip
    command += [f"--config.{override}" for override in flags.overrides]
    began = time.perf_counter()
    metrics = workdir / "metrics.jsonl"
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as run:
        try:
            while run.poll() is None and not (metrics.exists() and metrics.stat().st_size):
                time.sleep(_POLL)
        except BaseException:
            run.kill()
            raise
        seconds = time.perf_counter() - began
        errors = run.communicate()[1]
    if run.returncode:
        raise UserError(f"the training ended with {run.returncode}: {errors.strip()[-500:]}")
    if not json.loads(metrics.read_text(encoding="utf-8").splitlines()[0]):
        raise UserError(f"{metrics} has no metrics")
    return seconds


def parser() -> argparse.ArgumentParser:
    flags = new_parser(__file__, __doc__)
    flags.add_argument("--config", default="configs/demo.py", help="what is trained")
    flags.add_argument("--rounds", type=count, default=3, help="how often both are measured")
    return flags


if __name__ == "__main__":
    entry.run(parser(), main)
