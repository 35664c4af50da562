"""Attention of long queries, piece by piece, is attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvlm.models import attention as module
from jaxvlm.models.attention import attention


@pytest.mark.parametrize("kind", ["none", "keys", "full"])
@pytest.mark.parametrize("length", [16, 19])
def test_pieces_attend_as_the_whole(monkeypatch, kind, length):
    rng = np.random.default_rng(length)
    query = jnp.asarray(rng.normal(size=(2, length, 4, 8)), jnp.float32)
    key, value = jnp.asarray(rng.normal(size=(2, 2, 11, 2, 8)), jnp.float32)
    shapes = {"none": None, "keys": (2, 1, 1, 11), "full": (2, 1, length, 11)}
    mask = shapes[kind] and jnp.asarray(rng.random(shapes[kind]) < 0.7).at[..., 0].set(True)

    def loss(query, key, value):
        return (attention(query, key, value, mask=mask) ** 2).sum()

    results = []
    for most in (1024, 5):
        monkeypatch.setattr(module, "_QUERIES", most)
        out = attention(query, key, value, mask=mask)
        results.append((out, *jax.grad(loss, (0, 1, 2))(query, key, value)))
    for whole, pieces in zip(*results, strict=True):
        np.testing.assert_allclose(pieces, whole, rtol=1e-5, atol=1e-6)


def test_the_scores_of_a_long_query_do_not_stand_at_once():
    length = 8192
    shape = jax.ShapeDtypeStruct((1, length, 1, 8), jnp.bfloat16)
    compiled = jax.jit(attention).lower(shape, shape, shape).compile()
    scores = 4 * length * length
    assert compiled.memory_analysis().temp_size_in_bytes < scores / 2
