"""The control that shows every question another scene's images."""

import dataclasses

import hypothesis.strategies as st
from hypothesis import given

from jaxvlm.data.record import parse_record
from jaxvlm.generation.answer import other_images


def record(scene: int, number: int, named: bool):
    entry = {"images": [f"{scene}.jpg"], "question": f"{number}?", "answer": "a"}
    return parse_record({**entry, "scene_id": f"scene{scene}" if named else None}, "o")


@given(st.lists(st.integers(0, 6), min_size=1, max_size=30), st.booleans(), st.integers(0, 99))
def test_scenes_change_places_and_none_keeps_its_own(scenes, named, seed):
    records = [record(scene, i, named) for i, scene in enumerate(scenes)]
    shown = other_images(records, seed)
    if len(set(scenes)) == 1:
        assert shown is None
        return
    assert len(shown) == len(records)
    given_to = {}
    for own, other in zip(records, shown, strict=True):
        assert own.images != other.images and other in records
        given_to.setdefault(own.images, set()).add(other.images)
    # One scene for another, and each is given away once.
    assert all(len(others) == 1 for others in given_to.values())
    assert len({min(others) for others in given_to.values()}) == len(given_to)
    assert other_images(records, seed) == shown


def test_a_scenes_image_sets_are_all_used():
    one = [record(0, i, True) for i in range(3)]
    other = [dataclasses.replace(record(1, i, True), images=(f"1_{i}.jpg",)) for i in range(3)]
    shown = other_images([*one, *other], 0)
    assert {r.images for r in shown[:3]} == {r.images for r in other}
