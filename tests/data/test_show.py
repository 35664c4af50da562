"""Showing a record: the box is drawn where it is, the text says what the record says."""

import json

import numpy as np
import pytest
from PIL import Image

from jaxvlm.data import show
from jaxvlm.errors import UserError


def run(*arguments) -> None:
    show.main(show.parser().parse_args([str(argument) for argument in arguments]))


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


def test_what_cannot_be_shown_is_named(records):
    with pytest.raises(UserError, match=r"--index 5: .* has the records 0 to 1"):
        run(records, "--index", 5)
    with pytest.raises(UserError, match=r"--output .* cannot be written"):
        run(records, "--output", records / "x.png")
