"""The figures of many predictions: of every line, and of all, by task and by kind of question.

Axes: N lines, M figures with a value of their own in every line.
"""

import dataclasses
import itertools
import math
from array import array
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from jaxvlm.console import say
from jaxvlm.metrics.actions import ACTION_VALUES, MEDIANS, is_action
from jaxvlm.metrics.captions import (
    BLEU_COUNTS,
    METEOR_COUNTS,
    bleu,
    bleu_counts,
    meteor,
    meteor_counts,
    sentence_scores,
    tokenized,
)
from jaxvlm.metrics.intervals import by_scene, intervals
from jaxvlm.metrics.tasks import measured, measured_tasks


@dataclasses.dataclass(frozen=True)
class Scores:
    """What is known of N lines.

    Attributes:
      values: of each figure, float64[N]; NaN where a line has none.
      bleu: float64[N, 10], see `bleu_counts`; 0 for actions, which are no sentences.
      meteor: float64[N, 23], see `meteor_counts`; likewise, and where there is no Java.
      tokenizer: of the figures that need words.
      tasks: of each line.
      kinds: of each line.
      scenes: of each line; a line without one is a scene of its own.
    """

    values: dict[str, Float[np.ndarray, "N"]]
    bleu: Float[np.ndarray, "N 10"]
    meteor: Float[np.ndarray, "N 23"]
    tokenizer: str
    tasks: list[str]
    kinds: list[str]
    scenes: list[str]

    def of(self, index: int) -> dict[str, bool | float]:
        """The values of one line, those that are no fractions as yes or no."""
        found = {name: each[index] for name, each in self.values.items()}
        return {
            name: bool(value) if name in _YES_OR_NO else round(float(value), 6)
            for name, value in found.items()
            if not np.isnan(value)
        }


_YES_OR_NO = ("exact_match", "partial_match", "partial_only", "em", "em_r")
# What every sentence has a value of.
_SENTENCE = "rouge_l"

# What a scored line may have from before; measures that a user registers come behind.
_VALUES = (*_YES_OR_NO, _SENTENCE, "cider", "meteor", *ACTION_VALUES)


def without_values(line: Mapping) -> dict:
    """A line as it was before it was scored."""
    return {name: value for name, value in line.items() if name not in _VALUES}


def score(lines: Iterable[Mapping], tokenizer: str = "plain", with_meteor: bool = True) -> Scores:
    """Scores predictions.

    Args:
      lines: as `read_lines` gives them, gone through once.
      tokenizer: "plain" or "ptb".
      with_meteor: where there is Java, which takes seconds to start.

    Raises:
      UserError: a tokeniser that cannot run, or a measure that fails.
    """
    columns: dict[str, array[float]] = {}
    sentences, predicted, references, tasks, kinds, scenes = [], [], [], [], [], []
    for number, line in enumerate(lines):
        for name, value in measured(line).items():
            column = columns.setdefault(name, array("d"))
            column.extend(itertools.repeat(math.nan, number - len(column)))
            column.append(math.nan if value is None else value)
        if not is_action(line):
            sentences.append(number)
            predicted.append(line["prediction"])
            references.append(line["references"])
        tasks.append(line["task"])
        kinds.append(line["kind"])
        scenes.append(line["scene_id"] or f"line {number}")
    for task in sorted(measured_tasks() - set(tasks)):
        there = ", ".join(sorted(filter(None, set(tasks)))) or "none is named"
        say(f"warning: no line is of the task {task!r} that is measured; {there}", warns=True)
    values = {name: np.full(len(tasks), np.nan) for name in columns}
    for name, column in columns.items():
        values[name][: len(column)] = column
    counts, matches = (np.zeros((len(tasks), size)) for size in (BLEU_COUNTS, METEOR_COUNTS))
    if sentences:
        words = tokenized(predicted, references, tokenizer)
        counts[sentences] = bleu_counts(*words)
        each_has = sentence_scores(*words)
        if with_meteor and (found := meteor_counts(*words)) is not None:
            matches[sentences] = found
            each_has["meteor"] = meteor(found)
        for name, each in each_has.items():
            values[name] = np.full(len(tasks), np.nan)
            values[name][sentences] = each
    return Scores(values, counts, matches, tokenizer, tasks, kinds, scenes)


