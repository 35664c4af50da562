"""Scores of single answers, and the guess from the question alone."""

import json
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given

from jaxvlm.metrics.answers import cleaned, em, em_r, exact_match, partial_match
from jaxvlm.metrics.guess import QuestionOnlyGuess

CASES = [
    json.loads(line)
    for line in (Path(__file__).parent / "answer_cases.jsonl").read_text().splitlines()
]


@pytest.mark.parametrize("case", CASES, ids=[case["why"] for case in CASES])
def test_answers_are_counted_as_the_rules_say(case):
    for measure in (exact_match, partial_match, em, em_r):
        right = measure(case["prediction"], case["references"])
        assert right is case[measure.__name__], measure.__name__


@given(st.text(max_size=20), st.lists(st.text(max_size=8), max_size=3))
def test_em_is_em_r_and_nothing_is_never_right(prediction, references):
    assert em_r(prediction, references) or not em(prediction, references)
    assert not em("", references) and not em_r(" . ", references)


@given(st.lists(st.sampled_from(["sofa", "brown", "left", "window"]), min_size=1))
def test_plain_words_are_clean(words):
    assert cleaned(" ".join(words)) == " ".join(words)


@pytest.mark.parametrize(
    ("prediction", "references", "exact", "partial"),
    [
        ("chair", ["chair"], True, True),
        (" Chair \n", ["chair"], True, True),
        ("chair", ["table", "Chair"], True, True),
        ("brown chair", ["chair"], False, True),
        ("chair", ["brown chair"], False, True),
        ("table", ["chair"], False, False),
        ("chair", [], False, False),
        ("", ["chair"], False, False),
        ("  ", ["chair"], False, False),
        ("", [""], False, False),
    ],
)
def test_matches(prediction, references, exact, partial):
    assert exact_match(prediction, references) is exact
    assert partial_match(prediction, references) is partial


@given(st.text(max_size=8), st.lists(st.text(max_size=8), max_size=3))
def test_an_exact_match_is_a_partial_one(prediction, references):
    assert partial_match(prediction, references) or not exact_match(prediction, references)


EXAMPLES = [
    ("Is there a bed?", "existence", "no"),
    ("Is there a bed?", "existence", "no"),
    ("Is there a sofa?", "existence", "yes"),
    ("Is there a lamp?", "existence", "yes"),
    ("Is there a desk?", "existence", "Yes"),
    ("What color is it?", "colour", "red"),
    ("What color is it?", "colour", "blue"),
]


def test_the_guess_knows_the_training_sets_majorities():
    guess = QuestionOnlyGuess(EXAMPLES)
    assert guess.from_text("is there a bed? ", "existence") == "no"
    assert guess.from_text("Is there a piano?", "existence") == "yes"
    # However it is written: three times yes beats twice no.
    assert guess.from_kind("existence") == "yes"
    # Of a kind that it does not know it says what is right most often.
    assert guess.from_kind("counting") == guess.from_text("How many?", "counting") == "yes"
    assert QuestionOnlyGuess([]).from_kind("counting") == ""


@given(st.permutations(EXAMPLES))
def test_the_guess_does_not_depend_on_the_order(examples):
    one, other = QuestionOnlyGuess(EXAMPLES), QuestionOnlyGuess(examples)
    for question, kind, _ in EXAMPLES:
        assert one.from_text(question, kind) == other.from_text(question, kind)
        assert one.from_kind(kind) == other.from_kind(kind)


def test_each_kind_counts_the_better_of_both_guesses():
    asked = [
        # The kind's majority is right twice, the question's own once.
        ("Is there a bed?", "existence", ["yes"]),
        ("Is there a bed?", "existence", ["yes"]),
        ("Is there a bed?", "existence", ["no"]),
        # Neither knows this kind.
        ("How many?", "counting", ["two"]),
    ]
    guess = QuestionOnlyGuess(EXAMPLES)
    assert guess.right(asked).tolist() == [True, True, False, False]
    assert guess.right(asked[2:]).tolist() == [True, False]
    assert not len(guess.right([]))
