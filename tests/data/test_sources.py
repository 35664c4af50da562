"""Sources: every image is there before anything starts, and mistakes are named."""

import json

import pytest
from PIL import Image

from jaxvlm.data.sources import load_sources
from jaxvlm.errors import UserError


@pytest.fixture
def folder(tmp_path):
    """`near.jsonl` with images beside it, `far.jsonl` with images under `root/`."""
    (tmp_path / "root").mkdir()
    for name in ("near.jpg", "root/far.jpg"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    for name, tasks in (("near", ("qa", "qa", "actions")), ("far", ("qa",))):
        lines = [
            {"images": [f"{name}.jpg"], "question": f"{i}?", "answer": "a", "task": task}
            for i, task in enumerate(tasks)
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path


def load(folder, *specs, roots=(), policy="error"):
    specs = [{**spec, "path": str(folder / spec["path"])} for spec in specs]
    return load_sources(specs, [str(folder / root) for root in roots], policy)


def test_images_are_found_beside_the_file_or_in_a_root(folder):
    near, far = load(folder, {"path": "near.jsonl"}, {"path": "far.jsonl"}, roots=["none", "root"])
    assert {record.images for record in near.records} == {(str(folder / "near.jpg"),)}
    assert far.records[0].images == (str(folder / "root" / "far.jpg"),)
    assert near.weight == 1.0


def test_a_missing_image_is_named_with_its_record(folder):
    with pytest.raises(UserError, match=r"far\.jsonl:1: the image 'far\.jpg' does not exist"):
        load(folder, {"path": "far.jsonl"})


def test_records_without_images_are_left_out_and_counted(folder, capsys):
    (source,) = load(folder, {"path": "*.jsonl"}, policy="skip")
    assert [record.images for record in source.records] == [(str(folder / "near.jpg"),)] * 3
    assert "left out 1 of 4 records" in capsys.readouterr().err
    with pytest.raises(UserError, match="no record is left"):
        load(folder, {"path": "far.jsonl"}, policy="skip")


def test_a_file_that_is_no_image_is_named_with_its_record(folder):
    (folder / "near.jpg").write_text("<html>404</html>")
    with pytest.raises(UserError, match=r"near\.jsonl:1: the image .*near\.jpg' cannot be read"):
        load(folder, {"path": "near.jsonl"})


def test_one_missing_view_is_enough_to_leave_a_record_out(folder):
    entry = {"images": ["near.jpg", "gone.jpg"], "question": "q", "answer": "a"}
    (folder / "half.jsonl").write_text(json.dumps(entry))
    with pytest.raises(UserError, match=r"gone\.jpg"):
        load(folder, {"path": "half.jsonl"})


def test_absolute_paths_are_taken_as_they_are(folder):
    entry = {"images": [str(folder / "near.jpg")], "question": "q", "answer": "a"}
    (folder / "root" / "absolute.jsonl").write_text(json.dumps(entry))
    (source,) = load(folder, {"path": "root/absolute.jsonl"})
    assert source.records[0].images == (str(folder / "near.jpg"),)


def test_a_glob_gathers_files_and_a_task_filters(folder):
    (source,) = load(folder, {"path": "*.jsonl", "task": "qa", "weight": 2}, roots=["root"])
    assert len(source.records) == 3 and source.weight == 2.0
    assert {record.task for record in source.records} == {"qa"}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"path": "near.jsonl", "wieght": 1}, "unknown field 'wieght'; did you mean .*weight"),
        ({"path": "none-*.jsonl"}, r"no file matches .*none-\*\.jsonl"),
        ({"path": "none.jsonl"}, r"none\.jsonl' does not exist"),
        ({"path": "near.jsonl", "task": "tasks"}, "no record of the task 'tasks'"),
        *(
            ({"path": "near.jsonl", "weight": weight}, "must be a positive number")
            for weight in (0, -1, "1", True, None, float("nan"))
        ),
    ],
)
def test_wrong_sources(folder, spec, message):
    with pytest.raises(UserError, match=message):
        load(folder, spec)


def test_a_split_needs_sources_with_paths():
    with pytest.raises(UserError, match="names no source"):
        load_sources((), (), "error")
    with pytest.raises(UserError, match="needs a 'path'"):
        load_sources(({"weight": 1.0},), (), "error")
    with pytest.raises(UserError, match="on_bad_record is 'ignore'"):
        load_sources(({"path": "a"},), (), "ignore")
