"""Train and test: no room on both sides, the same kinds of questions, nothing twice."""

import json

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from scans import read_lines, run_script

from jaxvlm.data.audit.files import audit_file, check_shared_scenes
from jaxvlm.data.prep.split import split_by_scene, stratum
from jaxvlm.data.records import RecordFile
from jaxvlm.errors import UserError

WORDS = ("What", "Is", "How", "Can", "Which", "Where")


def row(scene: str, number: int, word: str = "What", **changes) -> dict:
    return {
        "images": [f"{scene}_bird.png"],
        "question": f"{word} is thing {number}?",
        "answer": "chair",
        "task": "sqa3d",
        "scene_id": scene,
        "question_id": f"{scene}-{number}",
        "unknown": {"kept": number},
        **changes,
    }


def write(path, rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def split(path, *flags):
    train, test = path.parent / "train.jsonl", path.parent / "test.jsonl"
    run_script("split_train_test", path, "--train", train, "--test", test, "--overwrite", *flags)
    return read_lines(train), read_lines(test)


ROOMS = st.lists(
    st.tuples(st.integers(1, 3), st.lists(st.sampled_from(WORDS), min_size=1, max_size=12)),
    min_size=2,
    max_size=25,
)


@settings(deadline=None, max_examples=40)
@given(rooms=ROOMS, ratio=st.floats(0.05, 0.6), seed=st.integers(0, 3))
def test_rooms_stay_together_and_every_distinct_row_is_somewhere_once(
    tmp_path_factory, rooms, ratio, seed
):
    rows = [
        row(f"scene{number:04}_{scan:02}", index, word)
        for number, (scans, words) in enumerate(rooms)
        for scan in range(scans)
        for index, word in enumerate(words)
    ]
    path = write(tmp_path_factory.mktemp("split") / "all.jsonl", rows + rows[::3])
    files = [RecordFile(path)]
    train, test, counts = split_by_scene(files, ratio, seed, {})
    assert counts["duplicates removed"] == len(rows[::3])
    assert len(train) + len(test) == len(rows) and not set(train) & set(test)
    sides = [{files[0][i].scene_id[:9] for _, i in side} for side in (train, test)]
    assert not sides[0] & sides[1] and sides[0] and sides[1]
    assert split_by_scene(files, ratio, seed, {})[:2] == (train, test)


def test_the_ratio_is_met_for_every_kind(tmp_path):
    # Rooms ask different things, so that rooms at random would not do.
    rows = [
        row(f"scene{n:04}_00", i, WORDS[(n + i * (n % 3)) % 6])
        for n in range(60)
        for i in range(5 + n % 17)
    ]
    train, test = split(write(tmp_path / "all.jsonl", rows), "--test-ratio", "0.2")
    assert len(test) / len(rows) == pytest.approx(0.2, abs=0.02)
    for word in WORDS:
        counts = [sum(r["question"].startswith(word) for r in side) for side in (train, test)]
        assert counts[1] / sum(counts) == pytest.approx(0.2, abs=0.04)
    assert all(r["unknown"] for r in train + test)


def test_the_originals_test_split_can_be_split_again(tmp_path, shared):
    source = shared / "samples" / "original" / "sqa3d_test_split.jsonl"
    train, test = tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    run_script("split_train_test", source, "--train", train, "--test", test)
    assert len(read_lines(train)) + len(read_lines(test)) == 3169
    found = [audit_file(RecordFile(path), ["."], False) for path in (train, test)]
    check_shared_scenes(found[:1], found[1:])
    assert found[1].counts()["scene-in-both"] == 0
    assert found[0].counts()["duplicate-row"] == found[1].counts()["duplicate-row"] == 0


def test_kinds_are_the_records_own_or_sqa3ds_types(tmp_path):
    rows = [row("a", 0, "Which"), row("a", 1, "Where"), row("a", 2, kind="colour")]
    records = RecordFile(write(tmp_path / "a.jsonl", rows))
    assert [stratum(r) for r in records] == ["sqa3d which", "sqa3d other", "sqa3d colour"]


def test_what_cannot_be_split_is_named(tmp_path):
    path = write(tmp_path / "all.jsonl", [row("scene0001_00", 0), row("scene0001_01", 1)])
    with pytest.raises(UserError, match="at least two rooms, found 1"):
        split(path)
    with pytest.raises(UserError, match=r"--test-ratio 1.5: expected a number between 0 and 1"):
        split(path, "--test-ratio", "1.5")
    write(path, [row("", 0), row("b", 1)])
    with pytest.raises(UserError, match=r"all.jsonl:1: splitting by scene needs a 'scene_id'"):
        split(path)
    with pytest.raises(UserError, match="is one of the files to split"):
        run_script("split_train_test", path, "--train", path, "--test", tmp_path / "t.jsonl")
    with pytest.raises(UserError, match="name the same file"):
        run_script("split_train_test", path, "--train", "x.jsonl", "--test", "x.jsonl")
