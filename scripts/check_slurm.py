"""Trains on two nodes of the Slurm that is at hand, kills a rank, and sees the job through.

    python scripts/check_slurm.py FOLDER

`scripts/slurm/stage1_2nodes.sbatch` trains the demo with small sizes, unchanged but for its
variables. When the first checkpoint stands, the second rank is killed: the job must end within a
minute, be queued again, and finish, every update logged once.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil

from jaxvlm import entry
from jaxvlm.errors import UserError

ROOT = Path(__file__).parent.parent
UPDATES = 60
SIZES = {
    "model.projector.latent_dim": 32,
    "model.projector.ffn_dim": 64,
    "model.language.hidden_size": 32,
    "model.language.intermediate_size": 64,
    "train.max_steps": UPDATES,
    "train.rows_per_device": 2,
    "train.save_every": 10,
    "train.log_every": 1,
}


def main(flags: argparse.Namespace) -> None:
    folder = flags.folder.resolve()
    rooms = ["-m", "jaxvlm.rooms", "--output", folder / "rooms", "--train-rooms", 24,
             "--val-rooms", 2, "--test-rooms", 2]  # fmt: skip
    subprocess.run([sys.executable, *map(str, rooms)], check=True, cwd=ROOT)
    work = folder / "work"
    job = submit(folder, work)
    log = ROOT / f"jaxvlm_{job}.out"
    try:
        until(lambda: checkpoints(work), "the first checkpoint", 240, log)
        rank = second_rank(work)
        print(f"job {job}: checkpoint {max(checkpoints(work))} stands; killing rank 1", flush=True)
        rank.kill()
        killed = time.monotonic()
        until(lambda: state(job) != "RUNNING", "the job's end", 60, log)
        print(f"the job ended after {time.monotonic() - killed:.0f} s", flush=True)
        until(lambda: state(job) == "PENDING", "the job in the queue again", 60, log)
        # Slurm lets a job that it queues again wait for two minutes.
        subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], check=True)
        until(lambda: state(job) in ("COMPLETED", "FAILED", "CANCELLED"), "its end", 300, log)
        check(work, log, job)
    finally:
        subprocess.run(["scancel", job], check=False)
        log.unlink(missing_ok=True)


def submit(folder: Path, work: Path) -> str:
    """Queues the batch script with variables of this machine; returns the job's number."""
    data = [f"--config.data.{split}={folder}/rooms/{split}.jsonl" for split in ("train", "val")]
    sizes = [f"--config.{name}={value}" for name, value in SIZES.items()]
    variables = {
        "GPUS_PER_NODE": "0",
        "PYTHON": sys.executable,
        "CONFIG": "configs/demo.py",
        "WORKDIR": str(work),
        "FLAGS": " ".join(data + sizes),
        # The nodes' names are virtual.
        "JAX_COORDINATOR_ADDRESS": "127.0.0.1:17100",
        "JAX_PLATFORMS": "cpu",
    }
    options = ["--gpus-per-node=0", "--cpus-per-task=1"]
    done = subprocess.run(
        ["sbatch", "--parsable", *options, "scripts/slurm/stage1_2nodes.sbatch"],
        cwd=ROOT,
        env={**os.environ, **variables},
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()


def until(ready, what: str, seconds: float, log: Path | None = None) -> None:
    """Waits until `ready()`, asked every half second."""
    end = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > end:
            said = f"; the log ends:\n{log.read_text()[-3000:]}" if log and log.exists() else ""
            raise UserError(f"waited {seconds} s for {what}{said}")
        time.sleep(0.5)


def state(job: str) -> str:
    command = ["scontrol", "show", "job", job]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    found = re.search(r"JobState=(\w+)", said)
    return found[1] if found else "UNKNOWN"


def checkpoints(work: Path) -> list[int]:
    folder = work / "checkpoints"
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return [int(name) for name in names if name.isdigit()]


def second_rank(work: Path) -> psutil.Process:
    """The training process that Slurm started as its rank 1."""
    for process in psutil.process_iter():
        try:
            mine = str(work) in process.cmdline() and "jaxvlm.train" in process.cmdline()
            if mine and process.environ().get("SLURM_PROCID") == "1":
                return process
        except psutil.Error:
            continue
    raise UserError("rank 1 was not found among the processes")


def check(work: Path, log: Path, job: str) -> None:
    """What a job that was killed once and finished leaves behind."""
    lines = [json.loads(line) for line in (work / "metrics.jsonl").read_text().splitlines()]
    said = log.read_text()
    problems = []
    if state(job) != "COMPLETED":
        problems.append(f"the job is {state(job)}")
    if [line["step"] for line in lines] != list(range(1, UPDATES + 1)):
        problems.append("not every update is logged once")
    if "resuming" not in said:
        problems.append("it did not resume")
    if not re.search(r"Step \d+/\d+ +Loss .*ETA", said):
        problems.append("the log has no line with Step, Loss and ETA")
    if problems:
        raise UserError(f"{'; '.join(problems)}. The log ends:\n{said[-3000:]}")
    resumed = re.search(r"resuming \S+ after update (\d+)", said)[1]
    print(f"queued again, resumed after update {resumed}, finished {UPDATES} updates on two nodes")


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser("check_slurm", description=__doc__)
    flags.add_argument("folder", type=Path, help="where the rooms and the run are written")
    return flags


if __name__ == "__main__":
    entry.run(parser(), main, configured=False)
