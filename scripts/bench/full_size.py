"""Compiles the full-size step for many devices, here, and compares its bytes with arithmetic.

    python scripts/bench/full_size.py [--devices 8,64,256,1024] [--output FILE.json]

The argument bytes of the compiled step are what a device holds; `jaxvlm.planning` says the same
from shapes alone. For a GPU the compiler itself is used where its packages are installed.
"""

import argparse
import json
import time
from importlib.metadata import version
from pathlib import Path

from command_line import counts, new_parser

from jaxvlm import entry
from jaxvlm.config import load
from jaxvlm.config_checks import check
from jaxvlm.console import print_table
from jaxvlm.planning.compiled import cuda_compiles, in_a_child
from jaxvlm.planning.state_bytes import state_bytes
from jaxvlm.training.hardware import GIB, by_name
from jaxvlm.training.mesh import mesh_sizes

STAGE1 = Path(__file__).parents[2] / "configs" / "stage1.py"


def main(flags: argparse.Namespace) -> None:
    config = load(str(STAGE1), ["train.remat=full", *flags.overrides])
    check(config)
    device = by_name(flags.device)
    targets = ["cpu", *([device.name] if cuda_compiles() else [])]
    found = []
    for count in flags.devices:
        # As a plan would, and with the parameters split as far as they can be.
        meshes = dict.fromkeys([mesh_sizes(-1, -1, count), split(count)])
        for mesh in meshes:
            for target in targets:
                began = time.perf_counter()
                steps = in_a_child(config, mesh, None if target == "cpu" else target)
                held = state_bytes(config, mesh[1])
                update = held.parameters + held.gradients + held.optimizer
                found.append(
                    {
                        "devices": count,
                        "mesh": mesh,
                        "target": target,
                        "seconds": time.perf_counter() - began,
                        "accumulate": steps["accumulate"]._asdict(),
                        "update": steps["update"]._asdict(),
                        "from_shapes": held._asdict(),
                        "update_over_shapes": steps["update"].arguments / update,
                    }
                )
    rows = [
        (
            case["devices"], "{} x {}".format(*case["mesh"]), case["target"],
            *(gib(case[step]["arguments"]) for step in ("accumulate", "update")),
            *(gib(case[step]["temporary"]) for step in ("accumulate", "update")),
            f"{case['update_over_shapes']:.4f}", f"{case['seconds']:.0f}",
        )
        for case in found
    ]  # fmt: skip
    columns = ("devices", "data x fsdp", "compiled for", "GiB into accumulate", "into update",
               "work space", "of update", "update / shapes", "seconds")  # fmt: skip
    print_table("The full-size step", columns, rows)
    print(f"all together: {sum(case['seconds'] for case in found):.0f} seconds")
    if flags.output:
        record = {"cases": found, "jax": version("jax"), "overrides": flags.overrides}
        flags.output.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def split(count: int) -> tuple[int, int]:
    """Up to 128 shares, which divide all large parameters."""
    fsdp = min(count, 128)
    return count // fsdp, fsdp


def gib(size: int) -> str:
    return f"{size / GIB:.2f}"


def parser() -> argparse.ArgumentParser:
    flags = new_parser(__file__, __doc__)
    flags.add_argument("--devices", type=counts, default=[8, 64, 256, 1024], help="how many")
    flags.add_argument("--device", default="h200", help="which GPU to compile for, if possible")
    return flags


if __name__ == "__main__":
    entry.run(parser(), main)
