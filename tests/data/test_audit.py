"""The audit: what it counts, what it mends, and what it keeps for the next start."""

import json
import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from scans import SCRIPTS, read_lines, run_script

from jaxvlm.data.actions import language
from jaxvlm.data.actions.fields import POINT, TEXTS
from jaxvlm.data.audit.checks import CHECKS, other_scene
from jaxvlm.data.audit.files import audit_file, check_shared_scenes
from jaxvlm.data.audit.mend import mend
from jaxvlm.data.audit.verdicts import verdict
from jaxvlm.data.records import RecordFile
from jaxvlm.data.sources import load_sources
from jaxvlm.errors import UserError

GOOD = {"images": ["a.png"], "question": "What is it?", "answer": "chair", "scene_id": "s"}


def write(path, *entries):
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


@pytest.fixture
def folder(tmp_path):
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    return tmp_path


def audit(*arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, SCRIPTS / "audit_data.py", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_originals_test_split(shared, tmp_path):
    source = shared / "samples" / "original" / "sqa3d_test_split.jsonl"
    done = audit(source, "--no-images", "--json", "--fix", tmp_path / "fixed.jsonl")
    assert done.returncode == 1
    report = json.loads(done.stdout)
    assert report["rows"] == 3664 and report["distinct_question_ids"] == 3169
    assert report["checks"]["image-scene-mismatch"] == 483
    assert report["checks"]["duplicate-row"] == 495
    assert set(report["checks"]) == set(CHECKS)
    assert "483: image-scene-mismatch" in done.stderr
    again = audit(tmp_path / "fixed.jsonl", "--no-images", "--json")
    assert again.returncode == 0
    report = json.loads(again.stdout)
    assert not any(report["checks"].values())
    # Of rows that say the same, the one with the right room was kept: no question is lost.
    assert report["rows"] == report["distinct_question_ids"] == 3169


@pytest.mark.parametrize(
    ("image", "scene", "other"),
    [
        ("data/SQA3D/bird/scene0630_00_bird.png", "scene0630_00", None),
        ("data/SQA3D/bird/scene0361_00_bird.png", "scene0630_00", "scene0361_00"),
        # Two scans of one room are two scenes.
        ("scans/scene0000_01/color/0.jpg", "scene0000_00", "scene0000_01"),
        ("scene0001_00/copied/scene0002_00/color/0.jpg", "scene0002_00", None),
        ("ARKit/Training/47333462/lowres_wide/47333462_57.1.png", "47333462", None),
        ("ARKit/Training/47333463/lowres_wide/47333463_57.1.png", "47333462", "47333463"),
        ("rooms/kitchen/0.jpg", "kitchen", None),
        ("rooms/bath/0.jpg", "kitchen", "bath"),
        ("rooms/bath_bird.jpg", "kitchen", "bath"),
        # A number may be a view or a year.
        ("room_1/2.jpg", "1", None),
        ("/mnt/20241201/47333462-3.png", "47333462", None),
        # A folder that is no scene's name says nothing.
        ("rooms/photos/0.jpg", "kitchen", None),
        ("photo.jpg", "", None),
    ],
)
def test_the_scene_that_an_image_names(image, scene, other):
    assert other_scene(image, scene, {"kitchen", "bath", "1", "2"}) == other


def test_a_duplicate_with_an_id_of_its_own_is_a_warning(folder):
    path = write(
        folder / "r.jsonl",
        {**GOOD, "question_id": "1"},
        {**GOOD, "question_id": "2"},
        {**GOOD, "question_id": "1"},
        {**GOOD, "question_id": "1", "question": "And now?"},
    )
    findings = audit_file(RecordFile(path), [], True)
    levels = {i: [(p.check, p.level) for p in found] for i, found in findings.problems.items()}
    assert levels == {
        1: [("duplicate-row", "warning")],
        2: [("duplicate-row", "error")],
        3: [("duplicate-question-id", "warning")],
    }


def test_without_a_scene_the_images_are_the_scene(folder):
    Image.new("RGB", (40, 40)).save(folder / "b.png")
    plain = {"question": "How many?", "answer": "2"}
    path = write(
        folder / "r.jsonl",
        {**plain, "images": ["a.png"]},
        {**plain, "images": ["b.png"]},
        {**plain, "images": ["a.png"], "situation": "I stand at the door."},
    )
    assert audit_file(RecordFile(path), [], True).problems == {}


def test_fixing_keeps_rows_that_have_an_id_of_their_own(folder):
    rows = [{**GOOD, "question_id": i} for i in ("1", "2", "1", "")]
    findings = audit_file(RecordFile(write(folder / "r.jsonl", *rows)), [], True)
    assert mend(findings, folder / "fixed.jsonl")[0] == 2
    assert [line["question_id"] for line in read_lines(folder / "fixed.jsonl")] == ["1", "2"]


def test_rooms_that_are_scanned_twice_may_not_be_on_both_sides(folder):
    scans = ("scene0011_00", "scene0011_01", "41000001", "41000002")
    write(folder / "train.jsonl", *({**GOOD, "scene_id": s} for s in scans[::2]))
    write(folder / "test.jsonl", *({**GOOD, "scene_id": s} for s in scans[1::2]))
    (folder / "metadata.csv").write_text(
        "video_id,visit_id,fold\n41000001,7,Training\n41000002,7,Training\n"
    )

    def shared(*flags) -> int:
        done = audit(folder / "t*.jsonl", "--no-images", "--json", *flags)
        return json.loads(done.stdout)["checks"]["scene-in-both"]

    assert shared() == 1 and shared("--rooms", folder / "metadata.csv") == 2
    with pytest.raises(UserError, match=r"metadata\.csv:1: expected .* video_id"):
        (folder / "metadata.csv").write_text("a,b\n1,2\n")
        run_script("audit_data", folder / "train.jsonl", "--rooms", folder / "metadata.csv")


def test_a_file_is_not_compared_with_itself(folder):
    write(folder / "trainval.jsonl", GOOD)
    write(folder / "train_test.jsonl", GOOD)
    for name in ("trainval", "train_test"):
        assert audit(folder / f"{name}.jsonl", "--no-images").returncode == 0


def test_a_file_without_answers_is_one_to_predict(folder):
    plain = {**GOOD, "answer": ""}
    path = write(folder / "a.jsonl", plain, {**plain, "question": "Why?"})
    assert not audit_file(RecordFile(path), [], True).bad()
    path = write(folder / "b.jsonl", plain, {**GOOD, "question": "Why?"})
    assert audit_file(RecordFile(path), [], True).bad().keys() == {0}


def test_scenes_that_train_and_test_share(folder):
    write(folder / "my_train.jsonl", GOOD, {**GOOD, "scene_id": "t"})
    write(folder / "my_test.jsonl", {**GOOD, "scene_id": "u"}, {**GOOD, "scene_id": "t"})
    done = audit(folder / "my_*.jsonl", "--no-images", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["checks"]["scene-in-both"] == 1
    train, test = (
        audit_file(RecordFile(folder / f"my_{n}.jsonl"), [], False) for n in ("train", "test")
    )
    check_shared_scenes([train], [test])
    (problem,) = test.problems[1]
    assert "my_test.jsonl:2: the scene 't' is in" in problem.message


def posed(**parts) -> dict:
    token = {"R": [[1.0, 0, 0, 0, 1, 0, 0, 0, 1]], "t": [[0, 0, 1]], **parts}
    return {**GOOD, "geom_token": token, "image_size": [40, 40]}


def test_what_can_be_repaired_is_and_the_rest_is_left_out(folder):
    almost = np.eye(3) + 0.02 * np.arange(9).reshape(3, 3) / 9
    entries = [
        {**posed(R=[almost.ravel().tolist()]), "mine": 1},
        {**posed(depth_hist=[[2.0] * 4 + [0] * 12]), "question": "B?"},
        {**posed(R=[[0] * 9]), "question": "C?"},
        {**GOOD, "question": "D?", "images": ["gone.png"]},
        {**GOOD, "question": "E?"},
        {**GOOD, "question": "E?"},
        {**GOOD, "question": "F?", "answers": "chair"},
    ]
    findings = audit_file(RecordFile(write(folder / "r.jsonl", *entries)), [], True)
    written, repaired, dropped = mend(findings, folder / "fixed.jsonl")
    assert written == 3
    assert repaired == Counter({"pose-not-orthonormal": 1, "depth-histogram": 1})
    assert dropped == Counter(
        {"pose-not-orthonormal": 1, "image-missing": 1, "duplicate-row": 1, "schema": 1}
    )
    lines = read_lines(folder / "fixed.jsonl")
    assert [line["question"] for line in lines] == ["What is it?", "B?", "E?"]
    assert lines[0]["mine"] == 1
    rotation = np.reshape(lines[0]["geom_token"]["R"], (3, 3))
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-5)
    assert lines[1]["geom_token"]["depth_hist"] == [[0.25] * 4 + [0.0] * 12]
    assert audit_file(RecordFile(folder / "fixed.jsonl"), [], True).problems == {}


def test_windows_files_are_mended_too(folder):
    content = b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\r\n"
    (folder / "r.jsonl").write_bytes(content)
    findings = audit_file(RecordFile(folder / "r.jsonl"), [], True)
    assert findings.counts() == {"byte-order-mark": 1, "windows-line-ends": 1}
    mend(findings, folder / "fixed.jsonl")
    assert audit_file(RecordFile(folder / "fixed.jsonl"), [], True).problems == {}


def test_fixing_never_overwrites_what_it_reads(folder):
    path = write(folder / "r.jsonl", GOOD)
    with pytest.raises(UserError, match=r"--fix .* would overwrite"):
        run_script("audit_data", path, "--fix", path, "--overwrite")
    write(folder / "there.jsonl", GOOD)
    with pytest.raises(UserError, match=r"there\.jsonl exists; name another"):
        run_script("audit_data", path, "--fix", folder / "there.jsonl")
    run_script("audit_data", path, folder / "there.jsonl", "--fix", folder / "out")
    assert {p.name for p in (folder / "out").iterdir()} == {"r.jsonl", "there.jsonl"}


def test_the_table_names_checks_and_places(folder):
    path = write(folder / "r.jsonl", {**GOOD, "images": ["b.png"]}, GOOD)
    done = audit(path)
    assert done.returncode == 1 and "image-missing" in done.stdout
    assert "r.jsonl:1: the image 'b.png'" in " ".join(done.stdout.split())
    fine = audit(write(folder / "g.jsonl", GOOD))
    assert fine.returncode == 0 and "nothing wrong" in fine.stdout
    nowhere = audit(folder / "x.jsonl")
    assert nowhere.returncode == 2 and "does not exist" in nowhere.stderr


def load(folder, policy="error"):
    return load_sources([{"path": str(folder / "r.jsonl")}], [], policy)[0]


def test_training_stops_at_a_bad_record_or_leaves_it_out(folder, capsys):
    write(folder / "r.jsonl", GOOD, {**GOOD, "question": "B?", "images": ["b.png"]}, {"images": 1})
    with pytest.raises(UserError, match=r"r\.jsonl:2: the image .* \(1 more such .*audit_data\.py"):
        load(folder)
    source = load(folder, "skip")
    assert [record.question for record in source.records] == ["What is it?"]
    assert "left out 2 of 3 records (image-missing 1, schema 1)" in capsys.readouterr().err


def test_the_verdict_is_kept_until_the_file_or_an_image_changes(folder, capsys, monkeypatch):
    write(folder / "r.jsonl", GOOD)

    def looked() -> bool:
        load(folder)
        return "checking 1 records" in capsys.readouterr().out

    assert looked() and not looked()
    write(folder / "r.jsonl", {**GOOD, "answer": "table"})
    assert looked() and not looked()
    os.utime(folder / "a.png", (1, 1))
    assert looked() and not looked()
    (folder / "a.png").write_bytes(b"broken")
    with pytest.raises(UserError, match="cannot be read"):
        load(folder)
    # What is bad is known, too, until it is mended.
    with pytest.raises(UserError, match="cannot be read"):
        load(folder)
    assert "checking" not in capsys.readouterr().out.replace("checking 1 records", "", 1)
    Image.new("RGB", (40, 40)).save(folder / "a.png")
    assert looked() and not looked()
    monkeypatch.setenv("JAXVLM_CACHE", str(folder / "elsewhere"))
    assert looked() and not looked()


def test_a_cache_that_is_damaged_or_cannot_be_written_changes_nothing(folder, monkeypatch, capsys):
    monkeypatch.setenv("JAXVLM_CACHE", str(folder / "cache"))
    write(folder / "r.jsonl", GOOD)
    load(folder)
    (kept,) = (folder / "cache" / "audit").iterdir()
    for text in ("", "{", "[]", '{"images": {}, "bad": 3, "warnings": {}, "tasks": {}}'):
        kept.write_text(text)
        assert verdict(RecordFile(folder / "r.jsonl"), []).bad == {}
    (folder / "file").write_text("")
    monkeypatch.setenv("JAXVLM_CACHE", str(folder / "file"))
    load(folder)
    assert "warning: the audit cannot be kept in" in capsys.readouterr().err


def test_an_image_that_is_to_be_turned_has_the_size_that_is_shown(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 40)).save(folder / "turned.jpg", exif=exif)
    sizes = ([40, 60], [60, 40])
    entries = [
        {**GOOD, "images": ["turned.jpg"], "question": str(s), "image_size": s} for s in sizes
    ]
    findings = audit_file(RecordFile(write(folder / "r.jsonl", *entries)), [], True)
    assert findings.counts() == {"image-size": 1} and findings.bad().keys() == {1}


