"""An evaluation's lines, its controls beside its figures, and the table that people read."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from jaxvlm.data.record import Record, scene_of
from jaxvlm.metrics.action_lines import action_fields
from jaxvlm.metrics.guess import QuestionOnlyGuess
from jaxvlm.metrics.lines import kind_of

_FRACTIONS = ("em", "em_r", "exact_match", "partial_match", "partial_only", "rouge_l", "cider",
              "meteor")  # fmt: skip
# Drawn again, these give intervals that are too narrow.
_FEW_SCENES = 20
# What is asked without the right pictures, and what it tells.
CONTROLS = {
    "no_image": "the same questions without any picture",
    "other_images": "the same questions with the pictures of another scene; what is still right "
    "was not seen",
    "question_only": "for each kind, the better of the majority answer to that very question and "
    "to its kind in the training set",
}
_FIGURES = {"em": "EM", "em_r": "EM-R", "exact_match": "exact", "partial_match": "partial"}


def line_of(
    index: int, record: Record, answer: str, box: Float[np.ndarray, "9"] | None = None
) -> dict:
    """A line of predictions before it is scored: the original's fields, then ours.

    Args:
      index: of the record.
      record: what was asked.
      answer: the text.
      box: of the action head.
    """
    line = {
        "index": index,
        "task": record.task,
        "scene_id": scene_of(record),
        "question": record.question,
        "prediction": answer,
        "reference": record.action or record.answer,
        "references": list(record.answers),
        "situation": record.situation,
        "kind": _kind(record),
        "question_id": record.question_id,
        "images": list(record.images),
    }
    return line | (action_fields(record, answer, box) if record.is_action else {})


def _kind(record: Record) -> str:
    """The kind of a question; of an action, the category of what it is about."""
    if record.is_action:
        return next(iter(record.object_names), "") or record.kind or "action"
    return kind_of(record.question, record.kind, record.task)


def with_controls(
    summary: dict,
    answered: Mapping[str, dict],
    guess: QuestionOnlyGuess | None,
    lines: Iterable[Mapping],
) -> dict:
    """A summary with the EM of its controls: of all questions, of every kind and every task.

    Args:
      summary: of `summarize`.
      answered: the summaries of the same questions asked in another way, by control.
      guess: fitted on the training records, or None.
      lines: of the predictions.

    Returns:
      The summary, behind `headline`, what it says in a line; `controls` has a fraction for each
      control, None for one that was not run.
    """
    fields = ("task", "kind", "question", "references")
    asked = [{name: line[name] for name in fields} for line in lines] if guess else []
    right = guess.right((n["question"], n["kind"], n["references"]) for n in asked) if guess else []

    def controls_of(figures: Mapping[str, Mapping], part: str = "", name: str = "") -> dict:
        found = {way: each["em"] for way, each in figures.items() if "em" in each}
        if guess:
            some = [r for r, n in zip(right, asked, strict=True) if not part or n[part] == name]
            found["question_only"] = float(np.mean(some))
        return _all(found)

    parts: dict[str, dict] = {}
    for part, field in (("tasks", "task"), ("kinds", "kind")):
        for name, figures in summary.get(part, {}).items():
            same = {way: own.get(part, {}).get(name, {}) for way, own in answered.items()}
            controls = controls_of(same, field, name)
            parts.setdefault(part, {})[name] = figures | {"controls": controls}
    controls = controls_of(answered)
    return {"headline": headline(summary["em"], controls), **summary, "controls": controls, **parts}


def headline(em: float, controls: Mapping[str, float | None]) -> str:
    """EM beside each control that was run."""
    run = {name.replace("_", " "): value for name, value in controls.items() if value is not None}
    return ", ".join(f"{name} {percent(value)}" for name, value in ({"EM": em} | run).items())


def table(summary: Mapping) -> tuple[tuple[str, ...], list[tuple[object, ...]]]:
    """Columns and rows of a table by kind of question, by data set and of all."""
    run = [name for name, value in summary.get("controls", {}).items() if value is not None]
    columns = ("kind", "questions", *_FIGURES.values(), *(name.replace("_", " ") for name in run))
    rows = [
        (
            kind,
            f"{figures['count']:,}",
            *(percent(figures[name]) for name in _FIGURES),
            *(percent(figures["controls"][name]) for name in run),
        )
        for kind, figures in [*summary["kinds"].items(), *_by_task(summary), ("all", summary)]
    ]
    return columns, rows


def figure_tables(summary: Mapping) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """Title and rows of all figures: of all questions, then of each data set."""
    words = {"tokenizer": summary["tokenizer"]}
    return [
        (figures_title(each, of), sentence_rows(each | words))
        for of, each in [("", summary), *_by_task(summary)]
    ]


def _by_task(summary: Mapping) -> list[tuple[str, Mapping]]:
    tasks = summary.get("tasks", {}).items()
    return [(f"all of {task}" if task else "all without task", figures) for task, figures in tasks]


def sentence_rows(summary: Mapping) -> list[tuple[str, str, str]]:
    """The figures of all lines with their intervals, and how they were made."""
    named = _named(summary["tokenizer"])
    named |= {name: name for name in summary["intervals"] if name != "partial_only"} | named
    return [
        (text, _shown(name, summary[name]), _between(name, summary["intervals"].get(name)))
        for name, text in named.items()
        if summary.get(name) is not None
    ] + [
        (
            f"EM above that with {way.replace('_', ' ')}",
            points(lead["em"]["difference"]),
            points_between(lead["em"]["interval"]),
        )
        for way, lead in summary.get("leads", {}).items()
    ]


def points(difference: float) -> str:
    """A difference of shares, which is no share itself."""
    return f"{100 * difference:.1f} points"


def points_between(interval: Sequence[float] | None) -> str:
    """The interval of such a difference; of one scene there is none."""
    return "-" if interval is None else " to ".join(map(points, interval))


def figures_title(summary: Mapping, of: str = "") -> str:
    """Above the table of all figures: how many scenes their intervals are drawn from."""
    named, scenes = f"All figures{f', {of}' if of else ''}", summary.get("scenes")
    if scenes is None:
        return named
    return f"{named} ({scenes_drawn(scenes)})"


def scenes_drawn(count: int) -> str:
    """How many scenes intervals come from, and whether those are enough."""
    few = f"; fewer than {_FEW_SCENES} tell little" if count < _FEW_SCENES else ""
    return f"{count:,} scene{'s' * (count != 1)} drawn again{few}"


def _named(tokenizer: str) -> dict[str, str]:
    words = f"tokeniser {tokenizer}"
    return {
        "em": "EM", "em_r": "EM-R", "exact_match": "exact match", "partial_match": "partial match",
        **{f"bleu_{n}": f"BLEU-{n} ({words})" for n in range(1, 5)},
        "rouge_l": f"ROUGE-L ({words})", "cider": f"CIDEr ({words})",
        "meteor": f"METEOR ({words})",
    }  # fmt: skip


def difference_rows(found: Mapping) -> list[tuple[str, ...]]:
    """Rows of a comparison: each figure of both, the difference and its interval."""
    named = _named(found["tokenizer"])
    return [
        (
            named.get(name, name.replace("_", " ")),
            *(_shown(name, each[which]) for which in ("first", "second", "difference")),
            _between(name, each["interval"]),
        )
        for name, each in found["figures"].items()
    ]


def verdict(found: Mapping) -> str:
    """What a comparison says of EM, in a sentence."""
    em = found["figures"]["em"]
    return better(f"EM: {{}} by {points(abs(em['difference']))}", em, more=True)


def better(text: str, compared: Mapping, more: bool) -> str:
    """Which of two is better in a figure, in a sentence.

    Args:
      text: has a place `{}` for which is better.
      compared: of `differences`.
      more: more is better.
    """
    if not compared["difference"]:
        return f"{text.split(':')[0]}: both alike"
    second = (compared["difference"] > 0) == more
    said = text.format(f"the {'second' if second else 'first'} is better")
    if compared["interval"] is None:
        return f"{said} (one scene tells nothing about others)"
    sure = compared["interval"][0] > 0 or compared["interval"][1] < 0
    return said if sure else f"{said}; it may be chance, for the 95% interval has 0 in it"


def percent(value: float | None) -> str:
    """A fraction, as people read it."""
    return "-" if value is None else f"{100 * value:.1f}%"


def _shown(name: str, value: float) -> str:
    # Papers print a hundred times these, CIDEr too; a measure of a task's own has its own unit.
    times = 100 if name in _FRACTIONS or name.startswith("bleu_") else 1
    text = f"{times * value:.1f}" if times > 1 else f"{value:.3g}"
    return "0.0" if text == "-0.0" else text


def _between(name: str, interval: Sequence[float] | None) -> str:
    return "-" if interval is None else " to ".join(_shown(name, end) for end in interval)


def _all(found: Mapping[str, float | None]) -> dict[str, float | None]:
    return {name: found.get(name) for name in CONTROLS}
