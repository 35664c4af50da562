"""Evaluates a run, scores a file of predictions, or compares two:

    python -m jaxvlm.evaluate --checkpoint runs/demo --split test
    python -m jaxvlm.evaluate --predictions FILE [--output DIR]
    python -m jaxvlm.evaluate --compare A.jsonl B.jsonl

The first writes `predictions.jsonl`, `summary.json` and `report.html`, the second `scored.jsonl`
and `summary.json`.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from jaxvlm import entry
from jaxvlm.console import print_table
from jaxvlm.data.official import as_records, questions_of
from jaxvlm.errors import UserError, memory_is_short
from jaxvlm.files import write_text
from jaxvlm.metrics.action_summary import (
    action_difference_rows,
    action_verdict,
    category_table,
    comparison_table,
    figure_rows,
    headline,
)
from jaxvlm.metrics.captions import TOKENIZERS, check_tokenizer
from jaxvlm.metrics.compare import compare
from jaxvlm.metrics.files import PREDICTIONS, REPORT, SCORED, SUMMARY, score_file
from jaxvlm.metrics.lines import read_lines
from jaxvlm.metrics.rerun_file import write_rerun
from jaxvlm.metrics.summary import (
    difference_rows,
    figure_tables,
    figures_title,
    percent,
    scenes_drawn,
    table,
    verdict,
)
from jaxvlm.metrics.tasks import read_measures
from jaxvlm.shares import Share, add_shard
from jaxvlm.workdir import open_workdir

# What takes less memory where there is none left.
_LESS = (
    "What takes less: a smaller --config.evaluation.batch_questions, "
    "--config.evaluation.batch_sets or --config.evaluation.max_new_tokens, or "
    "--config.precision=bfloat16"
)


@memory_is_short(_LESS)
def main(flags: argparse.Namespace) -> None:
    """Does what the flags ask for."""
    runs = bool(flags.checkpoint or flags.config)
    if runs + bool(flags.predictions) + bool(flags.compare) != 1:
        raise UserError("expected one of --checkpoint (or --config), --predictions and --compare")
    if flags.overrides and not runs:
        raise UserError(f"--config.{flags.overrides[0]} belongs to --checkpoint")
    for name in ("split", "limit", "controls", "task", "rerun"):
        if getattr(flags, name) is not None and not runs:
            raise UserError(f"--{name} belongs to --checkpoint")
    if flags.data and flags.compare:
        raise UserError("--data does not go with --compare")
    check_tokenizer(flags.tokenizer)
    for path in flags.metrics:
        read_measures(path)
    if runs:
        _evaluate(flags)
    elif flags.predictions:
        _score(flags)
    else:
        _compare(flags)


def _score(flags: argparse.Namespace) -> None:
    if not flags.predictions.is_file():
        what = "is no file" if flags.predictions.exists() else "does not exist"
        raise UserError(f"--predictions {flags.predictions} {what}; give a predictions.jsonl")
    output = flags.output or flags.predictions.with_suffix("")
    if output == flags.predictions:
        output = output.with_name(f"{output.name}_scores")
    known = questions_of(flags.data) if flags.data else None
    summary = score_file(flags.predictions, output, flags.tokenizer, known)
    if "action_valid" in summary:
        print(f"{headline(summary, {}, {})}, of {summary['count']:,} actions")
        print_table("By category", *category_table(summary))
        tables = [(figures_title(summary), figure_rows(summary))]
    else:
        print(f"EM {percent(summary['em'])} of {summary['count']:,} questions")
        print_table(str(flags.predictions), *table(summary))
        tables = figure_tables(summary)
    _print_figures(tables)
    print(f"every line: {output / SCORED}")


def _compare(flags: argparse.Namespace) -> None:
    for path in flags.compare:
        if path.is_dir():
            raise UserError(f"--compare {path} is a folder; give the predictions.jsonl in it")
    found = compare(*flags.compare, flags.tokenizer)
    for name, path in zip(("first ", "second"), flags.compare, strict=True):
        print(f"{name}: {path}")
    columns = ("figure", "first", "second", "second - first", "95% interval")
    about = f" ({scenes_drawn(found['scenes'])})"
    if "center_error" in found["figures"]:
        print_table(f"{found['count']:,} actions{about}", columns, action_difference_rows(found))
        print(action_verdict(found))
    else:
        print_table(f"{found['count']:,} questions{about}", columns, difference_rows(found))
        print(verdict(found))
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
    flags.split = flags.split or "test"
    flags.controls = flags.controls is None or flags.controls
    if flags.limit is not None and flags.limit < 1:
        raise UserError(f"--limit {flags.limit}: expected at least 1")
    share = _share(flags)
    # Not before: a wrong flag should be answered at once.
    from jaxvlm.data.sources import Joined, known_records, load_sources
    from jaxvlm.generation.evaluation import Evaluation
    from jaxvlm.generation.finish import finish
    from jaxvlm.generation.ways import ACTIONS, ANSWERS, Ways, of_task
    from jaxvlm.generation.weights import choose

    chosen = choose(flags.checkpoint, flags.config, flags.overrides)
    config = chosen.config

    def load(specs: Sequence) -> list:
        return load_sources(specs, config.data.image_roots, config.data.on_bad_record)

    files = as_records(flags.data or (), known_records(config))
    split = tuple({"path": path} for path in files) or config.data[flags.split]
    if not split:
        raise UserError(f"the configuration names no data.{flags.split}; set it or give --data")
    asked = load(split)
    # For the guess from the question alone, which the first process makes.
    guessed = flags.controls and not share.index
    training = load(config.data.train) if guessed and config.data.train else []
    records = of_task(Joined([source.records for source in asked]), flags.task)
    task = ACTIONS if records[0].is_action else ANSWERS
    if flags.rerun and task != ACTIONS:
        raise UserError("--rerun shows boxes of actions, and these records are questions")
    # What lines depend on, and what figures do.
    fingerprints = [source.fingerprint for source in asked]
    answered = {"records": fingerprints, "task": task, **chosen.identity()}
    identity = answered | {
        "split": flags.split,
        "files": list(flags.data or [source.path for source in asked]),
        "left_out": sum(source.left_out for source in asked),
        "limit": flags.limit,
        "with_controls": flags.controls,
        "tokenizer": flags.tokenizer,
        "measures": [path.read_bytes().decode(errors="replace") for path in flags.metrics],
    }
    if not share.index:
        identity["training"] = [source.fingerprint for source in training]
    workdir = chosen.workdir or Path("runs") / Path(flags.config.partition(":")[0]).stem
    name = _name(flags, chosen.folder)
    output = flags.output or workdir / "evaluation" / name
    title = f"{workdir.name}: {name.replace('_', ' ')}"
    summary = _standing(output, identity)
    if summary is not None:
        print(f"{output}: up to date")
    else:
        count = len(records) if flags.limit is None else min(flags.limit, len(records))
        located = config.model.geometry.mode != "none"
        ways = Ways(records, task, count, flags.controls, config.seed, located)
        made = Evaluation(ways, output, share, json.dumps(answered), identity["files"])
        # Two that answer the same questions would write the same lines.
        with open_workdir(made.folder, "--output"):
            made.open()
            # First: weights that do not fit leave what stands in the folder.
            answerer = chosen.answerer(ways.image_sets)
            made.begin()
            made.answer(answerer)
            if share.index:
                return
            made.wait(flags.join_seconds)
            known = Joined([source.records for source in training]) if training else None
            summary = finish(made, title, flags.tokenizer, known, identity)
    if flags.rerun:
        lines = read_lines(output / PREDICTIONS)
        write_rerun(flags.rerun, lines, lambda line: records[line["index"]], title)
        print(f"recording: {flags.rerun}")
    _show(title, summary)
    print(f"page: {output / REPORT}")


def _show(title: str, summary: dict) -> None:
    """Prints what an evaluation says."""
    print(summary["headline"])
    if "action_valid" in summary:
        print_table(title, *comparison_table(summary))
        print_table("By category", *category_table(summary))
        tables = [(figures_title(summary), figure_rows(summary))]
    else:
        print_table(title, *table(summary))
        tables = figure_tables(summary)
    _print_figures(tables)


def _print_figures(tables: Sequence[tuple[str, Sequence[tuple]]]) -> None:
    for title, rows in tables:
        print_table(title, ("figure", "value", "95% interval"), rows)


def _name(flags: argparse.Namespace, folder: Path | None) -> str:
    """What tells an evaluation from others of a run: its folder, unless one is given."""
    parts = [flags.split]
    if flags.data:
        # Files of several data sets have one name, each in a folder of its own.
        place = Path(flags.data[0]).absolute()
        parts = [*filter(None, (place.parent.name,)), place.stem]
        parts += [f"and_{len(flags.data) - 1}_more"] if len(flags.data) > 1 else []
    parts += [flags.task] if flags.task else []
    parts += [f"first_{flags.limit}"] if flags.limit else []
    # A workdir is asked for its best update, whichever that is.
    parts += [f"update_{folder.name}"] if folder and folder == flags.checkpoint else []
    return "_".join(parts)


def _share(flags: argparse.Namespace) -> Share:
    """What this process answers: by `--shard`, or as one of Slurm's tasks."""
    from jaxvlm.training.cluster import slurm_place

    place = slurm_place()
    if place is None or not flags.shard.whole:
        return flags.shard
    if place.local_devices is not None:
        import jax

        jax.config.update("jax_cuda_visible_devices", ",".join(map(str, place.local_devices)))
    return Share(place.index, place.count)