def test_fixing_refuses_to_leave_nothing(folder):
    path = write(folder / "r.jsonl", {**GOOD, "images": ["gone.png"]})
    with pytest.raises(UserError, match=r"nothing would be left; .*\(image-missing\)"):
        mend(audit_file(RecordFile(path), [], True), folder / "fixed.jsonl")
    assert not (folder / "fixed.jsonl").exists()


@pytest.mark.parametrize("tool", ["audit_data", "split_train_test"])
def test_a_copy_in_another_folder_finds_its_images(folder, tool):
    rows = [{**GOOD, "scene_id": str(i)} for i in range(3)]
    path = write(folder / "all.jsonl", *rows, {**GOOD, "images": [str(folder / "a.png")]})
    copies = [folder / "far" / "away" / name for name in ("a.jsonl", "b.jsonl")]
    if tool == "audit_data":
        run_script(tool, path, "--fix", copies.pop())
        copies = [folder / "far" / "away" / "b.jsonl"]
    else:
        run_script(tool, path, "--train", copies[0], "--test", copies[1])
    for copy in copies:
        assert audit_file(RecordFile(copy), [], True).problems == {}
    images = {image for copy in copies for line in read_lines(copy) for image in line["images"]}
    assert images == {"../../a.png", str(folder / "a.png")}


