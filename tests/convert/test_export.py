"""Exporting: what comes out is what went in, and PyTorch's own code reads it."""

import functools
import json
import warnings
from pathlib import Path

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import tiny
import torch
import transformers
from flax import nnx
from hypothesis import given, settings
from safetensors.numpy import load_file, save_file

from convert import export_torch, import_torch, parts, shards, verify
from convert.source import Entry, open_tensors
from convert.stored import open_stored
from convert.table import to_jax, to_torch
from jaxvlm.errors import UserError
from jaxvlm.models import tree
from jaxvlm.models.geometry import GeometryConfig
from jaxvlm.models.perceiver import PerceiverConfig
from jaxvlm.models.qwen3 import Qwen3, Qwen3Config
from jaxvlm.models.vggt.config import HEADS, DPTConfig, VGGTConfig
from jaxvlm.paths import flatten, unflatten
from jaxvlm.training import loop

ROOMS = Path(__file__).parents[2] / "jaxvlm/assets/rooms_tokenizer"
ROWS = 586  # of the rooms' tokenizer and the placeholder
PARTS = {
    "vision": VGGTConfig(
        img_size=28, embed_dim=16, depth=2, num_heads=2, vit_depth=1, vit_heads=2, heads=HEADS,
        camera_trunk_depth=1, camera_heads=2, depth_head=DPTConfig(4, (4, 4, 4, 4), (0, 0, 1, 1)),
        point_head=DPTConfig(4, (4, 4, 4, 4), (0, 0, 1, 1)),
    ),
    "projector": PerceiverConfig(32, 16, 4, 2, 2, 24, 8),
    "geometry": GeometryConfig(in_dim=37, out_dim=8),
    "language": Qwen3Config(600, 8, 2, 4, 2, 6, 12, rope_theta=1e4),
}  # fmt: skip
HEAD = {"features": 4, "out_channels": [4, 4, 4, 4], "intermediate_layer_idx": [0, 0, 1, 1]}
SIZES = {
    "aggregator": {"img_size": 28, "embed_dim": 16, "depth": 2, "num_heads": 2},
    "vit": {"depth": 1, "num_heads": 2},
    "camera_head": {"trunk_depth": 1, "num_heads": 2},
    "depth_head": HEAD,
    "point_head": HEAD,
    "projector": {"num_heads": 2},
    "text_model": PARTS["language"].to_hf(),
}
DTYPES = [np.float32, ml_dtypes.bfloat16, np.float16]


def convert(module, *arguments) -> None:
    """Runs a command of convert as its command line would."""
    import contextlib
    import io

    flags = module.parser().parse_args([str(a) for a in arguments])
    flags.overrides = []
    with contextlib.redirect_stdout(io.StringIO()):
        module.main(flags)


def random_tensors(which, prefixes, dtype, seed=0, special=True) -> dict[str, np.ndarray]:
    """PyTorch tensors of some parts; with every kind of odd number if `special`."""
    chosen = {part: PARTS[part] for part in which}
    rng = np.random.default_rng(seed)
    tree = {}
    for path, leaf in parts.shapes(chosen).items():
        value = rng.normal(size=leaf.shape).astype(dtype)
        if special and value.size > 3:
            value.flat[:3] = np.array([np.nan, -np.inf, -0.0], dtype)
        tree[path] = value
    return to_torch(parts.rules(chosen, prefixes), unflatten(tree))


def bits(tensors) -> dict:
    return {name: (v.dtype, v.shape, v.tobytes()) for name, v in tensors.items()}


def torch_tensor(value: np.ndarray) -> torch.Tensor:
    if value.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(value.view(np.uint16).copy()).view(torch.bfloat16)
    return torch.from_numpy(value.copy())


