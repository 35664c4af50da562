"""Evaluates a run: `python -m jaxvlm.evaluate --checkpoint runs/demo --split test`.

Writes `predictions.jsonl`, `summary.json` and `report.html`.
"""

import argparse
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from jaxvlm import entry
from jaxvlm.config import to_json
from jaxvlm.errors import UserError
from jaxvlm.files import write_text

PREDICTIONS, REPORT, SUMMARY = "predictions.jsonl", "report.html", "summary.json"


def main(flags: argparse.Namespace) -> None:
    """Answers a split, with its controls unless told otherwise."""
    # Not before: a wrong flag should be answered at once.
    from jaxvlm.data.sources import Source, load_sources
    from jaxvlm.generation.restore import restore_answerer
    from jaxvlm.training.run import find_checkpoint, run_config

    if flags.limit is not None and flags.limit < 1:
        raise UserError(f"--limit {flags.limit}: expected at least 1")
    folder = find_checkpoint(flags.checkpoint)
    config = run_config(folder, flags.overrides)

    def load(specs: Sequence) -> list[Source]:
        return load_sources(specs, config.data.image_roots, config.data.on_bad_record)

    split = tuple({"path": path} for path in flags.data or ()) or config.data[flags.split]
    if not split:
        raise UserError(f"the configuration names no data.{flags.split}; set it or give --data")
    asked = load(split)
    training = load(config.data.train) if flags.controls and config.data.train else []

    workdir = folder.parent.parent
    output = flags.output or workdir / "evaluation" / flags.split
    title = f"{workdir.name}: {flags.split} split"
    identity = {
        "split": flags.split,
        "files": [source.path for source in asked],
        "records": [source.fingerprint for source in (*asked, *training)],
        "limit": flags.limit,
        "with_controls": flags.controls,
        "checkpoint": str(folder),
        "written": (folder / "params").stat().st_mtime_ns,
        "config": hashlib.sha256(to_json(config).encode()).hexdigest(),
    }
    summary = _standing(output, identity)
    if summary is not None:
        print(f"{output}: up to date")
    else:
        _clear(output)
        records = [record for source in asked for record in source.records][: flags.limit]
        for record in records:
            if not record.answers:
                raise UserError(f"{record.origin}: no answer to score against")
        answerer = restore_answerer(folder, config)
        summary = {**_evaluate(answerer, records, training, flags.controls, title, output),
                   **identity}  # fmt: skip
        # Last: where it stands, everything stands.
        write_text(output / SUMMARY, json.dumps(summary, indent=2) + "\n")
    _show(title, summary, output)


def _evaluate(answerer, records, training, controls: bool, title: str, output: Path) -> dict:
    """Answers the records, writes predictions and page, returns the figures."""
    from jaxvlm.console import progress
    from jaxvlm.generation.answer import answer_records, other_images
    from jaxvlm.metrics.answers import QuestionOnlyGuess
    from jaxvlm.metrics.report import page
    from jaxvlm.metrics.summary import predictions, summarize

    shown = other_images(records, answerer.config.seed) if controls else None
    other = guess = None
    with progress("answering", len(records) * (2 if shown else 1)) as advance:
        print(f"answering {len(records)} questions with {answerer.checkpoint}", flush=True)
        scored = predictions(records, answer_records(answerer, records, None, advance))
        if shown is not None:
            print("answering them with other rooms' images", flush=True)
            other = predictions(records, answer_records(answerer, records, shown, advance))
    if training:
        guess = QuestionOnlyGuess(
            (r.question, r.kind, r.answer) for source in training for r in source.records
        )
    summary = summarize(scored, other, guess)
    write_text(output / PREDICTIONS, "".join(json.dumps(p) + "\n" for p in scored))
    write_text(output / REPORT, page(title, summary, scored))
    return summary


def _standing(output: Path, identity: dict) -> dict | None:
    """The summary that stands in `output` if it was made from the same things."""
    try:
        summary = json.loads((output / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    same = isinstance(summary, dict) and all(summary.get(k) == v for k, v in identity.items())
    whole = all((output / name).is_file() for name in (PREDICTIONS, REPORT))
    return summary if same and whole else None


def _clear(output: Path) -> None:
    """Makes the folder; an older summary goes first, for it would speak of other predictions."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        (output / SUMMARY).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"--output {output} cannot be written: {error.strerror}") from None


def _show(title: str, summary: dict, output: Path) -> None:
    from jaxvlm.console import print_table
    from jaxvlm.metrics.summary import COLUMNS, rows

    print_table(title, COLUMNS, rows(summary))
    print(f"page: {output / REPORT}")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    flags = argparse.ArgumentParser(
        "jaxvlm.evaluate",
        description=__doc__,
        epilog="Fields of the run's configuration are changed by --config.field=value.",
    )
    flags.add_argument(
        "--checkpoint",
        required=True,
        type=Path,
        help="a workdir (its best update, else its newest) or an update",
    )
    flags.add_argument("--split", default="test", choices=("train", "val", "test"))
    flags.add_argument("--data", nargs="+", help="record files instead of the split's own")
    flags.add_argument("--limit", type=int, help="only the first so many questions")
    flags.add_argument("--output", type=Path, help="default: <workdir>/evaluation/<split>")
    flags.add_argument(
        "--controls",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also answer with other rooms' images, and guess from the question alone",
    )
    return flags


if __name__ == "__main__":
    entry.run(parser(), main)
