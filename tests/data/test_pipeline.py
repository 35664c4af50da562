"""The pipeline: the same rows from any start, for any number of processes, threads and workers."""

import itertools
import json
import subprocess
import sys

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from jaxvlm.config import default
from jaxvlm.data.pipeline import Rows, batches, training_rows, visual_layout
from jaxvlm.errors import UserError

ROWS = 24


def small(path, **data):
    config = default()
    config.text.tokenizer = "jaxvlm:rooms"
    config.text.max_length = 100
    config.model.projector.num_latents = 4
    config.data.train = ({"path": str(path), "weight": 1.0},)
    config.data.update(
        {"image_size": 14, "num_views": 3, "row_length": 150, "row_sets": 2, "row_labels": 20}
    )
    config.data.update(data)
    return config


@pytest.fixture(scope="module")
def rows(scenes_file) -> Rows:
    return training_rows(small(scenes_file), ROWS)


def same(left, right) -> None:
    for one, other in itertools.zip_longest(left, right):
        assert one is not None and other is not None, "one of the two ended earlier"
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@pytest.fixture(scope="module")
def whole(rows) -> list[dict]:
    return list(batches(rows, 4))


def test_batches_are_the_plans_rows_in_order(rows, whole):
    assert len(whole) == ROWS // 4
    for number, batch in enumerate(whole):
        for place in range(4):
            row = rows.builder.batch([rows.plan.row(4 * number + place)])
            same([{name: value[place : place + 1] for name, value in batch.items()}], [row])


@settings(max_examples=6, deadline=None)
@given(st.integers(0, ROWS // 4))
def test_a_resumed_run_reads_on_where_it_stopped(rows, whole, done):
    same(batches(rows, 4, first_row=4 * done), whole[done:])


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_a_global_batch(rows, whole, processes):
    slices = [batches(rows, 4, process=p, processes=processes) for p in range(processes)]
    joined = (
        {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        for parts in zip(*slices, strict=True)
    )
    same(joined, whole)


def test_a_run_may_go_on_with_another_number_of_processes(rows, whole):
    second = list(batches(rows, 4, first_row=8, process=1, processes=2))
    same(second, [{name: value[2:] for name, value in batch.items()} for batch in whole[2:]])


WORKERS = """
import sys
import numpy as np
from jaxvlm.config import load
from jaxvlm.data.pipeline import batches, training_rows

class Watched:
    def __init__(self, rows):
        self.rows = rows
    def __len__(self):
        return len(self.rows)
    def batch(self, *place):
        from jax._src import xla_bridge
        return {**self.rows.batch(*place), "backends": np.int32(len(xla_bridge._backends))}

if __name__ == "__main__":
    rows = training_rows(load(sys.argv[1]), 8)
    read = list(batches(Watched(rows), 4, num_workers=2))
    expected = list(batches(rows, 4))
    assert len(read) == len(expected) == 2
    for one, other in zip(read, expected):
        assert not one.pop("backends").any(), "a worker started a jax backend"
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
    print("equal")
"""


def test_worker_processes_read_the_same_and_start_no_backend(scenes_file, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(small(scenes_file).to_dict()))
    (tmp_path / "workers.py").write_text(WORKERS)
    command = [sys.executable, str(tmp_path / "workers.py"), str(tmp_path / "config.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip().endswith("equal"), done.stderr[-2000:]


def test_an_answer_is_needed_to_learn(tmp_path, scenes_file):
    line = json.loads(scenes_file.read_text().splitlines()[0])
    line.pop("answer")
    line["images"] = [str(scenes_file.parent / image) for image in line["images"]]
    path = tmp_path / "test.jsonl"
    path.write_text(json.dumps(line))
    with pytest.raises(UserError, match=r"test\.jsonl:1: a training record needs an 'answer'"):
        training_rows(small(path), 1)


def test_shortened_questions_are_counted(scenes_file, capsys):
    config = small(scenes_file)
    config.text.max_length = 24
    training_rows(config, 1)
    assert "questions were shortened" in capsys.readouterr().out


@pytest.mark.parametrize(("mode", "geometry"), [("per_view", 3), ("pooled", 8), ("none", 0)])
def test_the_layout_follows_the_configuration(scenes_file, mode, geometry):
    config = small(scenes_file)
    config.model.geometry.mode = mode
    layout = visual_layout(config)
    assert layout.size == geometry + 4
    shown = layout.index(2, has_geometry=True)
    assert len(shown) == min(geometry, 2 if mode == "per_view" else 8) + 4
    assert len(layout.index(2, has_geometry=False)) == 4


def absolute(line: dict, scenes_file) -> dict:
    return {**line, "images": [str(scenes_file.parent / image) for image in line["images"]]}


def written(path, lines) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_records_without_their_images_are_left_out_if_so_asked(tmp_path, scenes_file):
    lines = [absolute(json.loads(x), scenes_file) for x in scenes_file.read_text().splitlines()]
    lines[0]["images"] = ["nowhere.png"]
    path = written(tmp_path / "records.jsonl", lines)
    with pytest.raises(UserError, match=r"records.jsonl:1: the image 'nowhere.png'"):
        training_rows(small(path), 1)
    rows = training_rows(small(path, on_bad_record="skip"), 1)
    assert len(rows.builder.samples) == len(lines) - 1


@pytest.mark.parametrize("is_action", [True, False])
def test_view_dropout_differs_from_epoch_to_epoch_and_spares_an_actions_frame(
    tmp_path, scenes_file, is_action
):
    lines = [absolute(json.loads(x), scenes_file) for x in scenes_file.read_text().splitlines()]
    line = next(line for line in lines if len(line["images"]) == 3)
    if is_action:
        line["action_json"] = {"action": "look"}
    rows = training_rows(small(written(tmp_path / "one.jsonl", [line]), view_dropout=0.6), 40)
    assert rows.plan.rows_in_epoch(0) == 1
    kept = {tuple(rows.plan.row(row)[0].views) for row in range(40)}
    assert len(kept) > 2
    assert all(views[0] == 0 for views in kept) == is_action


def test_views_that_are_never_shown_are_counted(scenes_file, capsys):
    training_rows(small(scenes_file, num_views=2), 1)
    assert "have more than data.num_views=2 images" in capsys.readouterr().out
    training_rows(small(scenes_file, num_views=3), 1)
    assert "num_views" not in capsys.readouterr().out
