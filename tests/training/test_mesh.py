"""Several devices: how things are split, and that it changes no number."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxvlm.errors import UserError
from jaxvlm.training.mesh import is_stacked, make_mesh

SCRIPT = Path(__file__).with_name("sharded_step.py")


@pytest.fixture(scope="module")
def eight(records, python, tmp_path_factory):
    """What `sharded_step.py` found on 2 x 4 devices: how things lie."""
    out = tmp_path_factory.mktemp("eight")
    flags = "--xla_force_host_platform_device_count=8"
    process = python(SCRIPT, records, out, XLA_FLAGS=flags)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return json.loads((out / "layout.json").read_text())


@pytest.mark.slow
def test_parameters_are_really_split_and_stay_so(eight):
    layout = eight
    assert layout["devices"] == 8
    shape, pieces = layout["born"]["language/embed_tokens/embedding"]
    assert [shape[0] // 4, shape[1]] == pieces[0]
    split = 0
    for path, (shape, pieces) in layout["born"].items():
        size = np.prod(shape)
        if size >= 256:
            assert len(pieces) == 8
            assert all(np.prod(piece) * 4 == size for piece in pieces), path
            split += size
            if is_stacked(path):
                # One layer can be gathered at a time.
                assert all(piece[0] == shape[0] for piece in pieces), path
    assert split > 0.9 * sum(np.prod(shape) for shape, _ in layout["born"].values())
    # Gradient sums and the state after an update lie as the parameters did at birth.
    assert layout["sums"] == layout["born"]
    assert layout["updated"] == layout["born"]


@pytest.mark.slow
def test_moments_are_split_like_their_parameters(eight):
    layout = eight
    expected = sorted(map(str, layout["born"].values()))
    moments = [leaf for leaf in layout["moments"] if leaf[0]]
    # Two moments a parameter.
    assert sorted(map(str, moments)) == sorted(expected * 2)


@pytest.mark.slow
def test_rows_are_split_over_both_axes_and_frozen_vision_is_whole(eight):
    layout = eight
    shape, pieces = layout["batch"]
    assert shape[0] == 8 and pieces == [[1, shape[1]]] * 8
    assert layout["frozen"]
    assert all(pieces == [shape] * 8 for shape, pieces in layout["frozen"].values())


@pytest.mark.parametrize(("data", "fsdp"), [(3, -1), (2, 2), (0, 1), (-1, 0), (-2, 1)])
def test_a_mesh_that_does_not_fit_the_devices_is_an_error(data, fsdp):
    with pytest.raises(UserError, match=r"mesh\.data=.* does not make 1 devices"):
        make_mesh(data, fsdp)


def test_minus_one_takes_what_is_left():
    assert dict(make_mesh(1, -1).shape) == {"data": 1, "fsdp": jax.device_count()}
    assert dict(make_mesh(-1, 1).shape) == {"data": jax.device_count(), "fsdp": 1}
