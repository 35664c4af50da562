"""The geometry head against recorded outputs of the original, and its own invariants."""

import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from convert import projector as names
from convert import table
from jaxvlm.errors import UserError
from jaxvlm.models import tree
from jaxvlm.models.geometry import GeometryConfig, GeometryHead

RECORDED = load_file(
    pathlib.Path(__file__).parents[1] / "fixtures" / "original_projector_tiny.safetensors"
)
PARTS = ("R", "t", "K", "depth_hist")
FEATURES = np.concatenate([RECORDED[f"case/geom/{part}"] for part in PARTS], axis=-1)
WEIGHTS = {n.removeprefix("params/"): v for n, v in RECORDED.items() if "geom_head" in n}


def imported(mode: str) -> GeometryHead:
    config = GeometryConfig(mode=mode, out_dim=32, num_tokens=3)
    abstract = nnx.eval_shape(lambda: GeometryHead(config, rngs=nnx.Rngs(0)))
    arrays = table.to_jax(names.rules("geometry"), WEIGHTS, {"geometry": tree.pure(abstract)})[
        "geometry"
    ]
    return tree.load(abstract, jax.tree.map(jnp.asarray, arrays))


def test_pooled_tokens_equal_the_original():
    tokens = imported("pooled")(FEATURES)
    expected = np.repeat(RECORDED["case/geom_token"][:, None], 3, axis=1)
    np.testing.assert_allclose(tokens, expected, atol=1e-5)


def test_export_is_bit_exact():
    exported = table.to_torch(names.rules("geometry"), {"geometry": tree.pure(imported("pooled"))})
    assert set(exported) == set(WEIGHTS)
    for name, value in WEIGHTS.items():
        np.testing.assert_array_equal(exported[name], value)


def test_pooled_leaves_out_padding_views():
    head = imported("pooled")
    padded = FEATURES.copy()
    padded[0, 2] = np.nan
    padded[1, 1:] = np.nan
    tokens = head(padded, np.array([2, 1], np.int32))
    np.testing.assert_allclose(tokens[:1], head(FEATURES[:1, :2]), atol=1e-5)
    np.testing.assert_allclose(tokens[1:], head(FEATURES[1:, :1]), atol=1e-5)
    assert np.isfinite(head(FEATURES, np.zeros(2, np.int32))).all()


def test_per_view_makes_one_token_of_each_view():
    head, pooled = imported("per_view"), imported("pooled")
    tokens = head(FEATURES, np.array([3, 3], np.int32))
    assert tokens.shape == (2, head.config.tokens(3), 32) == (2, 3, 32)
    for view in range(3):
        alone = pooled(FEATURES[:, view : view + 1])[:, 0]
        np.testing.assert_allclose(tokens[:, view], alone, atol=1e-5)


def test_number_of_tokens():
    assert GeometryConfig().tokens(5) == 5
    assert GeometryConfig(mode="pooled").tokens(5) == 8


def test_full_size():
    abstract = nnx.eval_shape(lambda: GeometryHead(GeometryConfig(), rngs=nnx.Rngs(0)))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree.pure(abstract))) == 6_653_440


@pytest.mark.parametrize("mode", ["per_view", "pooled"])
def test_bfloat16_stays_bfloat16(mode):
    head = imported(mode)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), head)
    tokens, expected = half(FEATURES.astype(jnp.bfloat16)), head(FEATURES)
    assert tokens.dtype == jnp.bfloat16
    assert np.linalg.norm(tokens - expected) < 0.02 * np.linalg.norm(expected)


def test_an_unknown_mode_is_refused():
    with pytest.raises(UserError, match=r"geometry\.mode='each'.*per_view.*pooled"):
        GeometryConfig(mode="each")
