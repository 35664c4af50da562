"""What is wrong with data is named: the file, the line, what was expected, what to do."""

import gzip
import io
import json
import re
import zlib

import numpy as np
import pytest
from PIL import Image
from scans import run_script, write_arkit, write_scannet

from jaxvlm.data.audit.files import audit_file
from jaxvlm.data.records import RecordFile, open_records
from jaxvlm.errors import UserError

GOOD = {"images": ["a.png"], "question": "What is it?", "answer": "chair", "scene_id": "s"}
ROTATION = [1.0, 0, 0, 0, 1, 0, 0, 0, 1]


def lines(*entries: dict | str) -> bytes:
    texts = (entry if isinstance(entry, str) else json.dumps(entry) for entry in entries)
    return "\n".join(texts).encode() + b"\n"


def posed(**parts) -> dict:
    token = {"R": [ROTATION], "t": [[0, 0, 1]], "K": [[50, 0, 20, 0, 50, 20, 0, 0, 1]]}
    return {**GOOD, "geom_token": token | parts, "image_size": [40, 40]}


def action(**changes) -> dict:
    box = {"center": [1, 2, 3], "normal": [0, 1, 0], "extent": [1, 1, 1], "scene": "s"}
    box |= {"action": "place_anchor", **changes}
    return {"images": ["a.png"], "instruction": "Place it.", "scene_id": "s", "action_json": box}


def png(*size: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, "red").save(out, "PNG")
    return out.getvalue()


def audited(folder, content: bytes, name: str = "r.jsonl", images: bool = True) -> list[str]:
    """All messages of the audit of a file of this content, beside a good image a.png."""
    (folder / "a.png").write_bytes(png(40, 40))
    (folder / name).write_bytes(content)
    findings = audit_file(RecordFile(folder / name), ["."], images)
    return [f"{p.check} {p.message}" for found in findings.problems.values() for p in found]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lines(GOOD, '{"images": ['), r"malformed-json .*r\.jsonl:2: malformed JSON"),
        (lines(GOOD, "{"), r"r\.jsonl:2: .* one whole record a line"),
        (lines(GOOD) + b'{"question": "\xff"}\n', r"invalid-utf8 .*:2: byte 15 .*0xff.*as UTF-8"),
        (lines({**GOOD, "score": float("nan")}), r"malformed-json .*:1: 'score' holds NaN.*null"),
        (b"\xef\xbb\xbf" + lines(GOOD), r"byte-order-mark .*r\.jsonl:1: .*byte order mark"),
        (lines(GOOD).replace(b"\n", b"\r\n"), r"windows-line-ends .*r\.jsonl:1: .*Windows"),
        (
            lines(GOOD, {**GOOD, "images": "a.png"}),
            r"schema .*:2: 'images' must be .*found 'a.png'",
        ),
        (lines({**GOOD, "answers": "chair"}), r"schema .*:1: 'answers' must be a list of texts"),
        (lines({**GOOD, "object_ids": 3}), r"schema .*:1: 'object_ids' must be a list"),
        (lines({**GOOD, "scene_id": ["s"]}), r"schema .*:1: 'scene_id' must be a text or"),
        (lines({**GOOD, "frame": "camera"}), r"schema .*:1: 'frame' must be one of .*'camera'"),
        (lines({**GOOD, "frame_to_world": [1]}), r"schema .*:1: 'frame_to_world' .* 4 x 4"),
        (lines({**GOOD, "frame_to_world": [[0] * 4] * 4}), r"'frame_to_world' must be a rotation"),
        (
            lines({"images": ["a.png"], "instruction": "Place it.", "scene_id": "a\nb"}),
            r":1: 'scene_id' 'a\\nb' holds a control",
        ),
        (lines([GOOD]), r"schema .*:1: .* found list; .* must end in \.json"),
        (lines({**GOOD, "images": ["b.png"]}), r"image-missing .*:1: .*'b\.png' does not exist"),
        (lines({**GOOD, "image_size": [40, 30]}), r"image-size .*:1: .*40 x 40 .*says 40 x 30"),
        (lines({**GOOD, "answer": " "}, GOOD), r"answer-empty .*:1: no answer"),
        (lines({**GOOD, "answer": "a " * 70}), r"answer-too-long .*:1: an answer of 70 words"),
        (
            lines(posed(t=[[0, 0, float("inf")]])),
            r"geometry-not-finite .*:1: geom_token\.t .*view 0",
        ),
        (lines(posed(R=[[1, 0, 0, 0, 2, 0, 0, 0, 1]])), r"pose-not-orthonormal .*:1: .*view 0"),
        (lines(posed(R=[[1, 0, 0, 0, 1, 0, 0, 0, -1]])), r"pose-not-orthonormal .* mirrors"),
        (lines(posed(K=[[500, 0, 300, 0, 500, 200, 0, 0, 1]])), r"intrinsics-misfit .*40 x 40"),
        (lines({**posed(), "image_size": None}), r"intrinsics-misfit .*needs 'image_size'"),
        (lines(posed(depth_hist=[[0.5] * 16])), r"depth-histogram .*:1: .* adds up to 8"),
        (lines(action(extent=[1, 0, 1])), r"action-fields .*:1: .*must be positive"),
        (lines(action(extent=[900, 400, 60])), r"action-units .*:1: .*over 50 m.*millimetres"),
        (lines(action(normal=[0, 2, 0])), r"action-normal .*:1: .*length 2"),
        (lines(action(center=[0, 1])), r"action-fields .*:1: .*center must be .* 3 numbers"),
        (lines(action(center=[0, 1, float("nan")])), r"action-fields .*:1: .*finite metres"),
        (
            lines({**posed(), **action(center=[0, 0, -3]), "image_size": [40, 40]}),
            r"action-unseen .*:1: no view looks at",
        ),
        (
            lines(posed(K=[[50, 0, 31, 0, 50, 20, 0, 0, 1]])),
            r"intrinsics-misfit .*centre at 31 x 20, far from the middle of 40 x 40",
        ),
        (
            lines({**posed(), "frame": "first_camera"}),
            r'pose-frame .*:1: .*"first_camera", but view 0 does not stand at the origin',
        ),
        (lines(action(axis=[0, 1])), r"action-fields .*axis must be a list of 3 numbers"),
        (
            lines(action(axis=[1, 0, 0])),
            r"action-fields .*axis \[1, 0, 0\] must be of length 1 and",
        ),
        (lines(action(normal=[0, 0, 1], axis=[5, 0, 0])), r"action-fields .*must be of length 1"),
        (lines(action(normal=[0, 0, 1], axis=[0, 0, 1])), r"action-fields .*at right angles"),
        (lines({**posed(), **action(action=["a"])}), r"action-fields .*:1: .*action .* is no name"),
        (lines(action(scene="t")), r"action-fields .*:1: .*scene 't', the record for 's'"),
        (lines(action(extent=None)), r"action-fields .*:1: action_json lacks extent"),
    ],
)
def test_wrong_records(tmp_path, content, message):
    found = audited(tmp_path, content)
    assert any(re.search(message, text) for text in found), found
    assert len(found) == 1, found