@pytest.mark.slow
@pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(dtype, marks=[pytest.mark.slow] if dtype != ml_dtypes.bfloat16 else [])
        for dtype in DTYPES
    ],
)
def test_vggt_goes_round_bit_for_bit(tmp_path, dtype):
    source = random_tensors(["vision"], {}, dtype)
    torch.save({"model": {k: torch_tensor(v) for k, v in source.items()}}, tmp_path / "vggt.pt")
    (tmp_path / "sizes.json").write_text(json.dumps(SIZES))
    heads = ["--heads", *HEADS]
    convert(
        import_torch, "vggt", tmp_path / "vggt.pt", tmp_path / "in", "--model-config",
        tmp_path / "sizes.json", *heads,
    )  # fmt: skip
    convert(verify, tmp_path / "in", tmp_path / "vggt.pt")
    convert(export_torch, tmp_path / "in", tmp_path / "out")
    assert bits(load_file(tmp_path / "out" / "vision.safetensors")) == bits(source)
    # The export tells its sizes: no --model-config.
    convert(import_torch, "vggt", tmp_path / "out", tmp_path / "again", *heads)
    convert(verify, tmp_path / "again", tmp_path / "vggt.pt")
    again, first = (open_stored(str(tmp_path / name), []) for name in ("again", "in"))
    assert bits(again.params) == bits(first.params) and again.parts == first.parts


def qwen3_folder(folder: Path, config, tensors) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config.to_hf()))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((ROOMS / name).read_bytes())
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("dtype", DTYPES)
def test_qwen3_goes_round_bit_for_bit_in_small_shards(tmp_path, dtype):
    source = random_tensors(["language"], {}, dtype)
    folder = qwen3_folder(tmp_path / "hf", PARTS["language"], source)
    convert(import_torch, "qwen3", folder, tmp_path / "in")
    convert(export_torch, tmp_path / "in", tmp_path / "out", "--shard-size", "2KB")
    files = sorted((tmp_path / "out").glob("model-*.safetensors"))
    assert len(files) > 2 and files[0].name == f"model-00001-of-{len(files):05}.safetensors"
    assert all(len(load_file(file)) == 1 or file.stat().st_size < 5000 for file in files)
    assert bits(open_tensors(tmp_path / "out")) == bits(source)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (ROOMS / name).read_bytes()
    convert(import_torch, "qwen3", tmp_path / "out", tmp_path / "again")
    convert(verify, tmp_path / "again", folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    "dtype", [np.float32, pytest.param(ml_dtypes.bfloat16, marks=pytest.mark.slow)]
)
def test_the_original_goes_round_bit_for_bit(tmp_path, dtype):
    source = random_tensors(PARTS, parts.ORIGINAL, dtype)
    embedding = "text_model.model.embed_tokens.weight"
    # As the original saves it: fewer rows, the head tied to them, VGGT's tracker and the rest.
    source[embedding] = source[embedding][:ROWS]
    state = {k: torch_tensor(v) for k, v in source.items()}
    state["text_model.lm_head.weight"] = state[embedding]
    state["vision_model.track_head.fmap_norm.weight"] = torch.zeros(3)
    folder = tmp_path / "ckpt" / "pytorch_model_fp32"
    folder.mkdir(parents=True)
    names = [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
    index = {key: names[number % 2] for number, key in enumerate(state)}
    index["text_model.lm_head.weight"] = index[embedding]
    for name in names:
        torch.save({k: v for k, v in state.items() if index[k] == name}, folder / name)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    (tmp_path / "sizes.json").write_text(json.dumps(SIZES))
    given = ["--model-config", tmp_path / "sizes.json", "--heads", *HEADS]
    convert(import_torch, "original", tmp_path / "ckpt", tmp_path / "in", *given)
    stored = open_stored(str(tmp_path / "in"), [])
    rows = stored.params["language/embed_tokens/embedding"]
    assert rows.shape == (600, 8) and not rows[ROWS:].any() and rows[ROWS - 1].any()
    assert json.loads((tmp_path / "in" / "meta.json").read_text())["rows"] == ROWS
    convert(verify, tmp_path / "in", tmp_path / "ckpt")

    convert(export_torch, tmp_path / "in", tmp_path / "out", "--format", "original")
    exported = tmp_path / "out" / "pytorch_model_fp32"
    back = open_tensors(exported)
    head = back["text_model.lm_head.weight"]
    np.testing.assert_array_equal(head.view(np.uint8), back[embedding].view(np.uint8))
    assert bits({k: back[k] for k in back if "lm_head" not in k}) == bits(source)
    convert(import_torch, "original", tmp_path / "out", tmp_path / "again", "--heads", *HEADS)
    convert(verify, tmp_path / "again", tmp_path / "ckpt")
    assert open_stored(str(tmp_path / "again"), []).parts == stored.parts


class OriginalLayer(torch.nn.Module):
    def __init__(self, width, heads, hidden):
        super().__init__()
        self.self_attn = torch.nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm1, self.norm2 = torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)
        self.mlp = torch.nn.Sequential(
            torch.nn.Linear(width, hidden), torch.nn.GELU(), torch.nn.Dropout(0.1),
            torch.nn.Linear(hidden, width),
        )  # fmt: skip


