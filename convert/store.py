"""Imported weights written to disk, parameter by parameter, whole or not at all."""

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from convert.draft import draft, mapped
from convert.source import SMALL, Tensors
from convert.table import Leaf
from jaxvlm.paths import unflatten
from jaxvlm.training.weights import FORMAT, fingerprint

# The name of the folder for what a Hugging Face folder holds beside its weights.
HUGGING_FACE = "huggingface"
_BLOCK = 2**24
# Bytes of a chunk, which is read and written as one, and of a file. Orbax collects a file in memory
# before it writes it: with its own choice of 2 GB, three parameters of Qwen3-4B took 5 GB; so 1.4.
_CHUNK, _FILE = 2**26, 2**28


def write(
    folder: Path,
    leaves: Iterable[Leaf],
    tensors: Tensors,
    meta: Mapping[str, Any],
    advance: Callable[[int], None] = lambda count: None,
) -> None:
    """Fills the leaves from the tensors and writes them, with `meta.json`, to `folder`.

    Everything is made in a folder beside it, which takes its place when it is complete. Parameters
    lie in memory-mapped files until Orbax has written them.

    Args:
      folder: replaced if it exists.
      leaves: of `table.match`.
      tensors: the source.
      meta: what is known of the weights.
      advance: called with the number of bytes that were read.

    Raises:
      UserError: the disk is full, or the folder cannot be written.
    """
    leaves = list(leaves)
    room = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)
    # Once mapped, once as Orbax writes it.
    with draft(folder, 2 * room) as part:
        scratch = part / "scratch"
        scratch.mkdir()
        params = {}
        for number, leaf in enumerate(leaves):
            size = math.prod(leaf.shape)
            place = mapped(scratch / str(number), size, leaf.dtype).reshape(leaf.shape)
            leaf.fill(tensors, place, advance)
            params[leaf.path] = place
        described = {
            "format": FORMAT,
            "content": fingerprint(params),
            **meta,
            "tensors": len(tensors),
            "parameters": len(params),
            "files": {file.name: sha256(file) for file in tensors.files},
            "converter": version("jaxvlm"),
        }
        tree = unflatten(params)
        options = ocp.PyTreeCheckpointHandler(save_concurrent_gb=1, use_ocdbt=True)
        with ocp.Checkpointer(options) as writer:
            chunks = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=_CHUNK), tree)
            wish = ocp.args.PyTreeSave(tree, chunks, ocdbt_target_data_file_size=_FILE)
            writer.save((part / "params").absolute(), args=wish)
        del params, tree
        shutil.rmtree(scratch)
        if "language" in meta["model"]:
            _copy_small(tensors.folder, part / HUGGING_FACE)
        (part / "meta.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")


def _copy_small(source: Path, folder: Path) -> None:
    """Copies what an export of a language model needs and its weights do not tell."""
    for name in SMALL:
        if (source / name).is_file():
            folder.mkdir(exist_ok=True)
            shutil.copyfile(source / name, folder / name)


def sha256(file: Path) -> str:
    """The hash of a file."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
