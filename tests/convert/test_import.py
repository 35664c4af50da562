"""Importing: every bit arrives, and what does not fit is refused before anything is written."""

import json
import pickle
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
import torch
from flax import nnx
from safetensors.numpy import load_file, save_file

from convert import import_torch, parts, qwen3, sizes
from convert.table import to_torch
from jaxvlm import entry
from jaxvlm.errors import UserError
from jaxvlm.models.qwen3 import Qwen3, Qwen3Config
from jaxvlm.models.tree import pure
from jaxvlm.paths import flatten, unflatten
from jaxvlm.training.weights import load_weights, read_meta

FIXTURES = Path(__file__).parents[1] / "fixtures"
QWEN3 = {
    "vocab_size": 40, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 6, "intermediate_size": 12, "rms_norm_eps": 1e-6,
    "rope_theta": 1e6, "tie_word_embeddings": True,
}  # fmt: skip


def run(*arguments) -> None:
    import_torch.main(import_torch.parser().parse_args([str(a) for a in arguments]))


def stored(folder: Path) -> dict:
    """All parameters of an import, as they lie there."""
    with ocp.PyTreeCheckpointer() as reader:
        tree = flatten(reader.metadata(folder / "params").item_metadata.tree)
    placed = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = {p: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=placed) for p, v in tree.items()}
    return {p: np.asarray(v) for p, v in load_weights(str(folder), wanted).items()}


def bits(tensors) -> dict:
    return {name: (v.dtype, v.shape, v.tobytes()) for name, v in tensors.items()}


def qwen3_tensors(dtype=ml_dtypes.bfloat16) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    config = Qwen3Config.from_hf(QWEN3)
    tree = pure(nnx.eval_shape(lambda: Qwen3(config, rngs=nnx.Rngs(0))))
    filled = jax.tree.map(lambda s: rng.normal(size=s.shape).astype(dtype), tree)
    return to_torch(qwen3.rules(config), filled)


@pytest.fixture
def qwen3_folder(tmp_path) -> Path:
    """A folder with two shards and their index."""
    folder = tmp_path / "qwen3"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(QWEN3))
    tensors = qwen3_tensors()
    names = sorted(tensors)
    places = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(names)}
    for file in set(places.values()):
        save_file({n: tensors[n] for n in names if places[n] == file}, folder / file)
    index = {"weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture(params=["safetensors", "pt", "wrapped"])
def vggt_file(request, tmp_path) -> Path:
    """The tensors of the official model at a tiny size, in one file."""
    found = load_file(FIXTURES / "vggt_tiny.safetensors")
    found = {k.removeprefix("params/"): v for k, v in found.items() if k.startswith("params/")}
    if request.param == "safetensors":
        save_file(found, tmp_path / "vggt.safetensors")
        return tmp_path / "vggt.safetensors"
    state = {name: torch.from_numpy(value) for name, value in found.items()}
    wrapped = {"model": state, "epoch": 3} if request.param == "wrapped" else state
    torch.save(wrapped, tmp_path / "vggt.pt")
    return tmp_path / "vggt.pt"


def test_vggt_arrives_bit_for_bit(vggt_file, tmp_path, capsys):
    file = FIXTURES / "vggt_tiny.json"
    run("vggt", vggt_file, tmp_path / "out", "--model-config", file, "--heads", "camera", "depth")
    assert "left out: 62 tensors of point_head: not asked for" in capsys.readouterr().out
    config = sizes.vggt_config(sizes.read_model_config(file), ("camera", "depth"))
    back = to_torch(parts.rules({"vision": config}), unflatten(stored(tmp_path / "out")))
    source = load_file(FIXTURES / "vggt_tiny.safetensors")
    source = {k.removeprefix("params/"): v for k, v in source.items() if k.startswith("params/")}
    source = {k: v for k, v in source.items() if not k.startswith("point_head")}
    assert bits(back) == bits(source)
    assert read_meta(str(tmp_path / "out"))["model"]["vision"]["vit_heads"] == 4


def test_qwen3_arrives_bit_for_bit(qwen3_folder, tmp_path):
    run("qwen3", qwen3_folder, tmp_path / "out")
    config = Qwen3Config.from_hf(QWEN3)
    back = to_torch(parts.rules({"language": config}), unflatten(stored(tmp_path / "out")))
    assert bits(back) == bits(qwen3_tensors())
    meta = read_meta(str(tmp_path / "out"))
    assert meta["model"]["language"]["rope_theta"] == 1e6 and meta["tensors"] == len(back)
    assert set(meta["files"]) == {"model-0.safetensors", "model-1.safetensors"}
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "huggingface",
        "meta.json",
        "params",
    ]


def test_a_dtype_can_be_chosen(qwen3_folder, tmp_path):
    run("qwen3", qwen3_folder, tmp_path / "out", "--dtype", "float32")
    params = stored(tmp_path / "out")
    assert {v.dtype for v in params.values()} == {np.dtype("float32")}
    expected = qwen3_tensors()["model.norm.weight"].astype(np.float32)
    np.testing.assert_array_equal(params["language/norm/scale"], expected)


