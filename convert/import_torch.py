"""Imports PyTorch weights: `python -m convert.import_torch KIND SOURCE DEST`.

KIND is `vggt` (VGGT-1B's `.pt` or `.safetensors`), `qwen3` (any dense Qwen3 folder of Hugging Face)
or `original` (a checkpoint of the original system: all parts). SOURCE is a file, a folder or a hub
id; DEST becomes a folder for `model.vision.weights` and its like.
"""

import argparse
from pathlib import Path

import numpy as np

from jaxvlm import entry

DTYPES = ("keep", "bfloat16", "float32")
KINDS = ("vggt", "qwen3", "original")


def main(flags: argparse.Namespace) -> None:
    """Checks everything, then converts tensor by tensor."""
    # Not before: a wrong flag should be answered at once.
    from convert import kinds, parts, store
    from convert.draft import check_free
    from jaxvlm.console import progress_bytes

    check_free(flags.dest, flags.overwrite, "meta.json")
    tensors, source = open_source(flags.source, flags.revision, flags.kind)
    dtype = chosen_dtype(flags.dtype)
    found = kinds.find(
        flags.kind, tensors, heads=flags.heads, model_config=flags.model_config, dtype=dtype
    )
    for name, count in found.left_out.items():
        print(f"left out: {count} tensors of {name}")
    for name in found.assumed:
        print(f"assumed, as --model-config does not say otherwise: {name}")
    if absent := [part for part in _expected(flags.kind) if part not in found.parts]:
        print(f"not in the source: {', '.join(absent)}")
    language = found.parts.get("language")
    if language and found.rows != language.vocab_size:
        print(f"embedding: rows {found.rows} to {language.vocab_size - 1} become zeros")
    used = [tensors.entries[key] for leaf in found.leaves for key in leaf.keys]
    total = sum(entry.nbytes for entry in used)
    print(f"importing {len(used)} tensors, {total / 1e9:.2f} GB, as {len(found.leaves)} parameters")
    meta = {"kind": flags.kind, "source": source, "model": parts.described(found.parts),
            "left_out": found.left_out, "rows": found.rows}  # fmt: skip
    with progress_bytes("importing", total) as advance:
        store.write(flags.dest, found.leaves, tensors, meta, advance)
    print(f"{flags.dest}: done; use it with")
    for part in found.parts:
        print(f"  --config.model.{part}.weights={flags.dest}")


def open_source(source: str, revision: str | None, kind: str):
    """The tensors that a command's SOURCE means, and its description for `meta.json`.

    Raises:
      UserError: it does not exist, cannot be downloaded or cannot be read.
    """
    from convert import hub
    from convert.source import open_original, open_tensors
    from jaxvlm.errors import UserError

    path, described = Path(source), source
    if hub.is_name(source):
        path, commit = hub.download(source, revision, kind)
        described = f"https://huggingface.co/{source} at {commit}"
    elif revision:
        raise UserError(f"--revision {revision}: {source!r} is a path here, no hub id")
    return (open_original if kind == "original" else open_tensors)(path), described


def chosen_dtype(name: str) -> np.dtype | None:
    """The dtype that `--dtype` means; None keeps what is there."""
    import ml_dtypes

    dtypes = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float32": np.dtype(np.float32)}
    return dtypes.get(name)


def _expected(kind: str) -> tuple[str, ...]:
    return ("vision", "projector", "geometry", "language") if kind == "original" else ()


def source_flags(flags: argparse.ArgumentParser) -> None:
    """Adds what says where tensors come from."""
    flags.add_argument("source", help="a file, a folder, or a hub id such as Qwen/Qwen3-4B")
    flags.add_argument("--revision", help="branch, tag or commit of a hub id")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    flags = argparse.ArgumentParser("convert.import_torch", description=__doc__)
    flags.add_argument("kind", choices=KINDS)
    source_flags(flags)
    flags.add_argument("dest", type=Path)
    flags.add_argument(
        "--model-config", type=Path, help="JSON file with sizes that shapes don't tell"
    )
    flags.add_argument(
        "--heads",
        nargs="*",
        default=(),
        choices=("camera", "depth", "point"),
        help="prediction heads of VGGT to import beside the aggregator",
    )
    flags.add_argument("--dtype", choices=DTYPES, default="keep", help="of what is written")
    flags.add_argument("--overwrite", action="store_true", help="replace DEST if it exists")
    return flags


if __name__ == "__main__":
    entry.run(parser(), main, configured=False)
