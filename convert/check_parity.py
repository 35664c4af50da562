"""Compares jaxvlm with a run of PyTorch: `python -m convert.check_parity FIXTURE.safetensors`.

FIXTURE holds weights, inputs and outputs of a PyTorch run, the `.json` beside it the sizes;
docs/weights.md names them. Exit code 1 if an output is further off than its tolerance.
"""

import argparse
import dataclasses
import math
import sys
from pathlib import Path

from convert.import_torch import chosen_dtype
from jaxvlm import entry
from jaxvlm.errors import UserError


def main(flags: argparse.Namespace) -> None:
    """Prints the worst error of every output."""
    if flags.tolerance is not None and not 0 < flags.tolerance < math.inf:
        raise UserError(f"--tolerance {flags.tolerance}: expected a number above 0")
    import jax
    from rich.table import Table

    from convert import parity
    from convert.sizes import read_json
    from convert.source import open_tensors
    from jaxvlm.console import console

    tensors = open_tensors(flags.fixture)
    stated = read_json(flags.fixture.with_suffix(".json"))
    # Otherwise GPUs round float32 products to 10 bits.
    with jax.default_matmul_precision("highest"):
        found = parity.compare(tensors, stated, chosen_dtype(flags.dtype))
    if flags.tolerance is not None:
        found = [
            dataclasses.replace(one, tolerance=flags.tolerance, by_scale=True) for one in found
        ]
    table = Table("case", "output", "shape", "worst error", "over the largest", "tolerance", "")
    for one in found:
        table.add_row(
            one.case, one.output, str(list(one.shape)), f"{one.error:.1e}", f"{one.relative:.1e}",
            f"{one.tolerance:.0e} {'relative' if one.by_scale else 'absolute'}",
            "" if one.agrees else "TOO FAR",
        )  # fmt: skip
    console().print(table)
    for key in parity.not_compared(tensors, found):
        print(f"not compared, jaxvlm does not compute it: {key}")
    good = sum(one.agrees for one in found)
    print(f"{good} of {len(found)} outputs agree in {flags.dtype}")
    if good < len(found):
        sys.exit(1)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    flags = argparse.ArgumentParser("convert.check_parity", description=__doc__)
    flags.add_argument("fixture", type=Path, metavar="FIXTURE.safetensors")
    flags.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    flags.add_argument(
        "--tolerance", type=float, help="of every output, relative to its largest value"
    )
    return flags


if __name__ == "__main__":
    entry.run(parser(), main, configured=False)
