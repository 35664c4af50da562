r"""Splits record files into train and test by scene, with the same kinds of questions in both.

    python scripts/prep/split_train_test.py data/processed/mine/all.jsonl \
        --train data/processed/mine/train_split.jsonl \
        --test data/processed/mine/test_split.jsonl --test-ratio 0.15

Rows that say the same (question, answer, scene, situation) are removed first. Scans of one ScanNet
room stay together. The same files, ratio and seed give the same split.
"""

import argparse
from collections import Counter
from pathlib import Path

from jaxvlm import entry
from jaxvlm.console import print_table
from jaxvlm.data.audit.checks import read_rooms
from jaxvlm.data.prep.flags import output_file, script
from jaxvlm.data.prep.split import split_by_scene, stratum
from jaxvlm.data.records import moved_entry, open_records, record_writer
from jaxvlm.errors import UserError


def main(flags: argparse.Namespace) -> None:
    """Splits and tells how alike the two are."""
    files = [file for pattern in flags.files for file in open_records(pattern)]
    inputs = {file.path.resolve() for file in files}
    if flags.train.resolve() == flags.test.resolve():
        raise UserError("--train and --test name the same file")
    for path in (flags.train, flags.test):
        if path.resolve() in inputs:
            raise UserError(f"{path} is one of the files to split; name another")
        if path.exists() and not flags.overwrite:
            raise UserError(f"{path} exists; name another file, or pass --overwrite")
    rooms = read_rooms(flags.rooms) if flags.rooms else {}
    train, test, counts = split_by_scene(files, flags.test_ratio, flags.seed, rooms)
    with record_writer(flags.train) as to_train, record_writer(flags.test) as to_test:
        for write, path, places in (
            (to_train, flags.train, train),
            (to_test, flags.test, test),
        ):
            for file, index in places:
                # As it stands: fields that jaxvlm does not know are kept.
                write(moved_entry(files[file].items.entry(index), files[file].path, path))
    for path, places in ((flags.train, train), (flags.test, test)):
        print(f"{path}: {len(places):,} records")
    for name, count in counts.items():
        print(f"  {count:,} {name}")
    kinds = [Counter(stratum(files[f][i]) for f, i in places) for places in (train, test)]
    rows = [
        (
            kind,
            kinds[0][kind],
            kinds[1][kind],
            f"{kinds[1][kind] / sum(k[kind] for k in kinds):.1%}",
        )
        for kind in sorted(kinds[0] | kinds[1])
    ]
    print_table("Kinds of questions", ("kind", "train", "test", "share in test"), rows)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    flags = script("split_train_test.py", __doc__)
    flags.add_argument("files", nargs="+", help="record files or patterns")
    flags.add_argument(
        "--train", required=True, type=output_file, help="file of the training records"
    )
    flags.add_argument("--test", required=True, type=output_file, help="file of the test records")
    flags.add_argument(
        "--test-ratio", type=float, default=0.15, help="share of test (default: .15)"
    )
    flags.add_argument(
        "--rooms",
        type=Path,
        metavar="CSV",
        help="which scenes are of one room: columns video_id, visit_id (ARKitScenes: metadata.csv)",
    )
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--overwrite", action="store_true", help="replace the two files")
    return flags


if __name__ == "__main__":
    entry.run(parser(), main, configured=False)
