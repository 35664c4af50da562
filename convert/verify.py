"""Compares imported weights with their source: `python -m convert.verify DEST SOURCE`.

Every tensor of SOURCE (a file, a folder, or a hub id) is compared bit for bit with what lies in
DEST, after the conversion of dtype that the import was asked for. Exit code 1 if any differs.
"""

import argparse
import sys
from pathlib import Path

from convert.import_torch import open_source, source_flags
from jaxvlm import entry
from jaxvlm.errors import UserError


def main(flags: argparse.Namespace) -> None:
    """Prints a table of all parameters."""
    import numpy as np
    from rich.table import Table

    from convert import kinds
    from convert.stored import open_stored
    from jaxvlm.console import console
    from jaxvlm.training import weights

    stored, meta = open_stored(str(flags.dest), []), weights.read_meta(str(flags.dest))
    if meta.get("kind") not in kinds.KINDS:
        raise UserError(f"{flags.dest} was not imported from PyTorch; there is nothing to compare")
    tensors, _ = open_source(flags.source, flags.revision, meta["kind"])
    # The dtype only keeps stacks of several dtypes from being refused.
    found = kinds.matched(tensors, stored.parts, meta["kind"], np.dtype(np.float32))
    table = Table("parameter", "tensors", "shape", "dtype", "result")
    wrong: list[str] = []
    for leaf in found.leaves:
        value = stored.params[leaf.path]
        source_dtype = tensors.entries[leaf.keys[0]].dtype
        different = []
        for index, key in enumerate(leaf.keys):
            ours = value[index] if leaf.rule.stacked else value
            count = _differing(leaf.rule.layout.to_jax(tensors[key]), ours)
            if count:
                different.append(f"{key}: {count} of {ours.size} elements differ")
        wrong += different
        same = "identical"
        if source_dtype != value.dtype:
            same += f" as {value.dtype} (was {source_dtype})"
        result = same if not different else f"{len(different)} DIFFER"
        table.add_row(
            leaf.path, str(len(leaf.keys)), str(list(value.shape)), str(value.dtype), result
        )
    console().print(table)
    total = sum(len(leaf.keys) for leaf in found.leaves)
    for line in wrong:
        print(line)
    print(f"{total - len(wrong)} of {total} tensors are identical")
    for name, count in found.left_out.items():
        print(f"not compared: {count} tensors of {name}")
    if wrong:
        sys.exit(1)


def _differing(theirs, ours) -> int:
    """How many elements differ in their bits, once `theirs` has the dtype of `ours`.

    Rows that `theirs` lacks must be zeros.
    """
    import numpy as np

    expected = np.zeros(ours.shape, ours.dtype)
    expected[tuple(slice(size) for size in theirs.shape)] = theirs
    bits = np.dtype(f"u{ours.dtype.itemsize}")
    return int(np.count_nonzero(expected.view(bits) != np.ascontiguousarray(ours).view(bits)))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    flags = argparse.ArgumentParser("convert.verify", description=__doc__)
    flags.add_argument("dest", type=Path, help="a folder that convert.import_torch wrote")
    source_flags(flags)
    return flags


if __name__ == "__main__":
    entry.run(parser(), main, configured=False)
