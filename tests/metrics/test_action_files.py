"""Files of actions: what is refused, and two compared of which some answers have no box."""

import json

import pytest

from jaxvlm import entry, evaluate
from jaxvlm.errors import UserError
from jaxvlm.metrics.action_summary import action_difference_rows, action_verdict
from jaxvlm.metrics.compare import compare
from jaxvlm.metrics.files import score_file

TRUE = {"action": "place_anchor", "scene": "s", "center": [1, 2, 0.5], "normal": [0, 1, 0],
        "extent": [1, 1, 0.5]}  # fmt: skip


def answers(*errors, **fields):
    """Lines whose centres are off by so much; None is no action."""
    return [
        {
            "prediction": "nothing"
            if e is None
            else json.dumps(TRUE | {"center": [1 + e, 2, 0.5]}),
            "reference": TRUE | {"scene": f"s{place}"},
            "question_id": str(place),
            **fields,
        }
        for place, e in enumerate(errors)
    ]


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def compared(tmp_path):
    def run(one, other):
        return compare(write(tmp_path / "a", one), write(tmp_path / "b", other))

    return run


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"extent": [1, 0, 1]}, r"a:2: reference.extent \[1, 0, 1\] must be positive metres"),
        ({"extent": ["1", "1", "1"]}, r"a:2: reference.extent must be a list of 3 numbers"),
        ({"extent": None}, "a:2: reference lacks extent"),
        ({"centre": [1, 2, 3]}, "a:2: reference.centre is unknown; did you mean 'center'"),
    ],
)
def test_a_true_action_that_is_none_is_refused(tmp_path, wrong, message):
    lines = answers(0.1, 0.1)
    lines[1]["reference"] |= wrong
    with pytest.raises(UserError, match=message):
        score_file(write(tmp_path / "a", lines), tmp_path / "o", "plain")
    # Written as a text it is an action all the same.
    lines[1]["reference"] = json.dumps(lines[1]["reference"])
    with pytest.raises(UserError, match=message):
        score_file(write(tmp_path / "a", lines), tmp_path / "o", "plain")
    lines[1]["reference"] = json.loads(lines[1]["reference"])
    # Of an action that nobody registered nothing is known.
    lines[1]["reference"] |= {"action": "other"}
    assert score_file(write(tmp_path / "a", lines), tmp_path / "o", "plain")["count"] == 2


def test_where_one_has_no_box_at_all_the_misses_decide(tmp_path, capsys):
    one = write(tmp_path / "a", answers(None, None, None, None))
    other = write(tmp_path / "b", answers(0.1, 0.1, 0.1, 0.9))
    flags = ["--compare", str(one), str(other), "--output", str(tmp_path / "o")]
    entry.run(evaluate.parser(), evaluate.main, flags)
    text = (tmp_path / "o" / "comparison.json").read_text()
    assert "NaN" not in text
    figures = json.loads(text)["figures"]
    nothing = dict.fromkeys(("first", "second", "difference", "interval"))
    assert figures["center_error"] == nothing | {"count": 0}
    assert figures["center_50cm"]["difference"] == 0.75
    shown = capsys.readouterr().out
    assert "nan" not in shown and "no box" in shown
    assert "centres within 50 cm: the second is better by 75.0 points" in shown
    assert "(no action has a box from both)" in shown


def test_errors_are_compared_where_both_have_a_box(compared):
    found = compared(answers(0.1, None, None, None), answers(0.05, 0.45, 0.45, 0.45))
    off = found["figures"]["center_error"]
    assert (off["first"], off["second"]) == pytest.approx((0.1, 0.05))
    # One line tells nothing about other scenes.
    assert off["count"] == 1 and off["interval"] is None
    assert found["figures"]["center_50cm"]["count"] == 4
    names = [row[0] for row in action_difference_rows(found)]
    assert "centre off by (mean), of 1 with both" in names and "centre within 50 cm" in names
    first, second = action_verdict(found).split("\n")
    assert first.startswith("centres within 50 cm: the second is better by 75.0 points")
    assert second.startswith("centre, of 1 action with a box from both: the second is better by 0")


def test_with_all_boxes_the_centres_decide(compared):
    found = compared(answers(0.4, 0.4, 0.4), answers(0.1, 0.1, 0.1))
    assert action_verdict(found) == "centre: the second is better by 0.30 m"
    assert found["figures"]["center_error"]["count"] == found["count"] == 3


def test_questions_and_actions_are_scored_apart(tmp_path):
    question = {"prediction": "red", "reference": "red", "question_id": "q"}
    mixed = write(tmp_path / "a", [*answers(0.1, 0.1), question])
    message = r"a holds 1 questions and 2 actions; score them apart"
    with pytest.raises(UserError, match=message):
        score_file(mixed, tmp_path / "o", "plain")
    assert not (tmp_path / "o").exists()
    with pytest.raises(UserError, match=message):
        compare(mixed, mixed)


def test_true_actions_are_compared_by_value(compared):
    one, other = answers(0.1, references=["one text"]), answers(0.1, references=["another"])
    other[0]["reference"] = TRUE | {"scene": "s0", "center": [1.0, 2.0, 0.5]}
    assert compared(one, other)["count"] == 1
    other[0] |= {"references": ["one text"], "reference": TRUE | {"scene": "s0", "extent": [2] * 3}}
    with pytest.raises(UserError, match=r"a:1 and .*b:1 have other references"):
        compared(one, other)


def test_true_actions_may_be_texts(tmp_path):
    objects = answers(0.1, 0.3)
    texts = [line | {"reference": json.dumps(line["reference"])} for line in objects]
    found = [
        score_file(write(tmp_path / "a", lines), tmp_path / "o", "plain")["center_error"]
        for lines in (objects, texts)
    ]
    assert found[0] == found[1] == pytest.approx(0.2)


def test_which_way_is_up_is_no_guess(tmp_path):
    with pytest.raises(UserError, match=r'a:1: .up. must be "z" or "y", found .Y.'):
        score_file(write(tmp_path / "a", answers(0.1, up="Y")), tmp_path / "o", "plain")