def test_two_cameras_in_millimetres(tmp_path):
    far = posed(R=[ROTATION] * 2, t=[[0, 0, 1], [3000, 0, 1]])
    far["geom_token"]["K"] *= 2
    (text,) = audited(tmp_path, lines({**far, "images": ["a.png", "a.png"]}))
    assert re.search(r"pose-units .*r\.jsonl:1: .*3000 m apart.*millimetres", text)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (
            png(400, 400)[:300],
            r"image-unreadable .*:1: the image .*b\.png' cannot be read: .*trunc",
        ),
        (b"<html>404</html>", r"image-unreadable .*b\.png' cannot be read"),
        (b"", r"image-unreadable .*b\.png' cannot be read"),
        (png(2, 600), r"image-unreadable .*no photograph's shape"),
    ],
)
def test_wrong_images(tmp_path, image, message):
    (tmp_path / "b.png").write_bytes(image)
    (text,) = audited(tmp_path, lines({**GOOD, "images": ["b.png"]}))
    assert re.search(message, text), text


def test_an_image_that_would_fill_the_memory_is_refused_by_its_head(tmp_path):
    head = png(1, 1)
    # The same file, but its head says 30,000 x 30,000.
    size = (30_000).to_bytes(4, "big")
    body = head[:16] + size + size + head[24:29]
    body += zlib.crc32(body[12:29]).to_bytes(4, "big") + head[33:]
    (tmp_path / "b.png").write_bytes(body)
    (text,) = audited(tmp_path, lines({**GOOD, "images": ["b.png"]}))
    assert re.search(r"image-unreadable .*:1: .*900,?000,?000 pixels.*make it smaller", text), text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("e.jsonl", b"", r"e\.jsonl: the file holds no records \(it is empty\)"),
        ("e.jsonl", b"\n \n", r"e\.jsonl: the file holds no records"),
        ("e.json", b"[]", r"e\.json: the file holds no records"),
        ("e.json", b'[{"images": []}', r"e\.json:1: .*not closed .*cut off"),
        ("e.json", b'[{"images": []},\n]', r"e\.json:2: .*comma before the end"),
        ("e.json", b'[{"images": []}\n {}]', r"e\.json:2: .*comma between records"),
        ("e.json", b'[{"images": [}]', r"e\.json:1: malformed JSON"),
        ("e.json", b'{"images": []}\n{"images": []}', r"a file with one record a line .*\.jsonl"),
        ("e.json", b'{"rows": []}', r"e\.json:1: expected a list of records"),
        ("e.json", b'"text"', r"e\.json:1: expected a list of records"),
        ("e.jsonl", gzip.compress(b"{}", mtime=0), r"e\.jsonl is compressed; unpack it"),
        ("e.jsonl", "{}".encode("utf-16"), r"e\.jsonl is UTF-16 text; save it as UTF-8"),
    ],
)
def test_wrong_files(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        RecordFile(tmp_path / name)


def test_wrong_paths(tmp_path):
    with pytest.raises(UserError, match=r"is a folder; give a record file, or a pattern such as"):
        open_records(str(tmp_path))
    with pytest.raises(UserError, match=r"nowhere\.jsonl' does not exist"):
        open_records(str(tmp_path / "nowhere.jsonl"))
    with pytest.raises(UserError, match=r"no file matches .*\*\.jsonl'; .*none does not exist"):
        open_records(str(tmp_path / "none" / "*.jsonl"))
    (tmp_path / "odd[1].jsonl").write_bytes(lines(GOOD))
    assert len(open_records(str(tmp_path / "odd[1].jsonl"))) == 1


SCENE = "47333462"


def prepared_arkit(tmp_path, break_it) -> None:
    folder = write_arkit(tmp_path, SCENE, False, frames=3)
    break_it(folder)
    run_script(
        "prepare_arkit_from_3dod",
        *("--arkit-training-root", tmp_path, "--output", tmp_path / "o.jsonl", "--workers", 1),
    )


def rewrite(pattern: str, change):
    def break_it(folder) -> None:
        path = sorted(folder.glob(pattern))[0]
        path.write_text(change(path.read_text()))

    return break_it


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (
            rewrite("lowres_wide.traj", lambda text: text.rstrip()[:-40]),
            r"lowres_wide\.traj:3: expected 7 numbers .*broken off",
        ),
        (
            rewrite("lowres_wide.traj", lambda text: text.replace("0.", "O.", 1)),
            r"lowres_wide\.traj:1: expected 7 numbers",
        ),
        (rewrite("lowres_wide.traj", lambda text: ""), r"lowres_wide\.traj: .*holds no poses"),
        (
            rewrite("lowres_wide_intrinsics/*", lambda text: text.replace("64 48", "256 192")),
            r"\.pincam:1: the intrinsics are of 256 x 192 pixels, the image .* 64 x 48",
        ),
        (
            rewrite("lowres_wide_intrinsics/*", lambda text: "64 48 50 50"),
            r"\.pincam: expected 6 numbers, found 4",
        ),
        (
            rewrite("*_3dod_annotation.json", lambda text: text[:50]),
            r"_3dod_annotation\.json:1: malformed JSON",
        ),
        (
            rewrite("*_3dod_annotation.json", lambda text: text.replace("obbAligned", "obbX")),
            r"_3dod_annotation\.json: data\[0\]: needs a text 'label' and 'segments\.obbA",
        ),
        (
            rewrite("*_3dod_annotation.json", lambda text: text.replace("axesLengths", "axes")),
            r"data\[0\]\.segments\.obbAligned: 'axesLengths' must be 3 finite numbers",
        ),
        (
            # Twenty milliseconds are too far off, five are not.
            rewrite(
                "lowres_wide.traj",
                lambda text: (
                    text.replace(".271", ".291").replace(".374", ".401").replace(".471", ".491")
                ),
            ),
            r"none of 3 images has a pose",
        ),
        (
            lambda folder: [p.unlink() for p in (folder / "lowres_wide_intrinsics").iterdir()],
            r"none of 3 images has a pose .* and a \.pincam",
        ),
        (
            lambda folder: [p.write_bytes(b"no") for p in (folder / "lowres_depth").iterdir()],
            r"the depth image .*\.png cannot be read",
        ),
    ],
)
def test_wrong_arkit_scenes(tmp_path, break_it, message):
    with pytest.raises(UserError, match=message):
        prepared_arkit(tmp_path, break_it)


