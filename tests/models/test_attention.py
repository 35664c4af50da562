"""Attention, piece by piece and with gradients of its own, is attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvlm.models import attention as module
from jaxvlm.models.attention import attention

MASKS = {
    "none": None,
    "keys": (2, 1, 1, 11),
    "full": (2, 1, 19, 11),
    "of each head": (2, 4, 19, 11),
    "of one query nothing": (2, 1, 19, 11),
}


def made(kind, dtype=jnp.float32):
    """Queries of two heads for each key's, keys, values and a mask."""
    rng = np.random.default_rng(len(kind))
    query = jnp.asarray(rng.normal(size=(2, 19, 4, 8)), dtype)
    key, value = jnp.asarray(rng.normal(size=(2, 2, 11, 2, 8)), dtype)
    mask = MASKS[kind] and jnp.asarray(rng.random(MASKS[kind]) < 0.7).at[..., 0].set(True)
    if kind == "of one query nothing":
        mask = mask.at[:, :, 3].set(False)
    return (query, key, value), mask


def with_gradients(attend, given):
    """What is attended to, and the gradients of queries, keys and values."""

    def loss(*given):
        out = attend(*given)
        return (out.astype(jnp.float32) ** 2 * jnp.arange(out.shape[1])[:, None, None]).sum()

    return attend(*given), *jax.grad(loss, (0, 1, 2))(*given)


@pytest.mark.parametrize("queries", [1024, 5])
@pytest.mark.parametrize("kind", MASKS)
def test_attention_is_that_of_jax(monkeypatch, kind, queries):
    monkeypatch.setattr(module, "_QUERIES", queries)
    given, mask = made(kind)

    def reference(*given):
        return jax.nn.dot_product_attention(*given, mask=mask, implementation="xla")

    found = with_gradients(lambda *given: attention(*given, mask=mask), given)
    for ours, theirs in zip(found, with_gradients(reference, given), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_half_precision_loses_no_more_than_its_rounding():
    given, mask = made("full")
    halves = [x.astype(jnp.bfloat16) for x in given]

    def attend(*given):
        return attention(*given, mask=mask)

    exact = with_gradients(attend, [x.astype(jnp.float32) for x in halves])
    for half, whole in zip(with_gradients(attend, halves), exact, strict=True):
        assert half.dtype == jnp.bfloat16
        error = np.abs(half.astype(jnp.float32) - whole).max() / np.abs(whole).max()
        assert error < 0.02


@pytest.mark.parametrize("gradients", [False, True])
def test_the_scores_of_a_long_query_do_not_stand_at_once(gradients):
    length = 8192
    shape = jax.ShapeDtypeStruct((1, length, 1, 8), jnp.bfloat16)

    def loss(*given):
        return attention(*given).astype(jnp.float32).sum()

    function = jax.grad(loss, (0, 1, 2)) if gradients else attention
    compiled = jax.jit(function).lower(shape, shape, shape).compile()
    scores = 4 * length * length
    assert compiled.memory_analysis().temp_size_in_bytes < scores / 4
