"""Folders of imported weights."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvlm.errors import UserError
from jaxvlm.training.weights import check_model, fingerprint, load_weights, read_meta, save_weights

PARAMS = {
    "aggregator/blocks/kernel": np.arange(24, dtype=np.float32).reshape(2, 3, 4) / 7,
    "aggregator/token": np.array([1.5, -2.0], np.float32),
    "depth_head/kernel": np.ones((5, 5), np.float32),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "tiny"
    meta = {"source": "a test", "model": {"vision": {}}}
    save_weights(path, {k: jnp.asarray(v) for k, v in PARAMS.items()}, meta)
    return path


def wanted(*paths, dtype=jnp.float32):
    placed = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    paths = paths or tuple(PARAMS)
    return {
        path: jax.ShapeDtypeStruct(PARAMS[path].shape, dtype, sharding=placed) for path in paths
    }


def test_what_was_saved_comes_back(folder):
    loaded = load_weights(str(folder), wanted())
    assert set(loaded) == set(PARAMS)
    for path, value in PARAMS.items():
        np.testing.assert_array_equal(loaded[path], value)
    content = fingerprint(PARAMS)
    meta = {"format": 2, "content": content, "source": "a test", "model": {"vision": {}}}
    assert read_meta(str(folder)) == meta


def test_tensors_that_nobody_wants_are_left_out(folder):
    paths = ("aggregator/blocks/kernel", "aggregator/token")
    loaded = load_weights(str(folder), wanted(*paths))
    assert tuple(sorted(loaded)) == paths
    for path in paths:
        np.testing.assert_array_equal(loaded[path], PARAMS[path])


def test_dtypes_are_converted_both_ways(folder, tmp_path):
    half = load_weights(str(folder), wanted(dtype=jnp.bfloat16))
    assert {leaf.dtype for leaf in half.values()} == {jnp.dtype("bfloat16")}
    save_weights(tmp_path / "half", half, {"model": {}})
    loaded = load_weights(str(tmp_path / "half"), wanted())
    for path, value in PARAMS.items():
        assert loaded[path].dtype == jnp.float32
        rounded = jnp.asarray(value).astype(jnp.bfloat16).astype(jnp.float32)
        np.testing.assert_array_equal(loaded[path], rounded)


def test_a_missing_tensor_is_named(folder):
    more = {**wanted(), "aggregator/other": wanted("aggregator/token")["aggregator/token"]}
    with pytest.raises(UserError, match="hold no parameter 'aggregator/other'"):
        load_weights(str(folder), more)


def test_a_wrong_shape_is_named_with_both_shapes(folder):
    other = {"aggregator/token": jax.ShapeDtypeStruct((3,), jnp.float32)}
    with pytest.raises(UserError, match=r"'aggregator/token' with shape \[2\].* asks for \[3\]"):
        load_weights(str(folder), other)


def test_a_missing_folder_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match=r"no imported weights at .*None for random weights"):
        load_weights(str(tmp_path / "none"), wanted())
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="no imported weights at"):
        load_weights(str(tmp_path / "file"), wanted())


@pytest.mark.parametrize(
    ("text", "message"), [("{", "is damaged"), (json.dumps({"format": 9}), "format 9, expected 2")]
)
def test_a_damaged_or_foreign_folder_is_an_error(tmp_path, text, message):
    (tmp_path / "meta.json").write_text(text)
    with pytest.raises(UserError, match=message):
        load_weights(str(tmp_path), wanted())


def test_a_folder_without_tensors_is_incomplete(tmp_path):
    (tmp_path / "meta.json").write_text(json.dumps({"format": 2, "content": "", "model": {}}))
    with pytest.raises(UserError, match="incomplete"):
        load_weights(str(tmp_path), wanted())


def test_a_size_that_no_shape_tells_must_agree(tmp_path):
    path = tmp_path / "qwen3"
    tensors = {k: jnp.asarray(v) for k, v in PARAMS.items()}
    save_weights(path, tensors, {"model": {"language": {"rope_theta": 1e6, "num_layers": 2}}})
    check_model(str(path), "language", {"rope_theta": 1e6, "tie_embeddings": True})
    with pytest.raises(UserError, match=r"rope_theta=1000000.0.*set model.language.rope_theta="):
        check_model(str(path), "language", {"num_layers": 2, "rope_theta": 5e6})
    with pytest.raises(UserError, match=r"model.vision.weights=.*qwen3' holds language, not vis"):
        check_model(str(path), "vision", {})


def test_a_truncated_tensor_is_no_traceback(tmp_path):
    path = tmp_path / "cut"
    save_weights(path, {k: jnp.asarray(v) for k, v in PARAMS.items()}, {"model": {}})
    largest = max((path / "params").rglob("*"), key=lambda p: p.is_file() and p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"import them anew|incomplete"):
        load_weights(str(path), wanted())
