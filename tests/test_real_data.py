"""Real photographs and real questions through the entries a user runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxvlm.rooms.__main__ import main as make_rooms

ROOT = Path(__file__).parent.parent
SHARED = os.environ.get("JAXVLM_SHARED")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not SHARED, reason="JAXVLM_SHARED is unset: no photographs, no SQA3D"),
]


def run(module: str, *arguments: str) -> str:
    """Runs an entry as a user would and returns what it printed."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def test_photographs_are_learnt_by_heart_and_asked_about(tmp_path):
    samples = Path(SHARED) / "samples"
    data = [
        f"--config.data.train={samples / 'room_photos' / 'records.jsonl'}",
        f"--config.data.image_roots={(str(samples),)!r}",
    ]
    settings = ["--config.train.max_steps=150", "--config.train.save_every=150"]
    run(
        "jaxvlm.train",
        *("--config", "configs/demo.py", "--workdir", str(tmp_path / "run"), *data, *settings),
        "--config.data.num_views=6",
    )
    run("jaxvlm.evaluate", "--checkpoint", str(tmp_path / "run"), "--split", "train")
    summary = json.loads((tmp_path / "run/evaluation/train/summary.json").read_text())
    assert summary["count"] == 24
    assert summary["exact_match"] == 1.0
    answer = run(
        "jaxvlm.ask",
        *("--checkpoint", str(tmp_path / "run")),
        *("--images", str(samples / "room_photos" / "view_00.jpg")),
        *("--question", "What color is the cat?"),
    )
    assert answer.strip() == "white"


def sqa3d_records(folder: Path, rooms: Path) -> Path:
    """The sample's questions joined with their answers, a rendered room for each scene."""
    prefix = folder / "v1_balanced_"
    questions = json.loads(Path(f"{prefix}questions_test_scannetv2.sample.json").read_text())
    annotations = json.loads(
        Path(f"{prefix}sqa_annotations_test_scannetv2.sample.json").read_text()
    )
    answers = {a["question_id"]: a["answers"][0]["answer"] for a in annotations["annotations"]}
    scenes = sorted({q["scene_id"] for q in questions["questions"]})
    shown = [json.loads(line) for line in (rooms / "train.jsonl").read_text().splitlines()]
    by_room = {record["scene_id"]: record for record in shown}
    room_of = dict(zip(scenes, by_room.values(), strict=False))
    lines = []
    for question in questions["questions"]:
        room = room_of[question["scene_id"]]
        record = {
            **{k: room[k] for k in ("images", "geom_token", "image_size", "up", "frame")},
            **{k: question[k] for k in ("scene_id", "situation", "question", "question_id")},
            "answer": answers[question["question_id"]],
            "task": "sqa3d",
        }
        lines.append(json.dumps(record))
    path = rooms / "sqa3d.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_real_sqa3d_text_flows_through_the_real_tokenizer(tmp_path):
    rooms = tmp_path / "rooms"
    few = ("--train-rooms", "6", "--val-rooms", "1", "--test-rooms", "1", "--no-sheet")
    assert make_rooms(["--output", str(rooms), *few, "--workers", "1"]) == 0
    records = sqa3d_records(Path(SHARED) / "samples" / "sqa3d", rooms)
    printed = run(
        "jaxvlm.train",
        *("--config", "configs/demo.py", "--workdir", str(tmp_path / "run")),
        f"--config.data.train={records}",
        f"--config.text.tokenizer={Path(SHARED) / 'tokenizer' / 'qwen3'}",
        *("--config.text.max_length=256", "--config.data.row_length=512"),
        "--config.model.language.vocab_size=151936",
        *("--config.train.max_steps=20", "--config.train.log_every=1"),
        *("--config.train.rows_per_device=2", "--config.data.row_labels=96"),
    )
    assert "386 samples" in printed
    losses = [
        json.loads(line)["loss"] for line in (tmp_path / "run/metrics.jsonl").open(encoding="utf-8")
    ]
    assert len(losses) == 20
    assert sum(losses[-5:]) < sum(losses[:5])


def test_real_actions_are_prepared_learnt_said_and_scored(tmp_path):
    """The original's ARKit records and two RoomPlan exports, with drawn stand-ins."""
    samples = Path(SHARED) / "samples"
    inputs = {
        "arkit.jsonl": [samples / "original" / "arkit_synth_test.json"],
        "roomplan.jsonl": sorted((samples / "roomplan").glob("*.json")),
    }
    script = str(ROOT / "scripts" / "prep" / "synth_roomplan_instructions.py")
    for name, paths in inputs.items():
        command = [sys.executable, script, "--input", *map(str, paths), "--output", tmp_path / name]
        sizes = ["--num-views", "3", "--image-size", "112", "--workers", "1", "--render"]
        subprocess.run([*map(str, command), *sizes], check=True, cwd=ROOT, capture_output=True)
    files = tuple(str(tmp_path / name) for name in inputs)
    run(
        "jaxvlm.train",
        *("--config", "configs/stage2_arkit.py:rooms", "--workdir", str(tmp_path / "run")),
        *("--config.init_from=None", "--config.train.max_steps=20", "--config.train.log_every=1"),
        *(f"--config.data.{split}={files!r}" for split in ("train", "test")),
        *("--config.data.val=()", "--config.train.eval_every=0"),
        "--config.data.features.folder=None",
    )
    losses = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").open(encoding="utf-8")]
    assert losses[-1]["head/language"] < losses[0]["head/language"]
    run("jaxvlm.evaluate", "--checkpoint", str(tmp_path / "run"), "--task", "actions")
    folder = tmp_path / "run/evaluation/test_actions"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["action_valid"] == summary["scene_right"] == summary["keys_present"] == 1
    assert summary["count"] > 9 and summary["baselines"]["largest_object"]["count"] > 9
    page = (folder / "report.html").read_text()
    # No photographs: it says so of every scene.
    assert page.count("(drawn, no photographs)") == page.count('alt="from above"') >= 3
