"""What a run left behind, and whether another left the same."""

import json
import struct

import jax
import numpy as np
from tensorboardX.proto.event_pb2 import Event

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


def board(workdir):
    """All values that TensorBoard was given."""
    for path in sorted((workdir / "logs").iterdir()):
        data = path.read_bytes()
        while data:
            # Records of TensorFlow: length, its checksum, the event, its checksum.
            (length,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + length])
            yield from event.summary.value
            data = data[16 + length :]


def assert_same(one, other):
    assert set(one) == set(other)
    for path, leaf in one.items():
        np.testing.assert_array_equal(leaf, other[path], err_msg=path)
