"""Runs the commands of the documentation as they stand there.

    python scripts/check_docs.py [PAGE ...]

`docs/checked_commands.md` tells which pages, what is replaced in their commands and what is left
out; everything left out is printed. Commands stand in indented blocks; those of several processes,
one below the other with `--process_id`, are started together.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from jaxvlm import entry
from jaxvlm.errors import UserError

ROOT = Path(__file__).parent.parent
TABLE = ROOT / "docs" / "checked_commands.md"
COMMANDS = re.compile(
    r"(python|pip|make|scripts/|sbatch|source|tensorboard|ls|tail|df|du|[A-Z_]+=\S+ )\S*"
)
SHOWN = ("configs", "convert", "docs", "jaxvlm", "scripts", "tests", "constraints.txt",
         "pyproject.toml", ".venv")  # fmt: skip
SECONDS = 300


def main(flags: argparse.Namespace) -> None:
    text = TABLE.read_text(encoding="utf-8")
    replaced, left_out, blocks = rules(text)
    pages = flags.pages or re.search(r"The pages: ([\w, ]+)\.", text)[1].split(", ")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        for page in pages:
            for commands in together(commands_of(ROOT / "docs" / f"{page}.md")):
                why = next((why for start, why in left_out if commands[0].startswith(start)), None)
                if why is not None:
                    print(f"{page}: SKIPPED: {commands[0]} ({why})", flush=True)
                    continue
                run(page, commands, [shortened(c, replaced, blocks) for c in commands], folder)


def rules(text: str) -> tuple[list[tuple[str, str]], list[tuple[str, str]], dict[str, str]]:
    """What is replaced by what, what is left out and why, and what the short names stand for."""
    tables = re.findall(r"((?:^\|.*\n)+)", text, re.MULTILINE)
    replaced, left_out = (
        [tuple(plain(cell) for cell in row.split("|")[1:3]) for row in table.splitlines()[2:]]
        for table in tables
    )
    named = re.findall(r"`([A-Z0-9]+)` (?:stands )?for\n\n((?:    .*\n)+)", text)
    return replaced, left_out, {name: " ".join(lines.split()) for name, lines in named}


def plain(cell: str) -> str:
    """A cell of a table, without the quotes around code."""
    return re.sub(r"^`([^`]*)`$", r"\1", cell.strip())


def commands_of(page: Path) -> Iterator[str]:
    """The commands of a page, continued lines joined and comments cut off."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for line in text.splitlines():
        if line.startswith("    ") and COMMANDS.match(line.strip()):
            yield re.sub(r"\s+", " ", line.split(" # ")[0]).strip()


def together(commands: Iterator[str]) -> Iterator[list[str]]:
    """Commands that run at once: those of several processes of one run."""
    group: list[str] = []
    for command in commands:
        if group and not ("--process_id" in command and "--process_id" in group[-1]):
            yield group
            group = []
        group.append(command)
    if group:
        yield group


def shortened(command: str, replaced: list[tuple[str, str]], blocks: dict[str, str]) -> str:
    """The command as it is run."""
    for text, by in replaced:
        command = command.replace(text, by)
    for name, flags in blocks.items():
        command = re.sub(rf"\b{name}\b", flags.replace("\\", r"\\"), command)
    return command


def prepare(folder: Path) -> None:
    """A checkout with small data where the pages expect it."""
    for name in SHOWN:
        (folder / name).symlink_to(ROOT / name)
    for dataset in ("scanqa", "sqa3d"):
        place = folder / "data" / "processed" / dataset
        rooms = ["-m", "jaxvlm.rooms", "--output", place, "--train-rooms", 24, "--val-rooms", 2,
                 "--test-rooms", 4]  # fmt: skip
        subprocess.run([sys.executable, *map(str, rooms)], check=True, cwd=folder)
        for split in ("train", "test"):
            lines = (place / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
            records = [json.loads(line) | {"task": dataset} for line in lines]
            text = "".join(json.dumps(record) + "\n" for record in records)
            (place / f"{split}_split.jsonl").write_text(text, encoding="utf-8")


def run(page: str, commands: list[str], changed: list[str], folder: Path) -> None:
    """Runs commands at once; raises a UserError with what they said where one fails."""
    settings = {
        "PATH": f"{ROOT}/.venv/bin:{os.environ['PATH']}",
        "PYTHONPATH": str(folder),
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(folder / ".cache" / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        # Compiling is most of the time of runs as short as these.
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    began = time.monotonic()
    started = [
        subprocess.Popen(
            ["bash", "-c", command],
            cwd=folder,
            env={**os.environ, **settings},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for command in changed
    ]
    for command, process in zip(commands, started, strict=True):
        said, _ = process.communicate(timeout=SECONDS)
        if process.returncode:
            raise UserError(
                f"docs/{page}.md: {command}\nended with {process.returncode}:\n{said[-3000:]}"
            )
        print(f"{page}: {command}: {time.monotonic() - began:.0f} s", flush=True)


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser("check_docs", description=__doc__)
    flags.add_argument("pages", nargs="*", metavar="PAGE", help="such as slurm (default: all)")
    return flags


if __name__ == "__main__":
    entry.run(parser(), main, configured=False)
