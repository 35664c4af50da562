"""Imported weights written to disk, parameter by parameter, whole or not at all."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp

from convert.source import Tensors
from convert.table import Leaf
from jaxvlm.errors import UserError
from jaxvlm.paths import unflatten
from jaxvlm.training.weights import FORMAT, fingerprint

_BLOCK = 2**24


class _Mapped(np.memmap):
    """A file in the place of memory; Orbax copies the arrays it is given, and need not copy it."""

    def __deepcopy__(self, memo: dict) -> "_Mapped":
        return self


def check_free(folder: Path, overwrite: bool) -> None:
    """Raises a UserError if `folder` holds something that may not be replaced."""
    if not folder.exists():
        return
    if not overwrite:
        raise UserError(f"{folder} exists; pass --overwrite to replace it, or name another folder")
    # What is replaced must be weights, not somebody's home.
    if not (folder / "meta.json").is_file() or not (folder / "params").is_dir():
        raise UserError(f"{folder} is no imported weights folder: not replaced")


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
    draft = folder.with_name(folder.name + ".part")
    scratch = draft / "scratch"
    try:
        shutil.rmtree(draft, ignore_errors=True)
        scratch.mkdir(parents=True)
        params = {}
        for number, leaf in enumerate(leaves):
            place = _Mapped(scratch / str(number), leaf.dtype, "w+", shape=leaf.shape or (1,))
            # Reserved before it is written: a full disk would end the process by a signal.
            with (scratch / str(number)).open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, max(place.nbytes, 1))
            place = place.reshape(leaf.shape)
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
        options = ocp.PyTreeCheckpointHandler(save_concurrent_gb=1, use_ocdbt=True)
        with ocp.Checkpointer(options) as writer:
            writer.save((draft / "params").absolute(), args=ocp.args.PyTreeSave(unflatten(params)))
        del params
        shutil.rmtree(scratch)
        (draft / "meta.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
        _replace(draft, folder)
    except (OSError, ValueError) as error:
        shutil.rmtree(draft, ignore_errors=True)
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(f"{folder} cannot be written: {reason}") from error
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def _replace(draft: Path, folder: Path) -> None:
    if folder.exists():
        old = folder.with_name(folder.name + ".old")
        folder.rename(old)
        draft.rename(folder)
        shutil.rmtree(old)
    else:
        draft.rename(folder)


def sha256(file: Path) -> str:
    """The hash of a file."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
