"""Predictions scored from a file: `scored.jsonl` and `summary.json`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxvlm.errors import UserError
from jaxvlm.files import draft_of, write_text
from jaxvlm.metrics.lines import check_ids, read_lines
from jaxvlm.metrics.scoring import Scores, score, summarize, without_values

SCORED, SUMMARY = "scored.jsonl", "summary.json"


def score_file(
    predictions: Path,
    output: Path,
    tokenizer: str,
    known: Mapping[str, Sequence[str]] | None = None,
) -> dict:
    """Scores a file of predictions; of its lines only the answers are held together.

    Args:
      predictions: a line each, see `read_lines`.
      output: the folder of `scored.jsonl`, every line with its values, and of `summary.json`.
      tokenizer: "plain" or "ptb".
      known: references by `question_id`, in place of the file's own; the file must answer them all.

    Returns:
      The summary.

    Raises:
      UserError: a line that is none, or a folder that cannot be written.
    """
    if known is not None:
        check_ids(predictions, known)
    scores = score(read_lines(predictions, known), tokenizer)
    summary = {**summarize(scores), "predictions": str(predictions)}
    try:
        output.mkdir(parents=True, exist_ok=True)
        write_scored(predictions, scores, output / SCORED, known)
        write_text(output / SUMMARY, json.dumps(summary, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"--output {output} cannot be written: {error.strerror}") from None
    return summary


def write_scored(
    predictions: Path,
    scores: Scores,
    path: Path,
    known: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Writes the lines of a file of predictions with the values of each; whole, or not at all."""
    unfinished = draft_of(path)
    with unfinished.open("w", encoding="utf-8") as file:
        for number, line in enumerate(read_lines(predictions, known)):
            del line["origin"]
            file.write(json.dumps(without_values(line) | scores.of(number)) + "\n")
    unfinished.replace(path)
