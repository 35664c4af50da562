"""Kills a small run again and again, and compares its end with that of a run left alone.

    python scripts/kill_and_resume.py [--times 100] [--output FILE.json]

A run of procedural rooms is killed with SIGKILL at random moments, every other time as soon as a
checkpoint is being written, and started again with the same command until it ends; then the next
one begins. Every end must have the parameters of the run left alone, bit for bit, and every update
logged once.
"""

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import numpy as np

from jaxvlm import entry
from jaxvlm.console import print_table
from jaxvlm.errors import UserError

ROOT = Path(__file__).parent.parent
UPDATES = 200
SIZES = {
    "model.projector.latent_dim": 32,
    "model.projector.ffn_dim": 64,
    "model.language.hidden_size": 32,
    "model.language.intermediate_size": 64,
    "train.max_steps": UPDATES,
    "train.rows_per_device": 2,
    "train.save_every": 20,
    "train.log_every": 1,
    # Slow enough that not all of the time something is being written.
    "train.accumulation": 4,
}


def main(flags: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rooms = ["-m", "jaxvlm.rooms", "--output", folder / "rooms", "--train-rooms", 24,
             "--val-rooms", 2, "--test-rooms", 2]  # fmt: skip
        subprocess.run([sys.executable, *map(str, rooms)], check=True, cwd=ROOT)
        start(folder, "alone").wait()
        alone = parameters(folder / "alone")
        kills, ends = Counter(), 0
        rng = random.Random(flags.seed)
        while sum(kills.values()) < flags.times:
            run = f"run{ends}"
            kills += killed_until_it_ends(folder, run, rng, flags.times - sum(kills.values()))
            check(folder / run, alone)
            ends += 1
            print(f"{sum(kills.values())} kills, {ends} ends like the run left alone", flush=True)
    rows = [(moment, kills[moment]) for moment in sorted(kills)]
    print_table(f"{ends} runs, killed and ended to the bit", ("killed", "times"), rows)
    if flags.output:
        record = {
            "killed": dict(kills), "runs": ends, "updates": UPDATES, "identical": ends,
            "machine": platform.processor() or platform.machine(), "jax": version("jax"),
            "command": "python scripts/kill_and_resume.py --times " + str(flags.times),
        }  # fmt: skip
        flags.output.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def start(folder: Path, run: str) -> subprocess.Popen:
    """The training command, always the same."""
    data = [f"--config.data.{split}={folder}/rooms/{split}.jsonl" for split in ("train", "val")]
    sizes = [f"--config.{name}={value}" for name, value in SIZES.items()]
    command = ["-m", "jaxvlm.train", "--config", "configs/demo.py", "--workdir", folder / run]
    return subprocess.Popen(
        [sys.executable, *map(str, command), *data, *sizes],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=(folder / f"{run}.errors").open("a"),
        env={
            **os.environ,
            "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        },
    )


def killed_until_it_ends(folder: Path, run: str, rng: random.Random, most: int) -> Counter:
    """Kills a run up to `most` times; counts at what moments."""
    kills: Counter = Counter()
    while True:
        process = start(folder, run)
        if sum(kills.values()) < most and wait_for_a_moment(process, folder / run, rng):
            moment = moment_of(folder / run)
            process.kill()
            process.wait()
            kills[moment] += 1
            continue
        if process.wait():
            raise UserError(f"the run failed: {(folder / f'{run}.errors').read_text()[-2000:]}")
        return kills


def wait_for_a_moment(process: subprocess.Popen, workdir: Path, rng: random.Random) -> bool:
    """Waits until it is time to kill; False where the process ended first."""
    saving, began = rng.random() < 0.5, logged(workdir)
    while process.poll() is None and logged(workdir) <= began:
        time.sleep(0.002)
    until = time.monotonic() + rng.uniform(0, 0.6)
    while process.poll() is None:
        if saving and drafts(workdir):
            return True
        if not saving and time.monotonic() > until:
            return True
        time.sleep(0.0005)
    return False


def moment_of(workdir: Path) -> str:
    return "during a save" if drafts(workdir) else "between saves"


def drafts(workdir: Path) -> list[Path]:
    return list((workdir / "checkpoints").glob("*-tmp*"))


def logged(workdir: Path) -> int:
    """Updates in the log."""
    try:
        return (workdir / "metrics.jsonl").read_bytes().count(b"\n")
    except OSError:
        return 0


def parameters(workdir: Path) -> dict[str, np.ndarray]:
    """The trained parameters at the end."""
    from convert.stored import open_stored

    stored = open_stored(str(workdir / "checkpoints" / str(UPDATES)), [])
    return {path: stored.params[path] for path in stored.params}


def check(workdir: Path, alone: dict[str, np.ndarray]) -> None:
    found = parameters(workdir)
    for path, value in alone.items():
        if found[path].tobytes() != value.tobytes():
            raise UserError(f"{workdir.name} ended with another {path}")
    steps = [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").open()]
    if steps != list(range(1, UPDATES + 1)):
        raise UserError(f"{workdir.name} logged the updates {steps}")


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser("kill_and_resume", description=__doc__)
    flags.add_argument("--times", type=int, default=100, help="how often to kill")
    flags.add_argument("--seed", type=int, default=0, help="of the moments")
    flags.add_argument("--output", type=Path, help="where the record is written")
    return flags


if __name__ == "__main__":
    entry.run(parser(), main, configured=False)