def test_instructions_with_two_answers_are_warned_of(folder):
    def entry(x: float) -> dict:
        box = {"center": [x, 0, 0], "normal": [0, 1, 0], "extent": [1, 1, 1]}
        action = {"action": "place_anchor", "scene": "s", **box}
        return {**GOOD, "instruction": "the cabinet", "question": None, "action_json": action}

    rows = [{k: v for k, v in entry(x).items() if v is not None} for x in (0, 1, 0)]
    findings = audit_file(RecordFile(write(folder / "r.jsonl", *rows)), [], True)
    assert findings.counts() == {"instruction-conflict": 1, "duplicate-row": 1}


def test_a_good_record_stays_where_the_equal_one_before_it_is_bad(folder):
    """Skipping bad records keeps one of equal ones, as mending the file does."""
    path = folder / "r.jsonl"
    good = {"images": ["a.png"], "question": "What?", "answer": "bed", "scene_id": "s"}
    bad = {**good, "images": ["gone.png"]}
    path.write_text("\n".join(json.dumps(line) for line in (bad, good, good, bad, good)))
    findings = audit_file(RecordFile(path), [str(folder)], True)
    assert findings.counts()["duplicate-row"] == 4
    assert {i: p.check for i, p in findings.bad().items()} == {
        0: "image-missing",
        2: "duplicate-row",
        3: "duplicate-row",
        4: "duplicate-row",
    }
    assert len(load_sources([{"path": str(path)}], [str(folder)], "skip")[0].records) == 1


