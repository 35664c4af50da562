"""`configs/stage1.py`: the original's documented Stage 1 and its variants."""

from pathlib import Path

import pytest

from jaxvlm.config import load
from jaxvlm.config_checks import check
from jaxvlm.errors import UserError
from jaxvlm.models.vlm import vlm_config
from jaxvlm.paths import flatten
from jaxvlm.training.missing import check_weights
from jaxvlm.training.parameters import assign_groups, trainable
from jaxvlm.training.state import abstract_parameters

STAGE1 = str(Path(__file__).parent.parent / "configs" / "stage1.py")
PARTS = {"vision", "language", "projector", "geometry"}


def fields(spec):
    config = load(spec)
    check(config)
    return {name.replace("/", "."): value for name, value in flatten(config.to_dict()).items()}


def test_it_is_the_originals():
    config = load(STAGE1)
    rates = config.optimizer.learning_rate
    assert (rates.language, rates.projector, rates.geometry) == (5e-6, 2e-4, 2e-4)
    assert (config.optimizer.warmup_ratio, config.optimizer.weight_decay) == (0.1, 0.01)
    assert config.optimizer.gradient_clip == 1.0
    assert (config.data.image_size, config.data.num_views, config.data.view_dropout) == (
        448,
        8,
        0.3,
    )
    assert [part["weight"] for part in config.data.train] == [0.7, 0.3]
    assert [part["path"] for part in config.data.train] == [
        f"data/processed/{name}/train_split.jsonl" for name in ("scanqa", "sqa3d")
    ]
    train = config.train
    assert (train.max_steps, train.save_every, train.log_every) == (937, 50, 1)
    assert (config.text.max_length, config.data.geometry_convention) == (512, "first_camera")
    model = vlm_config(config.model)
    assert (model.language.num_layers, model.language.hidden_size) == (36, 2560)
    assert (model.projector.num_latents, model.vision.embed_dim) == (128, 1024)


@pytest.mark.parametrize(
    ("variant", "changes"),
    [
        ("debug", {"train.max_steps": 100}),
        ("long", {"train.max_steps": 30_000}),
        ("safe", {"data.pack": False, "train.accumulation": 4}),
        ("bird", {"data.num_views": 1, "data.view_dropout": 0.0}),
        ("lora", {"model.language.lora.rank": 16, "parameters": ...}),
        ("projector", {"parameters": ...}),
        ("lora,debug", {"model.language.lora.rank": 16, "parameters": ..., "train.max_steps": 100}),
    ],
)
def test_a_variant_changes_what_it_says_and_nothing_else(variant, changes):
    plain, found = fields(STAGE1), fields(f"{STAGE1}:{variant}")
    different = {name for name in plain if plain[name] != found[name]}
    assert different == set(changes)
    assert all(found[name] == value for name, value in changes.items() if value is not ...)


@pytest.mark.parametrize(
    ("variant", "language"),
    [
        ("", "all"),
        ("lora", {f"{name}_proj/lora_{side}" for name in "qkvo" for side in "ab"}),
        ("projector", set()),
    ],
)
def test_what_learns(variant, language):
    config = load(f"{STAGE1}:{variant}")
    shapes = abstract_parameters(vlm_config(config.model))
    learning = trainable(assign_groups(config.parameters, shapes, config.optimizer.learning_rate))
    own = {path for path in shapes if not path.startswith(("vision/", "language/"))}
    assert {path for path in learning if not path.startswith("language/")} == own
    found = {path for path in learning if path.startswith("language/")}
    if language == "all":
        assert found == {path for path in shapes if path.startswith("language/")}
    else:
        assert {"/".join(path.split("/")[-2:]) for path in found} == language


def test_an_unknown_variant_is_answered_with_the_known_ones():
    with pytest.raises(UserError, match=r"knows the variants debug, long, safe.*found 'fast'"):
        load(f"{STAGE1}:fast")


def weights(monkeypatch, tmp_path, parts=PARTS, **names):
    """What is said of the weights that a start in an empty folder lacks."""
    monkeypatch.chdir(tmp_path)
    config = load(STAGE1, [f"model.{part}.weights={name}" for part, name in names.items()])
    with pytest.raises(UserError) as told:
        check_weights(config.model, parts)
    return str(told.value)


def test_missing_weights_are_answered_with_the_commands_that_make_them(monkeypatch, tmp_path):
    told = weights(monkeypatch, tmp_path)
    for command in (
        "convert.import_torch vggt facebook/VGGT-1B-Commercial third_party/vggt/jaxvlm "
        "--dtype bfloat16",
        "convert.import_torch qwen3 Qwen/Qwen3-4B-Instruct-2507 third_party/qwen3/jaxvlm",
    ):
        assert f"python -m {command}" in told


def test_files_that_are_there_already_are_the_source(monkeypatch, tmp_path):
    folder = tmp_path / "third_party" / "vggt"
    folder.mkdir(parents=True)
    (folder / "model.pt").touch()
    told = weights(monkeypatch, tmp_path, {"vision"})
    assert "import_torch vggt third_party/vggt third_party/vggt/jaxvlm" in told
    assert "qwen3" not in told


def test_a_pytorch_folder_in_place_of_imported_weights(monkeypatch, tmp_path):
    (tmp_path / "qwen").mkdir()
    (tmp_path / "qwen" / "model.safetensors").touch()
    told = weights(monkeypatch, tmp_path, {"language"}, language="qwen")
    assert "import_torch qwen3 qwen qwen/jaxvlm (then model.language.weights=qwen/jaxvlm)" in told


def test_weights_of_no_use_to_the_start_are_not_asked_for(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    check_weights(load(STAGE1).model, {"projector", "geometry"})
