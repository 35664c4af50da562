"""What benchmarks compare with: PyTorch modules that compute what the official ones do."""

import importlib
import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxvlm.data.actions.constraint import ActionConstraints
from jaxvlm.data.tokenizer import load_tokenizer
from jaxvlm.models.perceiver import PerceiverConfig
from jaxvlm.models.qwen3 import Qwen3Config
from jaxvlm.models.vggt.config import VGGTConfig

ROOT = Path(__file__).parents[1]
FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture(scope="module", autouse=True)
def bench():
    """Its files are scripts that stand beside each other."""
    folder = str(ROOT / "scripts" / "bench")
    sys.path.insert(0, folder)
    yield
    sys.path.remove(folder)


def state(tensors, prefix):
    import torch

    keys = [key for key in tensors if key.startswith(prefix)]
    return {key.removeprefix(prefix): torch.from_numpy(tensors[key]) for key in keys}


@pytest.mark.parametrize("case", ["sq", "nonsq", "down", "samecount"])
def test_the_aggregator_in_pytorch_is_the_official_one(case):
    import torch
    from torch_models import Aggregator

    tensors = load_file(FIXTURES / "vggt_tiny.safetensors")
    config = VGGTConfig(img_size=56, embed_dim=32, depth=4, num_heads=2, vit_depth=2, vit_heads=4)
    model = Aggregator(config)
    model.load_state_dict(state(tensors, "params/aggregator."))
    with torch.no_grad():
        found = model(torch.from_numpy(tensors[f"{case}/images"]))
    for layer, tokens in enumerate(found):
        true = tensors[f"{case}/aggregated_tokens_{layer:02}"]
        np.testing.assert_allclose(tokens, true, atol=5e-5)


@pytest.fixture
def case(monkeypatch):
    """A tiny update of two views and two questions an image set."""
    import stage1_batches

    sizes = stage1_batches.made(
        VGGTConfig(img_size=28, embed_dim=32, depth=1, num_heads=2, vit_depth=1, vit_heads=2),
        (32, 128, 2, 2, 48),
        Qwen3Config(1000, 32, 2, 4, 2, 8, 48),
    )
    monkeypatch.setitem(stage1_batches.SIZES, "tiny", sizes)
    shape = {"views": 2, "per_set": 2, "pixels": 28, "questions": 6, "rows": 2, "row_length": 384}
    original = {"micro_batch": 4, "padding": "512", "checkpointing": False, "compile": False}
    return {"size": "tiny", "remat": "dots", "repeats": 1, "epochs": 1.0, **shape, **original}


