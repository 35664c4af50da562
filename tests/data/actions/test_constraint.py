"""Constraints: every text that they allow is an action, whatever tokens it is made of."""

import random

import numpy as np
import pytest

from jaxvlm.data.actions import fields, language
from jaxvlm.data.actions.constraint import NOWHERE, ActionConstraints
from jaxvlm.data.tokenizer import load_tokenizer

TOKENIZER = load_tokenizer("jaxvlm:rooms")


def walk(rng, constraints, constraint, most=4000):
    """A random text: tokens that may follow, one after the other."""
    at, tokens = 0, []
    while len(tokens) < most:
        listed = [k for k, token in enumerate(constraint.tokens[at]) if token != NOWHERE]
        if constraint.plain[at] != NOWHERE and (not listed or rng.random() < 0.7):
            tokens.append(int(rng.choice(constraints.plain_ids)))
            at = constraint.plain[at]
            continue
        k = rng.choice(listed)
        if constraint.tokens[at, k] == TOKENIZER.end_id:
            return TOKENIZER.decode(tokens)
        tokens.append(int(constraint.tokens[at, k]))
        at = constraint.places[at, k]
    return None


@pytest.mark.parametrize("scene", ["s", "47333462", 'a "b" \\ ü'])
def test_whatever_follows_is_an_action_of_the_scene(scene):
    constraints, rng = ActionConstraints(TOKENIZER), random.Random(0)
    constraint = constraints.of(scene)
    for _ in range(200):
        text = walk(rng, constraints, constraint)
        action = language.parse(text)
        assert action["scene"] == scene
        assert len(TOKENIZER.encode([text])[0]) < constraint.longest
        assert language.problem(action) is None and np.isfinite(action["center"]).all()


def test_what_the_tokenizer_makes_of_an_action_is_allowed():
    """The tokens that are learnt are among those that may follow."""
    action = {"action": "place_anchor", "scene": "room_test_000007", "center": [1, -22.5, 0.07],
              "normal": [0.6, -0.8, 0], "extent": [0.5, 2, 1], "axis": [0, 1, 0]}  # fmt: skip
    constraint, at = ActionConstraints(TOKENIZER).of("room_test_000007"), 0
    for token in [*TOKENIZER.encode([language.write(action)])[0], TOKENIZER.end_id]:
        found = np.flatnonzero(constraint.tokens[at] == token)
        assert len(found) == 1
        at = constraint.places[at, found[0]]


def test_a_scenes_name_may_be_long():
    name = "scene_" * 200
    constraint = ActionConstraints(TOKENIZER).of(name)
    short = ActionConstraints(TOKENIZER).of("scene_")
    assert constraint.longest == short.longest + len(name) - len("scene_")


def test_a_text_of_free_words_is_allowed_and_has_no_bound():
    schema = language.Schema({"names": fields.TEXTS}, {"note": fields.TEXT})
    language.register("list_objects", schema)
    try:
        constraints, rng = ActionConstraints(TOKENIZER), random.Random(1)
        constraint = constraints.of("s")
        assert constraint.longest is None
        texts = [walk(rng, constraints, constraint) for _ in range(200)]
        found = [language.parse(text) for text in texts if text is not None]
        assert {action["action"] for action in found} == {"place_anchor", "list_objects"}
        assert any(len(action.get("names", ())) > 1 for action in found)
    finally:
        del language.ACTIONS["list_objects"]