class OriginalProjector(torch.nn.Module):
    """The modules that the original's projector has, by its names."""

    def __init__(self, c: PerceiverConfig):
        super().__init__()
        self.latents = torch.nn.Parameter(torch.zeros(c.num_latents, c.latent_dim))
        self.in_proj = torch.nn.Linear(c.in_dim, c.latent_dim)
        layers = [OriginalLayer(c.latent_dim, c.num_heads, c.ffn_dim) for _ in range(c.num_layers)]
        self.layers = torch.nn.ModuleList(layers)
        self.out_proj = torch.nn.Linear(c.latent_dim, c.out_dim)


def test_the_original_loads_an_export_strictly(tmp_path):
    source = random_tensors(["projector", "geometry"], {}, np.float32)
    save_file(source, tmp_path / "mine.safetensors")
    (tmp_path / "sizes.json").write_text(json.dumps({"projector": {"num_heads": 2}}))
    convert(
        import_torch, "original", tmp_path / "mine.safetensors", tmp_path / "in", "--model-config",
        tmp_path / "sizes.json",
    )  # fmt: skip
    convert(export_torch, tmp_path / "in", tmp_path / "out", "--format", "original")
    (file,) = (tmp_path / "out" / "pytorch_model_fp32").glob("*.bin")
    state = torch.load(file, weights_only=True)
    projector = OriginalProjector(PARTS["projector"])
    head = torch.nn.Sequential(torch.nn.Linear(37, 8), torch.nn.SiLU(), torch.nn.Linear(8, 8))
    for module, prefix in ((projector, "projector."), (head, "geom_head.")):
        own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        module.load_state_dict(own, strict=True)
    assert len(state) == len(source)


SMALL_QWEN3 = {
    "tied": {},
    "untied": {"tie_word_embeddings": False},
    "one query a key": {"num_key_value_heads": 4, "head_dim": 8},
}


@functools.cache
def hf_model(variant: str):
    """A random model of transformers, its attention far from uniform."""
    fields = {
        "vocab_size": 600, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 1, "head_dim": 16, "intermediate_size": 48, "rope_theta": 1e4,
        "tie_word_embeddings": True, "attn_implementation": "eager",
    }  # fmt: skip
    torch.manual_seed(0)
    config = transformers.Qwen3Config(**fields | SMALL_QWEN3[variant])
    model = transformers.Qwen3ForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(mean=float("norm" in name), std=0.2)
    return model.eval()


@pytest.mark.parametrize("variant", list(SMALL_QWEN3))
def test_transformers_loads_an_export_without_a_word(tmp_path, variant, caplog):
    model = hf_model(variant)
    model.save_pretrained(tmp_path / "hf")
    convert(import_torch, "qwen3", tmp_path / "hf", tmp_path / "in")
    convert(export_torch, tmp_path / "in", tmp_path / "out", "--tokenizer", ROOMS)
    transformers.logging.enable_propagation()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path / "out", attn_implementation="eager"
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    transformers.logging.disable_propagation()
    assert not [r for r in caplog.records if r.levelname in ("WARNING", "ERROR")]
    tokens = torch.arange(24).reshape(2, 12)
    torch.testing.assert_close(loaded(tokens).logits, model(tokens).logits, rtol=0, atol=0)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert loaded.config.eos_token_id == end and end in loaded.generation_config.eos_token_id


