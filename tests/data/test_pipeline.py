"""The pipeline: the same rows from any start, for any number of processes, threads and workers."""

import dataclasses
import itertools
import json
import os
import shutil
import subprocess
import sys

import hypothesis.strategies as st
import numpy as np
import psutil
import pytest
from hypothesis import assume, given, settings
from PIL import Image
from waiting import until

from jaxvlm.config import default
from jaxvlm.data.augment import Augment
from jaxvlm.data.pipeline import batches
from jaxvlm.data.plan import VERSION
from jaxvlm.data.training_set import Rows, row_capacity, training_rows, visual_layout
from jaxvlm.errors import UserError
from jaxvlm.planning.inputs import batch_shapes

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


@settings(max_examples=200, deadline=None)
@given(st.integers(0, ROWS // 4), st.sampled_from([1, 2, 4]), st.integers(1, 2))
def test_a_resumed_run_reads_on_where_it_stopped(rows, whole, done, processes, fewer):
    """Stopped anywhere, and continued by any number of processes with batches of any size."""
    size = 4 // fewer
    assume(size % processes == 0)
    slices = [
        batches(rows, size, first_row=4 * done, process=p, processes=processes)
        for p in range(processes)
    ]
    read = [joined(parts) for parts in zip(*slices, strict=True)]
    read = [joined(read[i : i + fewer]) for i in range(0, len(read), fewer)]
    same(read, whole[done:])


def joined(parts) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_a_global_batch(rows, whole, processes):
    slices = [batches(rows, 4, process=p, processes=processes) for p in range(processes)]
    same((joined(parts) for parts in zip(*slices, strict=True)), whole)


def test_a_run_may_go_on_with_another_number_of_processes(rows, whole):
    second = list(batches(rows, 4, first_row=8, process=1, processes=2))
    same(second, [{name: value[2:] for name, value in batch.items()} for batch in whole[2:]])


RESUMED = """
import sys
import numpy as np
from jaxvlm.config import load
from jaxvlm.data.pipeline import batches
from jaxvlm.data.plan import VERSION
from jaxvlm.data.training_set import training_rows

if __name__ == "__main__":
    rows = training_rows(load(sys.argv[1]), 24)
    whole = list(batches(rows, 4))
    for before, after, stop in ((0, 1, 3), (1, 2, 2), (2, 0, 5), (2, 1, 1), (1, 1, 4), (0, 2, 0)):
        first = batches(rows, 4, num_workers=before)
        read = [next(first) for _ in range(stop)]
        first.close()
        rest = batches(rows, 4, first_row=4 * stop, num_workers=after)
        read += list(rest)
        rest.close()
        assert len(read) == len(whole) == 6, (before, after, stop)
        for one, other in zip(read, whole):
            for name in other:
                np.testing.assert_array_equal(one[name], other[name])
    print("equal")
"""


@pytest.mark.slow
def test_worker_counts_may_change_between_stop_and_resume(scenes_file, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(small(scenes_file).to_dict()))
    (tmp_path / "resumed.py").write_text(RESUMED)
    command = [sys.executable, str(tmp_path / "resumed.py"), str(tmp_path / "config.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.stdout.strip().endswith("equal"), done.stderr[-2000:]


WORKERS = """
import sys
import numpy as np
from jaxvlm.config import load
from jaxvlm.data.pipeline import batches
from jaxvlm.data.plan import VERSION
from jaxvlm.data.training_set import training_rows

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
    assert "questions and instructions lost their end" in capsys.readouterr().err


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
        box = {"center": [0, 1, 0], "normal": [0, 1, 0], "extent": [1, 1, 1]}
        line["action_json"] = {"action": "place_anchor", "scene": line["scene_id"], **box}
    config = small(written(tmp_path / "one.jsonl", [line]), view_dropout=0.6, row_labels=140)
    config.text.max_length = config.data.row_length = 240
    rows = training_rows(config, 40)
    assert rows.plan.rows_in_epoch(0) == 1
    kept = {tuple(rows.plan.row(row)[0].views) for row in range(40)}
    assert len(kept) > 2
    assert all(views[0] == 0 for views in kept) == is_action


def test_views_that_are_never_shown_are_counted(scenes_file, capsys):
    training_rows(small(scenes_file, num_views=2), 1)
    assert "have more than data.num_views=2 images" in capsys.readouterr().out
    training_rows(small(scenes_file, num_views=3), 1)
    assert "num_views" not in capsys.readouterr().out


def test_rows_of_one_sample_are_padded_to_a_bucket(scenes_file):
    rows = training_rows(small(scenes_file, pack=False), 13)
    assert rows.plan.rows_in_epoch(0) == 13 == len(rows.builder.samples)
    shapes = set()
    for batch in batches(rows, 2):
        length, labels = batch["tokens"].shape[1], batch["labels"].shape[1]
        longest = (batch["segment_ids"] > 0).sum(1).max()
        assert batch["segment_ids"].max() == 1 and batch["view_counts"].shape[1] == 1
        assert longest <= length < longest + 64 and (length % 64 == 0 or length == 150)
        assert labels % 16 == 0 or labels == 20
        shapes.add(length)
    assert len(shapes) > 0


def test_processes_agree_on_the_length_of_rows_that_are_not_packed(scenes_file):
    config = small(scenes_file, pack=False)
    rows = training_rows(config, 12)
    rows = dataclasses.replace(rows, plan=rows.plan)
    slices = [batches(rows, 4, process=p, processes=4) for p in range(4)]
    for parts in zip(*slices, strict=True):
        assert len({part["tokens"].shape for part in parts}) == 1


@pytest.fixture
def own_images(scenes_file, tmp_path):
    """A copy of the record file and its images, to be taken away."""
    shutil.copytree(scenes_file.parent, tmp_path / "own")
    return tmp_path / "own" / scenes_file.name


def test_an_image_that_vanishes_stops_the_stream_or_leaves_its_samples_out(own_images, capfd):
    strict, skipping = (
        training_rows(small(own_images, on_bad_record=policy), ROWS) for policy in ("error", "skip")
    )
    whole = list(batches(skipping, 4))
    (own_images.parent / "scene3_0.png").unlink()
    with pytest.raises(UserError, match=r"records.jsonl:\d+: .*scene3_0.png' cannot be read"):
        list(batches(strict, 4))
    read = list(batches(skipping, 4))
    assert "scene3_0.png" in capfd.readouterr().err
    samples, records = skipping.builder.samples, skipping.builder.records
    for index in range(ROWS):
        one, before = (
            {name: value[index % 4] for name, value in batches[index // 4].items()}
            for batches in (read, whole)
        )
        groups = skipping.plan.row(index)
        scenes = [records[samples[group.samples[0]].record].scene_id for group in groups]
        gone = [scene == "scene3" for scene in scenes]
        lost = sum(len(g.samples) for g, away in zip(groups, gone, strict=True) if away)
        assert one["lost"] == lost and before["lost"] == 0
        np.testing.assert_array_equal(one["tokens"], before["tokens"])
        labels = [np.count_nonzero(row["label_weights"]) for row in (one, before)]
        assert (labels[0] < labels[1]) == any(gone)
        for number, away in enumerate(gone):
            shown, whole_shown = (images_of(row, number) for row in (one, before))
            if away:
                assert len(shown) == 0 < len(whole_shown)
            else:
                np.testing.assert_array_equal(shown, whole_shown)
        assert not one["images"][one["view_counts"].sum() :].any()


def images_of(row: dict, number: int) -> np.ndarray:
    """The images of a set of a row."""
    end = row["view_counts"][: number + 1].sum()
    return row["images"][end - row["view_counts"][number] : end]


def test_changes_of_images_are_the_same_after_a_stop(scenes_file):
    config = small(scenes_file)
    config.data.augment.update({"color_jitter": 0.4, "random_crop": 0.3})
    plain, changed, again = (
        list(batches(training_rows(c, ROWS), 4)) for c in (small(scenes_file), config, config)
    )
    same(changed, again)
    same(changed[3:], batches(training_rows(config, ROWS), 4, first_row=12))
    assert any((a["images"] != b["images"]).any() for a, b in zip(plain, changed, strict=True))


def test_windows_move_the_intrinsics_along_and_are_drawn_for_every_row(scenes_file):
    config = small(scenes_file)
    config.data.augment.random_crop = 0.4
    rows = training_rows(config, ROWS)
    reader = rows.builder.reader
    assert reader.augment == Augment(color_jitter=0.0, random_crop=0.4)
    windows = {}
    for index in range(ROWS):
        geometry = rows.batch(index, index + 1)["geometry"][0]
        for number, group in enumerate(rows.plan.row(index)):
            record = rows.builder.records[rows.builder.samples[group.samples[0]].record]
            changes = reader.augment.draw(group.seed, len(group.views))
            windows.setdefault(record.scene_id, set()).add(changes[0].window)
            if record.geometry is None:
                continue
            for slot, (view, change) in enumerate(zip(group.views, changes, strict=True)):
                k = record.geometry["K"][view].reshape(3, 3)
                expected = reader.framing.intrinsics(k, *record.image_size, change.window)
                np.testing.assert_allclose(geometry[number, slot, 12:21], expected.ravel())
    assert all(len(drawn) > 3 for drawn in windows.values())


def test_the_plan_is_the_same_on_every_machine(scenes_file, tmp_path):
    """Processes of one job may run on different processors: what numpy uses of them must not tell.

    Where this plan has changed, raise `plan.VERSION`: a run that was begun before must not go on.
    """
    program = tmp_path / "plan.py"
    program.write_text(
        "import hashlib\n"
        "import numpy as np\n"
        "from jaxvlm.data.packing import Capacity\n"
        "from jaxvlm.data.plan import Plan\n"
        "from jaxvlm.data.sequence import Sample\n"
        "from jaxvlm.data.views import RandomViews\n"
        "rng = np.random.default_rng(0)\n"
        "sizes = rng.integers(5, 60, 3000)\n"
        "samples = [Sample(np.zeros(n, np.int32), np.zeros(1, np.int32), np.zeros(3, np.int32),\n"
        "                  i, i // 30, views=8) for i, n in enumerate(sizes.tolist())]\n"
        "plan = Plan(samples, [(1.0, range(3000))], Capacity(4096, 3, 999, 256, 10),\n"
        "            lambda views, known: 128, RandomViews(most=8, dropout=0.3), 0)\n"
        "rows = [plan.row(i) for i in range(plan.rows_in_epoch(0))]\n"
        "print(len(rows), hashlib.sha256(repr(rows).encode()).hexdigest()[:16])\n"
    )
    made = set()
    for disabled in ("", "X86_V3 X86_V4 AVX512_ICL AVX512_SPR", "AVX512F AVX2"):
        done = subprocess.run(
            [sys.executable, str(program)],
            capture_output=True,
            text=True,
            env={**os.environ, "NPY_DISABLE_CPU_FEATURES": disabled},
        )
        assert done.returncode == 0, done.stderr[-2000:]
        made.add(done.stdout.strip())
    assert (VERSION, *made) == (1, "128 f7d4b0108964e969")


def test_rows_have_places_for_the_views_that_dropout_leaves(scenes_file):
    """Stage 1's 20 of 24; or as many as are asked for, or as sets can have."""
    stage1 = {"num_views": 8, "row_sets": 3, "view_dropout": 0.3}
    for places, changes in (
        (20, {}),
        (24, {"view_dropout": 0.0}),
        (27, {"row_sets": 4}),
        (8, {"row_sets": 1}),
        (16, {"row_views": 16}),
        (24, {"row_views": 99}),
        (8, {"pack": False}),
        (24, {"features": {"folder": "cache"}}),
        (24, {"features": {"folder": "cache"}, "row_views": 16}),
    ):
        data = default().data
        data.update({**stage1, **changes})
        assert row_capacity(data).views == places, changes
    config = small(scenes_file, row_views=4)
    batch = training_rows(config, 8).batch(0, 8)
    shapes = batch_shapes(config, 8)
    assert batch["images"].shape == shapes["images"].shape == (8, 4, 14, 14, 3)
    assert (batch["view_counts"].sum(axis=1) <= 4).all() and batch["view_counts"].sum() > 16


def test_how_full_rows_are(rows):
    usage = rows.usage()
    assert usage.samples == 13 and usage.rows == rows.plan.rows_in_epoch(0)
    batch = rows.batch(0, usage.rows)
    assert usage.tokens == (batch["segment_ids"] > 0).mean()
    assert usage.sets == (batch["view_counts"] > 0).mean()
    assert usage.views == batch["view_counts"].sum() / (len(batch["tokens"]) * 6)


@pytest.mark.slow
def test_a_worker_ends_with_its_parent(scenes_file, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(small(scenes_file).to_dict()))
    program = """
import os, signal, sys
import psutil
from jaxvlm.config import load
from jaxvlm.data.pipeline import batches
from jaxvlm.data.plan import VERSION
from jaxvlm.data.training_set import training_rows

if __name__ == "__main__":
    read = batches(training_rows(load(sys.argv[1]), 400), 4, num_workers=1)
    next(read)
    print(*[child.pid for child in psutil.Process().children(recursive=True)], flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    (tmp_path / "killed.py").write_text(program)
    command = [sys.executable, str(tmp_path / "killed.py"), str(tmp_path / "config.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    children = [int(pid) for pid in done.stdout.split()]
    assert children, done.stderr[-2000:]
    until(lambda: not any(psutil.pid_exists(pid) for pid in children), 30)


def test_no_room_for_the_visual_tokens_is_said(scenes_file):
    config = small(scenes_file)
    config.model.projector.num_latents = 128
    with pytest.raises(UserError, match=r"131 visual tokens leave no room.*text.max_length=100"):
        training_rows(config, 4)


@pytest.mark.slow
def test_a_hundred_thousand_records_stream_through_in_flat_memory(tmp_path):
    """Ten questions about each of 10,000 scenes of eight views; what grows is not by the record."""
    rng = np.random.default_rng(0)
    for image in range(64):
        Image.new("RGB", (28, 28), (4 * image, 100, 100)).save(tmp_path / f"{image}.png")
    with (tmp_path / "large.jsonl").open("w") as file:
        for scene in range(10_000):
            images = [f"{image}.png" for image in rng.permutation(64)[:8]]
            for question in range(10):
                line = {"images": images, "question": f"What is {question}?", "answer": "red"}
                file.write(json.dumps({**line, "scene_id": f"scene{scene}"}) + "\n")
    config = small(tmp_path / "large.jsonl", num_views=8, row_length=600, row_sets=3, pack=True)
    config.data.row_labels = 100
    process = psutil.Process()
    rows = training_rows(config, 10**6)
    count = rows.plan.rows_in_epoch(0)
    samples, memory = 0, []
    stream = batches(dataclasses.replace(rows, count=count), 1)
    for number, batch in enumerate(stream):
        samples += batch["segment_ids"].max()
        if number % (count // 10) == count // 10 - 1:
            memory.append(process.memory_info().rss / 2**20)
    assert samples == 100_000
    assert max(memory) - memory[0] < 30, memory
