"""Evaluates a run, scores a file of predictions, or compares two:

    python -m jaxvlm.evaluate --checkpoint runs/demo --split test
    python -m jaxvlm.evaluate --predictions FILE [--output DIR]
    python -m jaxvlm.evaluate --compare A.jsonl B.jsonl

The first writes `predictions.jsonl`, `summary.json` and `report.html`, the second `scored.jsonl`
and `summary.json`.
"""

import argparse
import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from jaxvlm import entry
from jaxvlm.config import to_json
from jaxvlm.console import print_table
from jaxvlm.errors import UserError
from jaxvlm.files import draft_of, write_text
from jaxvlm.metrics.captions import TOKENIZERS
from jaxvlm.metrics.compare import compare
from jaxvlm.metrics.files import SCORED, SUMMARY, score_file, write_scored
from jaxvlm.metrics.lines import kind_of, read_lines
from jaxvlm.metrics.summary import (
    difference_rows,
    line_of,
    percent,
    sentence_rows,
    table,
    with_controls,
)
from jaxvlm.metrics.tasks import read_measures

PREDICTIONS, REPORT = "predictions.jsonl", "report.html"


def main(flags: argparse.Namespace) -> None:
    """Does what the flags ask for."""
    asked = [name for name in ("checkpoint", "predictions", "compare") if getattr(flags, name)]
    if len(asked) != 1:
        raise UserError("expected one of --checkpoint, --predictions and --compare")
    if flags.overrides and not flags.checkpoint:
        raise UserError(f"--config.{flags.overrides[0]} belongs to --checkpoint")
    for path in flags.metrics:
        read_measures(path)
    {"checkpoint": _evaluate, "predictions": _score, "compare": _compare}[asked[0]](flags)


def _score(flags: argparse.Namespace) -> None:
    output = flags.output or flags.predictions.with_suffix("")
    if output == flags.predictions:
        output = output.with_name(f"{output.name}_scores")
    summary = score_file(flags.predictions, output, flags.tokenizer)
    print(f"EM {percent(summary['em'])} of {summary['count']:,} questions")
    print_table(str(flags.predictions), *table(summary))
    print_table("All figures", ("figure", "value", "95% interval"), sentence_rows(summary))
    print(f"every line: {output / SCORED}")


def _compare(flags: argparse.Namespace) -> None:
    found = compare(*flags.compare, flags.tokenizer)
    columns = ("figure", *map(str, flags.compare), "difference", "95% interval")
    print_table(f"{found['count']:,} questions, tokeniser {found['tokenizer']}", columns,
                difference_rows(found["figures"]))  # fmt: skip
    if flags.output:
        try:
            flags.output.mkdir(parents=True, exist_ok=True)
            write_text(flags.output / "comparison.json", json.dumps(found, indent=2) + "\n")
        except OSError as error:
            raise UserError(
                f"--output {flags.output} cannot be written: {error.strerror}"
            ) from None


def _evaluate(flags: argparse.Namespace) -> None:
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
        "tokenizer": flags.tokenizer,
        "measures": [path.read_text(encoding="utf-8") for path in flags.metrics],
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
        summary = {**_answered(answerer, records, training, flags, title, output), **identity}
        # Last: where it stands, everything stands.
        write_text(output / SUMMARY, json.dumps(summary, indent=2) + "\n")
    print(summary["headline"])
    print_table(title, *table(summary))
    print_table("All figures", ("figure", "value", "95% interval"), sentence_rows(summary))
    print(f"page: {output / REPORT}")


def _answered(answerer, records, training, flags: argparse.Namespace, title: str, output: Path):
    """Answers the records, writes predictions and page, returns the figures."""
    from jaxvlm.console import progress
    from jaxvlm.generation.answer import answer_records, other_images
    from jaxvlm.metrics.guess import QuestionOnlyGuess
    from jaxvlm.metrics.report import page
    from jaxvlm.metrics.scoring import score, summarize

    shown = other_images(records, answerer.config.seed) if flags.controls else None
    with progress("answering", len(records) * (2 if shown else 1)) as advance:
        print(f"answering {len(records)} questions with {answerer.checkpoint}", flush=True)
        answers = {PREDICTIONS: answer_records(answerer, records, None, advance)}
        if shown is not None:
            print("answering them with other rooms' images", flush=True)
            name = "predictions.other_images.jsonl"
            answers[name] = answer_records(answerer, records, shown, advance)
    summaries = {}
    for name, texts in answers.items():
        draft = draft_of(output / name)
        lines = (line_of(i, *each) for i, each in enumerate(zip(records, texts, strict=True)))
        write_text(draft, "".join(json.dumps(line) + "\n" for line in lines))
        scores = score(read_lines(draft), flags.tokenizer)
        write_scored(draft, scores, output / name)
        draft.unlink()
        summaries[name] = summarize(scores)
    guess = None
    if training:
        guess = QuestionOnlyGuess(
            (r.question, kind_of(r.question, r.kind, r.task), r.answer)
            for source in training
            for r in source.records
        )
    lines = functools.partial(read_lines, output / PREDICTIONS)
    others = {name.split(".")[1]: found for name, found in summaries.items() if name != PREDICTIONS}
    summary = with_controls(summaries[PREDICTIONS], others, guess, lines())
    write_text(output / REPORT, page(title, summary, lines))
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


def parser() -> argparse.ArgumentParser:
    """The command line."""
    flags = argparse.ArgumentParser(
        "jaxvlm.evaluate",
        description=__doc__,
        epilog="Fields of the run's configuration are changed by --config.field=value.",
    )
    flags.add_argument(
        "--checkpoint", type=Path, help="a workdir (its best update, else its newest) or an update"
    )
    flags.add_argument("--predictions", type=Path, metavar="FILE", help="answers to score")
    flags.add_argument(
        "--compare", type=Path, nargs=2, metavar="FILE", help="answers of two to the same questions"
    )
    flags.add_argument(
        "--tokenizer", choices=TOKENIZERS, default="plain", help="what makes sentences words"
    )
    flags.add_argument(
        "--metrics", type=Path, nargs="+", default=[], metavar="FILE",
        help="Python files that register more measures",
    )  # fmt: skip
    flags.add_argument("--split", default="test", choices=("train", "val", "test"))
    flags.add_argument("--data", nargs="+", help="record files instead of the split's own")
    flags.add_argument("--limit", type=int, help="only the first so many questions")
    flags.add_argument(
        "--output",
        type=Path,
        help="default: <workdir>/evaluation/<split>, or beside the predictions",
    )
    flags.add_argument(
        "--controls",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also answer with other rooms' images, and guess from the question alone",
    )
    return flags


if __name__ == "__main__":
    entry.run(parser(), main)
