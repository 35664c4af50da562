"""Shows what the data is, as text and as a picture: a record, or a batch as the model gets it.

python -m jaxvlm.data.show data/processed/scanqa/train_split.jsonl --index 12
python -m jaxvlm.data.show --config configs/stage1.py --batch 0

With both, a record whose action is one that the configuration file registers.
"""

import argparse
from pathlib import Path

from PIL import Image

from jaxvlm import entry
from jaxvlm.config import load
from jaxvlm.config_checks import check
from jaxvlm.data.images import find_image
from jaxvlm.data.records import RecordFile
from jaxvlm.data.show_record import WRONG, describe, draw_record
from jaxvlm.errors import UserError


def main(flags: argparse.Namespace) -> None:
    """Prints the text, writes the picture."""
    if flags.file is None:
        if flags.config is None:
            raise UserError("give a record file, or --config for a batch")
        if flags.index is not None:
            raise UserError("--index is of a record in a file; give --batch with --config")
        _show_batch(flags)
        return
    if flags.batch is not None:
        raise UserError("--batch is of --config without a record file; give --index with one")
    if flags.overrides:
        raise UserError(f"--config.{flags.overrides[0]} is of a batch, not of a record file")
    if flags.config is not None:
        # For the actions that it registers.
        load(flags.config)
    _show_record(flags)


def _show_record(flags: argparse.Namespace) -> None:
    file = RecordFile(flags.file)
    index = flags.index or 0
    if not 0 <= index < len(file):
        raise UserError(f"--index {index}: {flags.file} has the records 0 to {len(file) - 1}")
    record = file[index]
    roots = (str(file.path.parent), *flags.image_root)
    lines = describe(record)
    found = {image: find_image(image, roots) for image in record.images}
    lines += [(f"not found: {image}", WRONG) for image, path in found.items() if path is None]
    print("\n".join(text for text, _ in lines))
    output = flags.output or Path("runs", "show", f"{file.path.stem}_{index}.png")
    if output.resolve() in {Path(path).resolve() for path in found.values() if path is not None}:
        raise UserError(f"--output {output} is one of the record's images; give another name")
    _save(draw_record(record, roots, lines), output)


def _show_batch(flags: argparse.Namespace) -> None:
    # Not before: a wrong flag should be answered at once.
    from jaxvlm.data.show_batch import BatchView

    config = load(flags.config, flags.overrides)
    check(config)
    number = flags.batch or 0
    if number < 0:
        raise UserError(f"--batch {number}: batches are counted from 0")
    view = BatchView(config, number)
    view.print()
    output = flags.output or Path("runs", "show", f"{Path(flags.config).stem}_{number}.png")
    _save(view.draw(), output)


def _save(picture: Image.Image, output: Path) -> None:
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        picture.save(output)
    except (OSError, ValueError) as error:
        raise UserError(f"--output {output} cannot be written: {error}") from None
    print(f"picture: {output}")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    flags = argparse.ArgumentParser(
        "jaxvlm.data.show",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="With --config, fields are changed by --config.field=value, as in training.",
    )
    flags.add_argument("file", nargs="?", help="a record file")
    flags.add_argument("--index", type=int, help="of the record, from 0 (default: 0)")
    flags.add_argument(
        "--config", help="show a batch of its training data; with a file, know its actions"
    )
    flags.add_argument("--batch", type=int, help="its number, from 0 (default: 0)")
    flags.add_argument("--output", type=Path, help="default: runs/show/<file or config>_<n>.png")
    flags.add_argument(
        "--image-root",
        nargs="+",
        default=[".", "data/raw"],
        help="folders of a record's relative image paths, after the record file's own "
        "(default: . data/raw)",
    )
    return flags


if __name__ == "__main__":
    entry.run(parser(), main)