def test_what_stands_is_replaced_only_if_so_asked(qwen3_folder, tmp_path):
    run("qwen3", qwen3_folder, tmp_path / "out")
    with pytest.raises(UserError, match=r"out exists; pass --overwrite"):
        run("qwen3", qwen3_folder, tmp_path / "out")
    run("qwen3", qwen3_folder, tmp_path / "out", "--overwrite", "--dtype", "float32")
    assert stored(tmp_path / "out")["language/norm/scale"].dtype == np.float32
    (tmp_path / "mine").mkdir()
    with pytest.raises(
        UserError, match=r"not written by this command \(no meta.json\): not replaced"
    ):
        run("qwen3", qwen3_folder, tmp_path / "mine", "--overwrite")


def test_everything_that_does_not_fit_is_named_at_once(qwen3_folder, tmp_path):
    file = qwen3_folder / "model-0.safetensors"
    index = qwen3_folder / "model.safetensors.index.json"
    tensors = load_file(file)
    first, second, *_ = sorted(tensors)
    tensors[first + "_old"] = tensors.pop(first)
    tensors[second] = tensors[second][..., None]
    save_file(tensors, file)
    places = json.loads(index.read_text())["weight_map"]
    places[first + "_old"] = places.pop(first)
    index.write_text(json.dumps({"weight_map": places}))
    with pytest.raises(UserError) as caught:
        run("qwen3", qwen3_folder, tmp_path / "out")
    message = str(caught.value)
    assert message.startswith("3 tensors do not fit the model:")
    assert f"missing: {first!r}" in message and f"nearest is '{first}_old'" in message
    assert f"wrong shape: {second!r}" in message and f"no place: '{first}_old'" in message
    assert not (tmp_path / "out").exists()


def test_layers_of_several_dtypes_are_no_stack(qwen3_folder, tmp_path):
    file = qwen3_folder / "model-0.safetensors"
    tensors = load_file(file)
    name = next(n for n in tensors if n.startswith("model.layers.1"))
    tensors[name] = tensors[name].astype(np.float32)
    save_file(tensors, file)
    with pytest.raises(UserError, match=r"dtype: .*bfloat16 and float32.*choose --dtype"):
        run("qwen3", qwen3_folder, tmp_path / "out")
    run("qwen3", qwen3_folder, tmp_path / "out", "--dtype", "float32")


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "..", 3])
def test_an_index_that_leaves_its_folder_is_refused(qwen3_folder, tmp_path, name):
    index = qwen3_folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"model.norm.weight": name}}))
    with pytest.raises(UserError, match=r"does not lie in its folder"):
        run("qwen3", qwen3_folder, tmp_path / "out")


def test_flags_that_mean_nothing_are_refused(qwen3_folder, tmp_path):
    with pytest.raises(UserError, match=r"--heads is not for qwen3"):
        run("qwen3", qwen3_folder, tmp_path / "out", "--heads", "depth")
    with pytest.raises(UserError, match=r"--model-config is not for qwen3"):
        run("qwen3", qwen3_folder, tmp_path / "out", "--model-config", qwen3_folder)
    arguments = ["qwen3", str(qwen3_folder), str(tmp_path / "out"), "--config.seed=1"]
    with pytest.raises(SystemExit):
        entry.run(import_torch.parser(), import_torch.main, arguments, configured=False)


def test_wrong_sources_are_named(qwen3_folder, tmp_path):
    with pytest.raises(UserError, match=r"vggt expects the state dict of VGGT .* begin with model"):
        run("vggt", qwen3_folder, tmp_path / "out")
    with pytest.raises(UserError, match=r"nothing does not exist"):
        run("vggt", tmp_path / "nothing", tmp_path / "out")
    shard = qwen3_folder / "model-1.safetensors"
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"model-1.safetensors is no whole safetensors file"):
        run("qwen3", qwen3_folder, tmp_path / "out")
    shard.unlink()
    with pytest.raises(UserError, match=r"the shard 'model-1.safetensors', which is missing"):
        run("qwen3", qwen3_folder, tmp_path / "out")


class Evil:
    """A pickle that would run code."""

    def __reduce__(self):
        return (print, ("pickled code ran",))


@pytest.mark.parametrize("plain", [True, False])
def test_a_pickle_that_would_run_code_is_refused(tmp_path, capsys, plain):
    file = tmp_path / "model.pt"
    if plain:
        file.write_bytes(pickle.dumps(Evil()))
    else:
        torch.save({"aggregator.camera_token": torch.zeros(1), "more": Evil()}, file)
    with pytest.raises(UserError, match=r"model.pt (cannot be read as plain|is no whole file)"):
        run("vggt", file, tmp_path / "out")
    assert "pickled code ran" not in capsys.readouterr().out


def test_an_import_that_breaks_off_leaves_nothing(qwen3_folder, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(UserError, match=r"out cannot be written: .*No space left"):
        run("qwen3", qwen3_folder, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["qwen3"]


def test_imported_weights_feed_a_model_in_its_dtype(qwen3_folder, tmp_path):
    run("qwen3", qwen3_folder, tmp_path / "out")
    placed = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = {"language/norm/scale": jax.ShapeDtypeStruct((8,), jnp.float32, sharding=placed)}
    loaded = load_weights(str(tmp_path / "out"), wanted)
    assert loaded["language/norm/scale"].dtype == jnp.float32
