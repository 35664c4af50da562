"""Checks record files before GPU weeks are spent on them.

    python scripts/prep/audit_data.py data/processed/*/*_split.jsonl
    python scripts/prep/audit_data.py my.jsonl --image-root photos --fix mended.jsonl

Files with "train" in their name are compared with those that have "test" or "val": no scene may be
in both. The exit code is 1 if anything is an error; warnings alone leave it 0.
"""

import argparse
import json
import re
import sys
from collections import Counter
from pathlib import Path

from rich.table import Table
from rich.text import Text

from jaxvlm import entry
from jaxvlm.config import load
from jaxvlm.console import console, progress
from jaxvlm.data.audit.checks import CHECKS, ERROR, read_rooms
from jaxvlm.data.audit.files import audit_file, check_shared_scenes
from jaxvlm.data.audit.findings import Findings
from jaxvlm.data.audit.mend import mend
from jaxvlm.data.records import open_records
from jaxvlm.errors import UserError

_SHOWN = 3


def main(flags: argparse.Namespace) -> None:
    """Audits, prints, mends."""
    if flags.examples < 0:
        raise UserError(f"--examples {flags.examples}: expected at least 0")
    if flags.config is not None:
        # For the actions that it registers.
        load(flags.config)
    files = [file for pattern in flags.files for file in open_records(pattern)]
    _check_output(flags, [file.path for file in files])
    shown = {} if flags.json else {"progress": progress}
    findings = [audit_file(file, flags.image_root, flags.images, **shown) for file in files]
    rooms = read_rooms(flags.rooms) if flags.rooms else {}
    check_shared_scenes(_named(findings, "train"), _named(findings, "test", "val"), rooms)
    report = _report(findings)
    if flags.json:
        print(json.dumps(report, indent=2))
    else:
        _show(report, findings, flags.examples)
    if flags.fix:
        for found in findings:
            _fix(found, _destination(flags.fix, found.file.path, len(files)), flags.json)
    if report["errors"]:
        sys.stdout.flush()
        sys.exit(1)


def _named(findings: list[Findings], *words: str) -> list[Findings]:
    """Findings of the files that have one of the words in their name."""
    return [f for f in findings if set(re.split(r"[^a-z]+", f.file.path.stem.lower())) & {*words}]


def _report(findings: list[Findings]) -> dict:
    counts = sum((f.counts() for f in findings), Counter())
    problems = [p for f in findings for found in f.problems.values() for p in found]
    errors = Counter(p.check for p in problems if p.level == ERROR)
    return {
        "files": [str(f.file.path) for f in findings],
        "rows": sum(f.rows for f in findings),
        "distinct_question_ids": len(set().union(*(f.question_ids for f in findings))),
        "scenes": len(set().union(*(f.scenes.keys() - {""} for f in findings))),
        "errors": errors.total(),
        "warnings": len(problems) - errors.total(),
        "checks": {check: counts[check] for check in CHECKS},
        "errors_by_check": {check: errors[check] for check in CHECKS},
    }


def _show(report: dict, findings: list[Findings], examples: int) -> None:
    rows, scenes = report["rows"], report["scenes"]
    title = (
        f"{len(findings)} file(s), {rows:,} rows, {report['distinct_question_ids']:,} distinct "
        f"question ids, {scenes:,} scenes"
    )
    table = Table(title=Text(title), title_justify="left")
    table.add_column("check", no_wrap=True)
    table.add_column("errors", justify="right")
    table.add_column("warnings", justify="right")
    table.add_column("what is wrong, and the first cases", overflow="fold")
    for check, count in report["checks"].items():
        if not count:
            continue
        errors = report["errors_by_check"][check]
        cases = [
            problem.message
            for found in findings
            for _, problems in sorted(found.problems.items())
            for problem in problems
            if problem.check == check
        ]
        more = [f"… {count - examples:,} more"] if count > examples else []
        table.add_row(
            check,
            f"{errors:,}" if errors else "",
            f"{count - errors:,}" if count > errors else "",
            Text("\n".join([CHECKS[check], *cases[:examples], *more])),
        )
    if table.row_count:
        console().print(table)
    else:
        console().print(f"{title}: nothing wrong", markup=False)


def _check_output(flags: argparse.Namespace, paths: list[Path]) -> None:
    if not flags.fix:
        return
    if len(paths) > 1 and flags.fix.suffix in (".json", ".jsonl"):
        raise UserError(f"--fix {flags.fix}: several files go into a folder; name one")
    outputs = [_destination(flags.fix, path, len(paths)) for path in paths]
    if len(set(outputs)) < len(outputs):
        raise UserError("--fix: two of the files have the same name; mend them one at a time")
    for path, output in zip(paths, outputs, strict=True):
        if output.exists() and output.resolve() == path.resolve():
            raise UserError(f"--fix {flags.fix} would overwrite {path}; name another file")
        if output.exists() and not flags.overwrite:
            raise UserError(f"--fix: {output} exists; name another, or pass --overwrite")
        if output.is_dir():
            raise UserError(f"--fix {output} is a folder; name a file such as {output}/fixed.jsonl")


def _destination(output: Path, path: Path, files: int) -> Path:
    """Where a file goes: several go into a folder, with their names."""
    return output if files == 1 else output / path.name


def _fix(findings: Findings, destination: Path, quiet: bool) -> None:
    written, repaired, dropped = mend(findings, destination)
    out = sys.stderr if quiet else sys.stdout
    print(f"{destination}: {written:,} of {findings.rows:,} records", file=out)
    for verb, counts in (("repaired", repaired), ("left out", dropped)):
        for check, count in counts.most_common():
            print(f"  {verb} {count:,}: {check}", file=out)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    flags = argparse.ArgumentParser(
        "audit_data.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("files", nargs="+", help="record files or patterns")
    flags.add_argument(
        "--images",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="look for every image and decode it (default)",
    )
    flags.add_argument(
        "--image-root",
        nargs="+",
        default=[".", "data/raw"],
        help="folders of relative image paths, after the record file's own (default: . data/raw)",
    )
    flags.add_argument(
        "--rooms",
        type=Path,
        metavar="CSV",
        help="which scenes are of one room: columns video_id, visit_id (ARKitScenes: metadata.csv)",
    )
    flags.add_argument(
        "--config", metavar="FILE", help="a configuration file that registers actions of your own"
    )
    flags.add_argument("--json", action="store_true", help="print JSON instead of a table")
    flags.add_argument("--examples", type=int, default=_SHOWN, help="cases shown of each check")
    flags.add_argument(
        "--fix",
        type=Path,
        metavar="OUT",
        help="write the records without what is wrong: a file, or a folder for several files",
    )
    flags.add_argument("--overwrite", action="store_true", help="let --fix replace files")
    return flags


if __name__ == "__main__":
    entry.run(parser(), main, configured=False)
