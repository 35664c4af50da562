"""The command: the same files for any number of workers, resumption, clear refusals."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxvlm.rooms import dataset, sheet
from jaxvlm.rooms.__main__ import main
from jaxvlm.rooms.layout import generate_room
from jaxvlm.rooms.views import render_views

SMALL = ["--train-rooms", "5", "--val-rooms", "2", "--test-rooms", "2", "--image-size", "32"]
QUICK = [*SMALL, "--workers", "1", "--no-sheet"]


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("rooms") / "made"
    assert main(["--output", str(folder), *QUICK, "--depth"]) == 0
    return folder


def test_two_workers_make_the_same_files(made, tmp_path):
    folder = tmp_path / "parallel"
    command = [sys.executable, "-m", "jaxvlm.rooms", "--output", str(folder), *SMALL]
    command += ["--workers", "2", "--no-sheet", "--depth"]
    subprocess.run(command, check=True, capture_output=True)
    assert files(folder) == files(made)


def test_records_point_at_what_was_rendered(made):
    records = lines(made / "train.jsonl")
    assert len({record["question_id"] for record in records}) == len(records)
    assert len({record["scene_id"] for record in records}) == 5
    views = render_views(generate_room(0, "train", 0), 3, 32)
    first = records[0]
    assert first["image_size"] == [32, 32] and first["up"] == "z" and first["frame"] == "world"
    geometry = first["geom_token"]
    poses = views["cam_to_world"]
    np.testing.assert_allclose(np.reshape(geometry["R"], (3, 3, 3)), poses[:, :3, :3], atol=1e-5)
    np.testing.assert_allclose(geometry["t"], poses[:, :3, 3], atol=1e-5)
    np.testing.assert_allclose(np.reshape(geometry["K"], (3, 3, 3)), views["K"], atol=1e-5)
    for view, histogram in enumerate(geometry["depth_hist"]):
        depth = views["depth"][view]
        near = ((depth > 0) & (depth < 2.5)).sum() / (depth > 0).sum()
        assert len(histogram) == 16 and sum(histogram) == pytest.approx(1, abs=1e-4)
        assert sum(histogram[:4]) == pytest.approx(near, abs=1e-4)
        image = np.asarray(Image.open(made / first["images"][view]), int)
        assert np.abs(image - views["rgb"][view]).mean() < 4
        stored = Image.open(made / f"depth/train/room_000000/{view}.png")
        np.testing.assert_allclose(np.asarray(stored) / 1000, depth, atol=6e-4)


def test_splits_hold_different_rooms(made):
    scenes = {}
    for split in ("train", "val", "test"):
        records = lines(made / f"{split}.jsonl")
        scenes[split] = {json.dumps(record["geom_token"]) for record in records}
        assert all(record["images"][0].startswith(f"images/{split}/") for record in records)
        actions = lines(made / f"actions_{split}.jsonl")
        assert actions and all("action_json" in record for record in actions)
    assert not scenes["train"] & scenes["val"] and not scenes["val"] & scenes["test"]
    assert not scenes["train"] & scenes["test"]


def test_a_finished_set_is_left_alone(made, capsys):
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*")}
    assert main(["--output", str(made), *QUICK, "--depth"]) == 0
    assert "up to date" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in made.rglob("*")}


def test_an_interrupted_run_is_continued(made, tmp_path, monkeypatch):
    folder = tmp_path / "interrupted"
    write_room, done = dataset._write_room, []

    def stops(*args):
        if len(done) == 4:
            raise KeyboardInterrupt
        done.append(args[-1])
        return write_room(*args)

    def counts(*args):
        done.append(args[-1])
        return write_room(*args)

    command = ["--output", str(folder), *QUICK, "--depth"]
    with monkeypatch.context() as patch:
        patch.setattr(dataset, "_write_room", stops)
        assert main(command) == 130
    assert not (folder / "train.jsonl").exists()
    monkeypatch.setattr(dataset, "_write_room", counts)
    assert main(command) == 0
    assert len(done) == len(set(done)) == 9
    assert files(folder) == files(made)


def test_other_settings_are_refused_unless_overwritten(tmp_path, capsys):
    folder = tmp_path / "rooms"
    assert main(["--output", str(folder), *QUICK]) == 0
    assert main(["--output", str(folder), *QUICK, "--views", "2"]) == 2
    assert "views 3, now 2" in (message := capsys.readouterr().err) and "--overwrite" in message
    (folder / "mine.txt").write_text("kept")
    assert main(["--output", str(folder), *QUICK, "--views", "2", "--overwrite"]) == 0
    assert all(len(record["images"]) == 2 for record in lines(folder / "train.jsonl"))
    assert not (folder / "images/train/room_000000/2.jpg").exists()
    assert (folder / "mine.txt").read_text() == "kept"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--train-rooms", "0"], "--train-rooms must be at least 1"),
        (["--views", "0"], "--views must be at least 1"),
        (["--image-size", "15"], "--image-size must be at least 16"),
        (["--questions-per-room", "0"], "--questions-per-room must be at least 1"),
        (["--workers", "0"], "--workers must be at least 1"),
        (["--seed", "-1"], "--seed must be at least 0"),
    ],
)
def test_bad_flags(tmp_path, capsys, flags, message):
    assert main(["--output", str(tmp_path / "rooms"), *flags]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1
    assert not (tmp_path / "rooms").exists()


def test_output_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["--output", str(tmp_path / "file" / "rooms"), *QUICK]) == 2
    assert f"cannot write to --output {tmp_path / 'file' / 'rooms'}" in capsys.readouterr().err


def test_contact_sheets(tmp_path, monkeypatch):
    monkeypatch.setattr(sheet, "VIEW_SIZE", 160)
    monkeypatch.setattr(sheet, "KIND_SIZE", 64)
    flags = ["--train-rooms", "1", "--val-rooms", "1", "--test-rooms", "1", "--image-size", "32"]
    assert main(["--output", str(tmp_path), *flags, "--workers", "1"]) == 0
    for name in ("contact_sheet.png", "kinds.png"):
        picture = np.asarray(Image.open(tmp_path / name))
        assert min(picture.shape[:2]) > 160 and picture.std() > 10


def test_no_jax_is_loaded():
    program = (
        "import sys, jaxvlm.rooms.__main__, jaxvlm.rooms.views; "
        "sys.exit(any(name.split('.')[0] in ('jax', 'torch') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


@pytest.mark.parametrize("more", [[], ["--overwrite"]])
def test_files_of_others_are_left_alone(tmp_path, capsys, more):
    (tmp_path / "train.jsonl").write_text("mine")
    assert main(["--output", str(tmp_path), *QUICK, *more]) == 2
    assert "is no folder of rooms" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["train.jsonl"]
    assert (tmp_path / "train.jsonl").read_text() == "mine"


@pytest.mark.parametrize("text", ['{"camera": "mine"}', "[]", "cut", '{"parameters": []}'])
def test_somebody_elses_folder_with_a_file_of_that_name_is_left_alone(tmp_path, capsys, text):
    (tmp_path / "meta.json").write_text(text)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "holiday.jpg").write_text("mine")
    for more in ([], ["--overwrite"]):
        assert main(["--output", str(tmp_path), *QUICK, *more]) == 2
        assert "is not that of a folder of rooms" in capsys.readouterr().err
    assert (tmp_path / "meta.json").read_text() == text
    assert (tmp_path / "images" / "holiday.jpg").exists()


def test_a_damaged_set_is_made_again(made, tmp_path, capsys):
    folder = tmp_path / "rooms"
    shutil.copytree(made, folder)
    whole = files(folder)
    for damage in (
        lambda: (folder / "train.jsonl").write_text("cut"),
        lambda: shutil.rmtree(folder / "images" / "test"),
    ):
        damage()
        assert main(["--output", str(folder), *QUICK, "--depth"]) == 0
        assert "up to date" not in capsys.readouterr().out
        assert files(folder) == whole
