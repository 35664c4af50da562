"""The control that shows every question another scene's images."""

import hypothesis.strategies as st
from hypothesis import given

from jaxvlm.generation.controls import other_scenes


@given(st.lists(st.integers(0, 6), min_size=1, max_size=30), st.integers(0, 99))
def test_scenes_change_places_and_none_keeps_its_own(scenes, seed):
    names = [f"scene{scene}" for scene in scenes]
    shown = other_scenes(names, seed)
    if len(set(scenes)) == 1:
        assert shown is None
        return
    assert len(shown) == len(scenes)
    given_to = {}
    for own, other in zip(names, shown, strict=True):
        assert names[other] != own
        given_to.setdefault(own, set()).add(names[other])
    # One scene for another, and each is given away once.
    assert all(len(others) == 1 for others in given_to.values())
    assert len({min(others) for others in given_to.values()}) == len(given_to)
    assert other_scenes(names, seed) == shown


def test_a_scenes_image_sets_are_all_used():
    assert set(other_scenes(["one"] * 3 + ["other"] * 3, 0)[:3]) == {3, 4, 5}
