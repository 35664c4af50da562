"""The parts of the model on both sides: sizes and parameters here, name tables to PyTorch there.

Two namings exist: each part's own (VGGT's state dict, Hugging Face's Qwen3, the original's
projector and geometry head), and the original's checkpoint of all parts, which puts prefixes before
two of them.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, TypeAlias

import jax
from flax import nnx

from convert import projector, qwen3, sizes, vggt
from convert.table import Rule
from jaxvlm.models.geometry import GeometryConfig, GeometryHead
from jaxvlm.models.perceiver import Perceiver, PerceiverConfig
from jaxvlm.models.qwen3 import Qwen3, Qwen3Config
from jaxvlm.models.tree import pure
from jaxvlm.models.vggt.config import DPTConfig, VGGTConfig
from jaxvlm.models.vggt.model import VGGT
from jaxvlm.paths import flatten

Sizes: TypeAlias = VGGTConfig | PerceiverConfig | GeometryConfig | Qwen3Config
# Before the keys of a part in a checkpoint of the original.
ORIGINAL = {"vision": "vision_model.", "language": "text_model.", "projector": "", "geometry": ""}
# Parameters with a row or column for every token.
VOCABULARY = ("language/embed_tokens/embedding", "language/lm_head/kernel")
_MODULES = {"vision": VGGT, "projector": Perceiver, "geometry": GeometryHead, "language": Qwen3}
_CONFIGS = {"vision": VGGTConfig, "projector": PerceiverConfig, "geometry": GeometryConfig,
            "language": Qwen3Config}  # fmt: skip
# What of a part's sizes is the choice of a run, not of the weights.
_CHOICES = ("context", "context_tokens", "dropout", "mode", "num_tokens", "frozen_layers", "lora")


def shapes(parts: Mapping[str, Sizes]) -> dict[str, jax.ShapeDtypeStruct]:
    """Path and shape of every parameter; nothing is allocated."""
    return flatten({part: _shapes(part, config) for part, config in parts.items()})


@functools.cache
def _shapes(part: str, config: Sizes) -> dict:
    return pure(nnx.eval_shape(lambda: _MODULES[part](config, rngs=nnx.Rngs(0))))


def rules(parts: Mapping[str, Sizes], prefixes: Mapping[str, str] | None = None) -> list[Rule]:
    """The name tables of several parts; `prefixes` stand before a part's own keys."""
    table = []
    for part, config in parts.items():
        prefix = (prefixes or {}).get(part, "")
        if part == "vision":
            own = [r.moved("", "vision/") for r in vggt.rules(config)]
        elif part == "language":
            own = [r.moved("", "language/") for r in qwen3.rules(config)]
        else:
            own = projector.rules(part)
        table += [rule.moved(prefix, "") for rule in own]
    return table


def described(parts: Mapping[str, Sizes]) -> dict[str, dict[str, Any]]:
    """The sizes of the parts for `meta.json`, without what a run may choose."""
    return {
        part: {k: v for k, v in dataclasses.asdict(config).items() if k not in _CHOICES}
        for part, config in parts.items()
    }


def from_described(model: Mapping[str, Mapping[str, Any]], where: str) -> dict[str, Sizes]:
    """The inverse of `described`, after a way through JSON.

    Raises:
      UserError: they are no sizes; the message begins with `where`.
    """
    parts = {}
    with sizes.stated_in(where):
        for part, stated in model.items():
            fields = {k: tuple(v) if isinstance(v, list) else v for k, v in stated.items()}
            for name in ("depth_head", "point_head"):
                if name in fields:
                    head = fields[name]
                    channels, layers = tuple(head["out_channels"]), tuple(head["layers"])
                    fields[name] = DPTConfig(head["features"], channels, layers)
            parts[part] = _CONFIGS[part](**fields)
    return parts
