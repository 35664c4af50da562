"""What can be imported: of each kind the sizes, the tensors' places and what is left out."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from convert import parts, qwen3, sizes, vggt
from convert.source import Tensors
from convert.table import Leaf, match
from jaxvlm.errors import UserError
from jaxvlm.models.qwen3 import Qwen3Config
from jaxvlm.models.vggt.config import VGGTConfig

KINDS = ("vggt", "qwen3", "original")
# The file that every export has, with the sizes of the parts.
MARK = "jaxvlm.json"


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
    for flag, value in (("--heads", heads), ("--model-config", model_config)):
        if kind == "qwen3" and value:
            raise UserError(f"{flag} is not for qwen3, whose config.json says everything")
    given = sizes.read_model_config(model_config) if model_config else {}
    known = {} if given else _exported(tensors.folder)
    if kind == "vggt":
        _expect(tensors, "aggregator.", kind, "the state dict of VGGT (keys aggregator.*)")
        return matched(tensors, {"vision": _vision(given, known, heads)}, kind, dtype)
    if kind == "qwen3":
        _expect(tensors, "model.layers.", kind, "Qwen3ForCausalLM (keys model.layers.*)")
        file = tensors.folder / "config.json"
        with sizes.stated_in(str(file)):
            config = Qwen3Config.from_hf(sizes.read_json(file))
        return matched(tensors, {"language": config}, kind, dtype)
    return _original(tensors, given, known, heads, dtype)


def _exported(folder: Path) -> dict[str, parts.Sizes]:
    """The sizes that an export of jaxvlm's tells, if the tensors are of one."""
    for place in (folder, folder.parent):
        if (place / MARK).is_file():
            model = sizes.read_json(place / MARK).get("model", {})
            return parts.from_described(model, str(place / MARK))
    return {}


def _vision(given: Mapping, known: Mapping[str, parts.Sizes], heads: Sequence[str]) -> VGGTConfig:
    if "vision" in known:
        return dataclasses.replace(known["vision"], heads=tuple(heads))
    return sizes.vggt_config(given, heads)


def _original(
    tensors: Tensors,
    given: Mapping,
    known: Mapping[str, parts.Sizes],
    heads: Sequence[str],
    dtype: np.dtype | None,
) -> Import:
    """A checkpoint of the original: the parts that it has, of the sizes that its shapes tell."""
    what = "keys text_model.*, vision_model.*, projector.*, geom_head.*"
    _expect(tensors, ("text_model.", "vision_model.", "projector.", "geom_head."), "original", what)
    found: dict[str, parts.Sizes] = {}
    assumed: list[str] = []
    if _has(tensors, "vision_model."):
        found["vision"] = _vision(given, known, heads)
        if "aggregator" not in given and "vision" not in known:
            assumed.append("VGGT-1B's number of heads (aggregator)")
    if _has(tensors, "projector."):
        num_heads = sizes.projector_heads(given)
        if "projector" in known:
            num_heads = known["projector"].num_heads
        elif num_heads is None:
            num_heads = 8
            assumed.append("8 heads of the projector (projector: num_heads)")
        with sizes.stated_in("projector (its num_heads come from --model-config)"):
            found["projector"] = sizes.projector_config(tensors.entries, num_heads)
    if _has(tensors, "geom_head."):
        found["geometry"] = sizes.geometry_config(tensors.entries)
    if _has(tensors, "text_model."):
        if text := given.get("text_model"):
            with sizes.stated_in("--model-config: text_model"):
                config = Qwen3Config.from_hf(text)
        elif "language" in known:
            config = known["language"]
        else:
            config = sizes.qwen3_config(tensors)
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


def _has(tensors: Tensors, prefix: str | tuple[str, ...]) -> bool:
    return any(key.startswith(prefix) for key in tensors)


def _expect(tensors: Tensors, prefix: str | tuple[str, ...], kind: str, what: str) -> None:
    if not _has(tensors, prefix):
        found = ", ".join(sorted({key.split(".")[0] for key in tensors})[:5])
        raise UserError(f"{kind} expects {what}; this source has keys that begin with {found}")