@pytest.mark.parametrize("variant", list(SMALL_QWEN3))
def test_logits_are_those_of_the_export_padded_and_packed(tmp_path, variant):
    """jaxvlm's model beside transformers' with the weights that jaxvlm exported."""
    hf_model(variant).save_pretrained(tmp_path / "hf")
    convert(import_torch, "qwen3", tmp_path / "hf", tmp_path / "in")
    convert(export_torch, tmp_path / "in", tmp_path / "out", "--tokenizer", ROOMS)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    ours = qwen3(open_stored(str(tmp_path / "in"), []))
    texts = [np.random.default_rng(i).integers(0, 600, n, np.int32) for i, n in enumerate((7, 11))]
    with torch.no_grad():
        wanted = [theirs(torch.from_numpy(t).long()[None]).logits[0].numpy() for t in texts]
    padded, segments = np.zeros((2, 2, 12), np.int32)
    for row, text in enumerate(texts):
        padded[row, : len(text)], segments[row, : len(text)] = text, 1
    places = np.broadcast_to(np.arange(12, dtype=np.int32), padded.shape)
    found = ours.logits(ours(ours.embed(padded), places, segments))
    packed = np.concatenate(texts)[None]
    places = np.concatenate([np.arange(len(t), dtype=np.int32) for t in texts])[None]
    segments = np.repeat(np.array([1, 2], np.int32), [7, 11])[None]
    together = ours.logits(ours(ours.embed(packed), places, segments))[0]
    for row, (logits, part) in enumerate(zip(wanted, (together[:7], together[7:]), strict=True)):
        tolerance = {"rtol": 0, "atol": 1e-4 * np.abs(logits).max()}
        np.testing.assert_allclose(found[row, : len(logits)], logits, **tolerance)
        np.testing.assert_allclose(part, logits, **tolerance)


def qwen3(stored) -> Qwen3:
    """The language model with the parameters on disk."""
    language = {p: v for p, v in stored.params.items() if p.startswith("language/")}
    abstract = nnx.eval_shape(lambda: Qwen3(stored.parts["language"], rngs=nnx.Rngs(0)))
    return tree.load(abstract, jax.tree.map(jnp.asarray, unflatten(language)["language"]))


@pytest.mark.slow
def test_a_run_answers_in_transformers_as_here(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    config = tiny.config_for(tiny.write_records(tmp_path), train__max_steps=2)
    loop.train(config, run)
    convert(export_torch, run, tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").glob("*.safetensors")) == [
        "geometry.safetensors", "model-00001-of-00001.safetensors", "projector.safetensors"
    ]  # fmt: skip
    stored = open_stored(str(run), [])
    ours, words = qwen3(stored), stored.parts["language"].vocab_size
    tokens = np.random.default_rng(0).integers(0, words, (2, 12), dtype=np.int32)
    place = np.broadcast_to(np.arange(12, dtype=np.int32), tokens.shape)
    logits = ours.logits(ours(ours.embed(tokens), place, np.ones_like(tokens)))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        wanted = theirs(torch.from_numpy(tokens).long()).logits.numpy()
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())
    # Only what was trained is exported, and goes back into a run.
    convert(import_torch, "original", tmp_path / "out" / "projector.safetensors", tmp_path / "in")
    again = tiny.config_for(
        tmp_path / "records.jsonl", train__max_steps=1,
        model__projector__weights=str(tmp_path / "in"),
    )  # fmt: skip
    other = tmp_path / "other"
    other.mkdir()
    loop.train(again, other)


def test_a_dtype_can_be_chosen(tmp_path):
    source = random_tensors(["language"], {}, np.float32, special=False)
    folder = qwen3_folder(tmp_path / "hf", PARTS["language"], source)
    convert(import_torch, "qwen3", folder, tmp_path / "in")
    convert(export_torch, tmp_path / "in", tmp_path / "out", "--dtype", "bfloat16")
    expected = {k: v.astype(ml_dtypes.bfloat16) for k, v in source.items()}
    assert bits(open_tensors(tmp_path / "out")) == bits(expected)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


