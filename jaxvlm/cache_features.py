"""Computes what VGGT makes of the training images once, for training to read instead of VGGT:

    python -m jaxvlm.cache_features --config configs/stage1.py --config.data.features.folder=FOLDER

Train with the same fields. The same command adds what is missing: after a stop, or for new data.
With --data FILE… it adds what evaluation reads (--config.evaluation.features=True).
"""

import argparse

from jaxvlm import entry
from jaxvlm.config import load
from jaxvlm.config_checks import check
from jaxvlm.errors import UserError, memory_is_short
from jaxvlm.shares import add_shard


def main(flags: argparse.Namespace) -> None:
    """Checks the configuration, then fills the cache."""
    config = load(flags.config, flags.overrides)
    check(config)
    if config.data.features.folder is None:
        raise UserError("say where to: --config.data.features.folder=FOLDER")
    if flags.batch_sets < 1:
        raise UserError(f"--batch_sets {flags.batch_sets}: expected at least 1")
    # Not before: a wrong flag should be answered at once.
    from jaxvlm.training.features import cache_features

    with memory_is_short("What takes less: a smaller --batch_sets"):
        cache_features(config, flags.batch_sets, flags.shard, flags.data)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    flags = argparse.ArgumentParser(
        "jaxvlm.cache_features",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Fields of the configuration are changed by --config.field=value, as in training.",
    )
    flags.add_argument("--config", required=True, help="configuration file")
    flags.add_argument(
        "--batch_sets",
        type=int,
        default=4,
        help="image sets a device encodes at a time (default: 4)",
    )
    flags.add_argument(
        "--data", nargs="+", default=[], metavar="FILE",
        help="all views of these record files, instead of what training shows",
    )  # fmt: skip
    add_shard(flags)
    return flags


if __name__ == "__main__":
    entry.run(parser(), main)