def _standing(output: Path, identity: dict) -> dict | None:
    """The summary that stands in `output` if it was made from the same things."""
    from jaxvlm.generation.evaluation import predictions_name

    try:
        summary = json.loads((output / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(summary, dict):
        return None
    same = all(summary.get(k) == v for k, v in identity.items())
    ways = ("", *summary.get("leads", {}))
    whole = (output / REPORT).is_file() and all(
        _lines(output / predictions_name(way)) == summary.get("count") for way in ways
    )
    # What was lost is asked again: its images may have been mended.
    return summary if same and whole and not summary.get("lost") else None


def _lines(path: Path) -> int:
    if not path.is_file():
        return 0
    with path.open("rb") as file:
        return sum(1 for _ in file)


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
    flags.add_argument(
        "--config", help="takes the place of the run's data and evaluation; alone, names weights"
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
    flags.add_argument("--split", choices=("train", "val", "test"), help="default: test")
    flags.add_argument(
        "--data",
        nargs="+",
        help="record files, or official ones of ScanQA or SQA3D, instead of the split's own; with "
        "--predictions, whose answers are right",
    )
    flags.add_argument(
        "--task", choices=("answers", "actions"),
        help="of files that have both: only the questions, or only the instructions",
    )  # fmt: skip
    flags.add_argument(
        "--rerun", type=Path, metavar="FILE.rrd",
        help="of actions: also a recording for the Rerun viewer (needs the extra 'rerun')",
    )  # fmt: skip
    flags.add_argument("--limit", type=int, help="only the first so many questions")
    flags.add_argument(
        "--output",
        type=Path,
        help="default: <workdir>/evaluation/<split, or what is asked else>, or beside the "
        "predictions",
    )
    flags.add_argument(
        "--controls",
        action=argparse.BooleanOptionalAction,
        help="also (the default) answer without image and with other scenes', and guess from the "
        "question alone",
    )
    add_shard(flags)
    flags.add_argument(
        "--join_seconds", type=int, metavar="S", default=1800,
        help="how long the first of several processes waits for an answer of the others",
    )  # fmt: skip
    return flags


if __name__ == "__main__":
    entry.run(parser(), main)
