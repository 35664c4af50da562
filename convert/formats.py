"""The folders that exports write: Hugging Face's, and the original's."""

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from convert import card, export, parts
from convert.hub import tokenizer_folder
from convert.kinds import MARK
from convert.sizes import read_json
from convert.source import SMALL
from convert.stored import Stored
from jaxvlm.data.tokenizer import Tokenizer
from jaxvlm.errors import UserError
from jaxvlm.models.qwen3 import Qwen3Config

Advance = Callable[[int], None]


@dataclasses.dataclass(frozen=True)
class Wish:
    """What the user may choose.

    Attributes:
      dtype: of all tensors; None keeps each parameter's.
      shard_size: bytes of a file.
      tokenizer: folder or hub id; None is what the model came with.
    """

    dtype: np.dtype | None
    shard_size: int
    tokenizer: str | None


class HuggingFace:
    """`AutoModelForCausalLM.from_pretrained` loads the language model; the others lie beside it.

    model-0000i-of-0000n.safetensors with index, config.json, generation_config.json, tokenizer
    projector.safetensors, geometry.safetensors, vision.safetensors if it is not others' as it was
    README.md, jaxvlm.json
    """

    def __init__(self, stored: Stored, wish: Wish):
        """Plans; nothing is written.

        Raises:
          UserError: there is no tokenizer.
        """
        self._stored, self._wish = stored, wish
        kept = [p for p in stored.parts if p != "vision" or p in stored.trained]
        self._plans = {p: export.plan(stored, [p], {}, wish.dtype) for p in kept}
        self.parts = tuple(kept)
        self.notes = _notes(stored)
        if "vision" in stored.parts and "vision" not in kept:
            self.notes.append(f"left out: vision, which is {stored.origin('vision')}, not trained")
        self._tokenizer: tuple[Path, Tokenizer] | None = None
        if "language" in kept:
            self._tokenizer = _tokenizer(stored, wish)
        self.count = sum(len(plan.heads) for plan in self._plans.values())
        heads = [head for plan in self._plans.values() for head in plan.heads.values()]
        self.nbytes = self.room = sum(head.nbytes for head in heads)

    def write(self, folder: Path, advance: Advance) -> None:
        """Writes all files to an empty folder."""
        for part, plan in self._plans.items():
            if part == "language":
                export.write_sharded(folder, plan, self._stored, self._wish.shard_size, advance)
                self._write_small(folder, plan)
            else:
                file = folder / f"{part}.safetensors"
                export.write_safetensors(file, plan, self._stored, advance)
        _write_mark(folder, "hf", self._stored)
        (folder / "README.md").write_text(card.hugging_face(self._stored, self.parts), "utf-8")

    def _write_small(self, folder: Path, plan: export.Export) -> None:
        source, tokenizer = self._tokenizer
        for name in SMALL:
            if (source / name).is_file() and not name.endswith("config.json"):
                shutil.copyfile(source / name, folder / name)
        shutil.copyfile(source / "tokenizer_config.json", folder / "tokenizer_config.json")
        config, generation = _configs(self._stored, tokenizer)
        widest = max((head.dtype for head in plan.heads.values()), key=lambda d: d.itemsize)
        config.pop("torch_dtype", None)
        config["dtype"] = str(widest)
        _write_json(folder / "config.json", config)
        _write_json(folder / "generation_config.json", generation)


