"""Imports PyTorch weights: `python -m convert.import_torch KIND SOURCE DEST`.

KIND is `vggt` (VGGT-1B's `.pt` or `.safetensors`) or `qwen3` (any dense Qwen3 folder of Hugging
Face). SOURCE is a file or a folder; DEST becomes a folder for `model.vision.weights` or
`model.language.weights`.
"""

import argparse
from pathlib import Path

import numpy as np

from jaxvlm import entry

DTYPES = ("keep", "bfloat16", "float32")
KINDS = ("vggt", "qwen3")


def main(flags: argparse.Namespace) -> None:
    """Checks everything, then converts tensor by tensor."""
    # Not before: a wrong flag should be answered at once.
    import ml_dtypes

    from convert import kinds, store
    from convert.source import open_tensors
    from jaxvlm.training.console import progress_bytes

    store.check_free(flags.dest, flags.overwrite)
    dtype = {"keep": None, "bfloat16": np.dtype(ml_dtypes.bfloat16),
             "float32": np.dtype(np.float32)}[flags.dtype]  # fmt: skip
    tensors = open_tensors(flags.source)
    if flags.kind == "vggt":
        found = kinds.import_vggt(tensors, flags.heads, flags.model_config, dtype)
    else:
        folder = flags.source if flags.source.is_dir() else flags.source.parent
        found = kinds.import_qwen3(tensors, folder, dtype)
    for name, count in found.left_out.items():
        print(f"left out: {count} tensors of {name}")
    used = [tensors.entries[key] for leaf in found.leaves for key in leaf.keys]
    total = sum(int(np.prod(e.shape)) * e.dtype.itemsize for e in used)
    print(f"importing {len(used)} tensors, {total / 1e9:.2f} GB, as {len(found.leaves)} parameters")
    meta = {"kind": flags.kind, "source": str(flags.source), "model": found.model,
            "left_out": found.left_out}  # fmt: skip
    with progress_bytes("importing", total) as advance:
        store.write(flags.dest, found.leaves, tensors, meta, advance)
    print(f"{flags.dest}: done")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    flags = argparse.ArgumentParser("convert.import_torch", description=__doc__)
    flags.add_argument("kind", choices=KINDS)
    flags.add_argument("source", type=Path)
    flags.add_argument("dest", type=Path)
    flags.add_argument(
        "--heads",
        nargs="*",
        default=(),
        choices=("camera", "depth", "point"),
        help="prediction heads of VGGT to import beside the aggregator",
    )
    flags.add_argument("--dtype", choices=DTYPES, default="keep", help="of what is written")
    flags.add_argument("--model-config", type=Path, help="JSON file with the sizes of a VGGT")
    flags.add_argument("--overwrite", action="store_true", help="replace DEST if it exists")
    return flags


if __name__ == "__main__":
    entry.run(parser(), main)
