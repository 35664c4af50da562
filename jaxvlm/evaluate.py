"""Evaluates a run: `python -m jaxvlm.evaluate --checkpoint runs/demo --split test`.

Writes `predictions.jsonl`, `summary.json` and `report.html`.
"""

import argparse
import json
from pathlib import Path

from jaxvlm import entry
from jaxvlm.errors import UserError


def main(flags: argparse.Namespace) -> None:
    """Answers a split, with its controls unless told otherwise."""
    # Not before: a wrong flag should be answered at once.
    from jaxvlm.data.sources import load_sources
    from jaxvlm.generation.answer import answer_records, other_images
    from jaxvlm.generation.restore import find_checkpoint, restore_answerer
    from jaxvlm.metrics.answers import QuestionOnlyGuess
    from jaxvlm.metrics.report import page
    from jaxvlm.metrics.summary import predictions, summarize
    from jaxvlm.training.console import progress

    if flags.limit is not None and flags.limit < 1:
        raise UserError(f"--limit {flags.limit}: expected at least 1")
    folder = find_checkpoint(flags.checkpoint)
    output = flags.output or folder.parent.parent / "evaluation" / flags.split
    title = f"{folder.parent.parent.name}: {flags.split} split"
    done = _standing(output, _identity(flags, folder))
    if done is not None:
        print(f"{output}: up to date")
        _show(title, done, output)
        return
    answerer = restore_answerer(folder, flags.overrides)
    data = answerer.config.data
    specs = [{"path": path} for path in flags.data] if flags.data else data[flags.split]
    if not specs:
        raise UserError(f"the configuration names no data.{flags.split}; set it or give --data")
    sources = load_sources(specs, data.image_roots, data.missing_images)
    records = [record for source in sources for record in source.records][: flags.limit]
    for record in records:
        if not record.answers:
            raise UserError(f"{record.origin}: no answer to score against")
    _make(output)
    shown = other_images(records, answerer.config.seed) if flags.controls else None
    with progress("answering", len(records) * (2 if shown else 1)) as advance:
        print(f"answering {len(records)} questions with {folder}", flush=True)
        scored = predictions(records, answer_records(answerer, records, None, advance))
        other = None
        if shown is not None:
            print("answering them with other rooms' images", flush=True)
            answers = answer_records(answerer, records, shown, advance)
            other = predictions(records, answers)
    guess = None
    if flags.controls and data.train:
        training = load_sources(data.train, data.image_roots, data.missing_images)
        guess = QuestionOnlyGuess(
            (r.question, r.kind, r.answer) for source in training for r in source.records
        )
    summary = {
        **summarize(scored, other, guess),
        "split": flags.split,
        "files": [source.path for source in sources],
        **_identity(flags, folder),
    }
    (output / "predictions.jsonl").write_text("".join(json.dumps(p) + "\n" for p in scored))
    (output / "report.html").write_text(page(title, summary, scored), encoding="utf-8")
    # Last: where it stands, everything stands.
    (output / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    _show(title, summary, output)


def _identity(flags: argparse.Namespace, folder: Path) -> dict:
    """What a summary was made from; the same again need not be answered again."""
    return {
        "checkpoint": str(folder),
        "written": (folder / "params").stat().st_mtime_ns,
        "data": flags.data,
        "limit": flags.limit,
        "overrides": flags.overrides,
        "with_controls": flags.controls,
    }


def _standing(output: Path, identity: dict) -> dict | None:
    """The summary that stands in `output` if it was made from the same things."""
    try:
        summary = json.loads((output / "summary.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return None
    return summary if all(summary.get(k) == v for k, v in identity.items()) else None


def _show(title: str, summary: dict, output: Path) -> None:
    from jaxvlm.metrics.summary import COLUMNS, rows
    from jaxvlm.training.console import print_table

    print_table(title, COLUMNS, rows(summary))
    print(f"page: {output / 'report.html'}")


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {folder} cannot be written: {error.strerror}") from None


def parser() -> argparse.ArgumentParser:
    """The command line."""
    flags = argparse.ArgumentParser(
        "jaxvlm.evaluate",
        description=__doc__,
        epilog="Fields of the run's configuration are changed by --config.field=value.",
    )
    flags.add_argument("--checkpoint", required=True, type=Path, help="a workdir or an update")
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
