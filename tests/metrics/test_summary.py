"""The summary's figures on an example counted by hand, and the page that shows them."""

import json
from html.parser import HTMLParser

import pytest
from PIL import Image

from jaxvlm.data.record import parse_record
from jaxvlm.metrics.files import write_scored
from jaxvlm.metrics.guess import QuestionOnlyGuess
from jaxvlm.metrics.lines import read_lines
from jaxvlm.metrics.report import page
from jaxvlm.metrics.scoring import score, summarize
from jaxvlm.metrics.summary import figure_tables, line_of, table, with_controls


def record(question, answers, kind="colour", **more):
    entry = {"images": ["a.png"], "question": question, "answers": answers, "kind": kind, **more}
    return parse_record(entry, "here:1")


RECORDS = [
    record("What color is the bed?", ["red"], question_id="q0", scene_id="s0"),
    record("What color is the sofa?", ["dark blue", "blue"]),
    record("Is there a bed?", ["yes"], "existence"),
    record("Is there a sofa?", ["no"], "existence", situation="I sit."),
]


def lines_of(records, answers, path):
    """Scored lines, as `read_lines` gives them, and their summary."""
    lines = [line_of(i, *each) for i, each in enumerate(zip(records, answers, strict=True))]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    scores = score(read_lines(path))
    write_scored(path, scores, path)
    return list(read_lines(path)), summarize(scores)


@pytest.fixture
def answered(tmp_path):
    return lambda *answers: lines_of(RECORDS, answers, tmp_path / "lines.jsonl")


def test_lines_keep_what_was_asked(answered):
    lines, _ = answered("red", "light blue", "yes", "")
    assert [line["exact_match"] for line in lines] == [True, False, True, False]
    assert [line["partial_match"] for line in lines] == [True, True, True, False]
    assert [line["index"] for line in lines] == [0, 1, 2, 3]
    assert lines[1]["references"] == ["dark blue", "blue"]
    assert lines[1]["reference"] == "dark blue"
    assert lines[0]["question_id"] == "q0" and lines[0]["scene_id"] == "s0"
    # A record that names no scene is of its first image.
    assert lines[3]["scene_id"] == "a.png"
    assert lines[3]["situation"] == "I sit." and lines[3]["prediction"] == ""


def test_a_summary_counted_by_hand(answered):
    _, other = answered("red", "green", "no", "no")
    lines, own = answered("red", "light blue", "yes", "")
    training = [("q", "colour", "red"), ("Is there a bed?", "existence", "yes"),
                ("Is there a sofa?", "existence", "no")]  # fmt: skip
    summary = with_controls(own, {"other_images": other}, QuestionOnlyGuess(training), lines)
    assert next(iter(summary)) == "headline"
    assert summary["headline"] == "EM 50.0%, other images 50.0%, question only 75.0%"
    assert (summary["count"], summary["em"], summary["em_r"]) == (4, 0.5, 0.75)
    controls = {"no_image": None, "other_images": 0.5, "question_only": 0.75}
    assert summary["controls"] == controls
    assert summary["kinds"]["colour"]["controls"] == controls | {"question_only": 0.5}
    assert summary["kinds"]["existence"]["controls"] == controls | {"question_only": 1.0}
    columns, rows = table(summary)
    assert columns == ("kind", "questions", "EM", "EM-R", "exact", "partial", "other images",
                       "question only")  # fmt: skip
    assert rows[0] == ("colour", "2", "50.0%", "100.0%", "50.0%", "100.0%", "50.0%", "50.0%")
    assert rows[-1] == ("all", "4", "50.0%", "75.0%", "50.0%", "75.0%", "50.0%", "75.0%")


def test_data_sets_have_figures_controls_and_intervals_of_their_own(tmp_path):
    """Kinds may be the same; the guess for one is better by its text here, by its kind there."""
    first = [record(f"q{n}", [str(n)], "what", task="first", scene_id=f"a{n}") for n in range(3)]
    second = [
        record(f"r{n}", ["two"], "what", task="second", scene_id=f"b{n % 2}") for n in range(2)
    ]
    records = [*first, *second]
    lines, own = lines_of(records, ["0", "1", "2", "two", "x"], tmp_path / "lines.jsonl")
    _, other = lines_of(records, ["0", "x", "x", "x", "x"], tmp_path / "other.jsonl")
    training = [*((f"q{n}", "what", str(n)) for n in range(3)), *[("q", "what", "x")] * 2]
    summary = with_controls(own, {"other_images": other}, QuestionOnlyGuess(training), lines)
    one, two = (summary["tasks"][name] for name in ("first", "second"))
    assert (one["em"], two["em"], one["scenes"], two["scenes"]) == (1, 0.5, 3, 2)
    assert (one["intervals"]["em"], two["intervals"]["em"]) == ((1, 1), (0, 1))
    assert summary["intervals"]["em"] == (0.4, 1)
    assert one["controls"]["other_images"] == pytest.approx(1 / 3)
    # By the text all of the first are known, and none of the second.
    assert one["controls"]["question_only"] == 1 and two["controls"]["question_only"] == 0
    assert summary["controls"]["question_only"] == pytest.approx(3 / 5)
    _, rows = table(summary)
    assert [row[0] for row in rows] == ["what", "all of first", "all of second", "all"]
    titles = [title for title, _ in figure_tables(summary)]
    assert titles[1].startswith("All figures, all of first (3 scenes")
    values = [dict(row[:2] for row in rows)["EM"] for _, rows in figure_tables(summary)]
    assert values == ["80.0", "100.0", "50.0"]
    assert "all of second" in page("t", summary, lambda: lines)


def test_the_total_weighs_questions_not_kinds(tmp_path):
    records = [record("q", ["red"])] * 3 + [record("q", ["yes"], "existence")]
    lines, own = lines_of(records, ["red", "red", "red", "no"], tmp_path / "lines.jsonl")
    guess = QuestionOnlyGuess([("q", "colour", "red")])
    summary = with_controls(own, {}, guess, lines)
    assert summary["em"] == 0.75 == summary["controls"]["question_only"]


def test_controls_that_were_not_run_are_not_shown(answered):
    lines, own = answered("red", "light blue", "yes", "")
    summary = with_controls(own, {}, None, lines)
    assert set(summary["controls"].values()) == {None}
    assert summary["headline"] == "EM 50.0%"
    columns, rows = table(summary)
    assert columns[-1] == "partial" and len(rows[-1]) == len(columns)


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
    lines, own = lines_of([one], [hostile], tmp_path / "lines.jsonl")
    summary = with_controls(own, {"other_images": own}, None, lines)
    shown = Page(page(hostile, summary, lambda: lines))
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
    lines, own = lines_of(records, ["red"] * 120, tmp_path / "lines.jsonl")
    shown = Page(page("t", with_controls(own, {}, None, lines), lambda: lines))
    named = [room for room in range(60) if f"room{room:02d}!" in shown.text]
    assert len(named) == len(shown.images) == 24
    assert "24 of 60 image sets" in shown.text
    assert named[0] == 0 and named[-1] >= 40
