"""Answers the questions of any records, with references or without, into a file of lines:

    python -m jaxvlm.predict --checkpoint runs/stage1 --data "data/mine/*.jsonl" --output out.jsonl

Killed, the same command goes on. The flags of the original's inference work too: --config,
--arkit_glob, --checkpoint_dir, --num_scenes, --max_new_tokens, --device and --output_jsonl.
"""

import argparse
import glob
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from jaxvlm import entry
from jaxvlm.console import progress, say
from jaxvlm.errors import UserError, first_line, memory_is_short
from jaxvlm.files import write_parts, write_text
from jaxvlm.metrics.room_files import write_rooms
from jaxvlm.metrics.summary import line_of
from jaxvlm.workdir import open_workdir

# Reasons that are printed.
_NAMED = 5
# What stands in the folder of a command that was killed.
_PARTS = (".lock", "identity", "lines.jsonl")
# Characters of a line that may be a prediction.
_LONGEST_LINE = 1_000_000

# What takes less memory where there is none left.
_LESS = (
    "What takes less: a smaller --max_new_tokens, --config.evaluation.batch_questions or "
    "--config.evaluation.batch_sets, or --config.precision=bfloat16"
)


@memory_is_short(_LESS)
def main(flags: argparse.Namespace) -> None:
    """Answers, and writes the lines in the records' order."""
    if flags.num_scenes is not None and flags.num_scenes < 1:
        raise UserError(f"--num_scenes {flags.num_scenes}: expected at least 1")
    if flags.device is not None:
        _take_device(flags.device)
    if flags.checkpoint is None and flags.config is None:
        raise UserError("expected --checkpoint, or a --config that names imported weights")
    # Not before: a wrong flag should be answered at once.
    from jaxvlm.data.official import as_records
    from jaxvlm.data.sequence import set_key
    from jaxvlm.data.sources import Joined, known_records, load_sources
    from jaxvlm.generation.answer import Asked, Group, answers
    from jaxvlm.generation.journal import Journal, in_order, places
    from jaxvlm.generation.weights import choose

    more = [] if flags.max_new_tokens is None else [
        f"evaluation.max_new_tokens={flags.max_new_tokens}"]  # fmt: skip
    chosen = choose(flags.checkpoint, flags.config, [*flags.overrides, *more])
    data = chosen.config.data
    named = list(dict.fromkeys(flags.data))
    asked_by = as_records(named, known_records(chosen.config))
    specs = [{"path": path} for path in asked_by]
    # Of official files records are made.
    official = {made: path for made, path in zip(asked_by, named, strict=True) if made != path}
    sources = load_sources(specs, data.image_roots, data.on_bad_record, unanswered=True)
    records = Joined([source.records for source in sources])
    count = min(len(records), flags.num_scenes or len(records))
    _check_output(flags, records, count)
    # Records are parsed again where they are needed, so that they are never all held.
    by_set: dict[bytes, list[int]] = {}
    for index in range(count):
        by_set.setdefault(set_key(records[index]), []).append(index)
    files: list[Path] = []
    with open_workdir(_part(flags.output), "--output") as part:
        identity = json.dumps([chosen.identity(), [source.fingerprint for source in sources]])
        # First: weights that do not fit leave what stands.
        say(f"{count:,} records: reading {chosen.folder or 'the imported weights'}")
        answerer = chosen.answerer(lambda: {records[each[0]].images for each in by_set.values()})
        if _read(part / "identity") != identity.encode() and (part / "lines.jsonl").exists():
            say(f"the answers in {part} are of something else; they are replaced")
            (part / "lines.jsonl").unlink()
        write_text(part / "identity", identity)
        done = {at.index for at in places(part / "lines.jsonl") if not at.lost}

        def groups() -> Iterator[Group]:
            for indices in by_set.values():
                left = [index for index in indices if index not in done]
                if left:
                    yield Group(records[left[0]], (Asked(i, i, records[i]) for i in left))

        with Journal(part / "lines.jsonl") as journal, progress("answering", count) as advance:
            advance(len(done))
            for found in answers(answerer, groups()):
                record = records[found.key].first_views(answerer.config.data.num_views)
                file = official.get(record.origin.rpartition(":")[0])
                journal.write(_line(found, record) | {"record": file or record.origin})
                advance()

        def lines(having: str) -> Iterator[dict]:
            found = in_order([part / "lines.jsonl"])
            return (line for line in found if line["index"] < count and having in line)

        lost = [line["lost"] for line in lines("lost")]
        if flags.format == "roomplan":
            said = ((records[line["index"]], line) for line in lines("prediction"))
            files = write_rooms(flags.output, said)
        else:
            write_parts(flags.output, (json.dumps(line) + "\n" for line in lines("prediction")))
        shutil.rmtree(part)
    for why in lost[:_NAMED]:
        say(f"warning: left out: {why}", warns=True)
    missing = len(lost) + sum(source.left_out for source in sources)
    _say_written(flags.output, count - len(lost), missing, files)


