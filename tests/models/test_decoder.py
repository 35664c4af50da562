"""The decoder beside the training forward pass, token for token."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxvlm.models.decoder import Decoder, decoder_weights
from jaxvlm.models.qwen3 import Qwen3, Qwen3Config
from jaxvlm.models.tree import load, pure
from jaxvlm.paths import flatten, unflatten

TINY = Qwen3Config(
    vocab_size=61, hidden_size=24, num_layers=3, num_heads=6, num_kv_heads=2, head_dim=8,
    intermediate_size=40,
)  # fmt: skip
SLOTS = 24


def parameters(config) -> dict[str, jax.Array]:
    """Random, with matrices large enough that attention is not near uniform."""
    flat = flatten(pure(Qwen3(config, rngs=nnx.Rngs(0))))
    return {path: leaf if "norm" in path else 4 * leaf for path, leaf in flat.items()}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_logits_are_those_of_training_at_every_position(tied, dtype):
    """Ragged prompts are read at once, what follows token by token."""
    config = dataclasses.replace(TINY, tie_embeddings=tied)
    params = {path: leaf.astype(dtype) for path, leaf in parameters(config).items()}
    abstract = nnx.eval_shape(lambda: Qwen3(config, rngs=nnx.Rngs(0)))
    model = load(abstract, unflatten(params))
    decoder, weights = Decoder(config), decoder_weights(params, config.num_layers)
    tokens = np.random.default_rng(0).integers(0, 61, (4, 15)).astype(np.int32)
    prompts, length = np.array([5, 8, 1, 7]), 8
    places = jnp.broadcast_to(jnp.arange(15), tokens.shape)
    expected = model.logits(model(model.embed(tokens), places, jnp.ones_like(places)))
    rows = jnp.arange(4)

    padded = np.where(np.arange(length) < prompts[:, None], tokens[:, :length], 0)
    hidden, read = jax.jit(decoder.prefill)(weights, decoder.embed(weights, padded))
    cache = decoder.empty_cache(4, SLOTS, dtype)
    cache = jax.tree.map(lambda slots, new: slots.at[:, :, :length].set(new), cache, read)
    tolerance = {"atol": 1e-4, "rtol": 1e-4} if dtype == jnp.float32 else {"atol": 0.5}
    first = decoder.logits(weights, hidden)
    for row, count in enumerate(prompts):
        np.testing.assert_allclose(first[row, :count], expected[row, :count], **tolerance)
    step = jax.jit(decoder.step)
    for count in range(7):
        at = jnp.asarray(prompts + count)
        hidden, cache = step(weights, decoder.embed(weights, tokens[rows, at]), cache, at)
        assert hidden.dtype == dtype
        made = decoder.logits(weights, hidden)
        np.testing.assert_allclose(made, expected[rows, at], **tolerance)


def test_what_stands_in_later_slots_is_not_seen():
    decoder, weights = Decoder(TINY), decoder_weights(parameters(TINY), 3)
    x = decoder.embed(weights, jnp.array([3, 4]))
    clean = decoder.empty_cache(2, SLOTS, jnp.float32)
    dirty = jax.tree.map(lambda leaf: leaf.at[:, :, 6:].set(7.0), clean)
    slots = jnp.array([5, 2])
    found = [decoder.step(weights, x, cache, slots)[0] for cache in (clean, dirty)]
    np.testing.assert_array_equal(found[0][0], found[1][0])
    np.testing.assert_array_equal(found[0][1], found[1][1])
