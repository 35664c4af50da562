"""Answers the questions of any records, with references or without, into a file of lines:

    python -m jaxvlm.predict --checkpoint runs/stage1 --data "data/mine/*.jsonl" --output out.jsonl

The flags of the original's inference work too: --config, --arkit_glob, --checkpoint_dir,
--num_scenes, --max_new_tokens, --device and --output_jsonl.
"""

import argparse
import json
import re
from pathlib import Path

from jaxvlm import entry
from jaxvlm.console import progress
from jaxvlm.errors import UserError
from jaxvlm.files import write_text


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
    from jaxvlm.generation.weights import choose

    more = [] if flags.max_new_tokens is None else [
        f"evaluation.max_new_tokens={flags.max_new_tokens}"]  # fmt: skip
    chosen = choose(flags.checkpoint, flags.config, [*flags.overrides, *more])
    data = chosen.config.data
    specs = [{"path": path} for path in as_records(flags.data, known_records(chosen.config))]
    sources = load_sources(specs, data.image_roots, data.on_bad_record, unanswered=True)
    records = Joined([source.records for source in sources])
    count = min(len(records), flags.num_scenes or len(records))
    try:
        flags.output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {flags.output} cannot be written: {error.strerror}") from None
    by_set: dict[bytes, Group] = {}
    for index in range(count):
        group = by_set.setdefault(set_key(records[index]), Group(records[index], []))
        group.asked.append(Asked(index, index, records[index]))
    lines: dict[int, str] = {}
    with progress("answering", count) as advance:
        for found in answers(chosen.answerer(), by_set.values()):
            record = records[found.key]
            if found.text is not None:
                line = {
                    "index": found.key,
                    "scene_id": record.scene_id or (record.action or {}).get("scene"),
                    "question": record.question,
                    "prediction": found.text,
                    "raw_prediction": found.text,
                    "reference": record.action or record.answer or None,
                    "references": list(record.answers),
                    "task": record.task,
                    "question_id": record.question_id,
                }
                lines[found.key] = json.dumps(line) + "\n"
            advance()
    write_text(flags.output, "".join(lines[index] for index in sorted(lines)))
    print(f"{flags.output}: {len(lines):,} answers"
          + (f", {count - len(lines):,} left out" if len(lines) < count else ""))  # fmt: skip


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
    except RuntimeError as error:
        raise UserError(
            f"--device {name}: JAX finds no such GPU here ({str(error).splitlines()[0]}); is it "
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
    flags.add_argument("--max_new_tokens", type=int, metavar="N", help="of an answer, at most")
    flags.add_argument("--device", help="cpu, cuda or cuda:N (default: all that JAX finds)")
    flags.add_argument(
        "--output", "--output_jsonl", dest="output", type=Path, required=True, metavar="FILE",
        help="where the lines are written",
    )  # fmt: skip
    return flags


if __name__ == "__main__":
    entry.run(parser(), main)
