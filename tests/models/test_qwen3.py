"""Qwen3 against transformers on tiny random models, and its own invariants."""

import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from convert import qwen3 as names
from convert import table
from jaxvlm.errors import UserError
from jaxvlm.models import tree
from jaxvlm.models.qwen3 import Qwen3, Qwen3Config

TINY = Qwen3Config(
    vocab_size=61,
    hidden_size=32,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    intermediate_size=48,
    rope_theta=1e4,
)
VARIANTS = {
    "tied": {},
    "untied": {"tie_word_embeddings": False},
    "one query a key": {"num_key_value_heads": 4, "rope_theta": 5e6},
    "four queries a key": {"num_key_value_heads": 1, "rope_theta": 1e6},
}


@functools.cache
def reference(variant: str):
    """A random transformers model whose norms are not all one, and its config.json as a dict."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    fields = {
        "vocab_size": TINY.vocab_size,
        "hidden_size": TINY.hidden_size,
        "num_hidden_layers": TINY.num_layers,
        "num_attention_heads": TINY.num_heads,
        "num_key_value_heads": TINY.num_kv_heads,
        "head_dim": TINY.head_dim,
        "intermediate_size": TINY.intermediate_size,
        "rope_theta": TINY.rope_theta,
        "tie_word_embeddings": True,
        "attn_implementation": "eager",
    }
    torch.manual_seed(0)
    model = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**fields | VARIANTS[variant]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Larger than 0.02, so that attention is not near uniform.
            parameter.normal_(mean=float("norm" in name), std=0.2)
    return model.eval(), model.config.to_dict()


def tensors_of(model) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in model.state_dict().items()}


@functools.cache
def imported(variant: str) -> Qwen3:
    hf, config_json = reference(variant)
    config, tensors = Qwen3Config.from_hf(config_json), tensors_of(hf)
    abstract = nnx.eval_shape(lambda: Qwen3(config, rngs=nnx.Rngs(0)))
    ignored = names.ignored(config, tensors)
    arrays = table.to_jax(names.rules(config), tensors, tree.pure(abstract), ignored)
    return tree.load(abstract, jax.tree.map(jnp.asarray, arrays))


@functools.cache
def tiny() -> Qwen3:
    """A random model with matrices large enough that attention is not near uniform."""
    model = Qwen3(TINY, rngs=nnx.Rngs(0))
    parameters = table.flatten(tree.pure(model))
    larger = {path: x if "norm" in path else 5 * x for path, x in parameters.items()}
    return tree.load(model, table.unflatten(larger))


@jax.jit
def hidden_states(model, tokens, positions, segment_ids):
    return model(model.embed(tokens), positions, segment_ids)


def alone(model, tokens) -> np.ndarray:
    """Hidden states [T, D] of one unpadded text."""
    tokens = np.asarray(tokens, np.int32)[None]
    positions = np.arange(tokens.shape[1], dtype=np.int32)[None]
    return np.asarray(hidden_states(model, tokens, positions, np.ones_like(tokens)))[0]


def padded(texts, width: int):
    """Ragged texts as right-padded tokens, positions and segments [B, width]."""
    tokens = np.zeros((len(texts), width), np.int32)
    segments = np.zeros_like(tokens)
    for row, text in enumerate(texts):
        tokens[row, : len(text)] = text
        segments[row, : len(text)] = 1
    return tokens, np.broadcast_to(np.arange(width, dtype=np.int32), tokens.shape), segments


def packed(texts, width: int):
    """Texts one after the other in one row, segments from 1; the rest is padding."""
    tokens, positions, segments = np.zeros((3, 1, width), np.int32)
    end = 0
    for number, text in enumerate(texts, start=1):
        part = slice(end, end + len(text))
        tokens[0, part], positions[0, part] = text, np.arange(len(text))
        segments[0, part] = number
        end += len(text)
    return tokens, positions, segments


def random_texts(*lengths: int) -> list[np.ndarray]:
    draw = np.random.default_rng(0)
    return [draw.integers(0, TINY.vocab_size, length) for length in lengths]


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_transformers(variant):
    torch = pytest.importorskip("torch")
    tokens = np.stack(random_texts(11, 11)).astype(np.int32)
    with torch.no_grad():
        expected = reference(variant)[0](torch.from_numpy(tokens).long()).logits.numpy()
    model = imported(variant)
    positions = np.broadcast_to(np.arange(11, dtype=np.int32), tokens.shape)
    logits = model.logits(hidden_states(model, tokens, positions, np.ones_like(tokens)))
    assert logits.dtype == jnp.float32
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_positions_far_out_equal_transformers():
    torch = pytest.importorskip("torch")
    tokens = np.stack(random_texts(7)).astype(np.int32)
    positions = (200_000 + 1000 * np.arange(7, dtype=np.int32))[None]
    hf, model = reference("one query a key")[0], imported("one query a key")
    with torch.no_grad():
        expected = hf.model(
            torch.from_numpy(tokens).long(), position_ids=torch.from_numpy(positions).long()
        ).last_hidden_state.numpy()
    hidden = hidden_states(model, tokens, positions, np.ones_like(tokens))
    # The angles themselves have float32 steps of 0.016 radians here.
    np.testing.assert_allclose(hidden, expected, atol=5e-3)


@pytest.mark.parametrize("variant", ["tied", "untied"])
def test_export_is_bit_exact_and_loads_in_transformers(variant, tmp_path):
    torch = pytest.importorskip("torch")
    safetensors = pytest.importorskip("safetensors.torch")
    hf, _ = reference(variant)
    model = imported(variant)
    exported = table.to_torch(names.rules(model.config), tree.pure(model))
    source = tensors_of(hf)
    tied = {"lm_head.weight"} if model.config.tie_embeddings else set()
    assert set(source) - set(exported) == tied and set(exported) <= set(source)
    for name, value in exported.items():
        np.testing.assert_array_equal(value, source[name])
    parts = {name: torch.from_numpy(value.copy()) for name, value in exported.items()}
    if not tied:
        hf.load_state_dict(parts, strict=True)
    hf.config.save_pretrained(tmp_path)
    safetensors.save_file(parts, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded, info = type(hf).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    torch.testing.assert_close(loaded.state_dict(), hf.state_dict(), rtol=0, atol=0)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert Qwen3Config.from_hf(saved) == model.config


def test_tied_head_is_ignored_only_if_it_equals_the_embeddings():
    embeddings = np.ones((2, 3))
    tensors = {"model.embed_tokens.weight": embeddings}
    assert names.ignored(TINY, tensors) == []
    assert names.ignored(TINY, tensors | {"lm_head.weight": embeddings}) == [r"lm_head\.weight"]
    with pytest.raises(UserError, match="tie_word_embeddings"):
        names.ignored(TINY, tensors | {"lm_head.weight": 2 * embeddings})


def test_published_size():
    config = Qwen3Config.from_hf(
        {
            "model_type": "qwen3",
            "vocab_size": 151936,
            "hidden_size": 2560,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "intermediate_size": 9728,
            "rms_norm_eps": 1e-6,
            "rope_theta": 5000000,
            "rope_scaling": None,
            "sliding_window": None,
            "tie_word_embeddings": True,
        }
    )
    abstract = nnx.eval_shape(lambda: Qwen3(config, rngs=nnx.Rngs(0)))
    shapes = table.flatten(tree.pure(abstract))
    assert sum(math.prod(leaf.shape) for leaf in shapes.values()) == 4_022_468_096
    assert set(shapes) == {rule.path for rule in names.rules(config)}


def test_packed_texts_have_the_states_they_have_alone():
    model, texts = tiny(), random_texts(5, 1, 7)
    row = np.asarray(hidden_states(model, *packed(texts, 16)))[0]
    assert np.isfinite(row).all()
    expected = np.concatenate([alone(model, text) for text in texts])
    np.testing.assert_allclose(row[:13], expected, atol=1e-5)


def test_a_token_changes_only_itself_and_what_follows_in_its_segment():
    model, texts = tiny(), random_texts(5, 4, 4)
    before = np.asarray(hidden_states(model, *packed(texts, 16)))[0]
    texts[1][1] = (texts[1][1] + 1) % TINY.vocab_size
    after = np.asarray(hidden_states(model, *packed(texts, 16)))[0]
    changed = (before != after).any(axis=-1)
    np.testing.assert_array_equal(np.flatnonzero(changed), [6, 7, 8])


def test_padding_changes_nothing():
    model, texts = tiny(), random_texts(5)
    tokens, positions, segments = padded(texts, 8)
    before = np.asarray(hidden_states(model, tokens, positions, segments))
    tokens[0, 5:] = 7
    after = np.asarray(hidden_states(model, tokens, positions, segments))
    np.testing.assert_array_equal(before[0, :5], after[0, :5])
    assert (before[0, 5:] != after[0, 5:]).any()


def test_remat_changes_no_gradient():
    inputs = packed(random_texts(5, 4), 10)

    @functools.partial(jax.jit, static_argnames="remat")
    def gradient(model, remat):
        def loss(model):
            x = model(model.embed(inputs[0]), *inputs[1:], remat=remat)
            return jax.nn.logsumexp(model.logits(x)).mean()

        return jax.grad(loss)(model)

    expected = table.flatten(tree.pure(gradient(tiny(), "none")))
    assert all(np.abs(value).max() > 0 for value in expected.values())
    for remat in ("full", "dots"):
        actual = table.flatten(tree.pure(gradient(tiny(), remat)))
        for path, value in expected.items():
            np.testing.assert_allclose(actual[path], value, rtol=1e-5, atol=1e-6, err_msg=path)


def test_bfloat16_stays_bfloat16():
    model, inputs = tiny(), packed(random_texts(5, 4), 10)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), model)
    hidden, expected = hidden_states(half, *inputs), hidden_states(model, *inputs)
    assert hidden.dtype == jnp.bfloat16 and half.logits(hidden).dtype == jnp.float32
    assert jnp.linalg.norm(hidden - expected) / jnp.linalg.norm(expected) < 0.03


def test_mixed_dtypes_compute_in_the_wider_one():
    model, (tokens, positions, segments) = tiny(), packed(random_texts(5), 5)
    x = model.embed(tokens)
    assert model(x.astype(jnp.bfloat16), positions, segments).dtype == jnp.float32
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), model)
    assert half(x, positions, segments).dtype == jnp.float32


CONFIG_JSON = {
    "vocab_size": 8,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "intermediate_size": 8,
    "rms_norm_eps": 1e-6,
}


@pytest.mark.parametrize(
    "fields",
    [
        {"rope_theta": 7},
        {"rope_theta": 7, "rope_scaling": None},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}},
        {"rope_scaling": {"type": "default"}, "rope_theta": 7.0},
    ],
)
def test_rope_theta_is_found(fields):
    config = Qwen3Config.from_hf(CONFIG_JSON | fields)
    assert config.rope_theta == 7 and not config.tie_embeddings


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "rope_theta"),
        ({"rope_theta": 7, "rope_parameters": {"rope_theta": 8}}, "one rope_theta"),
        ({"rope_theta": 7, "rope_scaling": {"type": "yarn"}}, "rope_scaling asks for 'yarn'"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 7}}, "parameters.*'linear'"),
        ({"rope_theta": 7, "use_sliding_window": True}, "use_sliding_window"),
        ({"rope_theta": 7, "layer_types": ["sliding_attention"]}, "layer_types"),
        ({"rope_theta": 7, "attention_bias": True}, "attention_bias"),
        ({"rope_theta": 7, "hidden_act": "gelu"}, "hidden_act"),
        ({"rope_theta": 7, "model_type": "qwen2"}, "model_type"),
        ({"rope_theta": 7, "head_dim": None}, "'head_dim' is missing"),
        ({"rope_theta": 7, "head_dim": 5}, "head_dim=5"),
        ({"rope_theta": 7, "num_key_value_heads": 3}, "num_kv_heads=3"),
    ],
)
def test_a_config_that_cannot_be_honoured_is_refused_by_name(fields, message):
    with pytest.raises(UserError, match=message):
        Qwen3Config.from_hf(CONFIG_JSON | fields)


def test_unknown_remat_is_refused():
    with pytest.raises(UserError, match=r"remat='some'.*'none', 'dots', 'full'"):
        tiny()(jnp.zeros((1, 2, 32)), *np.zeros((2, 1, 2), np.int32), remat="some")


def test_gradients_of_a_token_that_stands_everywhere_are_summed_in_float32():
    """In bfloat16 a sum of ones goes no further than 256."""
    model = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), tiny())
    tokens = jnp.full((2, 512), 7)
    gradient = jax.grad(lambda model: model.embed(tokens).astype(jnp.float32).sum())(model)
    table = np.asarray(gradient.embed_tokens.embedding[...], np.float32)
    assert (table[7] == 1024).all()
    assert not np.delete(table, 7, axis=0).any()
