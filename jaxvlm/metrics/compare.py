"""Whether one model is better than another on the same questions: paired bootstrap over scenes."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxvlm.console import say
from jaxvlm.errors import UserError
from jaxvlm.metrics.actions import MEDIANS, is_action
from jaxvlm.metrics.intervals import by_scene, intervals
from jaxvlm.metrics.lines import check_alike, read_lines
from jaxvlm.metrics.scoring import Scores, figures_of, score, summed

_NAMED = 5


def compare(first: Path, second: Path, tokenizer: str = "plain") -> dict:
    """Scores two files of predictions for the same questions.

    Args:
      first: predictions.
      second: predictions that may stand in another order.
      tokenizer: "plain" or "ptb".

    Returns:
      `count` of the questions, `scenes` that they are about, and `figures`, see `differences`.

    Raises:
      UserError: the files do not answer the same questions; it lists those that differ.
    """
    mine, theirs = (list(read_lines(path)) for path in (first, second))
    check_alike(mine, first)
    check_alike(theirs, second)
    keys = _keys(mine, theirs, first, second)
    _check_same(*keys, first, second)
    order = {key: place for place, key in enumerate(keys[1])}
    theirs = [theirs[order[key]] for key in keys[0]]
    for one, other in zip(mine, theirs, strict=True):
        if _truth(one) != _truth(other):
            raise UserError(f"{one['origin']} and {other['origin']} have other references")
        # Whoever tells it: questions of one scene go right together for both.
        one["scene_id"] = other["scene_id"] = one["scene_id"] or other["scene_id"]
    scored = []
    for path, lines in ((first, mine), (second, theirs)):
        say(f"scoring {path}")
        scored.append(score(lines, tokenizer))
    one, other = scored
    say("drawing scenes again")
    return {
        "count": len(mine),
        "scenes": len(set(one.scenes)),
        "tokenizer": tokenizer,
        "figures": differences(one, other),
    }


def differences(one: Scores, other: Scores) -> dict[str, dict]:
    """Each figure of two who answered the same questions in the same order.

    Returns:
      `first`, `second`, their `difference` (second - first) and its 95% `interval`, for scenes
      drawn again, over the `count` lines where both have a value. All are None where no action has
      a box from both; other figures that no line has from both are left out.
    """
    names = [name for name in one.values if name in other.values]
    each = _of_both(only(one, names), only(other, names))
    known = {name: np.flatnonzero(~np.isnan(values)) for name, values in each[0].values.items()}
    width = summed(each[0]).shape[1]
    both = np.concatenate([summed(scores) for scores in each], axis=1)

    def difference(sums):
        before, after = (figures_of(names, part) for part in (sums[..., :width], sums[..., width:]))
        return {name: after[name] - before[name] for name in before}

    found = [figures_of(names, summed(scores).sum(0)) for scores in each]
    spread = intervals(by_scene(both, one.scenes), difference)
    compared = {}
    for name in found[0]:
        # Every line has a part in BLEU.
        lines = known.get(name, range(len(one.scenes)))
        if not len(lines) and name not in MEDIANS:
            continue
        values = [float(figures[name]) if len(lines) else None for figures in found]
        compared[name] = {
            "first": values[0],
            "second": values[1],
            "difference": values[1] - values[0] if len(lines) else None,
            "interval": spread[name] if len({one.scenes[line] for line in lines}) > 1 else None,
            "count": len(lines),
        }
    return compared


def _of_both(one: Scores, other: Scores) -> list[Scores]:
    """Two without the values that one of them lacks: those of other lines compare with nothing."""
    lacking = {name: np.isnan(one.values[name] + other.values[name]) for name in one.values}
    return [
        dataclasses.replace(
            each,
            values={name: np.where(lacking[name], np.nan, v) for name, v in each.values.items()},
        )
        for each in (one, other)
    ]


def only(scores: Scores, names: Sequence[str]) -> Scores:
    """Some of the values."""
    return dataclasses.replace(scores, values={name: scores.values[name] for name in names})


def _truth(line: Mapping) -> object:
    """What is right: an action by its values, however its texts are written."""
    return line["reference"] if is_action(line) else line["references"]


def _keys(one: Sequence[Mapping], other: Sequence[Mapping], first: Path, second: Path) -> tuple:
    """What tells the questions of two files apart.

    Their ids; with the task where one file has an id in several; or, where neither has ids, place
    and text.
    """
    named = [all(line.get("question_id") not in (None, "") for line in f) for f in (one, other)]
    if any(named) and not all(named):
        lacking = second if named[0] else first
        raise UserError(f"{lacking} has lines without 'question_id'; the other file has them all")
    if all(named):
        ids = [[(str(line["question_id"]),) for line in lines] for lines in (one, other)]
        if all(len(set(each)) == len(each) for each in ids):
            return tuple(ids)
    return _checked(one, named[0], first), _checked(other, named[0], second)


def _checked(lines: Sequence[Mapping], named: bool, path: Path) -> list[tuple]:
    keys = [
        (line["task"], str(line["question_id"]))
        if named
        else (line["task"], str(line.get("index", place)), line["question"])
        for place, line in enumerate(lines)
    ]
    seen: set[tuple] = set()
    for key, line in zip(keys, lines, strict=True):
        if key in seen:
            raise UserError(f"{line['origin']}: {' '.join(key[1:])} stands twice in {path}")
        seen.add(key)
    return keys


def _check_same(mine: Sequence[tuple], theirs: Sequence[tuple], first: Path, second: Path) -> None:
    problems = []
    for keys, others, path in ((mine, theirs, second), (theirs, mine, first)):
        known = set(others)
        missing = [" ".join(key[1:] or key) for key in keys if key not in known]
        if missing:
            more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
            problems.append(f"{path} lacks {', '.join(missing[:_NAMED])}{more}")
    if problems:
        raise UserError(
            f"not the same questions: {'; '.join(problems)}; evaluate both with the same --data, "
            "--split and --limit"
        )
