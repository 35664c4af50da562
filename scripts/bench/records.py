"""How fast record files are opened, read and audited, and what memory that takes.

    python scripts/bench/records.py --lines 1000000 [--output FILE.json]

Writes records of eight views with geometry into a temporary file. Memory is the process's own
(RssAnon): pages of the mapped file are the system's to drop.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import result
from command_line import count, new_parser

from jaxvlm import entry
from jaxvlm.console import print_table
from jaxvlm.data.audit.files import audit_file
from jaxvlm.data.record import Record, record_entry
from jaxvlm.data.records import RecordFile

VIEWS = 8


def main(flags: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(dir=flags.folder) as folder:
        path = Path(folder) / "records.jsonl"
        write(path, flags.lines)
        size = path.stat().st_size
        before = memory()
        file, opening = timed(lambda: RecordFile(path))
        opened = memory()
        picks = np.random.default_rng(0).integers(0, len(file), 2000)
        _, reading = timed(lambda: [file[int(i)] for i in picks])
        findings, auditing = timed(lambda: audit_file(file, ["."], False))
        assert len(file) == findings.rows == flags.lines and not findings.problems
        audited = memory()
    figures = {
        "lines": flags.lines,
        "gigabytes": round(size / 1e9, 2),
        "open_seconds": round(opening, 2),
        "open_megabytes": round(opened - before, 1),
        "read_microseconds_a_record": round(reading / len(picks) * 1e6, 1),
        "audit_seconds": round(auditing, 1),
        "audit_megabytes": round(audited - before, 1),
    }
    print_table("Record files", ("figure", "value"), [(k, str(v)) for k, v in figures.items()])
    result.write(flags.output, views=VIEWS, **figures)


def timed(work):
    started = time.perf_counter()
    return work(), time.perf_counter() - started


def memory() -> float:
    """Megabytes of this process that are no file's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(x.split()[1]) for x in lines if x.startswith("RssAnon")) / 1024


def write(path: Path, count: int) -> None:
    """Ten questions about each scene."""
    rng = np.random.default_rng(0)
    with path.open("w") as file:
        for scene in range(-(-count // 10)):
            shared = _scene(scene, rng)
            for question in range(min(10, count - 10 * scene)):
                shared["question"] = f"What color is thing {question} of room {scene}?"
                shared["question_id"] = f"{scene}-{question}"
                file.write(json.dumps(shared) + "\n")


def _scene(scene: int, rng: np.random.Generator) -> dict:
    turns = np.linalg.qr(rng.normal(size=(VIEWS, 3, 3)))[0]
    turns *= np.linalg.det(turns)[:, None, None]
    depths = rng.random((VIEWS, 16)).astype(np.float32)
    geometry = {
        "R": turns.reshape(VIEWS, 9).astype(np.float32).round(6),
        "t": rng.normal(size=(VIEWS, 3)).astype(np.float32).round(5),
        "K": np.tile(np.float32([1170, 0, 648, 0, 1170, 484, 0, 0, 1]), (VIEWS, 1)),
        "depth_hist": (depths / depths.sum(1, keepdims=True)).round(6),
    }
    name = f"scene{scene % 10000:04}_{scene // 10000:02}"
    record = Record(
        tuple(f"data/raw/scannet/{name}/color/{100 * view}.jpg" for view in range(VIEWS)),
        "?",
        "brown",
        ("brown", "dark brown"),
        geometry=geometry,
        image_size=(1296, 968),
        task="scanqa",
        scene_id=name,
    )
    return record_entry(record)


def parser() -> argparse.ArgumentParser:
    flags = new_parser(__file__, __doc__)
    flags.add_argument("--lines", type=count, default=1_000_000, help="of the file")
    flags.add_argument("--folder", type=Path, help="for the temporary file (default: the system's)")
    return flags


if __name__ == "__main__":
    entry.run(parser(), main, configured=False)
