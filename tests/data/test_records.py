"""Record files: what is read, and that every mistake is named with its place."""

import json

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from jaxvlm.data.actions.language import parse
from jaxvlm.data.record import parse_record
from jaxvlm.data.records import read_records
from jaxvlm.errors import UserError

GOOD = {"images": ["a.jpg", "b.jpg"], "question": "What is it?", "answer": "chair"}


def token(**changes) -> dict:
    parts = {
        "R": [[1, 0, 0, 0, 1, 0, 0, 0, 1]] * 2,
        "t": [[0, 0, 1]] * 2,
        "K": [[500, 0, 320, 0, 500, 240, 0, 0, 1]] * 2,
        "depth_hist": [[1 / 16] * 16] * 2,
    }
    return {**parts, **changes}


def written(folder, text: str, name: str = "records.jsonl"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "wrap"),
    [
        ("a.jsonl", lambda lines: "\n\n".join(json.dumps(line) for line in lines) + "\n"),
        ("b.jsonl", lambda lines: "\r\n".join(json.dumps(line) for line in lines)),
        ("c.json", json.dumps),
        ("d.json", lambda lines: json.dumps({"data": lines})),
        ("e.json", lambda lines: json.dumps({"samples": lines, "version": 1})),
    ],
)
def test_every_kind_of_file_holds_the_same_records(tmp_path, name, wrap):
    lines = [GOOD, {**GOOD, "question": "Wo steht das Bett? 日本"}]
    records = read_records(written(tmp_path, wrap(lines), name))
    assert [record.question for record in records] == [line["question"] for line in lines]
    assert [record.images for record in records] == [("a.jpg", "b.jpg")] * 2
    assert len({record.origin for record in records}) == 2


def test_the_line_is_named_even_behind_empty_lines(tmp_path):
    path = written(tmp_path, json.dumps(GOOD) + "\n\n\n" + json.dumps({**GOOD, "images": []}))
    with pytest.raises(UserError, match=r"records\.jsonl:4: 'images'"):
        read_records(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"images": [', r"records\.jsonl:1: malformed JSON"),
        ("", "holds no records"),
        ("[1]", r"records\.jsonl:1: expected a JSON object, found list"),
    ],
)
def test_broken_lines(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        read_records(written(tmp_path, text))


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.jsonl' does not exist"):
        read_records(tmp_path / "nowhere.jsonl")
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"bytes\.jsonl is UTF-16 text; save it as UTF-8"):
        read_records(tmp_path / "bytes.jsonl")
    with pytest.raises(UserError, match=r"no_list\.json:1: expected a list of records"):
        read_records(written(tmp_path, '{"rows": []}', "no_list.json"))
    with pytest.raises(UserError, match=r"item\.json:1 \(item 1\): 'question'"):
        read_records(written(tmp_path, json.dumps([GOOD, {"images": ["a"]}]), "item.json"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": "a.jpg"}, "'images'"),
        ({"images": [1]}, "'images'"),
        ({"question": "  "}, "'question'"),
        ({"question": 3}, "'question'"),
        ({"answer": 3}, "'answer' must be a text, found int"),
        ({"answers": "chair"}, "'answers' must be a list of texts"),
        ({"answers": ["chair", 2]}, "'answers' must be a list of texts"),
        ({"situation": ["I sit"]}, "'situation' must be a text, found list"),
        ({"kind": 3}, "'kind' must be a text"),
        ({"action_json": "place"}, "'action_json' must be an object"),
        ({"up": "x"}, "'up' must be"),
        ({"image_size": [640]}, "'image_size'"),
        ({"image_size": [640, 0]}, "'image_size'"),
        ({"image_size": [640.0, 480]}, "'image_size'"),
        ({"geom_token": [1]}, "'geom_token' must be an object"),
        ({"geom_token": token(pose=[1])}, "unknown part 'pose'"),
        ({"geom_token": token(t=[["x", "y", "z"]] * 2)}, "t is not a list of numbers"),
        ({"geom_token": token(R=None)}, "a pose needs both or neither"),
        ({"geom_token": token(t=5)}, "t is not a list of numbers"),
        ({"geom_token": token(t=[[0, 0], [0]])}, "t is not a list of numbers"),
        ({"geom_token": token(t=[[0, 0, 1]])}, r"t has shape \[1, 3\], expected \[2, 3\]"),
        ({"geom_token": token(R=[[0] * 8] * 2)}, r"R has shape \[2, 8\], expected \[2, 9\]"),
        ({"geom_token": token(t=[[0, 0, float("nan")]] * 2)}, "t holds a number that is not"),
        ({"geom_token": token(K=[[float("inf")] * 9] * 2)}, "K holds a number that is not"),
    ],
)
def test_wrong_fields_are_named(changes, message):
    with pytest.raises(UserError, match=message) as caught:
        parse_record({**GOOD, **changes}, "some.jsonl:7")
    assert str(caught.value).startswith("some.jsonl:7: ")


