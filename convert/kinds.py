"""What can be imported: of each kind the model's sizes, its name table and what is left out."""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flax import nnx

from convert import qwen3, vggt
from convert.source import Tensors
from convert.table import Leaf, match
from jaxvlm.errors import UserError
from jaxvlm.models.qwen3 import Qwen3, Qwen3Config
from jaxvlm.models.tree import pure
from jaxvlm.models.vggt.config import DPTConfig, VGGTConfig
from jaxvlm.models.vggt.model import VGGT


@dataclasses.dataclass(frozen=True)
class Import:
    """A source that fits a model.

    Attributes:
      leaves: our parameters and the tensors they are made of.
      model: the model's sizes, for `meta.json`.
      left_out: how many tensors of the source are not imported, by the reason.
    """

    leaves: list[Leaf]
    model: dict[str, Any]
    left_out: dict[str, int]


def import_vggt(tensors: Tensors, heads: Sequence[str], model_config: Path | None, dtype) -> Import:
    """VGGT's aggregator, and the heads that are asked for.

    Raises:
      UserError: the source is none of this size, or lacks something.
    """
    _expect(tensors, "aggregator.", "vggt", "the state dict of VGGT (keys aggregator.*)")
    config = dataclasses.replace(vggt_config(model_config), heads=tuple(heads))
    ignore = vggt.ignored(config)
    shapes = pure(nnx.eval_shape(lambda: VGGT(config, rngs=nnx.Rngs(0))))
    leaves = match(vggt.rules(config), tensors.entries, shapes, ignore, dtype)
    left_out = {}
    for pattern in ignore:
        count = sum(bool(re.fullmatch(pattern, key)) for key in tensors)
        name = pattern.split("\\")[0]
        why = "not used by jaxvlm" if pattern in vggt.IGNORED else "not asked for by --heads"
        if count:
            left_out[f"{name}: {why}"] = count
    return Import(leaves, dataclasses.asdict(config), left_out)


def import_qwen3(tensors: Tensors, folder: Path, dtype) -> Import:
    """Qwen3, of the size that the folder's `config.json` gives.

    Raises:
      UserError: no such configuration, or tensors that are not of it.
    """
    _expect(tensors, "model.layers.", "qwen3", "Qwen3ForCausalLM (keys model.layers.*)")
    config = Qwen3Config.from_hf(_json(folder / "config.json"))
    left_out = {}
    ignore = qwen3.ignored(config, tensors)
    if ignore:
        left_out["lm_head: the same as the embeddings, to which it is tied"] = len(ignore)
    shapes = pure(nnx.eval_shape(lambda: Qwen3(config, rngs=nnx.Rngs(0))))
    leaves = match(qwen3.rules(config), tensors.entries, shapes, ignore, dtype)
    return Import(leaves, dataclasses.asdict(config), left_out)


def vggt_config(path: Path | None) -> VGGTConfig:
    """VGGT-1B's sizes, or those of a JSON file with the names of the official constructors.

    The file has `aggregator` and optionally `vit`, `camera_head`, `depth_head` and `point_head`;
    the same under `config` is read too.
    """
    if path is None:
        return VGGTConfig()
    stored = _json(path)
    stored = stored.get("config", stored)
    try:
        body = stored["aggregator"]
        names = ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio",
                 "num_register_tokens", "rope_freq", "init_values")  # fmt: skip
        sizes = {name: body[name] for name in names if name in body}
        sizes["patch_embed"] = "vit"
        if vit := stored.get("vit"):
            sizes |= {"vit_depth": vit["depth"], "vit_heads": vit["num_heads"]}
        elif body.get("patch_embed", "").startswith("conv"):
            sizes["patch_embed"] = "conv"
        if camera := stored.get("camera_head"):
            sizes["camera_trunk_depth"] = camera["trunk_depth"]
            sizes["camera_heads"] = camera["num_heads"]
        for name in ("depth_head", "point_head"):
            if head := stored.get(name):
                layers = tuple(head["intermediate_layer_idx"])
                sizes[name] = DPTConfig(head["features"], tuple(head["out_channels"]), layers)
        return VGGTConfig(**sizes)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"--model-config {path}: {error!r} is missing or of a wrong type") from None


def _expect(tensors: Tensors, prefix: str, kind: str, what: str) -> None:
    if not any(key.startswith(prefix) for key in tensors):
        found = ", ".join(sorted({key.split(".")[0] for key in tensors})[:5])
        raise UserError(f"{kind} expects {what}; this source has keys that begin with {found}")


def _json(path: Path) -> Mapping:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if not isinstance(stored, dict):
        raise UserError(f"{path}: expected a JSON object")
    return stored
