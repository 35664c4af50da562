"""The figures of many predictions: of every line, and of all, by task and by kind of question.

Axes: N lines, M figures with a value of their own in every line.
"""

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float

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
from jaxvlm.metrics.tasks import measured


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


def score(lines: Iterable[Mapping], tokenizer: str = "plain") -> Scores:
    """Scores predictions.

    Args:
      lines: as `read_lines` gives them, gone through once.
      tokenizer: "plain" or "ptb".

    Raises:
      UserError: a tokeniser that cannot run, or a measure that fails.
    """
    rows: list[dict[str, float | None]] = []
    sentences, predicted, references, tasks, kinds, scenes = [], [], [], [], [], []
    for number, line in enumerate(lines):
        rows.append(measured(line))
        if not is_action(line):
            sentences.append(number)
            predicted.append(line["prediction"])
            references.append(line["references"])
        tasks.append(line["task"])
        kinds.append(line["kind"])
        scenes.append(line["scene_id"] or f"line {number}")
    names = dict.fromkeys(name for row in rows for name in row)
    values = {
        name: np.asarray([np.nan if row.get(name) is None else row[name] for row in rows], float)
        for name in names
    }
    counts, matches = (np.zeros((len(rows), size)) for size in (BLEU_COUNTS, METEOR_COUNTS))
    if sentences:
        words = tokenized(predicted, references, tokenizer)
        counts[sentences] = bleu_counts(*words)
        each_has = sentence_scores(*words)
        if (found := meteor_counts(*words)) is not None:
            matches[sentences] = found
            each_has["meteor"] = meteor(found)
        for name, each in each_has.items():
            values[name] = np.full(len(rows), np.nan)
            values[name][sentences] = each
    return Scores(values, counts, matches, tokenizer, tasks, kinds, scenes)


def summarize(scores: Scores) -> dict:
    """The summary, as it stands in `summary.json`.

    Returns:
      `count` and the mean of every figure over all lines (0 to 1, CIDEr to 10), `tokenizer`,
      `intervals` (95%, by scenes drawn again), how many `scenes` there are, and the same figures
      for every kind of question in `kinds` and, where there are several, for every task in `tasks`.
      Where only some true actions have a box, `no_true_box` counts those that have none.
    """
    everything = np.ones(len(scores.kinds), bool)
    found = {**_figures(scores, everything), "tokenizer": scores.tokenizer}
    found["intervals"] = _intervals(scores)
    found["scenes"] = len(set(scores.scenes))
    found["kinds"] = _by(scores, scores.kinds)
    if len(set(scores.tasks)) > 1:
        found["tasks"] = _by(scores, scores.tasks)
    return found


def _by(scores: Scores, groups: Sequence[str]) -> dict[str, dict]:
    each = np.asarray(groups)
    return {str(group): _figures(scores, each == group) for group in np.unique(each)}


def _figures(scores: Scores, chosen: Bool[np.ndarray, "N"]) -> dict:
    found: dict = {"count": int(chosen.sum())}
    for name, values in scores.values.items():
        known = values[chosen][~np.isnan(values[chosen])]
        if len(known):
            found[name] = float(known.mean())
            if name in MEDIANS:
                found[f"{name}_median"] = float(np.median(known))
    if "iou" in found:
        actions, boxes = (
            ~np.isnan(scores.values[name][chosen]) for name in ("action_valid", "iou")
        )
        if (actions & ~boxes).any():
            found["no_true_box"] = int((actions & ~boxes).sum())
    sums = (each[chosen].sum(0) for each in (scores.bleu, scores.meteor))
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
