"""Meshes and micro-batches change no number that an update depends on."""

import numpy as np
import pytest
import same_updates
from same_updates import MESHES, updates

SCRIPT = same_updates.__file__


@pytest.fixture(scope="module")
def alone(toy):
    """The updates on one device in one micro-batch."""
    return updates(toy, 1)


@pytest.fixture(scope="module")
def eight(records, python, tmp_path_factory):
    """A folder with the updates on eight devices."""
    out = tmp_path_factory.mktemp("meshes")
    process = python(SCRIPT, records, out, XLA_FLAGS="--xla_force_host_platform_device_count=8")
    _, errors = process.communicate(timeout=500)
    assert process.returncode == 0, errors
    return out


def check(found, expected):
    assert set(found) == set(expected)
    np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-5)
    for name in set(expected) - {"loss"}:
        tolerance = 1e-5 if name.startswith("gradient/") else 1e-6
        np.testing.assert_allclose(
            found[name], expected[name], atol=tolerance, rtol=0, err_msg=name
        )


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [1, 2, 4])
@pytest.mark.parametrize("mesh", MESHES)
def test_eight_devices_make_the_updates_of_one(eight, alone, mesh, accumulation):
    data, fsdp = mesh
    check(np.load(eight / f"{data}x{fsdp}_{accumulation}.npz"), alone)


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [2, 4])
def test_micro_batches_make_the_update_of_one_batch(toy, alone, accumulation):
    check(updates(toy, accumulation), alone)


@pytest.mark.slow
def test_the_updates_move_every_parameter(toy, alone):
    for path, before in toy.trained.items():
        moved = np.abs(alone[f"after/{path}"] - before).max()
        assert moved > 1e-4 or path.endswith("norm/bias"), path
