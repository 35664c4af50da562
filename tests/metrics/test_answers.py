"""Scores of single answers, and the guess from the question alone."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from jaxvlm.metrics.answers import QuestionOnlyGuess, exact_match, partial_match


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
    assert guess.from_kind("counting") == guess.from_text("How many?", "counting") == ""


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
    accuracy = QuestionOnlyGuess(EXAMPLES).accuracy(asked)
    assert accuracy == {"existence": pytest.approx(2 / 3), "counting": 0.0}
    accuracy = QuestionOnlyGuess(EXAMPLES).accuracy(asked[2:])
    assert accuracy == {"existence": 1.0, "counting": 0.0}
