"""Asks a trained run about images, one question or, without --question, one after the other:

python -m jaxvlm.ask --checkpoint runs/demo --images a.jpg b.jpg --question "What color is the bed?"

--instruction asks for an action, which is printed as the model says it and then in metres.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from jaxvlm import entry
from jaxvlm.console import say
from jaxvlm.errors import UserError, memory_is_short

# What takes less memory where there is none left.
_LESS = (
    "What takes less: fewer --images, a smaller --config.evaluation.max_new_tokens, or "
    "--config.precision=bfloat16"
)


@memory_is_short(_LESS)
def main(flags: argparse.Namespace) -> None:
    """Prints answers while they are made."""
    # Not before: a wrong flag should be answered at once.
    from jaxvlm.data.audit.checks import ERROR, check_record
    from jaxvlm.data.images import check_image
    from jaxvlm.data.record import RecordError, parse_record
    from jaxvlm.generation.answer import Conversation
    from jaxvlm.generation.weights import choose
    from jaxvlm.metrics.action_lines import action_fields

    for image in flags.images:
        if not Path(image).is_file():
            raise UserError(f"--images: {image!r} is not a file")
        check_image(image)
    fields = {"images": flags.images, "situation": flags.situation, **_geometry(flags.geometry)}
    kind, asked = _asked(flags)
    if kind == "instruction":
        fields["scene_id"] = flags.scene
    record = parse_record({**fields, kind: asked or "?"}, f"--{kind} and --geometry")
    for problem in check_record(record):
        # As training would; of an answer nothing is known.
        if problem.level == ERROR and problem.check != "answer-empty":
            raise UserError(problem.message)
    overrides = ["evaluation.batch_sets=1", "evaluation.batch_questions=1", *flags.overrides]
    chosen = choose(flags.checkpoint, flags.config, overrides)
    most = chosen.config.data.num_views
    if len(flags.images) > most:
        raise UserError(
            f"--images: {len(flags.images)} views, but this run was trained with at most {most}"
        )
    if record.is_action and not chosen.config.model.action.ffn_dim:
        say(
            "warning: this run has no action head; it may never have learnt actions "
            "(configs/stage2_arkit.py teaches them)",
            warns=True,
        )
    if flags.geometry is None and chosen.config.model.geometry.mode != "none":
        say(
            "warning: without --geometry the model knows no scale, nor where the cameras stood: "
            "distances are guesses",
            warns=True,
        )
    # Beside the answers, which alone go to the output.
    say(f"reading {chosen.folder or 'the imported weights'}", warns=True)
    answerer = chosen.answerer(lambda: {tuple(flags.images)})
    say(f"looking at {len(flags.images)} image{'s' * (len(flags.images) > 1)}", warns=True)
    about = Conversation(answerer, record)
    for text in _typed() if asked is None else [asked]:
        shown = ""
        try:
            record = parse_record({**fields, kind: text}, f"--{kind}")
        except RecordError as error:
            if asked is not None:
                raise
            # The next line may be a text.
            say(f"warning: {error}", warns=True)
            print()
            continue
        for answer in about.stream(record):
            # A character may take several tokens.
            if answer.startswith(shown) and not answer.endswith("\ufffd"):
                print(answer[len(shown) :], end="", flush=True)
                shown = answer
        print(answer[len(shown) :])
        if not answer:
            say("the model said nothing", warns=True)
        if record.is_action:
            print(json.dumps(action_fields(record, answer, None)["predicted_action"]))


def _asked(flags: argparse.Namespace) -> tuple[str, str | None]:
    """The record's field that asks, and what is asked; None if that is typed."""
    if flags.instruction is None:
        if flags.question is not None and not flags.question.strip():
            raise UserError("--question is empty; leave it out to type questions")
        return "question", flags.question
    if not flags.instruction.strip():
        raise UserError("--instruction is empty; say what to mark, as the training's records do")
    if not flags.scene:
        raise UserError("--instruction needs --scene, named like those of the training's records")
    if flags.question is not None:
        raise UserError("--question asks for an answer and --instruction for an action: give one")
    return "instruction", flags.instruction


def _typed() -> Iterator[str]:
    """Questions, a line each: from the terminal until one is empty, from a file all of them."""
    typed = sys.stdin.isatty()
    while True:
        try:
            question = input("question: " if typed else "").strip()
        except EOFError:
            if typed:
                print()
            return
        if question:
            yield question
        elif typed:
            return


def _geometry(path: Path | None) -> dict:
    """The fields of a record that tell where its cameras stood."""
    if path is None:
        return {}
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"--geometry {path} cannot be read as one JSON object, such as a single line of a "
            f"record file: {error}"
        ) from None
    if not isinstance(fields, dict) or "geom_token" not in fields:
        raise UserError(f"--geometry {path}: expected a JSON object with 'geom_token'")
    return {name: fields[name] for name in ("geom_token", "image_size", "up") if name in fields}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    flags = argparse.ArgumentParser("jaxvlm.ask", description=__doc__)
    flags.add_argument(
        "--checkpoint", required=True, type=Path,
        help="a workdir or an update, or imported weights (with --config)",
    )  # fmt: skip
    flags.add_argument("--config", help="takes the place of the run's data and evaluation")
    flags.add_argument("--images", required=True, nargs="+", help="views of one scene, in order")
    flags.add_argument("--question", help="without it, questions are read line by line")
    flags.add_argument("--instruction", help="asks for an action, e.g. an anchor at an object")
    flags.add_argument("--scene", help="of --instruction: the name that its action has")
    flags.add_argument("--situation", default="", help="where the asker stands")
    flags.add_argument(
        "--geometry",
        type=Path,
        help="JSON file with the geom_token (and image_size, up) of these images, as in a record",
    )
    return flags


if __name__ == "__main__":
    entry.run(parser(), main)
