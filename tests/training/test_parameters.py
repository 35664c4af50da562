"""The list of rules that says what learns, and how."""

import jax
import jax.numpy as jnp
import pytest

from jaxvlm.errors import UserError
from jaxvlm.training.parameters import Group, assign_groups, summary

RATES = {"language": 1e-3, "projector": 2e-4}
SHAPES = {
    path: jax.ShapeDtypeStruct(shape, jnp.float32)
    for path, shape in {
        "language/layers/mlp/kernel": (2, 4, 8),
        "language/layers/norm/scale": (2, 4),
        "projector/out_proj/bias": (4,),
        "vision/camera_token": (1, 2),
    }.items()
}


def test_the_first_rule_that_matches_wins():
    rules = (
        ("language/layers/norm/.*", "projector:no_decay"),
        ("language/.*", "language"),
        ("language/layers/.*", "frozen"),
        (".*", "frozen"),
    )
    assert assign_groups(rules, SHAPES, RATES) == {
        "language/layers/mlp/kernel": Group("language", True),
        "language/layers/norm/scale": Group("projector", False),
        "projector/out_proj/bias": Group("frozen", True),
        "vision/camera_token": Group("frozen", True),
    }


def test_a_rule_must_match_the_whole_path():
    with pytest.raises(UserError, match="no rule of 'parameters' matches 'vision/camera_token'"):
        assign_groups((("language/.*|projector/.*|vision", "language"),), SHAPES, RATES)


def test_an_unknown_group_is_named_with_the_known_ones():
    with pytest.raises(UserError, match=r"unknown group.*'frozen' and language, projector"):
        assign_groups(((".*", "langauge"),), SHAPES, RATES)
    with pytest.raises(UserError, match="unknown group"):
        assign_groups(((".*", "language:nodecay"),), SHAPES, RATES)


def test_no_trainable_parameter_is_an_error():
    with pytest.raises(UserError, match="no trainable parameters"):
        assign_groups(((".*", "frozen"),), SHAPES, RATES)


@pytest.mark.parametrize("rule", [("(", "language"), ("language",), ("language/.*", 3)])
def test_a_broken_rule_is_shown(rule):
    with pytest.raises(UserError, match="rule"):
        assign_groups((rule,), SHAPES, RATES)


def test_the_table_counts_tensors_and_parameters():
    rules = ((".*scale", "language:no_decay"), ("vision/.*", "frozen"), (".*", "language"))
    rows = summary(assign_groups(rules, SHAPES, RATES), SHAPES, RATES)
    assert ("language", "language", "0.001", 1, 64) in rows
    assert ("language", "language, no decay", "0.001", 1, 8) in rows
    assert ("vision", "frozen", "-", 1, 2) in rows
    assert sum(row[4] for row in rows) == 64 + 8 + 4 + 2
