"""Exports to PyTorch: `python -m convert.export_torch CHECKPOINT DEST [--format hf|original]`.

CHECKPOINT is a run's folder (its best checkpoint, else its newest), one of its checkpoints/<update>
folders, or imported weights. `hf` writes a folder that transformers and vLLM load as a Qwen3, with
projector and geometry head beside it; `original` the layout of the original's
`pytorch_model_fp32/`.
"""

import argparse
import re
from pathlib import Path

from convert.import_torch import DTYPES, chosen_dtype
from jaxvlm import entry
from jaxvlm.errors import UserError

_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


def main(flags: argparse.Namespace) -> None:
    """Checks everything, then writes parameter by parameter."""
    # Not before: a wrong flag should be answered at once.
    from convert import formats, kinds
    from convert.draft import check_free, draft
    from convert.stored import open_stored
    from jaxvlm.console import progress_bytes

    check_free(flags.dest, flags.overwrite, kinds.MARK)
    stored = open_stored(flags.checkpoint, flags.overrides)
    wish = formats.Wish(chosen_dtype(flags.dtype), shard_size(flags.shard_size), flags.tokenizer)
    writer = {"hf": formats.HuggingFace, "original": formats.Original}[flags.format](stored, wish)
    for line in writer.notes:
        print(line)
    total, count = writer.nbytes, writer.count
    print(f"exporting {count} tensors, {total / 1e9:.2f} GB, of {', '.join(writer.parts)}")
    with draft(flags.dest, writer.room) as part, progress_bytes("exporting", total) as advance:
        writer.write(part, advance)
    print(f"{flags.dest}: done")


def shard_size(text: str) -> int:
    """Bytes of a size such as `4GB` or `500MB`.

    Raises:
      UserError: it is none.
    """
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)([KMG]B)", text.strip().upper())
    size = int(float(found[1]) * _UNITS[found[2]]) if found else 0
    if size < 1:
        raise UserError(f"--shard-size {text}: expected a size such as 4GB or 500MB")
    return size


def parser() -> argparse.ArgumentParser:
    """The command line."""
    flags = argparse.ArgumentParser("convert.export_torch", description=__doc__)
    flags.add_argument("checkpoint", help="a run's folder, an update's folder, or imported weights")
    flags.add_argument("dest", type=Path)
    flags.add_argument("--format", choices=("hf", "original"), default="hf")
    flags.add_argument("--dtype", choices=DTYPES, default="keep", help="of what is written")
    flags.add_argument("--shard-size", default="4GB", help="of a file; default 4GB")
    flags.add_argument(
        "--tokenizer", help="folder or hub id; default is what the run or the weights came with"
    )
    flags.add_argument("--overwrite", action="store_true", help="replace DEST if it exists")
    return flags


if __name__ == "__main__":
    entry.run(parser(), main)
