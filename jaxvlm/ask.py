"""Asks a trained run about images:

python -m jaxvlm.ask --checkpoint runs/demo --images a.jpg b.jpg --question "What color is the bed?"
"""

import argparse
from pathlib import Path

from jaxvlm import entry
from jaxvlm.errors import UserError


def main(flags: argparse.Namespace) -> None:
    """Prints the answer."""
    # Not before: a wrong flag should be answered at once.
    from jaxvlm.data.records import parse_record
    from jaxvlm.generation.answer import answer_records
    from jaxvlm.generation.restore import restore_answerer

    for image in flags.images:
        if not Path(image).is_file():
            raise UserError(f"--images: {image!r} does not exist")
    entry_ = {
        "images": flags.images,
        "question": flags.question,
        "situation": flags.situation,
    }
    record = parse_record(entry_, "--question")
    overrides = ["evaluation.batch_sets=1", "evaluation.batch_questions=1", *flags.overrides]
    answerer = restore_answerer(flags.checkpoint, overrides)
    most = answerer.config.data.num_views
    if len(flags.images) > most:
        raise UserError(
            f"--images: {len(flags.images)} views, but this run was trained with at most {most}"
        )
    print(answer_records(answerer, [record])[0])


def parser() -> argparse.ArgumentParser:
    """The command line."""
    flags = argparse.ArgumentParser("jaxvlm.ask", description=__doc__)
    flags.add_argument("--checkpoint", required=True, type=Path, help="a workdir or an update")
    flags.add_argument("--images", required=True, nargs="+", help="views of one scene, in order")
    flags.add_argument("--question", required=True)
    flags.add_argument("--situation", default="", help="where the asker stands")
    return flags


if __name__ == "__main__":
    entry.run(parser(), main)
