"""What a training run will take, before it runs and without a GPU.

    python -m jaxvlm.plan --config configs/stage1.py --devices 8 [--device h200] [--json]

Memory comes from compiling the real steps: for the GPU itself where the packages of
docs/scaling.md are installed, else for as many fake CPU devices, whose work space is an upper
bound. Operations, traffic and time come from formulas. Weights and data need not be there.
"""

import argparse
import re

from jaxvlm import entry
from jaxvlm.config import AUTO, load
from jaxvlm.config_checks import check

# Devices that are faked on the way to a plan.
_MOST = 4096


def main(flags: argparse.Namespace) -> None:
    """Plans, and prints."""
    config = load(flags.config, flags.overrides)
    check(config)
    if config.train.rows_per_device == AUTO:
        # The recommendation says how many.
        config = load(flags.config, [*flags.overrides, "train.rows_per_device=1"])
    # Not before: a wrong flag should be answered at once.
    from jaxvlm.planning.report import as_json, make_plan, show
    from jaxvlm.training.hardware import by_name

    plan = make_plan(config, flags.devices, by_name(flags.device), flags.recommend)
    print(as_json(plan)) if flags.json else show(plan)


def _counts(text: str) -> list[int]:
    parts = text.split(",")
    if not all(re.fullmatch("[0-9]{1,4}", part) and 1 <= int(part) <= _MOST for part in parts):
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected numbers from 1 to {_MOST}, like 8 or 8,64"
        )
    return list(dict.fromkeys(map(int, parts)))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    flags = argparse.ArgumentParser("jaxvlm.plan", description=__doc__)
    flags.add_argument("--config", required=True, help="configuration file, e.g. configs/stage1.py")
    flags.add_argument(
        "--devices", type=_counts, default=[8], metavar="N[,N…]", help="how many (default: 8)"
    )
    flags.add_argument("--device", default="h100-80gb", help="which (default: h100-80gb)")
    flags.add_argument("--json", action="store_true", help="print everything for machines")
    flags.add_argument(
        "--no-recommend", dest="recommend", action="store_false",
        help="compile the configured setting only",
    )  # fmt: skip
    return flags


if __name__ == "__main__":
    entry.run(parser(), main)
