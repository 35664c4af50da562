"""What benchmarks compare with: PyTorch modules that compute what the official ones do."""

import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxvlm.models.perceiver import PerceiverConfig
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