def test_verify_names_what_differs(tmp_path, capsys):
    source = random_tensors(["language"], {}, np.float32)
    folder = qwen3_folder(tmp_path / "hf", PARTS["language"], source)
    convert(import_torch, "qwen3", folder, tmp_path / "in", "--dtype", "bfloat16")
    verify.main(verify.parser().parse_args([str(tmp_path / "in"), str(folder)]))
    assert "24 of 24 tensors are identical" in capsys.readouterr().out
    key = "model.layers.1.mlp.up_proj.weight"
    source[key][2, 3] += 1
    save_file(source, folder / "model.safetensors")
    with pytest.raises(SystemExit):
        verify.main(verify.parser().parse_args([str(tmp_path / "in"), str(folder)]))
    out = capsys.readouterr().out
    assert f"{key}: 1 of 96 elements differ" in out and "23 of 24 tensors are identical" in out


def test_mistakes_are_answered_before_anything_is_written(tmp_path):
    source = random_tensors(["language"], {}, np.float32)
    folder = qwen3_folder(tmp_path / "hf", PARTS["language"], source)
    (folder / "tokenizer.json").unlink()
    convert(import_torch, "qwen3", folder, tmp_path / "in")
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"holds no tokenizer.json; give --tokenizer"):
        convert(export_torch, tmp_path / "in", out)
    with pytest.raises(UserError, match=r"--shard-size 3 apples: expected a size such as 4GB"):
        convert(export_torch, tmp_path / "in", out, "--shard-size", "3 apples")
    with pytest.raises(UserError, match=r"--config.seed=1: .* is imported weights, not a run"):
        open_stored(str(tmp_path / "in"), ["seed=1"])
    with pytest.raises(UserError, match=r"nowhere does not exist"):
        convert(export_torch, tmp_path / "nowhere", out)
    with pytest.raises(UserError, match=r"holds no checkpoint"):
        convert(export_torch, folder, out)
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    for flag in ([], ["--overwrite"]):
        with pytest.raises(UserError, match=r"out (exists; pass|was not written by this)"):
            convert(export_torch, tmp_path / "in", out, "--tokenizer", ROOMS, *flag)
    assert (out / "thesis.tex").read_text() == "years of work"


@settings(deadline=None, max_examples=30)
@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 5), max_size=3), st.sampled_from(DTYPES)),
        min_size=1,
        max_size=6,
    ),
    st.integers(1, 200),
)
def test_files_are_what_safetensors_reads(tmp_path_factory, tensors, limit):
    folder = tmp_path_factory.mktemp("shards")
    heads = {
        f"t{i}": Entry(tuple(shape), np.dtype(dtype), folder)
        for i, (shape, dtype) in enumerate(tensors)
    }
    rng = np.random.default_rng(0)
    values = {k: rng.normal(size=h.shape).astype(h.dtype) for k, h in heads.items()}
    found = {}
    for number, shard in enumerate(shards.split(heads, limit)):
        assert len(shard) == 1 or sum(head.nbytes for head in shard.values()) <= limit
        places = shards.lay_out(folder / f"{number}.safetensors", shard)
        for key, place in places.items():
            place[...] = values[key]
        del places
        loaded = load_file(folder / f"{number}.safetensors")
        assert not set(loaded) & set(found)
        found |= loaded
    assert bits(found) == bits(values)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32 - 1), st.sampled_from(DTYPES), st.sampled_from(list(PARTS)))
def test_tables_undo_themselves_for_every_bit_pattern(seed, dtype, part):
    rng = np.random.default_rng(seed)
    size = np.dtype(dtype).itemsize
    tree = {
        path: rng.integers(0, 256, (*leaf.shape, size), np.uint8).view(dtype)[..., 0]
        for path, leaf in parts.shapes({part: PARTS[part]}).items()
    }
    rules = parts.rules({part: PARTS[part]})
    back = to_torch(rules, unflatten(tree))
    again = flatten(to_jax(rules, back, unflatten(tree)))
    assert bits(again) == bits(tree)
