"""What is measured of an answer, by the `task` of its record.

The answers of every task have the measures of `answers`, and actions those of `action_values`. A
measure of a task's own is a function that is registered for it:

    from jaxvlm.metrics.tasks import register

    @register("counting")
    def counting(line):
        numbers = (line["prediction"], line["references"][0])
        if not all(text.isdecimal() for text in numbers):
            return {"off_by": None}
        return {"off_by": abs(int(numbers[0]) - int(numbers[1]))}

Its values stand in every scored line, and their means, with intervals and by kind of question, in
the summary. `python -m jaxvlm.evaluate --metrics FILE.py` reads such a file.
"""

import math
import runpy
from collections.abc import Callable, Mapping
from pathlib import Path

from jaxvlm.errors import UserError, first_line, shown
from jaxvlm.metrics.actions import action_values, is_action
from jaxvlm.metrics.answers import em, em_r, exact_match, partial_match

# From a line of predictions to its values; None where it has none.
Measure = Callable[[Mapping], Mapping[str, float | None]]

_measures: dict[str, list[Measure]] = {}


def register(*tasks: str) -> Callable[[Measure], Measure]:
    """Has the lines of these tasks measured by the function below."""

    def add(measure: Measure) -> Measure:
        for task in tasks:
            _measures.setdefault(task, []).append(measure)
        return measure

    return add


def measured_tasks() -> set[str]:
    """The tasks that have measures of their own."""
    return {task for task, measures in _measures.items() if measures}


def answers(line: Mapping) -> dict[str, bool]:
    """Whether a line's prediction is right, as the original and as the field count."""
    given = line["prediction"], line["references"]
    exact, partial = exact_match(*given), partial_match(*given)
    return {
        "exact_match": exact,
        "partial_match": partial,
        "partial_only": partial and not exact,
        "em": em(*given),
        "em_r": em_r(*given),
    }


def measured(line: Mapping) -> dict[str, bool | float | None]:
    """All values of a line.

    Raises:
      UserError: a registered measure fails; it names the line.
    """
    values = dict(answers(line))
    if is_action(line):
        values |= action_values(line)
    for measure in _measures.get(line.get("task") or "", ()):
        try:
            values |= {name: _finite(name, value) for name, value in measure(line).items()}
        except Exception as error:
            raise UserError(
                f"{line.get('origin', 'a line')}: the measure {measure.__name__!r} of task "
                f"{line['task']!r} fails for the prediction {shown(line['prediction'])}: "
                f"{type(error).__name__}: {first_line(error)}"
            ) from error
    return values


def _finite(name: str, value: float | None) -> float | None:
    if value is None or math.isfinite(value):
        return None if value is None else float(value)
    raise ValueError(f"{name} is {value}; give None where there is no value")


def read_measures(path: Path) -> None:
    """Runs a file that registers measures.

    Raises:
      UserError: it does not run.
    """
    try:
        runpy.run_path(str(path))
    except (Exception, SystemExit) as error:
        raise UserError(f"--metrics {path}: {type(error).__name__}: {first_line(error)}") from error
