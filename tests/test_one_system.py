"""One system: both stages at small sizes go the whole way, from PyTorch weights to transformers and
to files like RoomPlan's.

Nothing but the sizes and paths below is changed in `configs/`, and every step is the command that a
user types, in a folder laid out as docs/data.md says.
"""

import json
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file
from scans import read_lines, write_arkit, write_scannet
from waiting import until

from jaxvlm.config import load
from jaxvlm.paths import flatten
from jaxvlm.training.checkpoints import restore_params, stored_shapes

REPOSITORY = Path(__file__).parent.parent
STAGE1, STAGE2 = (REPOSITORY / "configs" / f"{name}.py" for name in ("stage1", "stage2_arkit"))
# The official VGGT at a small size: its tensors, and the sizes it was built with.
VGGT = REPOSITORY / "tests" / "fixtures" / "vggt_tiny"
TOKENIZER = REPOSITORY / "jaxvlm" / "assets" / "rooms_tokenizer"

UPDATES, VIEWS = 60, 3
SIZES = {
    "model.vision.img_size": 56,
    "model.vision.embed_dim": 32,
    "model.vision.depth": 4,
    "model.vision.num_heads": 2,
    "model.vision.vit_depth": 2,
    "model.vision.vit_heads": 4,
    "model.projector.latent_dim": 32,
    "model.projector.num_latents": 8,
    "model.projector.num_heads": 2,
    "model.projector.num_layers": 2,
    "model.projector.ffn_dim": 64,
    "model.language.vocab_size": 640,
    "model.language.hidden_size": 32,
    "model.language.num_layers": 3,
    "model.language.num_heads": 4,
    "model.language.num_kv_heads": 2,
    "model.language.head_dim": 16,
    "model.language.intermediate_size": 64,
    "text.max_length": 96,
    # Another than VGGT's own, as in the full size: 448 beside 518.
    "data.image_size": 42,
    "data.num_views": VIEWS,
    "data.row_length": 192,
    "data.row_sets": 2,
    "data.row_labels": 48,
    # One of three scenes; the full size holds some of hundreds out.
    "data.held_out": 0.4,
    "train.max_steps": UPDATES,
    "train.accumulation": 2,
    "train.save_every": 10,
    "evaluation.max_new_tokens": 4,
    "evaluation.batch_sets": 2,
    "evaluation.batch_questions": 8,
}
PATHS = {
    "model.vision.weights": "weights/vggt",
    "model.language.weights": "weights/qwen3",
    "text.tokenizer": "downloads/qwen3",
    "data.features.folder": "features",
}
CONFIG = ("--config", STAGE1, *(f"--config.{k}={v}" for k, v in (SIZES | PATHS).items()))

# An action takes more tokens than an answer.
SIZES_OF_ACTIONS = SIZES | {
    "text.max_length": 160,
    "data.row_length": 320,
    "data.row_labels": 160,
    "train.max_steps": 4,
    "train.save_every": 4,
    "train.eval_every": 4,
}
# Views are dropped by chance, so that no cache could hold their features.
PATHS_OF_ACTIONS = {name: path for name, path in PATHS.items() if name != "data.features.folder"}
CONFIG_OF_ACTIONS = (
    *("--config", STAGE2),
    *(f"--config.{k}={v}" for k, v in (SIZES_OF_ACTIONS | PATHS_OF_ACTIONS).items()),
)

SCENES = {"train": ("scene0000_00", "scene0001_00", "scene0002_00"),
          "test": ("scene0003_00", "scene0004_00")}  # fmt: skip
ASKED = (
    ("What color is the sofa?", "red"),
    ("How many chairs are there?", "two"),
    ("Is there a bed in the room?", "no"),
)
DATASETS = ("scanqa", "sqa3d")
SCANS = {"train": ("47333462", "47333463", "47333464"), "test": ("47333465",)}
OFFICIAL = {
    ("scanqa", "train"): "data/raw/scanqa/ScanQA_v1.0_train.json",
    # ScanQA's own test file has no answers.
    ("scanqa", "test"): "data/raw/scanqa/ScanQA_v1.0_val.json",
    ("sqa3d", "train"): "data/raw/sqa3d/v1_balanced_questions_train_scannetv2.json",
    ("sqa3d", "test"): "data/raw/sqa3d/v1_balanced_questions_test_scannetv2.json",
}


