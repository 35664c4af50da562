"""The projector against recorded outputs of the original, and its own invariants."""

import dataclasses
import functools
import json
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
from jaxvlm.models.perceiver import Perceiver, PerceiverConfig

FIXTURE = pathlib.Path(__file__).parents[1] / "fixtures" / "original_projector_tiny"


@functools.cache
def recorded() -> dict[str, np.ndarray]:
    return load_file(FIXTURE.with_suffix(".safetensors"))


@functools.cache
def imported(**changes) -> Perceiver:
    """The fixture's projector, with fields of its configuration changed."""
    sizes = json.loads(FIXTURE.with_suffix(".json").read_text())["config"]
    config = PerceiverConfig(**sizes | {"dropout": 0.0} | changes)
    abstract = nnx.eval_shape(lambda: Perceiver(config, rngs=nnx.Rngs(0)))
    tensors = {name.removeprefix("params/"): value for name, value in recorded().items()}
    ignored = ["case/.*", r"geom_head\..*"]
    shapes = {"projector": tree.pure(abstract)}
    arrays = table.to_jax(names.rules("projector"), tensors, shapes, ignored)["projector"]
    return tree.load(abstract, jax.tree.map(jnp.asarray, arrays))


@functools.partial(jax.jit, static_argnames="remat")
def run(model, context, lengths=None, key=None, remat="none"):
    return model(context, lengths, dropout_key=key, remat=remat)


def context() -> np.ndarray:
    return recorded()["case/aggregated_tokens"]


@pytest.fixture(params=[True, False], ids=["latents", "keys"], autouse=True)
def side(request, monkeypatch):
    """Where keys and values are made, whatever these sizes would choose."""
    monkeypatch.setattr(PerceiverConfig, "reads_as_latents", request.param)
    imported.cache_clear()
    yield
    imported.cache_clear()


@pytest.mark.parametrize("choice", ["all", "first"])
def test_tokens_equal_the_original(choice):
    tokens = run(imported(context=choice), context())
    np.testing.assert_allclose(tokens, recorded()["case/visual_tokens"], atol=1e-5)


def test_export_is_bit_exact():
    exported = table.to_torch(names.rules("projector"), {"projector": tree.pure(imported())})
    source = {n.removeprefix("params/"): v for n, v in recorded().items() if "/projector." in n}
    assert set(exported) == set(source)
    for name, value in source.items():
        np.testing.assert_array_equal(exported[name], value)


def test_full_size():
    abstract = nnx.eval_shape(lambda: Perceiver(PerceiverConfig(), rngs=nnx.Rngs(0)))
    shapes = table.flatten(tree.pure(abstract))
    assert sum(math.prod(leaf.shape) for leaf in shapes.values()) == 1_227_684_352


def test_padding_does_not_matter():
    model, tokens = imported(), context()
    lengths = np.array([13, 20])
    real = np.arange(20) < lengths[:, None]
    garbage = np.where(real[..., None], tokens, 1e4).astype(np.float32)
    out = run(model, garbage, lengths)
    np.testing.assert_allclose(out[0], run(model, tokens[:1, :13])[0], atol=1e-5)
    np.testing.assert_allclose(out[1], run(model, tokens)[1], atol=1e-5)


def test_a_set_without_context_gives_finite_tokens_and_gradients():
    def loss(model):
        return jnp.square(run(model, context(), np.zeros(2, int))).sum()

    value, gradient = jax.jit(jax.value_and_grad(loss))(imported())
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_first_reads_only_the_first_tokens():
    tokens = context()
    first = run(imported(context="first", context_tokens=7), tokens, np.full(2, 20))
    np.testing.assert_allclose(first, run(imported(), tokens[:, :7]), atol=1e-5)


def test_dropout_follows_its_key():
    still, dropping, tokens = imported(), imported(dropout=0.5), context()
    one, two = jax.random.split(jax.random.key(0))
    np.testing.assert_array_equal(run(still, tokens, key=one), run(still, tokens))
    np.testing.assert_array_equal(run(dropping, tokens), run(still, tokens))
    np.testing.assert_array_equal(run(dropping, tokens, key=one), run(dropping, tokens, key=one))
    assert np.abs(run(dropping, tokens, key=one) - run(dropping, tokens, key=two)).max() > 0.01


def test_padding_does_not_matter_where_weights_are_dropped():
    model, tokens, key = imported(dropout=0.3), context(), jax.random.key(1)
    lengths = np.array([13, 0])
    garbage = np.where(np.arange(20)[:, None] < lengths[:, None, None], tokens, 1e4)
    garbage[1, 0] = tokens[1, 0]
    for other in (garbage, garbage * 2 - np.where(garbage == 1e4, 0, garbage)):
        out = run(model, other.astype(np.float32), lengths, key=key)
        np.testing.assert_allclose(out, run(model, tokens, lengths, key=key), atol=1e-5)


def test_dropout_keeps_the_mean_of_attention():
    """With dropped weights the expected attention output is the output without dropout."""
    layer = jax.tree.map(lambda leaf: leaf[0], imported(dropout=0.3).layers.attn)
    latents = jax.random.normal(jax.random.key(1), (1, 4, 64))
    tokens = jax.random.normal(jax.random.key(2), (1, 20, 64))
    keys = jax.random.split(jax.random.key(3), 1000)
    drawn = jax.jit(jax.vmap(lambda key: layer(latents, tokens, None, key)))(keys)
    expected = layer(latents, tokens, None, None)
    noise = drawn.std(axis=0) / math.sqrt(len(keys))
    assert (np.abs(drawn.mean(axis=0) - expected) < 6 * noise).all()
    assert noise.max() > 0


def test_remat_changes_no_gradient_and_every_leaf_has_one():
    def gradient(remat):
        def loss(model):
            return jnp.square(model(context(), remat=remat)).sum()

        return jax.jit(jax.grad(loss))(imported())

    expected = table.flatten(tree.pure(gradient("none")))
    assert all(np.abs(value).max() > 0 for value in expected.values())
    for remat in ("full", "dots"):
        for path, value in table.flatten(tree.pure(gradient(remat))).items():
            np.testing.assert_allclose(value, expected[path], rtol=1e-4, atol=1e-4, err_msg=path)


def test_bfloat16_stays_bfloat16():
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), imported())
    tokens = run(half, context().astype(jnp.bfloat16))
    expected = recorded()["case/visual_tokens"]
    assert tokens.dtype == jnp.bfloat16
    assert np.linalg.norm(tokens - expected) < 0.02 * np.linalg.norm(expected)
    assert run(half, context()).dtype == jnp.float32
    assert run(imported(), context().astype(jnp.bfloat16)).dtype == jnp.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"context": "last"}, "perceiver.context='last'.*all.*first"),
        ({"num_heads": 7}, "perceiver.latent_dim=4096.*perceiver.num_heads=7"),
        ({"dropout": 1.0}, "perceiver.dropout=1.0"),
    ],
)
def test_a_wrong_field_is_refused_by_name(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(PerceiverConfig(), **change)
