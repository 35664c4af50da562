"""What can be imported: of each kind the sizes, the tensors' places and what is left out."""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from convert import parts, qwen3, vggt
from convert.source import Tensors
from convert.table import Leaf, match
from jaxvlm.errors import UserError
from jaxvlm.models.geometry import GeometryConfig
from jaxvlm.models.perceiver import PerceiverConfig
from jaxvlm.models.qwen3 import Qwen3Config
from jaxvlm.models.vggt.config import DPTConfig, VGGTConfig

KINDS = ("vggt", "qwen3", "original")
# The file that every export has, with the sizes of the parts.
MARK = "jaxvlm.json"
# Rows of the original's embedding (the tokenizer's and one for <image>), and of Qwen3's own.
_ORIGINAL_ROWS, _QWEN3_ROWS = 151_670, 151_936


@dataclasses.dataclass(frozen=True)
class Import:
    """A source that fits a model.

    Attributes:
      leaves: our parameters and the tensors they are made of.
      parts: the sizes of the parts.
      left_out: how many tensors of the source are not imported, by the reason.
      rows: of the source's token embedding, where there is one; what is above them is zero.
      assumed: sizes that the source does not tell and that were not given, in words.
    """

    leaves: list[Leaf]
    parts: dict[str, parts.Sizes]
    left_out: dict[str, int]
    rows: int | None = None
    assumed: tuple[str, ...] = ()


def find(
    kind: str,
    tensors: Tensors,
    *,
    heads: Sequence[str] = (),
    model_config: Path | None = None,
    dtype: np.dtype | None = None,
) -> Import:
    """Finds a place for every tensor of a source.

    Args:
      kind: `"vggt"`, `"qwen3"` or `"original"`.
      tensors: the source; a Qwen3 has its `config.json` beside it.
      heads: of VGGT, beside the aggregator.
      model_config: JSON file with sizes that shapes don't tell.
      dtype: of all parameters; None keeps the source's.

    Raises:
      UserError: it is of another kind, or tensors do not fit.
    """
    given = read_json(model_config) if model_config else {}
    known = {} if given else _exported(tensors.folder)
    if kind == "vggt":
        _expect(tensors, "aggregator.", kind, "the state dict of VGGT (keys aggregator.*)")
        return matched(tensors, {"vision": _vision(given, known, heads)}, kind, dtype)
    if kind == "qwen3":
        _expect(tensors, "model.layers.", kind, "Qwen3ForCausalLM (keys model.layers.*)")
        file = tensors.folder / "config.json"
        with parts.sizes_of(str(file)):
            config = Qwen3Config.from_hf(read_json(file))
        return matched(tensors, {"language": config}, kind, dtype)
    return _original(tensors, given, known, heads, dtype)


def _exported(folder: Path) -> dict[str, parts.Sizes]:
    """The sizes that an export of jaxvlm's tells, if the tensors are of one."""
    for place in (folder, folder.parent):
        if (place / MARK).is_file():
            model = read_json(place / MARK).get("model", {})
            return parts.from_described(model, str(place / MARK))
    return {}


def _vision(given: Mapping, known: Mapping[str, parts.Sizes], heads: Sequence[str]) -> VGGTConfig:
    if "vision" in known:
        return dataclasses.replace(known["vision"], heads=tuple(heads))
    return vggt_config(given, heads)


