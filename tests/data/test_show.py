"""Showing a record: the box is drawn where it is, the text says what the record says."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image

from jaxvlm.config import load
from jaxvlm.data import show
from jaxvlm.data.training_set import training_rows
from jaxvlm.errors import UserError
from jaxvlm.training.features import cache_features


def run(*arguments, overrides=()) -> None:
    flags = show.parser().parse_args([str(argument) for argument in arguments])
    flags.overrides = list(overrides)
    show.main(flags)


@pytest.fixture
def records(tmp_path):
    Image.new("RGB", (640, 480), "white").save(tmp_path / "a.png")
    shared = {
        "images": ["a.png", "gone.png"],
        "image_size": [640, 480],
        "scene_id": "room 7",
        # Two cameras that look along +y, a metre and a half up.
        "geom_token": {
            "R": [[1, 0, 0, 0, 0, 1, 0, -1, 0]] * 2,
            "t": [[0, 0, 1.5], [1, 0, 1.5]],
            "K": [[500, 0, 320, 0, 500, 240, 0, 0, 1]] * 2,
            "depth_hist": [[0, 0, 0.2, 0.6, 0.2] + [0] * 11] * 2,
        },
    }
    box = {"center": [0, 4, 1.5], "normal": [0, -1, 0], "extent": [0.8, 0.4, 0.2]}
    action = {"action": "place_anchor", "scene": "room 7", **box}
    lines = [
        {**shared, "question": "What is it?", "answer": "chair", "answers": ["chair", "seat"]},
        {**shared, "instruction": "Place it.", "action_json": action, "object_names": ["box"]},
    ]
    path = tmp_path / "r.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return path


def test_a_question_is_told_in_words(records, capsys):
    run(records, "--output", records.parent / "out" / "q.png")
    printed = capsys.readouterr().out
    for words in ("r.jsonl:1", "room 7", "Question: What is it?", "Answer: chair", "or: seat"):
        assert words in printed
    assert "view 1: at 1.00 0.00 1.50 65° wide median depth about 2.2 m" in printed
    assert Image.open(records.parent / "out" / "q.png").width == 1280


def test_the_box_of_an_action_is_drawn_where_it_is_in_the_image(records):
    run(records, "--index", 1, "--output", records.parent / "a.png.out.png")
    picture = np.asarray(Image.open(records.parent / "a.png.out.png")).astype(int)
    side = (1280 - 10) // 2 - 10
    view = picture[10 : 10 + side * 480 // 640, 10 : 10 + side]
    green = (np.abs(view - (0, 200, 83)) < 60).all(-1)
    rows, columns = np.nonzero(green)
    scale = side / 640
    # Half of 0.8 m and of 0.4 m at 3.9 m, the nearer side.
    assert (columns.min(), columns.max()) == pytest.approx(
        ((320 - 51.3) * scale, (320 + 51.3) * scale), abs=3
    )
    assert (rows.min(), rows.max()) == pytest.approx(
        ((240 - 25.6) * scale, (240 + 25.6) * scale), abs=3
    )


def test_a_records_own_image_is_not_written_over(records):
    image = records.parent / json.loads(records.read_text().splitlines()[0])["images"][0]
    before = image.read_bytes()
    with pytest.raises(UserError, match="is one of the record's images"):
        run(records, "--output", image)
    assert image.read_bytes() == before


def test_what_cannot_be_shown_is_named(records):
    with pytest.raises(UserError, match=r"--index 5: .* has the records 0 to 1"):
        run(records, "--index", 5)
    with pytest.raises(UserError, match=r"--output .* cannot be written"):
        run(records, "--output", records / "x.png")


TINY = Path(tiny.__file__)


@pytest.fixture
def batch(tmp_path, capsys):
    """`(*overrides) -> (text, picture)` of a batch of the toy experiment."""
    path = tiny.write_records(tmp_path)

    def shown(*overrides, number=0):
        output = tmp_path / "batch.png"
        run(
            *("--config", TINY, "--batch", number, "--output", output),
            overrides=[f"data.train={path}", "data.row_length=120", *overrides],
        )
        return capsys.readouterr().out, np.asarray(Image.open(output).convert("RGB"))

    return shown


def test_a_batch_is_read_back_as_the_model_gets_it(batch):
    text, _ = batch()
    for name, shape in {
        "tokens": "[2, 120]",
        "images": "[2, 4, 56, 56, 3]",
        "label_weights": "[2, 12]",
        "geometry": "[2, 2, 2, 37]",
    }.items():
        assert re.search(rf"{name} +│ {re.escape(shape)} ", text)
    rows = training_rows(load(str(TINY), [f"data.train={_path(text)}", "data.row_length=120"]), 2)
    arrays = rows.batch(0, 2)
    for row, line in enumerate(re.findall(r"row \d: (.*)", text)):
        used = (arrays["segment_ids"][row] > 0).sum()
        views = arrays["view_counts"][row].sum()
        assert line.startswith(
            f"{used} of 120 tokens ({used / 120:.1%}), 2 of 2 image sets, {views} of 4 views, 4 sam"
        )
    samples = re.findall(r"segment \d+: tokens (\d+)-(\d+): (.*)", text)
    assert len(samples) == arrays["segment_ids"].max(1).sum()
    for group in rows.plan.row(0) + rows.plan.row(1):
        for index in group.samples:
            record = rows.builder.records[rows.builder.samples[index].record]
            said = f"{record.situation} {record.question}".strip()
            learnt = f"-> '{record.answer}<|im_end|>' (2 labels)"
            assert any(said in line and line.endswith(learnt) for _, _, line in samples)
    assert re.search(r"<image set [01]: 4 latents>", text)
    assert re.search(r"<image set [01]: 2 geometry \+ 4 latents>", text)


def _path(text: str) -> str:
    return re.search(r"batch 0 of (\S+)", text)[1]


def test_the_picture_shows_views_and_what_stands_where(batch):
    _, picture = batch()
    # Walls of the rooms that the first two rows show, and every kind of token.
    for colour in ("#4c78a8", "#f58518", "#9ecae9", "#54a24b", "#eeeeee"):
        wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (np.abs(picture.astype(int) - wanted).max(-1) < 3).sum() > 100, colour
    walls = [c for c in tiny.COLOURS.values() if (np.abs(picture - np.array(c)).max(-1) < 3).any()]
    assert len(walls) >= 4


def test_other_batches_are_other_samples(batch):
    assert batch(number=0)[0] != batch(number=1)[0]


def test_a_batch_of_cached_features_shows_their_images(tmp_path, batch):
    folder = f"data.features.folder={tmp_path / 'features'}"
    path = tmp_path / "records.jsonl"
    cache_features(load(str(TINY), [f"data.train={path}", folder]), 3)
    text, picture = batch(folder)
    assert re.search(r"features +│ \[2, 2, 42, 32\] +│ bfloat16", text)
    assert "42 cached features" in text and "images  " not in text
    walls = [c for c in tiny.COLOURS.values() if (np.abs(picture - np.array(c)).max(-1) < 3).any()]
    assert len(walls) >= 3


def test_a_batch_that_is_not_packed(batch):
    text, _ = batch("data.pack=False")
    assert "1 of 1 image sets, 2 of 2 views, 1 samples" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a record file, or --config"),
        (["r.jsonl", "--config", TINY, "--batch", 1], "--batch is of --config without a record"),
        (["--config", TINY, "--batch", -1], "--batch -1: batches are counted from 0"),
    ],
)
def test_what_to_show_must_be_clear(arguments, message):
    with pytest.raises(UserError, match=message):
        run(*arguments)


def test_fields_without_a_configuration_are_refused(records):
    with pytest.raises(UserError, match=r"--config.seed=3 is of a batch"):
        run(records, overrides=["seed=3"])