FIELDS = ("images", "question", "answer", "answers", "situation", "geom_token", "action_json",
          "image_size", "up", "task", "kind", "scene_id", "R", "t", "K", "scene")  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=4)
    ),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=4))
@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
def test_whatever_stands_in_a_line_is_a_record_or_a_named_error(changes):
    try:
        record = parse_record({**GOOD, **changes}, "some.jsonl:7")
    except UserError as error:
        assert str(error).startswith("some.jsonl:7: ")
    else:
        assert record.question and record.images
        assert all(np.isfinite(part).all() for part in (record.geometry or {}).values())


def test_answers():
    both = parse_record({**GOOD, "answer": " chair ", "answers": ["seat", "chair", " "]}, "o")
    assert (both.answer, both.answers) == ("chair", ("chair", "seat"))
    listed = parse_record({"images": ["a"], "question": "q", "answers": ["seat", "chair"]}, "o")
    assert (listed.answer, listed.answers) == ("seat", ("seat", "chair"))
    none = parse_record({"images": ["a"], "question": "q"}, "o")
    assert (none.answer, none.answers) == ("", ())


def test_an_action_is_learned_as_its_compact_json():
    action = {"action": "place_anchor", "scene": "4733", "center": [1.5, 0, 2]}
    entry = {"images": ["a"], "instruction": "Place it.", "action_json": action}
    record = parse_record(entry, "o")
    assert record.question == "Place it." and record.action == action
    assert json.loads(record.answer) == action and " " not in record.answer
    assert record.scene_id == "4733"


def test_null_names_are_empty():
    names = dict.fromkeys(("task", "kind", "scene_id", "question_id", "situation"))
    record = parse_record({**GOOD, **names}, "o")
    assert {getattr(record, name) for name in names} == {""}


def test_geometry_may_lack_parts():
    record = parse_record({**GOOD, "geom_token": token(K=None, depth_hist=None)}, "o")
    assert set(record.geometry) == {"R", "t"} and record.geometry["R"].shape == (2, 9)
    assert parse_record({**GOOD, "geom_token": {"R": None}}, "o").geometry is None
    nested = [[[1, 0, 0], [0, 1, 0], [0, 0, 1]]] * 2
    record = parse_record({**GOOD, "geom_token": token(R=nested)}, "o")
    np.testing.assert_array_equal(record.geometry["R"][1], np.eye(3).ravel())


def test_the_originals_splits_load(shared):
    records = read_records(shared / "samples" / "original" / "sqa3d_test_split.jsonl")
    assert len(records) == 3664
    assert all(r.answer and r.situation and r.kind == "sqa3d" and r.scene_id for r in records)
    actions = read_records(shared / "samples" / "original" / "arkit_synth_test.json")
    for record in actions:
        learnt = parse(record.answer)
        assert learnt["scene"] == record.scene_id == record.action["scene"]
        for name in ("center", "normal", "extent"):
            assert learnt[name] == pytest.approx(record.action[name], abs=0.006)