def _say_written(output: Path, answers: int, missing: int, files: list[Path]) -> None:
    """Prints how much was answered, and the first of several files."""
    print(f"{output}: {answers:,} answers" + (f", {missing:,} left out" if missing else ""))
    for path in files[:_NAMED]:
        print(path)
    if len(files) > _NAMED:
        print(f"and {len(files) - _NAMED:,} more files")


def _check_output(flags: argparse.Namespace, records, count: int) -> None:
    """Refuses an --output that nothing could be written to, before anything is answered."""
    rooms = flags.format == "roomplan"
    if flags.output.is_file() if rooms else flags.output.is_dir():
        wanted, found = ("folder", "file") if rooms else ("file", "folder")
        raise UserError(f"--output {flags.output} is a {found}; expected the name of a {wanted}")
    inputs = {path for name in flags.data for path in map(Path, glob.glob(name, recursive=True))}
    if not rooms and any(path.resolve() == flags.output.resolve() for path in inputs):
        raise UserError(f"--output {flags.output} is one of the files of --data; give another name")
    if not rooms and flags.output.exists() and not _is_ours(flags.output):
        raise UserError(
            f"--output {flags.output} is there and holds no predictions; give another name"
        )
    part = _part(flags.output)
    if part.is_dir() and any(not path.name.startswith(_PARTS) for path in part.iterdir()):
        raise UserError(f"{part} is in the way and was not made by this command; move it")
    if rooms and not any(records[index].is_action for index in range(count)):
        raise UserError("--format roomplan: no record asks for an action ('instruction')")


def _is_ours(path: Path) -> bool:
    """Whether a file may be replaced: its first line is a prediction, or there is none."""
    if not path.is_file():
        return False
    try:
        with path.open(encoding="utf-8") as file:
            first = file.readline(_LONGEST_LINE)
        return not first or "raw_prediction" in json.loads(first)
    except (OSError, ValueError, TypeError):
        return False


def _part(output: Path) -> Path:
    """Where answers stand until all are there; a name such as "." has a folder beside it too."""
    whole = output.absolute()
    return whole.with_name(f"{whole.name}.part")


def _line(found, record) -> dict:
    """What stands in the file: that of an evaluation, and the original's `raw_prediction`."""
    if found.text is None:
        return {"index": found.key, "lost": found.lost}
    line = line_of(found.key, record, found.text, found.box)
    line["reference"] = line["reference"] or None
    return line | {"scene_id": record.scene_id or None, "raw_prediction": found.text}


def _read(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def _take_device(name: str) -> None:
    """Has JAX use one device, named as PyTorch names it."""
    found = re.fullmatch(r"(cpu|cuda|gpu)(?::([0-9]+))?", name)
    if not found:
        raise UserError(f"--device {name}: expected cpu, cuda or cuda:N")
    import jax

    if found[1] == "cpu":
        jax.config.update("jax_platforms", "cpu")
        return
    if found[2]:
        jax.config.update("jax_cuda_visible_devices", found[2])
    jax.config.update("jax_platforms", "cuda")
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"--device {name}: JAX finds no such GPU here ({first_line(error)}); is it "
            "installed for them (pip install -c constraints.txt -e '.[cuda12]')?"
        ) from None


def parser() -> argparse.ArgumentParser:
    """The command line."""
    flags = argparse.ArgumentParser("jaxvlm.predict", description=__doc__)
    flags.add_argument("--config", help="takes the place of the run's data and evaluation")
    flags.add_argument(
        "--checkpoint", "--checkpoint_dir", dest="checkpoint", type=Path,
        help="a run's workdir or update, or imported weights",
    )  # fmt: skip
    flags.add_argument(
        "--data", "--arkit_glob", dest="data", nargs="+", required=True, metavar="FILE",
        help="record files (a name may have * in it), or official ones of ScanQA or SQA3D",
    )  # fmt: skip
    flags.add_argument("--num_scenes", type=int, metavar="N", help="only the first so many records")
    flags.add_argument(
        "--max_new_tokens",
        type=int,
        metavar="N",
        help="of an answer, at most; an action ends by itself",
    )
    flags.add_argument("--device", help="cpu, cuda or cuda:N (default: all that JAX finds)")
    flags.add_argument(
        "--output", "--output_jsonl", dest="output", type=Path, required=True, metavar="PATH",
        help="the file of lines, or the folder of rooms",
    )  # fmt: skip
    flags.add_argument(
        "--format", choices=("jsonl", "roomplan"), default="jsonl",
        help="lines (the default), or a folder with a file like RoomPlan's for each scene, of what "
        "actions name",
    )  # fmt: skip
    return flags


if __name__ == "__main__":
    entry.run(parser(), main)
