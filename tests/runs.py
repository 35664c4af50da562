"""What a run left behind, and whether another left the same."""

import json

import jax
import numpy as np

from jaxvlm.training.checkpoints import restore_params


def final_params(toy, workdir, step):
    placed = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = {
        path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placed)
        for path, leaf in toy.trained.items()
    }
    return restore_params(workdir / "checkpoints" / str(step), wanted)


def logged(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def assert_same(one, other):
    assert set(one) == set(other)
    for path, leaf in one.items():
        np.testing.assert_array_equal(leaf, other[path], err_msg=path)