def test_arkit_roots_that_hold_no_scenes(tmp_path):
    write_arkit(tmp_path / "Training", SCENE, True, frames=1)

    def prepare(root):
        run_script(
            "prepare_arkit_from_3dod",
            *("--arkit-training-root", root, "--output", tmp_path / "o.jsonl", "--workers", 1),
        )

    with pytest.raises(UserError, match=r"holds no <id>/<id>_3dod_annotation.json; .*Training"):
        prepare(tmp_path)
    with pytest.raises(UserError, match=r"nowhere is no folder"):
        prepare(tmp_path / "nowhere")


SCANNET = "scene0001_00"


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (
            lambda f: (f / "pose" / "20.txt").write_text("1 0 0\n0 one 0"),
            r"pose/20\.txt:2: 'one' is no number",
        ),
        (
            lambda f: (f / "pose" / "20.txt").write_text("1 0 0 0"),
            r"pose/20\.txt: expected 16 numbers, found 4",
        ),
        (
            lambda f: (f / f"{SCANNET}.txt").unlink(),
            r"scene0001_00\.txt is missing, whose axisAlignment .*--unaligned",
        ),
        (
            lambda f: Image.new("RGB", (9, 7)).save(f / "color" / "40.jpg"),
            r"color/40\.jpg has 9 x 7 pixels, others of its scan 64 x 48",
        ),
        (lambda f: (f / "pose" / "20.txt").unlink(), r"pose/20\.txt is missing; export the poses"),
        (
            lambda f: np.savetxt(f / "pose" / "20.txt", 2 * np.eye(4)),
            r"pose/20\.txt: the upper left 3 x 3 is no rotation",
        ),
        (
            lambda f: (f / "intrinsic" / "intrinsic_color.txt").unlink(),
            r"intrinsic_color\.txt is missing; export the intrinsics",
        ),
        (
            lambda f: (f / f"{SCANNET}.txt").write_text("axisAlignment = 1 2 3"),
            r"scene0001_00\.txt: axisAlignment must be 16 numbers",
        ),
        (
            lambda f: [np.savetxt(p, np.full((4, 4), np.nan)) for p in (f / "pose").iterdir()],
            r"pose: no frame has a finite pose",
        ),
    ],
)
def test_wrong_scannet_scenes(tmp_path, break_it, message):
    scan = write_scannet(tmp_path / "scans", SCANNET, frames=3, lost=0)
    break_it(scan.folder)
    question = {"scene_id": SCANNET, "question_id": "q", "question": "Is it?", "answers": ["no"]}
    (tmp_path / "qa.json").write_text(json.dumps([question]))
    with pytest.raises(UserError, match=message):
        run_script(
            "prepare_scanqa",
            *("--dataset", "scanqa", "--scan-root", tmp_path, "--qa-file", tmp_path / "qa.json"),
            *("--output", tmp_path / "o.jsonl", "--workers", 1),
        )


