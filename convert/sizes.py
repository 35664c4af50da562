"""Sizes of the parts: stated in JSON with the names of others, or told by the shapes of tensors."""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from convert import qwen3
from convert.source import Tensors
from jaxvlm.errors import UserError
from jaxvlm.models.geometry import GeometryConfig
from jaxvlm.models.perceiver import PerceiverConfig
from jaxvlm.models.qwen3 import Qwen3Config
from jaxvlm.models.vggt.config import DPTConfig, VGGTConfig

# Sections of a --model-config, and sizes of the projector that may stand in their place.
_SECTIONS = ("aggregator", "vit", "camera_head", "depth_head", "point_head", "projector",
             "text_model")  # fmt: skip
_PROJECTOR = ("latent_dim", "num_latents")
# Rows of the original's embedding (the tokenizer's and one for <image>), and of Qwen3's own.
_ORIGINAL_ROWS, _QWEN3_ROWS = 151_670, 151_936


def read_json(path: Path) -> Mapping:
    """A JSON object in a file.

    Raises:
      UserError: there is none.
    """
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if not isinstance(stored, dict):
        raise UserError(f"{path}: expected a JSON object")
    return stored


def read_model_config(path: Path) -> Mapping:
    """The sections of a `--model-config` file, which may stand under `config`.

    Raises:
      UserError: it has none of them.
    """
    stored = read_json(path)
    given = stored.get("config", stored)
    if not isinstance(given, dict) or not set(given) & {*_SECTIONS, *_PROJECTOR}:
        raise UserError(f"--model-config {path}: expected some of {', '.join(_SECTIONS)}")
    return given


def projector_heads(given: Mapping) -> int | None:
    """The number of heads that a `--model-config` gives the projector, if it does.

    Raises:
      UserError: it is no such number.
    """
    with stated_in("--model-config"):
        # The projector's own sizes may stand alone.
        section = given.get("projector", given if set(given) & set(_PROJECTOR) else {})
        heads = section.get("num_heads")
        if heads is not None and heads < 1:
            raise UserError(f"projector.num_heads is {heads!r}; expected at least 1")
        return heads


@contextlib.contextmanager
def stated_in(where: str) -> Iterator[None]:
    """Turns whatever goes wrong in making sizes of somebody's JSON into a UserError."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    except (KeyError, TypeError, AttributeError, ValueError, ZeroDivisionError) as error:
        raise UserError(f"{where}: sizes are missing or of a wrong type ({error!r})") from None


def vggt_config(given: Mapping, heads: Sequence[str] = ()) -> VGGTConfig:
    """VGGT-1B's sizes, or those of a JSON object with the names of the official constructors.

    It has `aggregator` and optionally `vit`, `camera_head`, `depth_head` and `point_head`; the same
    under `config` is read too.
    """
    with stated_in("--model-config"):
        body = given.get("aggregator", {})
        names = ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio",
                 "num_register_tokens", "rope_freq", "init_values")  # fmt: skip
        sizes = {name: body[name] for name in names if name in body}
        if vit := given.get("vit"):
            sizes |= {"vit_depth": vit["depth"], "vit_heads": vit["num_heads"]}
        elif body.get("patch_embed", "").startswith("conv"):
            sizes["patch_embed"] = "conv"
        if camera := given.get("camera_head"):
            sizes["camera_trunk_depth"] = camera["trunk_depth"]
            sizes["camera_heads"] = camera["num_heads"]
        for name in ("depth_head", "point_head"):
            if head := given.get(name):
                layers = tuple(head["intermediate_layer_idx"])
                sizes[name] = DPTConfig(head["features"], tuple(head["out_channels"]), layers)
        return VGGTConfig(**sizes, heads=tuple(heads))


def projector_config(entries: Mapping[str, Any], num_heads: int) -> PerceiverConfig:
    """The sizes of the original's projector, from the shapes of its tensors."""
    latents, width = _shape(entries, "projector.latents", 2)
    return PerceiverConfig(
        in_dim=_shape(entries, "projector.in_proj.weight", 2)[1],
        latent_dim=width,
        num_latents=latents,
        num_heads=num_heads,
        num_layers=_layers(entries, "projector.layers."),
        ffn_dim=_shape(entries, "projector.layers.0.mlp.0.weight", 2)[0],
        out_dim=_shape(entries, "projector.out_proj.weight", 2)[0],
    )


def geometry_config(entries: Mapping[str, Any]) -> GeometryConfig:
    """The sizes of the original's geometry head, from the shapes of its tensors."""
    out_dim, in_dim = _shape(entries, "geom_head.0.weight", 2)
    return GeometryConfig(in_dim=in_dim, out_dim=out_dim)


def qwen3_config(tensors: Tensors) -> Qwen3Config:
    """The sizes of the original's language model, from the shapes of its tensors."""
    entries, prefix = tensors.entries, "text_model.model."
    layer = f"{prefix}layers.0."
    rows, width = _shape(entries, f"{prefix}embed_tokens.weight", 2)
    (head_dim,) = _shape(entries, f"{layer}self_attn.q_norm.weight", 1)
    head = "text_model.lm_head.weight"
    return Qwen3Config(
        vocab_size=_QWEN3_ROWS if rows == _ORIGINAL_ROWS else rows,
        hidden_size=width,
        num_layers=_layers(entries, f"{prefix}layers."),
        num_heads=_shape(entries, f"{layer}self_attn.q_proj.weight", 2)[0] // head_dim,
        num_kv_heads=_shape(entries, f"{layer}self_attn.k_proj.weight", 2)[0] // head_dim,
        head_dim=head_dim,
        intermediate_size=_shape(entries, f"{layer}mlp.gate_proj.weight", 2)[0],
        tie_embeddings=head not in tensors or qwen3.same_rows(tensors, "text_model."),
    )


def _layers(entries: Mapping[str, Any], prefix: str) -> int:
    numbers = [key.removeprefix(prefix).split(".")[0] for key in entries if key.startswith(prefix)]
    return 1 + max((int(number) for number in numbers if number.isdigit()), default=0)


def _shape(entries: Mapping[str, Any], key: str, axes: int) -> tuple[int, ...]:
    if key not in entries:
        raise UserError(f"the tensor {key!r} is missing; the model's size cannot be told")
    shape = tuple(entries[key].shape)
    if len(shape) != axes:
        raise UserError(f"the tensor {key!r} has the shape {list(shape)}; expected {axes} axes")
    return shape
