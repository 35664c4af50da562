"""Record files: read at random, whatever their layout; written whole; records survive both."""

import json
import pickle

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from jaxvlm.data.items import ItemFile
from jaxvlm.data.record import Record, parse_record, record_entry
from jaxvlm.data.records import RecordFile, open_records, read_records, write_records

TEXT = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12
).filter(str.strip)
SMALL = st.floats(-100, 100, width=32)
# Turned about the vertical and set elsewhere.
MOVED = np.array([[0.0, -1, 0, 2], [1, 0, 0, 3], [0, 0, 1, -1], [0, 0, 0, 1]])


@st.composite
def records(draw) -> Record:
    views = draw(st.integers(1, 3))
    widths = {"R": 9, "t": 3, "K": 9, "depth_hist": 16}
    geometry = None
    if draw(st.booleans()):
        geometry = {
            name: np.array(
                draw(st.lists(SMALL, min_size=views * width, max_size=views * width)), np.float32
            ).reshape(views, width)
            for name, width in widths.items()
        }
    answers = tuple(dict.fromkeys(a.strip() for a in draw(st.lists(TEXT, min_size=1, max_size=3))))
    return Record(
        images=tuple(draw(TEXT) for _ in range(views)),
        question=draw(TEXT).strip(),
        answer=answers[0],
        answers=answers,
        situation=draw(st.sampled_from(["", "I stand."])),
        geometry=geometry,
        image_size=draw(st.sampled_from([None, (640, 480)])),
        up=draw(st.sampled_from("zy")) if geometry else "z",
        frame=draw(st.sampled_from(["world", "first_camera"])) if geometry else "world",
        frame_to_world=draw(st.sampled_from([None, MOVED])),
        rendered=draw(st.booleans()),
        task="qa",
        kind=draw(st.sampled_from(["qa", "colour"])),
        scene_id=draw(TEXT),
        question_id=draw(st.sampled_from(["", "q-1"])),
        object_ids=draw(st.sampled_from([(), (3, 4), ("a",)])),
        object_names=draw(st.sampled_from([(), ("chair",)])),
        origin="here",
    )


def same(a: Record, b: Record) -> None:
    for name, value in vars(a).items():
        other = getattr(b, name)
        if name == "geometry" and value is not None:
            assert value.keys() == other.keys()
            for part in value:
                np.testing.assert_array_equal(value[part], other[part])
        elif isinstance(value, np.ndarray):
            np.testing.assert_array_equal(value, other)
        elif name != "origin":
            assert value == other, name


@settings(deadline=None, max_examples=100)
@given(record=records())
def test_a_record_survives_its_json(record):
    same(record, parse_record(json.loads(json.dumps(record_entry(record))), "here"))


def test_an_action_survives_its_json():
    action = {"action": "place_anchor", "scene": "s", "center": [1.5, 2, 3], "normal": [0, 1, 0]}
    record = Record(("a",), "Place it.", action=action, frame="first_camera", scene_id="s")
    again = parse_record(json.loads(json.dumps(record_entry(record))), "here")
    assert (again.question, again.action, again.frame) == ("Place it.", action, "first_camera")


ENTRIES = st.lists(
    st.fixed_dictionaries({"question": st.text(max_size=20), "n": st.lists(st.integers())}),
    min_size=1,
    max_size=12,
)
LAYOUTS = {
    "lines.jsonl": lambda e: "\n".join(map(json.dumps, e)),
    "unicode.jsonl": lambda e: "\n\n".join(json.dumps(x, ensure_ascii=False) for x in e) + "\n",
    "list.json": json.dumps,
    "pretty.json": lambda e: json.dumps(e, indent=2),
    "data.json": lambda e: json.dumps({"info": {"data": [1]}, "n": 3, "data": e, "more": []}),
    "samples.json": lambda e: json.dumps({"samples": e}, indent=1, ensure_ascii=False),
}


@settings(deadline=None, max_examples=60)
@given(entries=ENTRIES, layout=st.sampled_from(sorted(LAYOUTS)))
def test_items_are_found_in_every_layout(tmp_path_factory, entries, layout):
    # Lone surrogates cannot be written as they are.
    text = LAYOUTS[layout](entries).encode("utf-8", "replace")
    path = tmp_path_factory.mktemp("items") / layout
    path.write_bytes(text)
    items = ItemFile(path)
    assert [items.entry(i) for i in range(len(items))] == [
        json.loads(json.dumps(e, ensure_ascii=False).encode("utf-8", "replace")) for e in entries
    ]


def test_items_larger_than_the_reading_window(tmp_path):
    long = [
        {"question": "x" * size, "n": [[1, 2], {"a": ']}\\"'}]} for size in (5, 40_000, 300_000, 7)
    ]
    path = tmp_path / "long.json"
    path.write_text(json.dumps(long))
    items = ItemFile(path)
    assert [items.entry(i) for i in range(len(items))] == long


def test_lines_are_those_an_editor_shows(tmp_path):
    path = tmp_path / "pretty.json"
    path.write_text('[\n  {"a": 1},\n\n  {"a":\n 2}, {"a": 3}\n]\n')
    items = ItemFile(path)
    assert [items.origin(i) for i in range(3)] == [
        f"{path}:2 (item 0)", f"{path}:4 (item 1)", f"{path}:5 (item 2)"
    ]  # fmt: skip


def entry(number: int) -> dict:
    return {"images": ["a.png"], "question": f"Is it {number}?", "answer": "yes"}


def test_a_file_is_opened_without_reading_its_records(tmp_path):
    path = tmp_path / "many.jsonl"
    write_records(path, map(entry, range(2000)))
    file = RecordFile(path)
    assert len(file) == 2000 and file[1999].question == "Is it 1999?"
    # Workers are sent the places of records, never the records.
    assert len(pickle.dumps(file)) < 2000 * 3 * 8 + 2000
    again = pickle.loads(pickle.dumps(file))
    assert again[7].question == "Is it 7?"
    with pytest.raises(IndexError):
        file[2000]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_what_is_written_is_read(tmp_path, name):
    assert write_records(tmp_path / name, map(entry, range(3))) == 3
    assert [r.question for r in read_records(tmp_path / name)] == [f"Is it {i}?" for i in range(3)]
    assert len((tmp_path / name).read_text().splitlines()) == (3 if name == "a.jsonl" else 5)


def test_a_file_that_breaks_off_is_not_there(tmp_path):
    def entries():
        yield entry(0)
        raise RuntimeError("power cut")

    (tmp_path / "a.jsonl").write_text("before\n")
    with pytest.raises(RuntimeError):
        write_records(tmp_path / "a.jsonl", entries())
    assert (tmp_path / "a.jsonl").read_text() == "before\n"
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]
    # NaN is no JSON: better no file than one that others cannot read.
    with pytest.raises(ValueError, match="JSON compliant"):
        write_records(tmp_path / "b.jsonl", [{"t": float("nan")}])
    assert not (tmp_path / "b.jsonl").exists()


def test_patterns_name_several_files_in_order(tmp_path):
    for name in ("b.jsonl", "a.jsonl", "c.txt"):
        write_records(tmp_path / name, [entry(0)])
    assert [f.path.name for f in open_records(str(tmp_path / "*.jsonl"))] == ["a.jsonl", "b.jsonl"]
