"""Attention, by pieces with gradients of its own or cuDNN's kernel, is attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from jaxvlm.errors import UserError
from jaxvlm.models import cudnn, pieces
from jaxvlm.models.attention import attention, choice

# Two rows of 19 tokens in segments, the end being padding.
SEGMENTS = np.array([[1] * 7 + [2] * 9 + [0] * 3, [1] * 2 + [2] * 1 + [3] * 15 + [0]], np.int32)
KINDS = {
    "all": {},
    "causal": {"causal": True},
    "packed": {"causal": True, "segments": SEGMENTS},
    "segments": {"segments": SEGMENTS},
    "padded": {"lengths": np.array([19, 8], np.int32)},
    "padded, causal": {"causal": True, "lengths": np.array([5, 19], np.int32)},
}
# The shapes [B, T, N, K, H] of what is attended at full size.
FULL = {
    "frame block": ((8, 1029, 16, 16, 64), {}),
    "odd rows": ((2, 511, 32, 8, 128), {"causal": True, "segments": jnp.ones((2, 511), int)}),
    "global block": ((1, 8232, 16, 16, 64), {"lengths": jnp.array([4116], jnp.int32)}),
    "packed rows": ((2, 4096, 32, 8, 128), {"causal": True, "segments": jnp.ones((2, 4096), int)}),
    "prompts": ((4, 192, 32, 8, 128), {"causal": True}),
}


def made(seed=0, dtype=jnp.float32):
    """Queries of two heads for each key's, keys and values."""
    rng = np.random.default_rng(seed)
    query = jnp.asarray(rng.normal(size=(2, 19, 4, 8)), dtype)
    return query, *jnp.asarray(rng.normal(size=(2, 2, 19, 2, 8)), dtype)


def mask_of(causal=False, segments=None, lengths=None):
    """The same as a mask [B, 1, T, S]."""
    places = np.arange(19)
    mask = np.ones((2, 19, 19), bool)
    if causal:
        mask &= places <= places[:, None]
    if segments is not None:
        mask &= segments[:, None] == segments[:, :, None]
    if lengths is not None:
        mask &= places < lengths[:, None, None]
    return mask[:, None]


def with_gradients(attend, given):
    """What is attended to, and the gradients of queries, keys and values."""

    def loss(*given):
        out = attend(*given)
        return (out.astype(jnp.float32) ** 2 * jnp.arange(out.shape[1])[:, None, None]).sum()

    return attend(*given), *jax.grad(loss, (0, 1, 2))(*given)


