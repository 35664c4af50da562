"""What docs/data.md says is what happens."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from jaxvlm.data.audit.checks import CHECKS
from jaxvlm.data.record import record_entry
from jaxvlm.data.records import read_records

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
SCRIPTS = sorted((ROOT / "scripts" / "prep").glob("*.py"))


def test_the_example_of_ones_own_data_works_as_written(tmp_path):
    example = PAGE.split("## Your own data")[1]
    program = re.search(r"```python\n(.*?)```", example, re.S).group(1)
    commands = re.search(r"```bash\n(.*?)```", example, re.S).group(1)
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    folder = tmp_path / "data" / "processed" / "mine"
    folder.mkdir(parents=True)
    for room in range(4):
        for view in range(2):
            Image.new("RGB", (64, 48), (60 * room, 0, 0)).save(folder / f"room{room}_{view}.jpg")
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
    for command in commands.replace("\\\n", " ").strip().splitlines():
        words = command.replace("python", sys.executable, 1).split()
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "runs" / "show" / "all_0.png").is_file()
    assert len(read_records(folder / "train_split.jsonl")) == 3
    assert len(read_records(folder / "test_split.jsonl")) == 1


def test_every_check_is_described():
    table = PAGE.split("## The audit")[1]
    named = set(re.findall(r"`([a-z0-9-]+)`", "\n".join(re.findall(r"^\| `.*? \|", table, re.M))))
    assert named == set(CHECKS)


def test_every_field_that_is_written_is_described(scenes_file):
    table = PAGE.split("## The record format")[1].split("**Geometry**")[0]
    described = set(re.findall(r"`([a-z_]+)`", table))
    for record in read_records(scenes_file):
        assert record_entry(record).keys() <= described


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_help_has_an_example(script):
    done = subprocess.run(
        [sys.executable, script, "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert f"    python scripts/prep/{script.name}" in done.stdout
    assert script.name in PAGE