def test_an_action_that_is_registered_later_is_no_longer_refused(tmp_path, monkeypatch):
    """What is kept of a file depends on what is an action; without it, it is refused again."""
    monkeypatch.setenv("JAXVLM_CACHE", str(tmp_path / "cache"))
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    action = {"action": "list_objects", "scene": "s", "names": ["bed"]}
    record = {"images": ["a.png"], "instruction": "List.", "scene_id": "s", "action_json": action}
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps(record) + "\n")
    ((check, message),) = verdict(RecordFile(path), []).bad.values()
    assert check == "action-fields" and "registered in the configuration file" in message
    monkeypatch.setitem(language.ACTIONS, "list_objects", language.Schema({"names": TEXTS}))
    assert verdict(RecordFile(path), []).bad == {}
    monkeypatch.delitem(language.ACTIONS, "list_objects")
    assert len(verdict(RecordFile(path), []).bad) == 1


def test_actions_of_ones_own_are_known_by_the_configuration_that_registers_them(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    action = {"action": "list_objects", "scene": "s", "names": ["bed"]}
    record = {"images": ["a.png"], "instruction": "List.", "scene_id": "s", "action_json": action}
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps(record) + "\n")
    config = tmp_path / "mine.py"
    config.write_text(
        "from jaxvlm.config import default\n"
        "def get_config(argument): return default()\n"
        "from jaxvlm.data.actions.fields import TEXTS\n"
        "from jaxvlm.data.actions.language import Schema, register\n"
        "register('list_objects', Schema({'names': TEXTS}))\n"
    )
    alone = audit(path)
    assert alone.returncode == 1 and "action-fields" in alone.stdout
    assert audit(path, "--config", config).returncode == 0


@pytest.mark.parametrize("start", [[1, 2], "here", ["1", "2", "3"]])
def test_fields_of_a_registered_action_are_checked_like_an_anchors(tmp_path, monkeypatch, start):
    schema = language.Schema({"start": POINT, "end": POINT})
    monkeypatch.setitem(language.ACTIONS, "measure", schema)
    action = {"action": "measure", "scene": "s", "start": start, "end": [0, 0, 0]}
    record = {"images": ["a.png"], "instruction": "Measure.", "action_json": action}
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps(record) + "\n")
    ((check, message),) = verdict(RecordFile(path), []).bad.values()
    assert check == "action-fields"
    assert "r.jsonl:1: action_json.start must be a list of 3 numbers" in message
