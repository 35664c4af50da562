"""Official question files beside prepared records of their scenes."""

import json

import pytest

from jaxvlm.data.official import as_records, dataset_of
from jaxvlm.data.record import parse_record
from jaxvlm.data.records import read_records
from jaxvlm.errors import UserError

SCANQA = [
    {"scene_id": "scene0001_00", "question_id": "val-scene0001-0", "question": "What is red?",
     "answers": ["bed", "the bed"], "object_ids": [3], "object_names": ["bed"]},
    {"scene_id": "scene0002_00", "question_id": "val-scene0002-0", "question": "How many?",
     "answers": ["2"], "object_ids": [], "object_names": []},
]  # fmt: skip


def known(scene, *images, **more):
    entry = {"images": list(images), "question": "q", "answer": "a", "scene_id": scene, **more}
    return parse_record(entry, "here:1")


@pytest.fixture(autouse=True)
def cached(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXVLM_CACHE", str(tmp_path / "cache"))


def test_questions_get_the_images_of_their_scene(tmp_path):
    path = tmp_path / "ScanQA_v1.0_val.json"
    path.write_text(json.dumps(SCANQA))
    records = [known("scene0002_00", "c.jpg"), known("scene0001_00", "/x/a.jpg", "/x/b.jpg"),
               known("scene0001_00", "/x/other.jpg")]  # fmt: skip
    (made,) = as_records([str(path)], records)
    found = read_records(made)
    assert found[0].images == ("/x/a.jpg", "/x/b.jpg")
    assert found[0].answers == ("bed", "the bed") and found[0].task == "scanqa"
    assert found[0].question_id == "val-scene0001-0" and found[1].answers == ("2",)
    assert found[1].images[0].endswith("/c.jpg")
    assert as_records([str(path)], records) == [made]


def test_real_files_are_recognised(tmp_path, shared):
    (scanqa,) = (shared / "samples" / "scanqa").glob("*val*.json")
    (sqa3d,) = (shared / "samples" / "sqa3d").glob("*questions*.json")
    assert (dataset_of(scanqa), dataset_of(sqa3d)) == ("scanqa", "sqa3d")
    asked = json.loads(sqa3d.read_text())["questions"]
    records = [known(scene, f"/x/{scene}.jpg") for scene in {row["scene_id"] for row in asked}]
    found = read_records(as_records([str(sqa3d)], records)[0])
    assert len(found) == len(asked) and all(record.answers for record in found)
    assert found[0].situation == asked[0]["situation"]


def test_a_scene_without_records_is_named(tmp_path):
    path = tmp_path / "val.json"
    path.write_text(json.dumps(SCANQA))
    with pytest.raises(UserError, match=r"val\.json asks about 1 scenes .* scene0002_00; prepare"):
        as_records([str(path)], [known("scene0001_00", "/x/a.jpg")])


def test_record_files_stay_and_nothing_is_read(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps([{"images": ["a.jpg"], "question_id": "1", "question": "q"}]))

    def never():
        raise AssertionError
        yield

    asked = [str(path), str(tmp_path / "*.jsonl")]
    assert as_records(asked, never()) == asked