@pytest.mark.parametrize(
    ("dataset", "content", "message"),
    [
        *(
            (
                "scanqa",
                json.dumps([{"scene_id": "s", "question_id": "q", "question": "Q?", **change}]),
                message,
            )
            for change, message in (
                ({"answers": "brown"}, r"item 0: 'answers' must be a list, found 'brown'"),
                ({"answers": [5, None]}, r"item 0: 'answers' must be a list, found \[5, None\]"),
                ({"object_ids": "12"}, r"item 0: 'object_ids' must be a list"),
            )
        ),
        ("scanqa", "[{", r"qa\.json:1: malformed JSON"),
        ("scanqa", '{"questions": []}', r"expected ScanQA's list .*pass --dataset sqa3d"),
        ("sqa3d", "[]", r"expected SQA3D's object .*pass --dataset scanqa"),
        ("scanqa", '[{"scene_id": "s"}]', r"qa\.json: item 0: needs 'question_id', found None"),
    ],
)
def test_wrong_question_files(tmp_path, dataset, content, message):
    (tmp_path / "qa.json").write_text(content)
    (tmp_path / "annotations.json").write_text('{"annotations": []}')
    beside = ("--annotations", tmp_path / "annotations.json") if dataset == "sqa3d" else ()
    with pytest.raises(UserError, match=message):
        run_script(
            "prepare_scanqa",
            *("--dataset", dataset, "--scan-root", tmp_path, "--qa-file", tmp_path / "qa.json"),
            *("--output", tmp_path / "o.jsonl", "--workers", 1, *beside),
        )