@pytest.mark.parametrize("queries", [1024, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_attention_is_that_of_jax(monkeypatch, kind, queries):
    monkeypatch.setattr(pieces, "_QUERIES", queries)
    sees, given = KINDS[kind], made()

    def reference(*given):
        return jax.nn.dot_product_attention(*given, mask=mask_of(**sees), implementation="xla")

    found = with_gradients(lambda *given: attention(*given, **sees), given)
    for ours, theirs in zip(found, with_gradients(reference, given), strict=True):
        assert np.abs(ours - theirs).max() < 1e-6 * np.abs(theirs).max()


def test_keys_of_another_number_than_queries():
    query, key, value = made()
    out = attention(query[:, :6], key, value)
    np.testing.assert_allclose(out, attention(query, key, value)[:, :6], rtol=1e-5, atol=1e-6)


def test_padding_without_any_real_key_gives_numbers():
    query, key, value = made()
    found = with_gradients(
        lambda *given: attention(*given, lengths=jnp.zeros(2, jnp.int32)), (query, key, value)
    )
    assert all(np.isfinite(x).all() for x in found)
    np.testing.assert_allclose(found[0], np.repeat(value[:, :1], 2, axis=2) + 0 * query, rtol=1e-6)


def test_half_precision_loses_no_more_than_its_rounding():
    halves = made(dtype=jnp.bfloat16)

    def attend(*given):
        return attention(*given, **KINDS["packed"])

    exact = with_gradients(attend, [x.astype(jnp.float32) for x in halves])
    for half, whole in zip(with_gradients(attend, halves), exact, strict=True):
        assert half.dtype == jnp.bfloat16
        error = np.abs(half.astype(jnp.float32) - whole).max() / np.abs(whole).max()
        assert error < 0.02


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_neither_scores_nor_mask_of_a_long_row_stand_at_once(gradients, packed):
    length = 8192
    shape = jax.ShapeDtypeStruct((1, length, 1, 8), jnp.bfloat16)
    segments = jax.ShapeDtypeStruct((1, length), jnp.int32)

    def loss(query, key, value, segments):
        sees = {"causal": True, "segments": segments} if packed else {}
        return attention(query, key, value, **sees).astype(jnp.float32).sum()

    function = jax.grad(loss, (0, 1, 2)) if gradients else loss
    compiled = jax.jit(function).lower(shape, shape, shape, segments).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < length * length


@pytest.fixture
def gpu_pretended(monkeypatch):
    """What asks for the devices is told of a GPU; nothing can be run."""
    monkeypatch.setattr(cudnn, "_on_gpu", lambda: True)
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91002)
    for name in ("check_compute_capability", "is_cuda_compute_capability_equal"):
        monkeypatch.setattr(fused_attention_stablehlo, name, lambda capability: False)


def lowered_for_gpu(dtype, shape, sees) -> str:
    batch, length, heads, kv_heads, dim = shape
    query = jax.ShapeDtypeStruct((batch, length, heads, dim), dtype)
    key = jax.ShapeDtypeStruct((batch, length, kv_heads, dim), dtype)

    def loss(*given):
        return attention(*given, **sees).astype(jnp.float32).sum()

    traced = jax.jit(jax.grad(loss, (0, 1, 2))).trace(query, key, key)
    return traced.lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize("case", FULL)
@pytest.mark.usefixtures("gpu_pretended")
def test_half_precision_on_a_gpu_is_left_to_cudnn(case):
    text = lowered_for_gpu(jnp.bfloat16, *FULL[case])
    assert text.count("__cudnn$fmha") == 2  # forwards and backwards


@pytest.mark.usefixtures("gpu_pretended")
@pytest.mark.parametrize(
    ("dtype", "shape", "sees"),
    [
        (jnp.float32, (1, 64, 2, 2, 64), {}),
        (jnp.bfloat16, (1, 64, 2, 2, 512), {}),
        (jnp.bfloat16, (1, 64, 2, 2, 12), {}),
    ],
)
def test_what_cudnn_does_not_take_is_attended_by_pieces(dtype, shape, sees):
    assert "cudnn" not in lowered_for_gpu(dtype, shape, sees)


def test_mixed_dtypes_are_attended_by_pieces(monkeypatch):
    monkeypatch.setattr(cudnn, "_on_gpu", lambda: True)
    query, key, value = made(dtype=jnp.bfloat16)
    assert cudnn.fits(query, key, value)
    assert not cudnn.fits(query, key.astype(jnp.float16), value)


def test_a_plan_for_absent_gpus_counts_on_the_kernel(monkeypatch):
    monkeypatch.setattr(cudnn, "_elsewhere", False)
    halves = made(dtype=jnp.bfloat16)
    before = cudnn.fits(*halves)
    cudnn.compile_for_absent_gpus()
    assert cudnn.fits(*halves) and before == (jax.default_backend() == "gpu")


@pytest.mark.usefixtures("gpu_pretended")
def test_cudnn_can_be_turned_off(monkeypatch):
    monkeypatch.setenv("JAXVLM_ATTENTION", "pieces")
    assert "cudnn" not in lowered_for_gpu(jnp.bfloat16, *FULL["frame block"])


@pytest.mark.parametrize("kind", KINDS)
def test_the_kernel_is_told_what_a_query_sees(monkeypatch, kind):
    """With JAX's exact attention in the kernel's place, for an odd number of tokens too."""
    exact, told = jax.nn.dot_product_attention, []

    def instead(*given, implementation, **sees):
        told.append(implementation)
        return exact(*given, implementation="xla", **sees)

    sees, given = KINDS[kind], made()
    expected = with_gradients(lambda *given: attention(*given, **sees), given)
    monkeypatch.setattr(cudnn, "fits", lambda *given: True)
    monkeypatch.setattr(jax.nn, "dot_product_attention", instead)
    found = with_gradients(lambda *given: attention(*given, **sees), given)
    assert set(told) == {"cudnn"}
    for ours, theirs in zip(found, expected, strict=True):
        assert np.abs(ours - theirs).max() < 1e-6 * np.abs(theirs).max()


def test_segments_and_lengths_together_are_refused():
    with pytest.raises(ValueError, match="give segments alone"):
        attention(*made(), segments=SEGMENTS, lengths=np.array([19, 19]))


def test_an_unknown_choice_is_refused(monkeypatch):
    monkeypatch.setenv("JAXVLM_ATTENTION", "fast")
    with pytest.raises(UserError, match=r"JAXVLM_ATTENTION='fast': expected one of auto, pieces"):
        attention(*made())


def test_an_empty_choice_is_none(monkeypatch):
    monkeypatch.setenv("JAXVLM_ATTENTION", "")
    assert choice() == "auto"


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="cuDNN's attention needs a GPU")
@pytest.mark.parametrize("kind", ["all", "causal", "packed", "padded"])
def test_cudnn_computes_the_same(monkeypatch, kind):
    given, sees = made(dtype=jnp.bfloat16), KINDS[kind]
    fast = with_gradients(lambda *given: attention(*given, **sees), given)
    monkeypatch.setenv("JAXVLM_ATTENTION", "pieces")
    exact = with_gradients(lambda *given: attention(*given, **sees), given)
    for ours, other in zip(fast, exact, strict=True):
        wide = np.asarray(other, np.float32)
        error = np.abs(np.asarray(ours, np.float32) - wide).max() / np.abs(wide).max()
        assert error < 0.02
