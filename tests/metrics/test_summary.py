"""The summary's figures on an example counted by hand, and the page that shows them."""

from html.parser import HTMLParser

import pytest
from PIL import Image

from jaxvlm.data.record import parse_record
from jaxvlm.metrics.answers import QuestionOnlyGuess
from jaxvlm.metrics.report import page
from jaxvlm.metrics.summary import COLUMNS, predictions, rows, summarize


def record(question, answers, kind="colour", **more):
    entry = {"images": ["a.png"], "question": question, "answers": answers, "kind": kind, **more}
    return parse_record(entry, "here:1")


RECORDS = [
    record("What color is the bed?", ["red"], question_id="q0", scene_id="s0"),
    record("What color is the sofa?", ["dark blue", "blue"]),
    record("Is there a bed?", ["yes"], "existence"),
    record("Is there a sofa?", ["no"], "existence", situation="I sit."),
]


@pytest.fixture
def scored():
    return predictions(RECORDS, ["red", "light blue", "yes", ""])


def test_predictions_keep_what_was_asked(scored):
    assert [p["exact_match"] for p in scored] == [True, False, True, False]
    assert [p["partial_match"] for p in scored] == [True, True, True, False]
    assert [p["index"] for p in scored] == [0, 1, 2, 3]
    assert scored[1]["references"] == ["dark blue", "blue"]
    assert scored[1]["reference"] == "dark blue"
    assert scored[0]["question_id"] == "q0" and scored[0]["scene_id"] == "s0"
    assert scored[3]["situation"] == "I sit." and scored[3]["prediction"] == ""
    with pytest.raises(ValueError):
        predictions(RECORDS, ["red"])


def test_a_summary_counted_by_hand(scored):
    other = predictions(RECORDS, ["red", "green", "no", "no"])
    training = [("q", "colour", "red"), ("Is there a bed?", "existence", "yes"),
                ("Is there a sofa?", "existence", "no")]  # fmt: skip
    summary = summarize(scored, other, QuestionOnlyGuess(training))
    assert summary == {
        "count": 4,
        "exact_match": 0.5,
        "partial_match": 0.75,
        "controls": {"other_images": 0.5, "question_only": 0.75},
        "kinds": {
            "colour": {
                "count": 2,
                "exact_match": 0.5,
                "partial_match": 1.0,
                "other_images": 0.5,
                "question_only": 0.5,
            },
            "existence": {
                "count": 2,
                "exact_match": 0.5,
                "partial_match": 0.5,
                "other_images": 0.5,
                "question_only": 1.0,
            },
        },
    }
    table = rows(summary)
    assert table[0] == ("colour", 2, "50.0%", "100.0%", "50.0%", "50.0%")
    assert table[-1] == ("all", 4, "50.0%", "75.0%", "50.0%", "75.0%")
    assert {len(row) for row in table} == {len(COLUMNS)}


def test_the_total_weighs_questions_not_kinds():
    records = [record("q", ["red"])] * 3 + [record("q", ["yes"], "existence")]
    scored = predictions(records, ["red", "red", "red", "no"])
    summary = summarize(scored, None, QuestionOnlyGuess([("q", "colour", "red")]))
    assert summary["exact_match"] == 0.75 == summary["controls"]["question_only"]


def test_controls_that_were_not_run_have_no_figure(scored):
    summary = summarize(scored, None, None)
    assert summary["controls"] == {"other_images": None, "question_only": None}
    assert rows(summary)[-1] == ("all", 4, "50.0%", "75.0%", "-", "-")


class Page(HTMLParser):
    """What a browser would see of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.images, self.text = set(), [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag == "img":
            self.images.append(dict(attrs)["src"])

    def handle_data(self, data):
        self.text += data


def test_hostile_text_stays_text(tmp_path):
    Image.new("RGBA", (900, 500), "red").save(tmp_path / "a.png")
    hostile = "<script>alert(1)</script><img src=x onerror=alert(2)>&\"'"
    one = record(hostile, [hostile], hostile, images=[str(tmp_path / "a.png")],
                 situation=hostile, scene_id=hostile)  # fmt: skip
    scored = predictions([one], [hostile])
    shown = Page(page(hostile, summarize(scored, scored, None), scored))
    assert "script" not in shown.tags
    # Title, headline, kind twice, room, situation with question, answer, reference.
    assert shown.text.count("alert(1)") >= 8
    assert len(shown.images) == 1 and shown.images[0].startswith("data:image/jpeg;base64,")


def test_the_page_shows_rooms_from_the_whole_split(tmp_path):
    records = []
    for room in range(60):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{room}.png")
        images = [str(tmp_path / f"{room}.png")]
        records += [record("q", ["red"], images=images, scene_id=f"room{room:02d}!")] * 2
    scored = predictions(records, ["red"] * 120)
    shown = Page(page("t", summarize(scored, None, None), scored))
    named = [room for room in range(60) if f"room{room:02d}!" in shown.text]
    assert len(named) == len(shown.images) == 24
    assert "24 of 60 image sets" in shown.text
    assert named[0] == 0 and named[-1] >= 40
