"""`convert.check_parity` on the official outputs, and on what is not right."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from convert import check_parity
from jaxvlm.errors import UserError

FIXTURES = Path(__file__).parents[1] / "fixtures"


def run(*arguments) -> None:
    check_parity.main(check_parity.parser().parse_args([str(a) for a in arguments]))


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("name", "outputs"),
    [
        pytest.param("vggt_tiny", 57, marks=pytest.mark.slow),
        ("vggt_tiny_conv", 6),
        ("original_projector_tiny", 2),
    ],
)
def test_every_official_output_is_reproduced(name, outputs, dtype, capsys):
    run(FIXTURES / f"{name}.safetensors", "--dtype", dtype)
    out = capsys.readouterr().out
    assert f"{outputs} of {outputs} outputs agree in {dtype}" in out and "not compared" not in out


@pytest.fixture
def projector(tmp_path) -> Path:
    for suffix in (".json", ".safetensors"):
        shutil.copyfile(FIXTURES / f"original_projector_tiny{suffix}", tmp_path / f"mine{suffix}")
    return tmp_path / "mine.safetensors"


def changed(file: Path, **changes) -> None:
    tensors = load_file(file)
    for name, value in changes.items():
        tensors[f"case/{name}"] = value(tensors[f"case/{name}"])
    save_file(tensors, file)


@pytest.mark.parametrize("wrong", [lambda x: x + 1e-3, lambda x: x * np.nan])
def test_an_output_that_is_off_is_named(projector, capsys, wrong):
    changed(projector, visual_tokens=wrong)
    with pytest.raises(SystemExit) as left:
        run(projector)
    assert left.value.code == 1
    out = capsys.readouterr().out
    assert "TOO FAR" in out and "1 of 2 outputs agree" in out


def test_another_tolerance_can_be_asked_for(projector, capsys):
    changed(projector, visual_tokens=lambda x: x + 1e-3)
    tensors = load_file(projector)
    save_file({**tensors, "case/logits": np.zeros(3, np.float32)}, projector)
    run(projector, "--tolerance", "0.01")
    out = capsys.readouterr().out
    assert "2 of 2 outputs agree" in out
    assert "not compared, jaxvlm does not compute it: case/logits" in out
    for none in ("nan", "0", "inf"):
        with pytest.raises(UserError, match="expected a number above 0"):
            run(projector, "--tolerance", none)


def test_wrong_fixtures_are_explained(projector):
    tensors = load_file(projector)
    save_file({k: v for k, v in tensors.items() if "latents" not in k}, projector)
    with pytest.raises(UserError, match=r"projector"):
        run(projector)
    save_file({"params/other": np.zeros(3, np.float32)}, projector)
    with pytest.raises(UserError, match=r"holds nothing to compare"):
        run(projector)
    save_file({**tensors, "case/visual_tokens": np.zeros((1, 2), np.float32)}, projector)
    with pytest.raises(UserError, match=r"'case/visual_tokens' has the shape \[1, 2\]"):
        run(projector)
    projector.with_suffix(".json").write_text(json.dumps([]))
    with pytest.raises(UserError, match=r"mine.json: expected a JSON object"):
        run(projector)
