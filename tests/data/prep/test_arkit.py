"""ARKitScenes in Apple's layouts: a known box is found again in the images and in the world."""

import json

import numpy as np
import pytest
from PIL import Image
from scans import ARKIT_BOX, ARKIT_SIZE, arkit_object, read_lines, run_script, write_arkit

from jaxvlm.config import load
from jaxvlm.data.audit.files import audit_file
from jaxvlm.data.boxes import Box
from jaxvlm.data.frames import Frame, move_action
from jaxvlm.data.prep.arkit import read_boxes, read_trajectory
from jaxvlm.data.prep.looks import colour
from jaxvlm.data.records import RecordFile
from jaxvlm.errors import UserError

SCENE = "47333462"


def prepare(root, output, *flags):
    run_script(
        "prepare_arkit_from_3dod",
        *("--arkit-training-root", root, "--output", output),
        *("--num-views", 5, "--workers", 1, *flags),
    )
    return output


@pytest.fixture(scope="module", params=[True, False], ids=["nested", "flat"])
def root(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("arkit")
    write_arkit(folder, SCENE, request.param)
    return folder


@pytest.mark.parametrize("frame", ["first_camera", "world"])
def test_the_action_lands_on_the_box_in_the_image(root, tmp_path, frame):
    record = RecordFile(prepare(root, tmp_path / "a.jsonl", "--frame", frame))[0]
    assert record.frame == frame and record.up == "z" and len(record.images) == 5
    assert record.image_size == ARKIT_SIZE
    centre = np.array(record.action["center"])
    red, green, blue = colour("cabinet")
    for view, image in enumerate(record.images):
        rotation = record.geometry["R"][view].reshape(3, 3)
        local = rotation.T @ (centre - record.geometry["t"][view])
        pixel = record.geometry["K"][view].reshape(3, 3) @ local
        assert local[2] > 0
        x, y = np.int64(pixel[:2] / pixel[2])
        shown = np.asarray(Image.open(image))[y, x] / 255
        # The cabinet's brown, whatever the light; walls, floor and ceiling are greyer.
        assert shown[0] / shown[2] == pytest.approx(red / blue, rel=0.1)
        assert shown[0] / shown[1] == pytest.approx(red / green, rel=0.1)


def test_records_are_of_the_task_that_stage_2_takes(root, tmp_path):
    record = RecordFile(prepare(root, tmp_path / "a.jsonl"))[0]
    (source,) = load("configs/stage2_arkit.py").data.train
    assert record.task == source["task"]


def test_the_frame_can_be_undone(root, tmp_path):
    levelled = RecordFile(prepare(root, tmp_path / "a.jsonl"))[0]
    world = RecordFile(prepare(root, tmp_path / "b.jsonl", "--frame", "world"))[0]
    np.testing.assert_allclose(levelled.geometry["t"][0], 0, atol=1e-5)
    assert abs(levelled.geometry["R"][0].reshape(3, 3)[0, 2]) < 1e-5
    np.testing.assert_allclose(world.action["center"], ARKIT_BOX.centre, atol=1e-4)
    np.testing.assert_allclose(world.action["normal"], ARKIT_BOX.axes[2], atol=1e-4)
    back = Frame.from_world(levelled.frame_to_world).inverse()
    undone = move_action(levelled.action, back)
    for name in ("center", "normal", "extent"):
        np.testing.assert_allclose(undone[name], world.action[name], atol=3e-4)
    again = move_action(undone, back.inverse())
    np.testing.assert_allclose(again["center"], levelled.action["center"], atol=3e-4)
    # What is learnt is the same, whichever frame the file is in.
    learnt = [record.learnt_action() for record in (levelled, world)]
    for name in ("center", "normal", "extent"):
        np.testing.assert_allclose(learnt[0][name], learnt[1][name], atol=3e-4)


def test_the_box_is_the_annotated_one(root, tmp_path):
    (line,) = read_lines(prepare(root, tmp_path / "a.jsonl", "--frame", "world"))
    assert line["action_json"]["extent"] == ARKIT_BOX.size.tolist()
    assert line["instruction"] == (
        f"In scene {SCENE}, find an object belonging to the category 'cabinet' and place a "
        "virtual anchor at the center of that object."
    )
    assert line["scene_id"] == SCENE and line["object_names"] == ["cabinet"]
    assert audit_file(RecordFile(tmp_path / "a.jsonl"), ["."], True).problems == {}


def test_a_json_list_can_be_written_as_the_original_did(root, tmp_path):
    output = prepare(root, tmp_path / "train.json", "--max_scenes", 1)
    assert [entry["scene_id"] for entry in json.loads(output.read_text())] == [SCENE]


def test_poses_are_inverted_from_world_to_camera(tmp_path):
    # A camera that stands at (1, 2, 3), turned a quarter about z.
    path = tmp_path / "lowres_wide.traj"
    path.write_text(f"2.0 0 0 {-np.pi / 2} -2 1 -3\n1.0 0 0 0 0 0 0\n")
    times, poses = read_trajectory(path)
    assert times.tolist() == [1.0, 2.0]
    np.testing.assert_allclose(poses[0], np.eye(4))
    np.testing.assert_allclose(poses[1, :3, 3], [1, 2, 3], atol=1e-12)
    np.testing.assert_allclose(poses[1, :3, 0], [0, 1, 0], atol=1e-12)


def annotated(tmp_path, **changes):
    entry = arkit_object(ARKIT_BOX)
    entry["segments"]["obbAligned"] |= changes
    path = tmp_path / "annotation.json"
    path.write_text(json.dumps({"data": [entry], "skipped": False}))
    return path


def test_the_front_is_the_dominant_normal_else_the_thin_side_towards_the_cameras(tmp_path):
    right, _, front = ARKIT_BOX.axes
    (box,) = read_boxes(annotated(tmp_path, dominantNormal=right.tolist()), None)
    np.testing.assert_allclose(box.axes[2], right, atol=1e-9)
    np.testing.assert_allclose(box.size, [0.4, 0.7, 0.9])
    for side in (1, -1):
        camera = (ARKIT_BOX.centre + side * 3 * front)[None]
        (box,) = read_boxes(annotated(tmp_path), camera)
        np.testing.assert_allclose(box.axes[2], side * front, atol=1e-9)
        np.testing.assert_allclose(box.size, ARKIT_BOX.size)
        np.testing.assert_allclose(np.linalg.det(box.axes), 1)


def test_what_no_view_looks_at_is_left_out_and_counted(tmp_path, capsys):
    folder = write_arkit(tmp_path, SCENE, True)
    path = folder / f"{SCENE}_3dod_annotation.json"
    behind = Box("far", "object", "bed", np.array([0, 0.9, 30.0]), np.eye(3)[[0, 2, 1]], np.ones(3))
    path.write_text(json.dumps({"data": [arkit_object(ARKIT_BOX), arkit_object(behind)]}))
    output = prepare(tmp_path, tmp_path / "a.jsonl")
    assert "1 objects that no chosen view looks at, left out" in capsys.readouterr().out
    assert len(read_lines(output)) == 1
    assert len(read_lines(prepare(tmp_path, tmp_path / "b.jsonl", "--unseen", "keep"))) == 2


def test_scenes_without_frames_can_be_drawn_and_say_so(tmp_path):
    folder = tmp_path / "a" / SCENE
    folder.mkdir(parents=True)
    annotation = json.dumps({"data": [arkit_object(ARKIT_BOX)]})
    (folder / f"{SCENE}_3dod_annotation.json").write_text(annotation)
    with pytest.raises(UserError, match=r"neither 47333462_frames.*pass --render"):
        prepare(tmp_path / "a", tmp_path / "out.jsonl")
    output = prepare(tmp_path / "a", tmp_path / "out.jsonl", "--render", "--image-size", 64)
    record = RecordFile(output)[0]
    assert record.rendered and len(record.images) == 5
    assert audit_file(RecordFile(output), ["."], True).problems == {}


def test_records_whose_photographs_are_absent_get_drawn_stand_ins(tmp_path, shared):
    source = shared / "samples" / "original" / "arkit_synth_test.json"
    output = tmp_path / "drawn.json"
    flags = ("--num-views", 3, "--image-size", 64, "--workers", 1)
    with pytest.raises(UserError, match="pass --render"):
        run_script("synth_roomplan_instructions", "--input", source, "--output", output, *flags)
    run_script(
        "synth_roomplan_instructions", "--input", source, "--output", output, "--render", *flags
    )
    before, after = json.loads(source.read_text()), json.loads(output.read_text())
    assert len(before) == len(after) == 9
    for old, new in zip(before, after, strict=True):
        assert new["rendered"] is True and len(new["images"]) == 3
        assert (new["action_json"], new["instruction"]) == (old["action_json"], old["instruction"])
    # Three cabinets are asked for in the same words; the audit warns of it.
    findings = audit_file(RecordFile(output), ["."], True)
    assert not findings.bad() and findings.counts()["instruction-conflict"] == 4


def test_views_without_depth_are_kept_and_counted(tmp_path, capsys):
    folder = write_arkit(tmp_path, SCENE, False, frames=5)
    depths = sorted((folder / "lowres_depth").iterdir())
    for path in depths[1:]:
        path.unlink()
    record = RecordFile(prepare(tmp_path, tmp_path / "a.jsonl"))[0]
    assert "4 views without depth" in capsys.readouterr().out
    assert len(record.images) == 5
    assert sorted(record.geometry["depth_hist"].sum(1).round(3)) == [0, 0, 0, 0, 1]
    depths[0].unlink()
    record = RecordFile(prepare(tmp_path, tmp_path / "b.jsonl"))[0]
    assert "depth_hist" not in record.geometry


def test_a_normal_that_points_up_tells_no_front(tmp_path):
    camera = (ARKIT_BOX.centre + 3 * ARKIT_BOX.axes[2])[None]
    for up in ([0, 0, 1], [0.01, 0.0, -1]):
        (box,) = read_boxes(annotated(tmp_path, dominantNormal=up), camera)
        np.testing.assert_allclose(box.axes[2], ARKIT_BOX.axes[2], atol=1e-9)


def test_stand_ins_in_a_world_with_y_up_show_the_box_where_it_is(tmp_path):
    action = {"action": "place_anchor", "scene": "s", "center": [1.0, 0.5, -2.0]}
    action |= {"normal": [0, 0, 1], "extent": [0.8, 1.0, 0.6]}
    entries = [
        {"images": ["gone.png"], "instruction": "the chair", "action_json": action, "up": "y"},
        {"images": ["gone.png"], "instruction": "the chair", "action_json": action, "up": "y"},
        {
            "images": ["gone.png"],
            "instruction": "nearest to the first camera",
            "action_json": action,
        },
        {"images": ["there.png"], "instruction": "the bed", "action_json": action},
    ]
    for entry in entries:
        entry |= {"scene_id": "s", "object_names": ["cabinet"]}
    Image.new("RGB", (40, 40)).save(tmp_path / "there.png")
    source = tmp_path / "in.jsonl"
    source.write_text("\n".join(json.dumps(entry) for entry in entries))
    run_script(
        "synth_roomplan_instructions",
        *("--input", source, "--output", tmp_path / "out.jsonl", "--render", "--workers", 1),
        *("--num-views", 2, "--image-size", 96),
    )
    records = list(RecordFile(tmp_path / "out.jsonl"))
    assert [record.question for record in records] == ["the chair", "the chair", "the bed"]
    assert [record.rendered for record in records] == [True, True, False]
    record = records[0]
    rotation, position = (part[0] for part in record.poses())
    local = rotation.T @ (np.array(action["center"]) - position)
    pixel = record.geometry["K"][0].reshape(3, 3) @ local
    x, y = np.int64(pixel[:2] / pixel[2])
    shown = np.asarray(Image.open(record.images[0]))[y, x] / 255
    red, _, blue = colour("cabinet")
    assert local[2] > 0 and shown[0] / shown[2] == pytest.approx(red / blue, rel=0.15)