@pytest.mark.slow
def test_both_sides_of_an_update_have_the_same_loss(case):
    import train_step

    ours, best = (train_step.measure(case | {"side": side}) for side in ("jaxvlm", "best"))
    assert ours["loss"] == pytest.approx(best["loss"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("side", ["original", "jaxvlm, context first", "jaxvlm, from images"])
def test_the_other_sides_learn_from_the_same_questions(case, side):
    import train_step

    found = train_step.measure(case | {"side": side})
    # A model of random weights knows nothing: the logarithm of the vocabulary.
    assert found["loss"] == pytest.approx(np.log(1000), rel=0.1)
    assert found["seconds"] > 0 and found["parameters"] > 1000


def test_the_projector_in_pytorch_is_the_originals():
    import torch
    from torch_models import Projector

    tensors = load_file(FIXTURES / "original_projector_tiny.safetensors")
    config = PerceiverConfig(48, 64, 16, 4, 2, 128, 32)
    model = Projector(config)
    model.load_state_dict(state(tensors, "params/projector."))
    context = torch.from_numpy(tensors["case/aggregated_tokens"])
    with torch.no_grad():
        found = model(context.flatten(1, -2))
    np.testing.assert_allclose(found, tensors["case/visual_tokens"], rtol=1e-4, atol=1e-5)


def test_what_constraints_cost_is_measured_pair_by_pair(monkeypatch):
    import constrain

    monkeypatch.setitem(constrain.SIZES, "10m", Qwen3Config(1000, 32, 2, 4, 2, 8, 48))
    tokenizer = load_tokenizer("jaxvlm:rooms")
    flags = ["--size", "10m", "--prompt", "8", "--new", "6", "--piece", "2", "--rounds", "2"]
    pairs = constrain.steps(
        constrain.parser().parse_args(flags), tokenizer, ActionConstraints(tokenizer), 2
    )
    assert len(pairs) == 6 and all(free > 0 < held for free, held in pairs)
    # One slow pair among many says nothing.
    assert constrain.cost([(1, 1.1)] * 20 + [(1, 9)])[0] == pytest.approx(0.1)


@pytest.fixture
def started(monkeypatch, tmp_path):
    """`(benchmark, *flags) -> record` of one whose cases run here."""
    sides = importlib.import_module("sides")

    def function(benchmark, *flags):
        monkeypatch.setattr(sides, "_child", lambda script, case: benchmark.measure(case))
        parser, path = benchmark.parser(), tmp_path / "record.json"
        parser.add_argument("--rounds", type=int)
        benchmark.main(parser.parse_args([*flags, "--rounds", "1", "--output", str(path)]))
        return json.loads(path.read_text())

    return function


@pytest.mark.slow
def test_the_aggregators_are_compared_and_recorded(started, monkeypatch, capsys):
    import vggt

    tiny = VGGTConfig(img_size=56, embed_dim=32, depth=2, num_heads=2, vit_depth=1, vit_heads=2)
    monkeypatch.setitem(vggt.SIZES, "small", tiny)
    flags = "--size small --views 1,2 --pixels 56 --repeats 1 --no-compiled"
    record = started(vggt, *flags.split())
    assert [(case["side"], case["views"]) for case in record["cases"]] == [
        ("jaxvlm", 1), ("torch", 1), ("jaxvlm", 2), ("torch", 2)]  # fmt: skip
    assert all(case["off_by"] < 1e-5 for case in record["cases"] if case["side"] == "jaxvlm")
    assert {"date", "cpu", "versions", "revision", "command"} < set(record)
    assert "times as fast as torch" in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
@pytest.mark.parametrize("ragged", [False, True])
def test_decoders_make_as_many_tokens_on_both_sides(started, monkeypatch, ragged):
    import generate

    monkeypatch.setitem(generate.SIZES, "10m", Qwen3Config(1000, 32, 2, 4, 2, 8, 48))
    if not ragged:
        # All tokens take two seconds, the first takes one: a real clock may differ at this size.
        times = itertools.cycle([2.0, 1.0])
        monkeypatch.setattr(generate.sides, "seconds_of", lambda work, _: work() or next(times))
    flags = ["--size", "10m", "--batches", "2", "--prompt", "5", "--new", "6", "--repeats", "1"]
    ours, theirs = started(generate, *flags, *(["--ragged"] if ragged else []))["cases"]
    if ragged:
        assert ours["tokens"] == theirs["tokens"] > 8 and ours["times"] > 0
    else:
        assert ours["step_seconds"] == theirs["step_seconds"] == 0.2 and ours["times_step"] == 1
        assert ours["tokens_per_second"] == 6


def test_a_benchmark_says_that_the_machine_was_busy(monkeypatch, capsys):
    sides = importlib.import_module("sides")
    for load, told in ((0.5, False), (99.0, True)):
        monkeypatch.setattr(sides.os, "getloadavg", lambda load=load: (load, load, load))
        sides.write_record(None, [])
        assert ("measure again when the machine is idle" in capsys.readouterr().err) == told


@pytest.mark.parametrize("name", ["constrain", "data", "evaluate", "records", "startup"])
def test_a_record_that_cannot_be_written_is_refused_at_the_start(name, tmp_path, capsys):
    (tmp_path / "file").touch()
    flags = importlib.import_module(name).parser()
    for path, said in (
        (tmp_path / "file" / "record.json", "cannot be written"),
        (tmp_path, "folder"),
    ):
        with pytest.raises(SystemExit):
            flags.parse_args(["--output", str(path)])
        assert said in capsys.readouterr().err
    assert flags.parse_args(["--output", str(tmp_path / "new" / "record.json")]).output
    assert not any((tmp_path / "new").iterdir())
