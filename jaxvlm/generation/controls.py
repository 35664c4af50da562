"""The controls: the same questions without the right pictures."""

from collections.abc import Sequence

import numpy as np


def other_scenes(scenes: Sequence[str], seed: int) -> list[int] | None:
    """For each question the number of one whose images are shown instead of its own.

    Scenes change places, none keeps its own, and all image sets of a scene are used.

    Args:
      scenes: of all questions.
      seed: of the order in which they change places.

    Returns:
      None where all questions are of one scene.
    """
    by_scene: dict[str, list[int]] = {}
    for index, scene in enumerate(scenes):
        by_scene.setdefault(scene, []).append(index)
    names = list(by_scene)
    if len(names) < 2:
        return None
    order = np.random.default_rng(seed).permutation(len(names))
    following = {names[a]: names[b] for a, b in zip(order, np.roll(order, 1), strict=True)}
    places: dict[str, int] = {}
    shown = []
    for scene in scenes:
        there, place = by_scene[following[scene]], places.get(scene, 0)
        places[scene] = place + 1
        shown.append(there[place % len(there)])
    return shown
