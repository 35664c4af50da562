"""Chosen views: as many as asked, each once, the best first, and better than chance."""

import importlib
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from jaxvlm.data.prep.view_choice import METHODS, choose_views, thinned
from jaxvlm.errors import UserError
from jaxvlm.render.camera import look_at

FIELD = (0.8, 0.6)


def poses(rng, count):
    eyes = rng.uniform((-2, -2, -0.5), (2, 2, 3.5), (count, 3))
    cameras = [look_at(eye, eye + rng.normal(size=3) * [1, 1, 0.2], 0.8) for eye in eyes]
    matrices = np.stack([camera.cam_to_world for camera in cameras])
    return matrices[:, :3, :3], matrices[:, :3, 3], np.tile(FIELD, (count, 1))


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 30), st.integers(1, 12), st.sampled_from(METHODS), st.integers(0, 99))
def test_as_many_different_views_as_there_are_to_have(total, count, method, seed):
    arguments = poses(np.random.default_rng(seed), total)
    chosen = choose_views(*arguments, count, method, np.random.default_rng(seed))
    assert len(chosen) == len(set(chosen)) == min(count, total)
    assert all(0 <= index < total for index in chosen)
    again = choose_views(*arguments, count, method, np.random.default_rng(seed))
    assert again == chosen


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 99))
def test_fewer_views_are_the_first_of_more(seed):
    arguments = poses(np.random.default_rng(seed), 20)
    more = choose_views(*arguments, 8, "coverage", np.random.default_rng(0))
    assert choose_views(*arguments, 3, "coverage", np.random.default_rng(0)) == more[:3]


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 99))
def test_copies_of_a_view_are_not_taken_while_there_are_others(seed):
    rng = np.random.default_rng(seed)
    rotations, positions, fields = poses(rng, 6)
    # Twenty frames of somebody who stands still, then the six.
    index = np.r_[np.zeros(20, int), np.arange(6)]
    chosen = choose_views(rotations[index], positions[index], fields[index], 4, "coverage", rng)
    assert sum(index[c] == 0 for c in chosen) <= 1


def test_uniform_views_span_the_scan():
    arguments = poses(np.random.default_rng(0), 21)
    chosen = choose_views(*arguments, 5, "uniform", np.random.default_rng(0))
    assert chosen == [0, 5, 10, 15, 20]


def test_long_scans_are_thinned_evenly():
    assert thinned(range(10), 20) == list(range(10))
    kept = thinned(range(5000), 100)
    assert len(kept) == 100 and kept[0] == 0 and kept[-1] == 4999
    assert max(np.diff(kept)) - min(np.diff(kept)) <= 1


def test_unknown_methods_are_named():
    with pytest.raises(UserError, match="--views best: expected one of coverage, uniform, random"):
        choose_views(*poses(np.random.default_rng(0), 2), 1, "best", np.random.default_rng(0))


def test_chosen_views_see_more_than_even_and_random_ones(monkeypatch):
    """On walks through procedural rooms, as scripts/bench/view_choice.py measures it on more."""
    # Its files are scripts that stand beside each other.
    monkeypatch.syspath_prepend(Path(__file__).parents[3] / "scripts" / "bench")
    bench = importlib.import_module("view_choice")
    shares = {
        method: [bench.share(0, index, 8, method) for index in range(6)] for method in METHODS
    }
    means = {method: np.mean(values) for method, values in shares.items()}
    assert means["coverage"] > means["uniform"] + 0.05 > means["random"]