def write_downloads(folder: Path) -> torch.nn.Module:
    """VGGT's `.pt`, and Qwen3's folder with a tokenizer; returns the Qwen3."""
    folder.mkdir()
    tensors = load_file(VGGT.with_suffix(".safetensors"))
    state = {k.removeprefix("params/"): torch.from_numpy(v)
             for k, v in tensors.items() if k.startswith("params/")}  # fmt: skip
    torch.save(state, folder / "vggt.pt")
    torch.manual_seed(0)
    language = {k.split(".")[-1]: v for k, v in SIZES.items() if k.startswith("model.language.")}
    names = {"num_layers": "num_hidden_layers", "num_heads": "num_attention_heads",
             "num_kv_heads": "num_key_value_heads"}  # fmt: skip
    sizes = {names.get(name, name): size for name, size in language.items()}
    # What is no size is Qwen3-4B's.
    config = transformers.Qwen3Config(**sizes, rope_theta=5e6, tie_word_embeddings=True)
    model = transformers.Qwen3ForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder / "qwen3")
    for file in TOKENIZER.iterdir():
        (folder / "qwen3" / file.name).write_bytes(file.read_bytes())
    return model


def write_questions(dataset: str, split: str) -> Path:
    """A question file as the dataset's authors write it, SQA3D's answers beside it."""
    path = Path(OFFICIAL[dataset, split])
    path.parent.mkdir(parents=True, exist_ok=True)
    asked = [(scene, *pair) for scene in SCENES[split] for pair in ASKED]
    if dataset == "scanqa":
        questions = [
            {"scene_id": scene, "object_ids": [1], "object_names": ["thing"],
             "question_id": f"{split}-{i}", "question": question, "answers": [answer]}
            for i, (scene, question, answer) in enumerate(asked)
        ]  # fmt: skip
        path.write_text(json.dumps(questions))
        return path
    questions = [
        {"scene_id": scene, "question_id": i, "question": question, "situation": "I am at a door."}
        for i, (scene, question, _) in enumerate(asked)
    ]
    annotations = [
        {"scene_id": scene, "question_id": i, "answers": [{"answer": answer}]}
        for i, (scene, _, answer) in enumerate(asked)
    ]
    path.write_text(json.dumps({"questions": questions}))
    beside = path.with_name(path.name.replace("questions", "sqa_annotations"))
    beside.write_text(json.dumps({"annotations": annotations}))
    return path


def prepare(run, dataset: str, split: str) -> None:
    """Makes the records that Stage 1 names."""
    output = Path(f"data/processed/{dataset}/{split}_split.jsonl")
    run(
        REPOSITORY / "scripts" / "prep" / "prepare_scanqa.py",
        *("--dataset", dataset, "--scan-root", "data/raw/scannet"),
        *("--qa-file", write_questions(dataset, split)),
        *("--output", output, "--num-views", VIEWS),
    )
    lines = read_lines(output)
    assert len(lines) == len(SCENES[split]) * len(ASKED)
    assert all(len(line["images"]) == VIEWS and line["geom_token"] for line in lines)


def prepare_actions(run, split: str) -> None:
    """Makes the records that Stage 2 names."""
    root = Path("data/raw/arkitscenes") / split
    for scene in SCANS[split]:
        write_arkit(root, scene, nested=True)
    output = Path(f"data/processed/arkit/{split}.jsonl")
    run(
        REPOSITORY / "scripts" / "prep" / "prepare_arkit_from_3dod.py",
        *("--arkit-training-root", root, "--output", output, "--num-views", VIEWS),
    )
    assert {line["scene_id"] for line in read_lines(output)} == set(SCANS[split])


def kill_after_a_checkpoint(process: subprocess.Popen, checkpoints: Path) -> None:
    """Kills a training run while there are updates left to make."""

    def stands() -> bool:
        assert process.poll() is None, process.communicate()
        return checkpoints.is_dir() and any(p.name.isdigit() for p in checkpoints.iterdir())

    until(stands)
    process.kill()
    process.communicate()
    assert process.returncode == -9
    assert not (checkpoints / str(UPDATES)).exists()


def trained(checkpoint: Path) -> dict[str, np.ndarray]:
    """The parameters in a checkpoint, by path."""
    placed = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = {
        path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placed)
        for path, leaf in stored_shapes(checkpoint).items()
    }
    return {path: np.asarray(leaf) for path, leaf in restore_params(checkpoint, wanted).items()}