class Original:
    """The state dict of the original: `pytorch_model_fp32/` with shards and their index."""

    def __init__(self, stored: Stored, wish: Wish):
        """Plans; nothing is written.

        Raises:
          UserError: there is no tokenizer, which tells the original's rows of the embedding.
        """
        self._stored, self._wish = stored, wish
        self.parts = tuple(stored.parts)
        self.notes = _notes(stored)
        rows, self._shared = None, {}
        if language := stored.parts.get("language"):
            rows = stored.original_rows() or _tokenizer(stored, wish)[1].placeholder_id + 1
            rows = min(rows, language.vocab_size)
            if rows < language.vocab_size:
                self.notes.append(
                    f"left out: rows {rows} to {language.vocab_size - 1} of the token embedding, "
                    "which the original does not have"
                )
            if language.tie_embeddings:
                prefix = parts.ORIGINAL["language"]
                embedding = f"{prefix}model.embed_tokens.weight"
                self._shared = {f"{prefix}lm_head.weight": embedding}
        self._plan = export.plan(stored, self.parts, parts.ORIGINAL, wish.dtype, rows)
        self.count = len(self._plan.heads)
        self.nbytes = sum(head.nbytes for head in self._plan.heads.values())
        # Mapped files, from which torch writes its own.
        self.room = 2 * self.nbytes

    def write(self, folder: Path, advance: Advance) -> None:
        """Writes all files to an empty folder."""
        weights = folder / "pytorch_model_fp32"
        weights.mkdir()
        export.write_bins(
            weights, self._plan, self._stored, self._wish.shard_size, advance, self._shared
        )
        _write_mark(folder, "original", self._stored)
        (folder / "README.md").write_text(card.original(self._stored), "utf-8")


def _notes(stored: Stored) -> list[str]:
    lost = [f"left out: {part}, frozen at random weights, which are stored nowhere"
            for part in stored.absent]  # fmt: skip
    return lost + [
        f"left out: {part}, the head that measures boxes, which neither format has a place for"
        for part in stored.placeless
    ]


def _tokenizer(stored: Stored, wish: Wish) -> tuple[Path, Tokenizer]:
    name = wish.tokenizer or stored.tokenizer or stored.hugging_face()
    if name is None:
        raise UserError(
            f"{stored.source} does not say which tokenizer it has; give it: --tokenizer FOLDER or "
            "a hub id such as Qwen/Qwen3-4B-Instruct-2507"
        )
    folder = tokenizer_folder(str(name))
    for file in ("tokenizer.json", "tokenizer_config.json"):
        if not (folder / file).is_file():
            raise UserError(f"the tokenizer folder {folder} holds no {file}; give --tokenizer")
    tokenizer = Tokenizer(str(folder))
    language: Qwen3Config = stored.parts["language"]
    if tokenizer.rows > language.vocab_size:
        raise UserError(
            f"the tokenizer {name} needs {tokenizer.rows} rows, the embedding of {stored.source} "
            f"has {language.vocab_size}"
        )
    return folder, tokenizer


def _configs(stored: Stored, tokenizer: Tokenizer) -> tuple[dict[str, Any], dict[str, Any]]:
    """`config.json` and `generation_config.json`: those it came with, over those of its sizes."""
    folder = stored.hugging_face()
    config = stored.parts["language"].to_hf() | {
        "bos_token_id": tokenizer.pad_id,
        "eos_token_id": tokenizer.end_id,
        "pad_token_id": tokenizer.pad_id,
    }
    generation = {
        "bos_token_id": tokenizer.pad_id,
        "eos_token_id": [tokenizer.end_id, tokenizer.pad_id],
        "pad_token_id": tokenizer.pad_id,
        "do_sample": False,
    }
    if folder and (folder / "config.json").is_file():
        config |= _stated(read_json(folder / "config.json"))
    if folder and (folder / "generation_config.json").is_file():
        generation |= _stated(read_json(folder / "generation_config.json"))
    return config, generation


def _stated(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if value is not None}


def _write_mark(folder: Path, form: str, stored: Stored) -> None:
    """What the other files do not tell: where it came from, and sizes such as heads."""
    described = {
        "format": form,
        "source": stored.source,
        "model": parts.described(stored.parts),
        "origins": {part: stored.origin(part) for part in stored.parts},
        "converter": version("jaxvlm"),
    }
    _write_json(folder / MARK, described)


def _write_json(file: Path, value: dict) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
