"""ScanQA and SQA3D with a ScanNet export: what comes out is what was put in."""

import collections
import json

import numpy as np
import pytest
from PIL import Image
from scans import read_lines, run_script, write_scannet

from jaxvlm.data.audit.files import audit_file
from jaxvlm.data.geometry import depth_histogram
from jaxvlm.data.records import RecordFile
from jaxvlm.errors import UserError

SCENE = "scene0015_00"


def scanqa(count: int = 2, scene: str = SCENE) -> list[dict]:
    return [
        {
            "scene_id": scene,
            "object_ids": [33, 4 + i],
            "object_names": ["table", "chair"],
            "question_id": f"val-{scene}-{i}",
            "question": f"What color is desk number {i}?",
            "answers": ["brown wooden", "brown"],
        }
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    return write_scannet(tmp_path_factory.mktemp("scannet") / "scans", SCENE)


def prepare(tmp_path, scan, *flags, questions=None, name="out.jsonl"):
    qa = tmp_path / "qa.json"
    qa.write_text(json.dumps(scanqa() if questions is None else questions))
    output = tmp_path / name
    root = scan.folder.parent.parent
    arguments = ("--dataset", "scanqa", "--scan-root", root, "--qa-file", qa, "--output", output)
    run_script("prepare_scanqa", *arguments, "--num-views", 4, "--workers", 1, *flags)
    return output


def test_known_points_of_the_room_land_where_the_images_show_them(tmp_path, scan):
    record = RecordFile(prepare(tmp_path, scan))[0]
    assert len(record.images) == 4 and record.image_size == scan.colour_size
    for view, image in enumerate(record.images):
        camera = scan.cameras[int(image.rsplit("/", 1)[1].removesuffix(".jpg"))]
        # What stands behind some pixels, by the ray caster; a known point each.
        origins, directions = camera.rays(*scan.colour_size)
        pixels = np.random.default_rng(view).choice(len(origins), 50, replace=False)
        hits = scan.mesh.embree.run(origins[pixels], directions[pixels], output=1)
        there = hits["primID"] >= 0
        points = (origins + directions * 0)[pixels][there]
        points = points + directions[pixels][there] * hits["tfar"][there, None]
        rotation = record.geometry["R"][view].reshape(3, 3)
        local = (points - record.geometry["t"][view]) @ rotation
        projected = local @ record.geometry["K"][view].reshape(3, 3).T
        found = projected[:, :2] / projected[:, 2:]
        width = scan.colour_size[0]
        expected = np.stack([pixels % width, pixels // width], 1)[there] + 0.5
        assert there.sum() > 20
        np.testing.assert_allclose(found, expected, atol=0.02)


def test_depths_are_of_the_views_and_in_metres(tmp_path, scan):
    record = RecordFile(prepare(tmp_path, scan))[0]
    for view, image in enumerate(record.images):
        stem = image.rsplit("/", 1)[1].removesuffix(".jpg")
        raw = np.asarray(Image.open(scan.folder / "depth" / f"{stem}.png")) / 1000
        np.testing.assert_allclose(
            record.geometry["depth_hist"][view], depth_histogram(raw), atol=1e-5
        )


def test_what_the_question_file_says_is_kept(tmp_path, scan):
    first, second = read_lines(prepare(tmp_path, scan))
    assert first["answers"] == ["brown wooden", "brown"] and first["answer"] == "brown wooden"
    assert first["object_ids"] == [33, 4] and first["object_names"] == ["table", "chair"]
    assert (first["task"], first["scene_id"]) == ("scanqa", SCENE)
    assert second["question_id"] == f"val-{SCENE}-1"
    assert first["frame"] == "world" and first["up"] == "z"


def test_frames_without_a_pose_are_left_out_and_counted(tmp_path, scan, capsys):
    output = prepare(tmp_path, scan, "--num-views", 30)
    assert "2 frames without a finite pose" in capsys.readouterr().out
    assert json.loads((tmp_path / "out.jsonl.meta").read_text())["counts"]["frames looked at"] == 12
    images = read_lines(output)[0]["images"]
    assert len(images) == 10 and not any(image.endswith(("/0.jpg", "/20.jpg")) for image in images)


def test_the_real_samples_become_records_that_pass_the_audit(tmp_path, shared):
    root = tmp_path / "scannet"
    samples = shared / "samples"
    scanqa_file = samples / "scanqa" / "ScanQA_v1.0_val.sample.json"
    scenes = sorted({q["scene_id"] for q in json.loads(scanqa_file.read_text())})
    for number, scene in enumerate(scenes):
        write_scannet(root, scene, number, frames=6, lost=1)
    sqa3d = samples / "sqa3d" / "v1_balanced_questions_test_scannetv2.sample.json"
    counts = {}
    for dataset, qa_file in (("scanqa", scanqa_file), ("sqa3d", sqa3d)):
        output = tmp_path / f"{dataset}.jsonl"
        run_script(
            "prepare_scanqa",
            *("--dataset", dataset, "--scan-root", root, "--qa-file", qa_file),
            *("--output", output, "--num-views", 4, "--workers", 1),
        )
        findings = audit_file(RecordFile(output), ["."], True)
        assert findings.problems == {}
        counts[dataset] = findings.rows
        assert len(findings.question_ids) == findings.rows
    assert counts == {"scanqa": 619, "sqa3d": 386}
    official = json.loads(sqa3d.read_text())["questions"]
    written = {line["question_id"]: line for line in read_lines(tmp_path / "sqa3d.jsonl")}
    for question in official:
        line = written[str(question["question_id"])]
        assert line["situation"] == question["situation"].strip()
        assert line["scene_id"] == question["scene_id"]
        assert all(f"/{question['scene_id']}/" in image for image in line["images"])


def test_sqa3d_keeps_situation_and_joins_by_id(tmp_path, scan):
    ids = [220602000002, 220602000003]
    questions = {
        "questions": [
            {
                "question_id": i,
                "scene_id": SCENE,
                "situation": f"I stand at {i}.",
                "question": "Is it?",
            }
            for i in ids
        ]
    }
    annotations = {
        "annotations": [
            {"question_id": i, "scene_id": SCENE, "answers": [{"answer": f"no {i}"}]}
            for i in reversed(ids)
        ]
    }
    (tmp_path / "v1_balanced_questions_test_scannetv2.json").write_text(json.dumps(questions))
    beside = tmp_path / "v1_balanced_sqa_annotations_test_scannetv2.json"
    arguments = (
        *("--dataset", "sqa3d", "--scan-root", scan.folder.parent, "--num-views", 2),
        *("--qa-file", tmp_path / "v1_balanced_questions_test_scannetv2.json", "--workers", 1),
    )
    with pytest.raises(UserError, match=r"pass --annotations"):
        run_script("prepare_scanqa", *arguments, "--output", tmp_path / "a.jsonl")
    beside.write_text(json.dumps(annotations))
    run_script("prepare_scanqa", *arguments, "--output", tmp_path / "a.jsonl")
    lines = read_lines(tmp_path / "a.jsonl")
    assert [(x["situation"], x["answer"]) for x in lines] == [
        (f"I stand at {i}.", f"no {i}") for i in ids
    ]


def test_the_same_seed_gives_the_same_file_with_any_number_of_workers(tmp_path, scan):
    other = "scene0016_00"
    if not (scan.folder.parent / other).exists():
        write_scannet(scan.folder.parent, other, seed=1, frames=6)
    questions = scanqa() + scanqa(scene=other)
    one = prepare(tmp_path, scan, "--views", "random", questions=questions, name="one.jsonl")
    two = prepare(
        tmp_path,
        scan,
        *("--views", "random", "--workers", 2),
        questions=questions,
        name="two.jsonl",
    )
    assert one.read_bytes() == two.read_bytes()
    third = prepare(
        tmp_path, scan, *("--views", "random", "--seed", 1), questions=questions, name="three.jsonl"
    )
    assert third.read_bytes() != one.read_bytes()


def test_a_stopped_run_goes_on_and_a_finished_one_stands(tmp_path, scan, capsys, monkeypatch):
    questions = scanqa() + scanqa(scene="scene0017_00")
    broken = scan.folder.parent / "scene0017_00"
    broken.mkdir(exist_ok=True)
    with pytest.raises(UserError, match=r"scene0017_00/color holds no images"):
        prepare(tmp_path, scan, questions=questions)
    assert not (tmp_path / "out.jsonl").exists()
    broken.rmdir()
    write_scannet(scan.folder.parent, "scene0017_00", seed=2, frames=5)
    prepare(tmp_path, scan, questions=questions)
    printed = capsys.readouterr().out
    assert "1 of 2 scenes are there, going on" in printed and "4 records of 2 scenes" in printed
    assert not (tmp_path / "out.jsonl.parts").exists()
    before = (tmp_path / "out.jsonl").stat().st_mtime_ns
    prepare(tmp_path, scan, questions=questions)
    assert "up to date" in capsys.readouterr().out
    assert (tmp_path / "out.jsonl").stat().st_mtime_ns == before
    pose = broken / "pose"
    (pose / "9999.txt").write_text("new")
    with pytest.raises(UserError, match="was made of scenes or files that have changed"):
        prepare(tmp_path, scan, questions=questions)
    (pose / "9999.txt").unlink()
    with pytest.raises(UserError, match=r"made otherwise \(num_views 4, now 2\)"):
        prepare(tmp_path, scan, "--num-views", 2, questions=questions)
    prepare(tmp_path, scan, "--num-views", 2, "--overwrite", questions=questions)
    assert len(read_lines(tmp_path / "out.jsonl")[0]["images"]) == 2


def test_a_file_of_somebody_else_is_not_overwritten(tmp_path, scan):
    (tmp_path / "out.jsonl").write_text("mine")
    with pytest.raises(UserError, match="was not made by this command"):
        prepare(tmp_path, scan)
    assert (tmp_path / "out.jsonl").read_text() == "mine"


def test_scenes_without_a_scan_are_named(tmp_path, scan, capsys):
    questions = scanqa() + scanqa(scene="scene0999_00")
    with pytest.raises(UserError, match=r"lacks 1 of 2 scenes: scene0999_00 .*--skip-missing"):
        prepare(tmp_path, scan, questions=questions)
    output = prepare(tmp_path, scan, "--skip-missing", questions=questions)
    assert (
        "left out 2 questions of 1 scenes without a scan: scene0999_00" in capsys.readouterr().out
    )
    assert {line["scene_id"] for line in read_lines(output)} == {SCENE}


def test_the_table_of_views_tells_what_was_chosen(tmp_path, scan):
    output = prepare(tmp_path, scan, "--view-table", tmp_path / "views.csv")
    lines = (tmp_path / "views.csv").read_text().splitlines()
    assert lines[0] == "scene,view,image,x,y,z" and len(lines) == 5
    record = read_lines(output)[0]
    for view, line in enumerate(lines[1:]):
        scene, number, image, *position = line.split(",")
        assert (scene, int(number), image) == (SCENE, view, record["images"][view])
        np.testing.assert_allclose(np.float64(position), record["geom_token"]["t"][view], atol=1e-3)


@pytest.mark.parametrize("size", [(32, 24), (128, 96)])
def test_images_exported_in_another_size_have_their_intrinsics_scaled(tmp_path, size):
    scan = write_scannet(tmp_path / "scans", SCENE, frames=3, lost=0)
    for path in (scan.folder / "color").iterdir():
        Image.open(path).resize(size).save(path)
    record = RecordFile(prepare(tmp_path, scan))[0]
    assert record.image_size == size
    expected = scan.cameras[0].intrinsics(*size)
    np.testing.assert_allclose(record.geometry["K"][0].reshape(3, 3), expected, rtol=1e-4)
    # Without the original size, the K of another size is refused.
    info = scan.folder / f"{SCENE}.txt"
    kept = [x for x in info.read_text().splitlines() if not x.startswith("color")]
    info.write_text("\n".join(kept))
    with pytest.raises(UserError, match=r"intrinsic_color.txt: the centre .* does not fit"):
        prepare(tmp_path, scan, name="b.jsonl")


def test_without_depth(tmp_path, scan):
    bare = write_scannet(tmp_path / "scans", SCENE, frames=3, lost=0)
    (bare.folder / "depth" / "20.png").unlink()
    with pytest.raises(UserError, match=r"depth/20.png is missing; .*--no-depth"):
        prepare(tmp_path, bare)
    output = prepare(tmp_path, bare, "--no-depth")
    assert set(read_lines(output)[0]["geom_token"]) == {"R", "t", "K"}


def test_the_bird_view_route_pairs_by_scene_alone(tmp_path, capsys):
    scenes = ["scene0001_00", "scene0002_00", "scene0003_00"]
    for dataset in ("scanqa", "sqa3d"):
        (tmp_path / dataset).mkdir()
    questions = [q for scene in scenes for q in scanqa(scene=scene)]
    (tmp_path / "scanqa" / "ScanQA_v1.0_val.json").write_text(json.dumps(questions))
    birds = tmp_path / "bird"
    birds.mkdir()
    for scene in scenes[:2]:
        Image.new("RGB", (40, 40)).save(birds / f"{scene}_bird.png")
    arguments = (
        *("--scanqa-dir", tmp_path / "scanqa", "--sqa3d-dir", tmp_path / "sqa3d"),
        *("--bird-dir", birds, "--output-dir", tmp_path / "out", "--workers", 1),
    )
    run_script("rebuild_scanqa_sqa3d", *arguments)
    printed = capsys.readouterr().out
    assert "left out 2 questions of 1 scenes without an image" in printed
    assert "scene0003_00" in printed
    lines = read_lines(tmp_path / "out" / "scanqa" / "test_split.jsonl")
    assert collections.Counter(line["scene_id"] for line in lines) == dict.fromkeys(scenes[:2], 2)
    for line in lines:
        assert line["images"][0].endswith(f"/{line['scene_id']}_bird.png")
        assert line["geom_token"] is None and line["answers"] == ["brown wooden", "brown"]
    with pytest.raises(UserError, match="no official file is there"):
        run_script("rebuild_scanqa_sqa3d", *arguments, "--dataset", "sqa3d")


def test_frames_are_in_the_order_of_their_numbers(tmp_path, scan):
    record = read_lines(prepare(tmp_path, scan, "--views", "uniform", "--num-views", 10))[0]
    numbers = [int(image.rsplit("/", 1)[1].removesuffix(".jpg")) for image in record["images"]]
    assert numbers == sorted(numbers) and len(numbers) == 10 and numbers[-1] == 220


def test_random_views_differ_from_scene_to_scene(tmp_path):
    root = tmp_path / "scans"
    scans = [write_scannet(root, f"scene{i:04}_00", 0, lost=0) for i in range(3)]
    questions = [q for s in scans for q in scanqa(1, s.folder.name)]
    lines = read_lines(prepare(tmp_path, scans[0], "--views", "random", questions=questions))
    chosen = {tuple(i.rsplit("/", 1)[1] for i in line["images"]) for line in lines}
    assert len(chosen) == 3


def test_parts_of_other_settings_are_not_used(tmp_path, scan):
    questions = scanqa() + scanqa(scene="scene0018_00")
    broken = scan.folder.parent / "scene0018_00"
    broken.mkdir()
    with pytest.raises(UserError, match="holds no images"):
        prepare(tmp_path, scan, questions=questions)
    assert list((tmp_path / "out.jsonl.parts").glob("part-*"))
    broken.rmdir()
    write_scannet(scan.folder.parent, "scene0018_00", seed=3, frames=5)
    prepare(tmp_path, scan, "--num-views", 2, questions=questions)
    assert {len(line["images"]) for line in read_lines(tmp_path / "out.jsonl")} == {2}


def test_sqa3ds_annotations_belong_to_what_a_file_is_made_of(tmp_path, scan):
    question = {"question_id": 1, "scene_id": SCENE, "situation": "I stand.", "question": "Is it?"}
    (tmp_path / "v1_balanced_questions_x.json").write_text(json.dumps({"questions": [question]}))
    beside = tmp_path / "v1_balanced_sqa_annotations_x.json"

    def run(answer):
        entry = {"question_id": 1, "scene_id": SCENE, "answers": [{"answer": answer}]}
        beside.write_text(json.dumps({"annotations": [entry]}))
        run_script(
            "prepare_scanqa",
            *("--dataset", "sqa3d", "--scan-root", scan.folder.parent, "--num-views", 1),
            *("--qa-file", tmp_path / "v1_balanced_questions_x.json", "--workers", 1),
            *("--output", tmp_path / "a.jsonl"),
        )

    run("yes")
    with pytest.raises(UserError, match="was made otherwise"):
        run("no")


def test_intrinsics_that_were_scaled_with_the_images_are_taken_as_they_are(tmp_path):
    scan = write_scannet(tmp_path / "scans", SCENE, frames=3, lost=0)
    for path in (scan.folder / "color").iterdir():
        Image.open(path).resize((32, 24)).save(path)
    k = np.eye(4)
    k[:3, :3] = scan.cameras[0].intrinsics(32, 24)
    np.savetxt(scan.folder / "intrinsic" / "intrinsic_color.txt", k)
    record = RecordFile(prepare(tmp_path, scan))[0]
    np.testing.assert_allclose(record.geometry["K"][0].reshape(3, 3), k[:3, :3], rtol=1e-4)
