"""How sure a figure is: bootstrap over scenes, for questions of one scene go right together.

Axes: N questions, S scenes, K sums, R draws.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence

import numpy as np
from jaxtyping import Float

_DRAWS = 2_000
_PERCENT = (2.5, 97.5)
_SEED = 0

Statistic = Callable[[Float[np.ndarray, "*A K"]], Mapping[str, Float[np.ndarray, "*A"]]]


def by_scene(
    values: Float[np.ndarray, "N K"], scenes: Sequence[Hashable]
) -> Float[np.ndarray, "S K"]:
    """The values of each scene's questions, summed."""
    _, places = np.unique([str(scene) for scene in scenes], return_inverse=True)
    sums = np.zeros((places.max(initial=-1) + 1, values.shape[1]))
    np.add.at(sums, places, values)
    return sums


def draws(sums: Float[np.ndarray, "S K"], count: int = _DRAWS) -> Float[np.ndarray, "R K"]:
    """Sums of as many scenes, drawn with replacement, many times; the same ones every time."""
    rng = np.random.default_rng(_SEED)
    scenes = len(sums)
    found = np.empty((count, sums.shape[1]))
    # A few at a time: how often each scene is drawn takes a number for all of them.
    step = max(1, 4_000_000 // max(scenes, 1))
    for first in range(0, count, step):
        chosen = rng.multinomial(scenes, np.full(scenes, 1 / scenes), min(step, count - first))
        found[first : first + step] = chosen @ sums
    return found


def intervals(
    sums: Float[np.ndarray, "S K"], statistic: Statistic
) -> dict[str, tuple[float, float] | None]:
    """The middle 95% of each figure that `statistic` makes of summed values.

    None where there is but one scene, which tells nothing about others.
    """
    if len(sums) < 2:
        return dict.fromkeys(statistic(sums.sum(0)))
    return {name: _middle(each) for name, each in statistic(draws(sums)).items()}


def _middle(drawn: Float[np.ndarray, "R"]) -> tuple[float, float] | None:
    """The middle of what the draws have; None where half of them have nothing."""
    known = drawn[np.isfinite(drawn)]
    if 2 * len(known) < len(drawn):
        return None
    low, high = np.percentile(known, _PERCENT)
    return float(low), float(high)