def assert_only_sizes_and_paths_differ(config: Path) -> None:
    """Compares the configuration of a run with Stage 1's."""
    ours, theirs = (flatten(load(str(file)).to_dict()) for file in (config, STAGE1))
    changed = {path.replace("/", ".") for path in ours if ours[path] != theirs[path]}
    # What Stage 1 leaves to the machine is settled in a run's own file.
    assert theirs["train/remat"] == "auto" and ours["train/remat"] == "none"
    assert changed == {*SIZES, *PATHS, "train.remat"} and set(ours) == set(theirs)


@pytest.fixture
def run(python, tmp_path, monkeypatch):
    """Runs a Python command in the folder of the experiment; returns what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))

    def function(*arguments) -> str:
        process = python(*arguments)
        out, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        return out

    return function


@pytest.mark.slow
def test_both_stages_go_the_whole_way_at_small_sizes(python, run):
    imported = write_downloads(Path("downloads"))
    vggt = ("--model-config", VGGT.with_suffix(".json"), "--dtype", "bfloat16")
    run("-m", "convert.import_torch", "vggt", "downloads/vggt.pt", "weights/vggt", *vggt)
    run("-m", "convert.import_torch", "qwen3", "downloads/qwen3", "weights/qwen3")

    for seed, scene in enumerate(scene for scenes in SCENES.values() for scene in scenes):
        write_scannet(Path("data/raw/scannet"), scene, seed, frames=5, lost=1)
    for dataset, split in OFFICIAL:
        prepare(run, dataset, split)

    assert "features holds all" in run("-m", "jaxvlm.cache_features", *CONFIG)

    # Without --workdir, in the folder named after the configuration.
    workdir = Path("runs/stage1")
    command = ("-m", "jaxvlm.train", *CONFIG)
    kill_after_a_checkpoint(python(*command), workdir / "checkpoints")
    assert "resuming" in run(*command)
    assert_only_sizes_and_paths_differ(workdir / "config.json")
    logged = read_lines(workdir / "metrics.jsonl")
    assert [line["step"] for line in logged] == list(range(1, UPDATES + 1))
    assert logged[-1]["loss"] < logged[0]["loss"]

    run("-m", "jaxvlm.evaluate", "--checkpoint", workdir, "--split", "test")
    summary = json.loads((workdir / "evaluation" / "test" / "summary.json").read_text())
    assert summary["files"] == [f"data/processed/{name}/test_split.jsonl" for name in DATASETS]
    assert summary["count"] == len(DATASETS) * len(SCENES["test"]) * len(ASKED)
    controls = [value for value in summary["controls"].values() if value is not None]
    assert len(controls) >= 2 and all(0 <= x <= 1 for x in (summary["em"], *controls))

    run("-m", "convert.export_torch", workdir, "exported", "--format", "hf")
    exported = transformers.AutoModelForCausalLM.from_pretrained("exported")
    found = {name: v.detach().float().numpy() for name, v in exported.named_parameters()}
    before = {name: v.detach().float().numpy() for name, v in imported.named_parameters()}
    params = trained(workdir / "checkpoints" / str(UPDATES))
    layer = exported.config.num_hidden_layers - 1
    for name, value in {
        "model.embed_tokens.weight": params["language/embed_tokens/embedding"],
        f"model.layers.{layer}.self_attn.q_proj.weight":
            params["language/layers/attn/q_proj/kernel"][layer].T,
        f"model.layers.{layer}.mlp.down_proj.weight":
            params["language/layers/mlp/down_proj/kernel"][layer].T,
    }.items():  # fmt: skip
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    # Training moved every one of them, by no more than its small learning rate can.
    assert set(found) == set(before)
    for name, value in found.items():
        assert 0 < np.abs(value - before[name]).max() < 1e-3, name
    tokenizer = transformers.AutoTokenizer.from_pretrained("exported")
    with torch.no_grad():
        logits = exported(**tokenizer(ASKED[0][0], return_tensors="pt")).logits
    assert torch.isfinite(logits).all() and logits.std() > 0

    for split in SCANS:
        prepare_actions(run, split)
    workdir = Path("runs/stage2_arkit")
    run("-m", "jaxvlm.train", *CONFIG_OF_ACTIONS)
    run("-m", "jaxvlm.evaluate", "--checkpoint", workdir)
    summary = json.loads((workdir / "evaluation" / "test" / "summary.json").read_text())
    assert summary["count"] and summary["action_valid"] == summary["scene_right"] == 1
    records = ("--data", "data/processed/arkit/test.jsonl")
    predict = ("-m", "jaxvlm.predict", "--checkpoint", workdir, *records)
    run(*predict, "--format", "roomplan", "--output", "rooms")
    assert [path.stem for path in Path("rooms").iterdir()] == list(SCANS["test"])
