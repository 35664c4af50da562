"""Input that means harm, or a machine that does: one message, nothing lost, nothing elsewhere."""

import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from scans import SCRIPTS, arkit_object, read_lines, run_script, write_scannet

from jaxvlm.data.audit.files import audit_file, check_shared_scenes
from jaxvlm.data.audit.mend import mend
from jaxvlm.data.boxes import Box
from jaxvlm.data.items import RecordError
from jaxvlm.data.prep.job import Job, Part
from jaxvlm.data.prep.roomplan import read_roomplan
from jaxvlm.data.record import Record
from jaxvlm.data.records import RecordFile
from jaxvlm.errors import UserError

GOOD = {"images": ["a.png"], "question": "What is it?", "answer": "chair", "scene_id": "s"}
AXES = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])


@pytest.fixture
def folder(tmp_path):
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    return tmp_path


def write(path, *entries):
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", '[{"images": []}]\n[{"images": []}]', r"a\.json:2: .*stands behind the records"),
        ("a.json", '{"data": [{"images": []}], "meta": [1,2', r"a\.json:1: malformed JSON"),
        ("a.json", '{"data": [{"images": []}], "meta": 3', r"a\.json:1: .*object is not closed"),
        ("a.json", '{"data": [{"images": []}]} x', r"a\.json:1: .*stands behind the records"),
        ("a.json", "[" + "9" * 10_000 + "]", r"a\.json:1: malformed JSON: Exceeds the limit"),
        ("a.json", "[" * 100_000, r"a\.json:1: malformed JSON"),
    ],
)
def test_files_that_go_on_or_break_off_behind_their_records(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        RecordFile(tmp_path / name)


@pytest.mark.parametrize(
    ("line", "check"),
    [
        (json.dumps(GOOD)[:-1] + ', "score": 1e999}', "malformed-json"),
        (
            json.dumps({**GOOD, "action_json": {"action": "x", "conf": float("nan")}}),
            "malformed-json",
        ),
        (json.dumps({**GOOD, "mine": "\ud800"}), "invalid-utf8"),
        (json.dumps({**GOOD, "scene_id": "\ud800"}), "invalid-utf8"),
        (json.dumps({**GOOD, "images": ["a\0.png"]}), "schema"),
        ("[" * 100_000, "malformed-json"),
        (json.dumps({**GOOD, "geom_token": {"t": [["0", "0", "1"]]}}), "schema"),
    ],
)
def test_what_no_file_could_hold_is_found_and_never_written(folder, line, check):
    (folder / "r.jsonl").write_text(line + "\n" + json.dumps({**GOOD, "question": "B?"}) + "\n")
    findings = audit_file(RecordFile(folder / "r.jsonl"), [], True)
    assert [p.check for p in findings.problems[0]] == [check]
    assert mend(findings, folder / "fixed.jsonl")[0] == 1


def test_null_in_an_action_is_no_number(folder):
    token = {"R": [[1, 0, 0, 0, 1, 0, 0, 0, 1]], "t": [[0, 0, 1]]}
    entries = [
        {**GOOD, "geom_token": token, "action_json": {"action": name, "scene": "s", field: None}}
        for name in ("place_anchor", "look")
        for field in ("center", "normal", "extent")
    ]
    findings = audit_file(RecordFile(write(folder / "r.jsonl", *entries)), [], False)
    assert findings.bad().keys() == set(range(6))
    assert all("NaN" not in record.answer for record in RecordFile(folder / "r.jsonl"))


def test_fixing_a_shared_room_drops_no_row_and_can_be_repeated(folder):
    row = {**GOOD, "question_id": "1"}
    train = RecordFile(write(folder / "train.jsonl", row))
    path = write(folder / "test.jsonl", *({**row, "question": f"{i}?"} for i in range(3)))
    for _ in range(2):
        found = [audit_file(file, [], True) for file in (train, RecordFile(path))]
        check_shared_scenes(found[:1], found[1:])
        assert mend(found[1], folder / "fixed.jsonl")[0] == 3
        path = folder / "fixed.jsonl"


def test_brackets_are_no_style(folder):
    path = write(folder / "r.jsonl", {**GOOD, "images": ["[/x]/a.png"], "kind": "[/k]"})
    command = [sys.executable, SCRIPTS / "audit_data.py", path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "[/x]/a.png" in done.stdout
    rows = [{**GOOD, "scene_id": str(i), "kind": "[/k]"} for i in range(3)]
    write(folder / "all.jsonl", *rows)
    run_script(
        "split_train_test",
        *(folder / "all.jsonl", "--train", folder / "a.jsonl", "--test", folder / "b.jsonl"),
    )


def test_a_split_is_whole_or_not_there(folder):
    path = write(folder / "all.jsonl", *({**GOOD, "scene_id": str(i)} for i in range(3)))
    with pytest.raises(UserError, match="cannot be written"):
        run_script(
            "split_train_test",
            *(path, "--train", folder / "a.jsonl", "--test", path / "under" / "b.jsonl"),
        )
    assert not (folder / "a.jsonl").exists()


def test_the_error_of_a_record_reaches_other_processes():
    error = pickle.loads(pickle.dumps(RecordError("schema", "a.jsonl:1: wrong")))
    assert (error.check, str(error)) == ("schema", "a.jsonl:1: wrong")


@pytest.mark.parametrize("scene", ["../../escaped", "/tmp/escaped", "", "x" * 300, "a\0b", "ü ä/ö"])
def test_a_scenes_name_leads_nowhere(tmp_path, scene):
    action = {"action": "place_anchor", "scene": scene, "center": [0, 0, 1]}
    action |= {"normal": [0, 1, 0], "extent": [1, 1, 1]}
    entry = {"images": ["gone.png"], "instruction": "Place it.", "action_json": action}
    source = write(tmp_path / "in.jsonl", entry)
    output = tmp_path / "deep" / "out" / "o.jsonl"
    arguments = ("--input", source, "--output", output, "--render", "--workers", 1)
    sizes = ("--num-views", 1, "--image-size", 32)
    if scene and scene.isprintable():
        run_script("synth_roomplan_instructions", *arguments, *sizes)
        (image,) = RecordFile(output)[0].images
        assert os.path.realpath(image).startswith(str(output.parent))
    else:
        with pytest.raises(UserError, match=r"lacks scene|scene .* a control character"):
            run_script("synth_roomplan_instructions", *arguments, *sizes)
    outside = {p.name for p in tmp_path.rglob("view_*") if "out" not in p.parts}
    assert not outside


def roomplan(folder, **changes):
    wall = {
        "identifier": "w",
        "category": {"wall": {}},
        "dimensions": [3, 2, 0],
        "transform": [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 1, 0, 1],
    }
    (folder / "room.json").write_text(json.dumps({"walls": [{**wall, **changes}], "objects": []}))
    return folder / "room.json"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dimensions": [10**400, 2, 0]}, r"walls\[0\]: 'dimensions' must be 3 finite numbers"),
        ({"dimensions": [3000, 2400, 0]}, r"walls\[0\]: 'dimensions' .* in metres, from 0.0001 to"),
        (
            {"transform": [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 5000, 1, 0, 1]},
            r"walls\[0\]: 'transform' puts it 5000 m from the origin",
        ),
    ],
)
def test_rooms_in_millimetres(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        read_roomplan(roomplan(tmp_path, **changes))


def test_lists_that_are_none_and_identifiers_that_are_two(tmp_path):
    path = roomplan(tmp_path)
    whole = json.loads(path.read_text())
    path.write_text(json.dumps({**whole, "doors": 5}))
    with pytest.raises(UserError, match=r"'doors' must be a list, found int"):
        read_roomplan(path)
    other = {**whole["walls"][0], "dimensions": [2, 2, 0]}
    path.write_text(json.dumps({**whole, "walls": [*whole["walls"], other]}))
    with pytest.raises(UserError, match=r"walls\[1\]: the identifier 'w' is that of .*walls\[0\]"):
        read_roomplan(path)
    path.write_text(json.dumps({**whole, "walls": whole["walls"] * 2}))
    assert len(read_roomplan(path).boxes) == 1


def test_an_arkit_scene_has_one_annotation_and_one_box_a_name(tmp_path):
    scene = tmp_path / "47333462"
    scene.mkdir()
    boxes = [Box("1", "object", "chair", np.array([i, 0, 1.0]), AXES, np.ones(3)) for i in (0, 2)]
    path = scene / "47333462_3dod_annotation.json"

    def prepare(chosen):
        path.write_text(json.dumps({"data": [arkit_object(box) for box in chosen]}))
        run_script(
            "prepare_arkit_from_3dod",
            *("--arkit-training-root", tmp_path, "--output", tmp_path / "o.jsonl", "--render"),
            *("--num-views", 1, "--image-size", 32, "--workers", 1, "--overwrite"),
        )

    (scene / "._47333462_3dod_annotation.json").write_text("what a Mac leaves")
    prepare(boxes[:1] * 2)
    assert len(read_lines(tmp_path / "o.jsonl")) == 1
    with pytest.raises(UserError, match=r"data\[1\]: the identifier '1' is that of .*data\[0\]"):
        prepare(boxes)


def test_no_more_views_are_drawn_than_there_are_places(tmp_path):
    flags = ("--input", roomplan(tmp_path), "--output", tmp_path / "o.jsonl", "--render")
    with pytest.raises(UserError, match=r"--num-views 1000000000: expected 1 to 256"):
        run_script("synth_roomplan_instructions", *flags, "--num-views", 10**9, "--workers", 1)


def test_two_outputs_have_views_of_their_own_and_miss_them(tmp_path):
    def synth(name, size, *flags):
        run_script(
            "synth_roomplan_instructions",
            *("--input", roomplan(tmp_path), "--output", tmp_path / name, "--render"),
            *("--num-views", 1, "--image-size", size, "--workers", 1, *flags),
        )

    path = roomplan(tmp_path)
    before = path.stat()
    synth("t.jsonl", 64)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    synth("t.json", 32)
    assert audit_file(RecordFile(tmp_path / "t.jsonl"), [], True).problems == {}
    (image,) = RecordFile(tmp_path / "t.jsonl")[0].images
    os.remove(image)
    with pytest.raises(UserError, match=r"(has lost|have changed since)"):
        synth("t.jsonl", 64)
    synth("t.jsonl", 64, "--overwrite")
    assert os.path.isfile(image)


def make(scene: str) -> Part:
    return Part([Record(("a.png",), f"What is in {scene}?", "chair", ("chair",), scene_id=scene)])


def job(path, work=make, **fields) -> Job:
    return Job(path, {"command": "test"}, ["a", "b"], work, lambda scene: [], **fields)


def test_a_run_that_died_while_it_joined_the_parts_goes_on(tmp_path, monkeypatch):
    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("jaxvlm.data.prep.job.file_hash", die)
    with pytest.raises(KeyboardInterrupt):
        job(tmp_path / "o.jsonl").run(1, False)
    monkeypatch.undo()
    (tmp_path / "o.jsonl.0123456789ab.draft").write_text("a half")
    job(tmp_path / "o.jsonl").run(1, False)
    assert len(read_lines(tmp_path / "o.jsonl")) == 2
    assert {p.name for p in tmp_path.iterdir()} == {"o.jsonl", "o.jsonl.meta", ".o.jsonl.lock"}


def test_an_output_that_was_edited_is_not_called_up_to_date(tmp_path):
    job(tmp_path / "o.jsonl").run(1, False)
    text = (tmp_path / "o.jsonl").read_text()
    (tmp_path / "o.jsonl").write_text(text.replace("chair", "table"))
    with pytest.raises(UserError, match="was changed after it was made"):
        job(tmp_path / "o.jsonl").run(1, False)


def test_what_the_audit_would_refuse_is_not_written(tmp_path):
    def work(scene: str) -> Part:
        geometry = {"R": np.zeros((1, 9), np.float32), "t": np.zeros((1, 3), np.float32)}
        return Part([Record(("a.png",), "What?", "chair", geometry=geometry, scene_id=scene)])

    with pytest.raises(UserError, match=r"scene a, record 0: .*is no rotation.*pose-not-orthon"):
        job(tmp_path / "o.jsonl", work).run(1, False)


def test_no_records_leave_what_stood_there(tmp_path):
    job(tmp_path / "o.jsonl").run(1, False)
    before = (tmp_path / "o.jsonl").read_bytes()
    with pytest.raises(UserError, match=r"no record could be made of 2 scene\(s\)"):
        job(tmp_path / "o.jsonl", lambda scene: Part()).run(1, True)
    assert (tmp_path / "o.jsonl").read_bytes() == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_full_disk_is_one_message_and_the_run_goes_on(tmp_path):
    scan = write_scannet(tmp_path / "scans", "scene0001_00", frames=3, lost=0)
    entry = {"scene_id": scan.folder.name, "question": "Is it?", "answers": ["no"]}
    questions = [{**entry, "question_id": str(i)} for i in range(400)]
    (tmp_path / "qa.json").write_text(json.dumps(questions))
    (tmp_path / "small").mkdir()
    command = (
        f"mount -t tmpfs -o size=200k none {tmp_path}/small && {sys.executable} "
        f"{SCRIPTS}/prepare_scanqa.py --dataset scanqa --scan-root {tmp_path} --qa-file "
        f"{tmp_path}/qa.json --output {tmp_path}/small/o.jsonl --workers 1; code=$?; "
        f"ls -A {tmp_path}/small; exit $code"
    )
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", command], capture_output=True, text=True, check=False
    )
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip("no small disk can be mounted here")
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "No space left on device" in done.stderr and "draft" not in done.stdout
