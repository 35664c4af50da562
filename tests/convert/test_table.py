"""The name table: both directions undo each other, and nothing is lost or made up on the way."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from convert.table import (
    CONV,
    CONV_TRANSPOSE,
    LINEAR,
    SAME,
    Rule,
    linear,
    norm,
    to_jax,
    to_torch,
)
from jaxvlm.errors import UserError
from jaxvlm.paths import flatten, unflatten

RULES = [
    Rule("embed.weight", "embed/table"),
    *linear("blocks.{i}.fc", "blocks/fc"),
    *norm("norm", "norm"),
    Rule("conv.weight", "conv/kernel", CONV),
]
LAYERS = 3


def tensors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"embed.weight": (5, 4), "norm.weight": (4,), "norm.bias": (4,)}
    shapes["conv.weight"] = (2, 3, 5, 7)
    for layer in range(LAYERS):
        shapes |= {f"blocks.{layer}.fc.weight": (6, 4), f"blocks.{layer}.fc.bias": (6,)}
    return {key: rng.normal(size=shape).astype(np.float32) for key, shape in shapes.items()}


def tree() -> dict:
    shapes = {
        "embed/table": (5, 4),
        "blocks/fc/kernel": (LAYERS, 4, 6),
        "blocks/fc/bias": (LAYERS, 6),
        "norm/scale": (4,),
        "norm/bias": (4,),
        "conv/kernel": (5, 7, 3, 2),
    }
    return unflatten({path: np.empty(shape) for path, shape in shapes.items()})


def test_tensors_find_their_places():
    source = tensors()
    filled = to_jax(RULES, source, tree())
    x = np.random.default_rng(1).normal(size=4).astype(np.float32)
    for layer in range(LAYERS):
        theirs = source[f"blocks.{layer}.fc.weight"] @ x + source[f"blocks.{layer}.fc.bias"]
        fc = filled["blocks"]["fc"]
        np.testing.assert_allclose(x @ fc["kernel"][layer] + fc["bias"][layer], theirs, rtol=1e-5)
    np.testing.assert_array_equal(filled["norm"]["scale"], source["norm.weight"])
    assert filled["conv"]["kernel"][4, 6, 2, 1] == source["conv.weight"][1, 2, 4, 6]


def test_export_undoes_import():
    source = tensors()
    back = to_torch(RULES, to_jax(RULES, source, tree()))
    assert back.keys() == source.keys()
    for key in source:
        np.testing.assert_array_equal(back[key], source[key])
        assert back[key].flags.c_contiguous and back[key].dtype == source[key].dtype


@settings(deadline=None)
@given(st.sampled_from([CONV, CONV_TRANSPOSE]), st.tuples(*[st.integers(1, 4)] * 4))
def test_layouts_can_be_undone(layout, shape):
    value = np.random.default_rng(0).normal(size=shape)
    np.testing.assert_array_equal(layout.to_torch(layout.to_jax(value)), value)
    np.testing.assert_array_equal(layout.to_jax(layout.to_torch(value)), value)


def test_layouts_of_matrices():
    value = np.arange(6).reshape(2, 3)
    assert LINEAR.to_jax(value)[2, 1] == value[1, 2] == LINEAR.to_torch(value)[2, 1]
    np.testing.assert_array_equal(SAME.to_jax(value), value)


def without(tensors: dict, *keys: str) -> dict:
    return {key: value for key, value in tensors.items() if key not in keys}


@pytest.mark.parametrize(
    ("source", "rules", "message"),
    [
        (without(tensors(), "norm.bias"), RULES, r"missing: 'norm\.bias' \(for 'norm/bias'\)"),
        (without(tensors(), "blocks.1.fc.bias"), RULES, r"'blocks\.1\.fc\.bias'"),
        (
            {**tensors(), "head.weight": np.zeros(1), "blocks.3.fc.bias": np.zeros(6)},
            RULES,
            r"no place: .blocks\.3\.fc\.bias.[\s\S]*no place: .head\.weight.",
        ),
        (
            {**tensors(), "embed.weight": np.zeros((4, 5), np.float32)},
            RULES,
            r"^1 tensors .*\n.*'embed\.weight' has \[4, 5\].* expected \[5, 4\]",
        ),
        (tensors(), RULES[:-1], "0 rules .* fill the parameter .conv/kernel."),
    ],
)
def test_what_does_not_fit_is_named(source, rules, message):
    with pytest.raises(UserError, match=message):
        to_jax(rules, source, tree())


def test_only_what_is_named_is_ignored():
    source = {**tensors(), "track.a": np.zeros(1), "track.b": np.zeros(1)}
    to_jax(RULES, source, tree(), ignore=[r"track\..*"])
    with pytest.raises(UserError, match=r"1 tensors .*\n  no place: .track\.b."):
        to_jax(RULES, source, tree(), ignore=[r"track\.a", "rack.b", "track"])


def test_a_leaf_without_a_rule_cannot_be_exported():
    with pytest.raises(UserError, match=r"no rule .* exports the parameter 'head/kernel'"):
        to_torch(RULES, {"head": {"kernel": np.zeros(1)}})


NAMES = st.text("abc_0", min_size=1, max_size=3)
TREES = st.recursive(
    st.dictionaries(NAMES, st.integers(), min_size=1, max_size=3),
    lambda inner: st.dictionaries(NAMES, inner | st.integers(), min_size=1, max_size=3),
    max_leaves=10,
)


@given(TREES)
def test_paths_undo_each_other(nested):
    flat = flatten(nested)
    assert unflatten(flat) == nested
    assert not any(isinstance(leaf, dict) for leaf in flat.values())
