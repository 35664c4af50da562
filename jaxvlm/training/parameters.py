"""Which parameters learn: an ordered list of regular expressions decides each leaf's group."""

import dataclasses
import re
from collections.abc import Mapping, Sequence

import numpy as np
from jax import ShapeDtypeStruct

from jaxvlm.errors import UserError
from jaxvlm.models.lora import is_adapter

FROZEN = "frozen"


@dataclasses.dataclass(frozen=True)
class Group:
    """What the optimiser does with a parameter.

    Attributes:
      name: "frozen" or a name of `optimizer.learning_rate`.
      decayed: whether weight decay applies.
    """

    name: str
    decayed: bool


def assign_groups(
    rules: Sequence[tuple[str, str]],
    shapes: Mapping[str, ShapeDtypeStruct],
    learning_rates: Mapping[str, float],
) -> dict[str, Group]:
    """The group of every parameter path; the first matching rule wins.

    Raises:
      UserError: a bad rule, an unknown group, a path that no rule matches, or no trainable
        parameter at all.
    """
    compiled = [_compile(rule, learning_rates) for rule in rules]
    groups: dict[str, Group] = {}
    for path in shapes:
        group = next((group for pattern, group in compiled if pattern.fullmatch(path)), None)
        if group is None:
            raise UserError(f"no rule of 'parameters' matches {path!r}; add one for it")
        groups[path] = group
    if all(group.name == FROZEN for group in groups.values()):
        raise UserError("no trainable parameters: every rule of 'parameters' says \"frozen\"")
    return groups


def _compile(
    rule: tuple[str, str], learning_rates: Mapping[str, float]
) -> tuple[re.Pattern, Group]:
    if (
        not isinstance(rule, tuple | list)
        or len(rule) != 2
        or not all(isinstance(part, str) for part in rule)
    ):
        raise UserError(f"a rule of 'parameters' is (regular expression, group), found {rule!r}")
    name, _, suffix = rule[1].partition(":")
    if suffix not in ("", "no_decay") or (name != FROZEN and name not in learning_rates):
        raise UserError(
            f"the rule {tuple(rule)!r} names an unknown group; known are 'frozen' and "
            f"{', '.join(sorted(learning_rates))} (of optimizer.learning_rate), each with an "
            "optional ':no_decay'"
        )
    try:
        return re.compile(rule[0]), Group(name, not suffix)
    except re.error as error:
        raise UserError(f"the rule {tuple(rule)!r} is no regular expression: {error}") from None


def check_adapters(groups: Mapping[str, Group]) -> None:
    """Raises a UserError where adapters do not learn, or the kernels beside them do."""
    for path in filter(is_adapter, groups):
        if groups[path].name == FROZEN:
            raise UserError(
                f"'parameters' freezes the adapter {path!r}, which would stay without effect: put "
                "('language/.*lora_[ab]', 'lora') before the rule that does, or set "
                "model.language.lora.rank=0"
            )
        kernel = f"{path.rpartition('/')[0]}/kernel"
        if groups[kernel].name != FROZEN:
            raise UserError(
                f"'parameters' lets {kernel!r} learn, and so does the adapter beside it. Put "
                "('language/.*lora_[ab]', 'lora'), ('language/.*', 'frozen') before the other "
                "rules for the language model (as configs/stage1.py:lora does), or set "
                "model.language.lora.rank=0"
            )


def trainable(groups: Mapping[str, Group]) -> set[str]:
    """The paths that learn."""
    return {path for path, group in groups.items() if group.name != FROZEN}


def summary(
    groups: Mapping[str, Group],
    shapes: Mapping[str, ShapeDtypeStruct],
    learning_rates: Mapping[str, float],
) -> list[tuple[str, str, str, int, int]]:
    """Rows `(part, group, learning rate, tensors, parameters)` for the table shown at start."""
    rows: dict[tuple[str, str, str], list[int]] = {}
    for path, group in groups.items():
        rate = "-" if group.name == FROZEN else f"{learning_rates[group.name]:g}"
        name = group.name + ("" if group.decayed or group.name == FROZEN else ", no decay")
        counts = rows.setdefault((path.split("/")[0], name, rate), [0, 0])
        counts[0] += 1
        counts[1] += int(np.prod(shapes[path].shape))
    return [(*key, *counts) for key, counts in rows.items()]