def _original(
    tensors: Tensors,
    given: Mapping,
    known: Mapping[str, parts.Sizes],
    heads: Sequence[str],
    dtype: np.dtype | None,
) -> Import:
    """A checkpoint of the original: the parts that it has, of the sizes that its shapes tell."""
    _expect(tensors, "projector.", "original", "keys text_model.*, vision_model.*, projector.*, …")
    entries = tensors.entries
    found: dict[str, parts.Sizes] = {}
    assumed = []
    if _has(tensors, "vision_model."):
        found["vision"] = _vision(given, known, heads)
        if "aggregator" not in given and "vision" not in known:
            assumed.append("VGGT-1B's number of heads (aggregator)")
    with parts.sizes_of("--model-config"):
        num_heads = given.get("projector", {}).get("num_heads")
        if num_heads is not None and num_heads < 1:
            raise UserError(f"projector.num_heads is {num_heads!r}; expected at least 1")
    if "projector" in known:
        num_heads = known["projector"].num_heads
    elif num_heads is None:
        num_heads = 8
        assumed.append("8 heads of the projector (projector: num_heads)")
    with parts.sizes_of("projector (its num_heads come from --model-config)"):
        found["projector"] = projector_config(entries, num_heads)
    if _has(tensors, "geom_head."):
        found["geometry"] = geometry_config(entries)
    if _has(tensors, "text_model."):
        if text := given.get("text_model"):
            with parts.sizes_of("--model-config: text_model"):
                config = Qwen3Config.from_hf(text)
        elif "language" in known:
            config = known["language"]
        else:
            config = _qwen3_config(tensors)
            assumed.append("rope_theta 5,000,000 and rms_norm_eps 1e-6 (text_model: a config.json)")
        found["language"] = config
    fitting = matched(tensors, found, "original", dtype)
    return dataclasses.replace(fitting, assumed=tuple(assumed))


def matched(
    tensors: Tensors, found: dict[str, parts.Sizes], kind: str, dtype: np.dtype | None
) -> Import:
    """Finds a place for every tensor of a source whose sizes are known.

    Raises:
      UserError: tensors do not fit.
    """
    prefixes = parts.ORIGINAL if kind == "original" else {}
    ignore: list[str] = []
    left_out: dict[str, int] = {}
    padded: dict[str, int] = {}
    if vision := found.get("vision"):
        prefix = re.escape(prefixes.get("vision", ""))
        for pattern in vggt.ignored(vision):
            ignore.append(prefix + pattern)
            count = sum(bool(re.fullmatch(prefix + pattern, key)) for key in tensors)
            why = "not used by jaxvlm" if pattern in vggt.IGNORED else "not asked for by --heads"
            if count:
                left_out[f"{pattern.split(chr(92))[0]}: {why}"] = count
    rows = None
    if language := found.get("language"):
        prefix = prefixes.get("language", "")
        tied = qwen3.ignored(language, tensors, prefix)
        ignore += tied
        if tied:
            left_out["lm_head: the same as the embeddings, to which it is tied"] = 1
        embedding = prefix + "model.embed_tokens.weight"
        if embedding in tensors:
            rows = tensors.entries[embedding].shape[0]
        if prefix:
            keys = [key for key in (embedding, f"{prefix}lm_head.weight") if key in tensors]
            padded = dict.fromkeys(keys, language.vocab_size)
    rules = parts.rules(found, prefixes)
    leaves = match(rules, tensors.entries, parts.shapes(found), ignore, dtype, padded)
    return Import(leaves, found, left_out, rows)


def vggt_config(given: Mapping, heads: Sequence[str] = ()) -> VGGTConfig:
    """VGGT-1B's sizes, or those of a JSON object with the names of the official constructors.

    It has `aggregator` and optionally `vit`, `camera_head`, `depth_head` and `point_head`; the same
    under `config` is read too.
    """
    with parts.sizes_of("--model-config"):
        given = given.get("config", given)
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


def _qwen3_config(tensors: Tensors) -> Qwen3Config:
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


def _has(tensors: Tensors, prefix: str) -> bool:
    return any(key.startswith(prefix) for key in tensors)


def _expect(tensors: Tensors, prefix: str, kind: str, what: str) -> None:
    if not _has(tensors, prefix):
        found = ", ".join(sorted({key.split(".")[0] for key in tensors})[:5])
        raise UserError(f"{kind} expects {what}; this source has keys that begin with {found}")


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