def summarize(scores: Scores) -> dict:
    """The summary, as it stands in `summary.json`.

    Returns:
      `count` and the mean of every figure over all lines (0 to 1, CIDEr to 10), `tokenizer`,
      `intervals` (95%, by scenes drawn again), how many `scenes` there are, and the same figures
      for every kind of question in `kinds` and, where there are several, for every task in `tasks`,
      which have intervals and scenes too.
      Where only some true actions have a box, `no_true_box` counts those that have none.
    """
    found = {**_drawn(scores), "tokenizer": scores.tokenizer}
    found["kinds"] = {name: _figures(each) for name, each in _by(scores, scores.kinds)}
    if len(set(scores.tasks)) > 1:
        found["tasks"] = {name: _drawn(each) for name, each in _by(scores, scores.tasks)}
    return found


def _by(scores: Scores, groups: Sequence[str]) -> Iterator[tuple[str, Scores]]:
    """The lines of each group by themselves."""
    found: dict[str, list[int]] = {}
    for line, group in enumerate(groups):
        found.setdefault(group, []).append(line)
    for group, lines in sorted(found.items()):
        texts = {
            name: [getattr(scores, name)[line] for line in lines]
            for name in ("tasks", "kinds", "scenes")
        }
        values = {name: each[lines] for name, each in scores.values.items()}
        counts = {"bleu": scores.bleu[lines], "meteor": scores.meteor[lines]}
        yield group, dataclasses.replace(scores, values=values, **counts, **texts)


def _drawn(scores: Scores) -> dict:
    """Figures and how sure they are."""
    found = _figures(scores)
    spread = {name: each for name, each in _intervals(scores).items() if name in found}
    return found | {"intervals": spread, "scenes": len(set(scores.scenes))}


def _figures(scores: Scores) -> dict:
    found: dict = {"count": len(scores.kinds)}
    for name, values in scores.values.items():
        known = values[~np.isnan(values)]
        if len(known):
            found[name] = float(known.mean())
            if name in MEDIANS:
                found[f"{name}_median"] = float(np.median(known))
    if "iou" in found:
        actions, boxes = (~np.isnan(scores.values[name]) for name in ("action_valid", "iou"))
        if (actions & ~boxes).any():
            found["no_true_box"] = int((actions & ~boxes).sum())
    sums = (each.sum(0) for each in (scores.bleu, scores.meteor))
    return found | {name: float(value) for name, value in _of_corpus(found, *sums).items()}


def _of_corpus(
    found: Collection[str], bleus: Float[np.ndarray, "*A 10"], matches: Float[np.ndarray, "*A 23"]
) -> dict[str, Float[np.ndarray, "*A"]]:
    """Figures that are no means of sentences', where such figures of sentences are found."""
    figures = bleu(bleus) if _SENTENCE in found else {}
    return figures | ({"meteor": meteor(matches)} if "meteor" in found else {})


def summed(scores: Scores) -> Float[np.ndarray, "N 2M+33"]:
    """Of every line what its figures are quotients of, once they are added up."""
    values = np.stack(list(scores.values.values()), axis=1)
    known = ~np.isnan(values)
    parts = [np.where(known, values, 0.0), known, scores.bleu, scores.meteor]
    return np.concatenate(parts, axis=1)


def figures_of(
    names: Sequence[str], sums: Float[np.ndarray, "*A 2M+33"]
) -> dict[str, Float[np.ndarray, "*A"]]:
    """The figures of added lines of `summed`, whose values have these names.

    BLEU is among them where another figure of sentences is; METEOR is the corpus'.
    """
    count = len(names)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = sums[..., :count] / sums[..., count : 2 * count]
    found = {name: means[..., place] for place, name in enumerate(names)}
    counts = np.split(sums[..., 2 * count :], [BLEU_COUNTS], axis=-1)
    return found | _of_corpus(found, *counts)


def _intervals(scores: Scores) -> dict[str, tuple[float, float] | None]:
    names = list(scores.values)
    return intervals(by_scene(summed(scores), scores.scenes), lambda sums: figures_of(names, sums))
