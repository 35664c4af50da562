"""The page of actions: numbers that do not cover each other, and one name for one thing."""

import itertools
import json
import re

import numpy as np
import pytest
from PIL import Image, ImageDraw

from jaxvlm.data.record import parse_record
from jaxvlm.data.top_view import Name, Outline, Viewpoint, draw_top_view, write_names
from jaxvlm.metrics.action_page import PREDICTED, TRUE, page
from jaxvlm.metrics.action_summary import with_comparisons
from jaxvlm.metrics.lines import read_lines
from jaxvlm.metrics.scoring import score, summarize
from jaxvlm.metrics.summary import line_of

# At the origin, a camera that looks along +y, z up: right, down and forward of its image.
LOOKS = [1, 0, 0, 0, 0, 1, 0, -1, 0]
# Centres in centimetres, true and predicted: on each other, beside each other, far apart.
CENTRES = ([[0, 300, 0], [0, 300, 0]], [[5, 300, 0], [9, 300, 4]], [[-90, 250, 0], [90, 350, 0]])


@pytest.fixture
def written(monkeypatch):
    """The texts that are written: each with its colour and where its letters stand."""
    found = []
    write = ImageDraw.ImageDraw.text

    def spy(pen, at, text, fill=None, **style):
        letters = {name: style[name] for name in ("anchor", "font", "stroke_width")}
        box = pen.textbbox(at, text, **letters)
        found.append((text, fill, np.array(box) + style["stroke_width"] * np.array([1, 1, -1, -1])))
        write(pen, at, text, fill=fill, **style)

    def only_names(pen, at, text, **style):
        (spy if "stroke_width" in style else write)(pen, at, text, **style)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", only_names)
    return found


def apart(one, other) -> bool:
    return bool(
        one[0] >= other[2] or other[0] >= one[2] or one[1] >= other[3] or other[1] >= one[3]
    )


def answered(folder, centres=CENTRES, **fields):
    """Records of one scene, their scored lines, and a summary with a control and a baseline."""
    Image.new("RGB", (300, 200), "grey").save(folder / "0.png")
    shown = {
        "images": [str(folder / "0.png")],
        "image_size": [300, 200],
        "geom_token": {"R": [LOOKS], "t": [[0, 0, 0]], "K": [[200, 0, 150, 0, 200, 100, 0, 0, 1]]},
        "frame": "first_camera",
        "scene_id": "s",
        **fields,
    }
    records, lines = [], []
    for index, (true, said) in enumerate(centres):
        action = {"action": "place_anchor", "scene": "s", "center": [v / 100 for v in true],
                  "normal": [0, -1, 0], "extent": [0.8, 0.6, 0.5]}  # fmt: skip
        entry = {**shown, "instruction": f"Place it {index}.", "action_json": action}
        records.append(parse_record(entry, f"here:{index}"))
        answer = {"action": "place_anchor", "scene": "s", "center_cm": said,
                  "normal": [0, -100, 0], "extent_cm": [80, 60, 50]}  # fmt: skip
        line = line_of(index, records[-1], json.dumps(answer, separators=(",", ":")))
        lines.append(line | {"tokens": 58})
    path = folder / "lines.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    scores = score(read_lines(path))
    lines = [line | scores.of(i) for i, line in enumerate(read_lines(path))]
    own = summarize(scores)
    figures = {name: value for name, value in own.items() if isinstance(value, float)}
    return records, lines, with_comparisons(own, {"no_image": own}, {"largest_object": figures})


def test_true_and_predicted_numbers_do_not_cover_each_other(tmp_path, written):
    records, lines, summary = answered(tmp_path)
    page("t", summary, lambda: lines, lambda line: records[line["index"]])
    expected = [(str(n), colour) for colour in (TRUE, PREDICTED) for n in (1, 2, 3)]
    # The view's, then the plan's.
    for picture in (written[:6], written[6:]):
        assert [each[:2] for each in picture] == expected
        for one, other in itertools.combinations(picture, 2):
            assert apart(one[2], other[2])
        first = {colour: box for text, colour, box in picture if text == "1"}
        # They are about one place.
        assert first[TRUE][2] <= first[PREDICTED][0]


def test_the_plan_stays_a_rooms_whatever_is_predicted(tmp_path, written):
    """The numbers of true boxes stand where they stand without what is predicted far away."""
    plans = []
    for said in ([9, 300, 4], [9900, 300, 4]):
        written.clear()
        records, lines, summary = answered(tmp_path, [([5, 300, 0], said)])
        page("t", summary, lambda lines=lines: lines, lambda _, records=records: records[0])
        plans.append([each for each in written if each[1] == TRUE][-1][2])
        last = written[-1]
    np.testing.assert_allclose(*plans)
    assert re.fullmatch(r"1: 9\d m away", last[0]) and last[2].max() <= 420


def test_only_the_views_that_were_shown_are_on_the_page(tmp_path):
    """A run with two views of a room has not seen the third."""
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for path in paths:
        Image.new("RGB", (300, 200), "grey").save(path)
    geometry = {"R": [LOOKS] * 3, "t": [[0, 0, 0], [1, 0, 0], [2, 0, 0]],
                "K": [[200, 0, 150, 0, 200, 100, 0, 0, 1]] * 3}  # fmt: skip
    records, lines, summary = answered(tmp_path, images=[*map(str, paths)], geom_token=geometry)
    seen = [line | {"images": line["images"][:2]} for line in lines]
    text = page("t", summary, lambda: seen, lambda line: records[line["index"]])
    assert re.findall(r'alt="view (\d)"', text) == ["0", "1"]
    shown = records[0].first_views(2)
    np.testing.assert_array_equal(shown.poses()[1][:, 0], [0, 1])
    assert shown.learnt_action() == records[0].learnt_action()


def test_names_give_way_to_each_other_and_to_cameras(written):
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * 0.5
    names = [Outline(corners, "6", "#ff0000", aside=aside) for aside in (-1, 1, 0, -1, 1)]
    camera = Viewpoint(np.zeros(2), np.array([0.0, 1]), 0.5)
    image = draw_top_view(names, [camera], (300, 300))
    for one, other in itertools.combinations(written, 2):
        assert apart(one[2], other[2])
    # The camera's disc stands in the middle, whole.
    disc = [142, 142, 158, 158]
    assert len(written) == 5 and all(apart(box, disc) for _, _, box in written)
    assert image.getpixel((144, 150)) == (0xD6, 0x27, 0x28)


def test_names_stand_beside_their_place(written):
    image = Image.new("RGB", (100, 100))
    write_names(image, [Name("12", (50, 50), "#fff", aside) for aside in (-1, 1)], 16)
    (_, _, left), (_, _, right) = written
    assert left[2] <= 50 <= right[0]
    # On one line, as near as their white edges let them.
    assert left[1] == right[1] and right[0] - left[2] <= 8


def test_the_page_has_one_name_for_a_thing_and_no_lengths_of_answers(tmp_path):
    records, lines, summary = answered(tmp_path)
    text = page("t", summary, lambda: lines, lambda line: records[line["index"]])
    meant = re.search(r'<ul class="note">(.*?)</ul>', text)[1]
    rows = re.findall(r"<tr><td>([^<]*)", re.search(r"<table>(.*?)</table>", text)[1])
    assert rows == ["the model", "no image", "largest true object"]
    assert re.findall("<li>([^:]*):", meant) == rows[1:]
    assert "Distance between the centres" in text
    assert "Length of the answers" not in text and "tokens" not in text
