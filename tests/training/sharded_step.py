"""Run with eight devices: one micro-batch and one update, written to files for the test."""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp

sys.path.insert(0, str(Path(__file__).parent.parent))
import tiny
from conftest import make_toy

from jaxvlm.models import partition
from jaxvlm.training import mesh
from jaxvlm.training.optimizer import make_optimizer
from jaxvlm.training.state import new_state
from jaxvlm.training.step import make_steps


def layout(tree) -> dict[str, list]:
    """By path: the whole shape, and the shapes of the pieces on the devices."""
    return {
        path: [list(leaf.shape), [list(piece.data.shape) for piece in leaf.addressable_shards]]
        for path, leaf in tree.items()
    }


def main(records: str, out: str) -> None:
    # So low that most of the toy's parameters are split.
    partition.WHOLE_BELOW = mesh.WHOLE_BELOW = 256
    toy = make_toy(tiny.config_for(Path(records), mesh__data=2, mesh__fsdp=4))
    with jax.set_mesh(toy.mesh):
        groups = {path: toy.groups[path] for path in toy.trained}
        optimizer = make_optimizer(groups, toy.config.optimizer, 20)
        state = new_state(toy.trained, optimizer, toy.mesh)
        steps = make_steps(toy.model, optimizer, jnp.float32, "none", state)
        placed = mesh.batch_sharding(toy.mesh)
        batch = {k: jax.device_put(v, placed) for k, v in toy.batch(0, 8).items()}
        born = layout(state.params)
        sums = steps.start(state.params)
        sums = steps.accumulate(state.params, toy.frozen, sums, batch, jax.random.key(0))
        summed = layout(sums.gradients)
        state, _, _ = steps.update(state, sums)
    moments = [
        [list(leaf.shape), [list(piece.data.shape) for piece in leaf.addressable_shards]]
        for leaf in jax.tree.leaves(state.optimizer)
    ]
    found = {
        "devices": jax.device_count(),
        "batch": layout(batch)["tokens"],
        "born": born,
        "sums": summed,
        "updated": layout(state.params),
        "moments": moments,
        "frozen": layout(toy.frozen),
    }
    Path(out, "layout.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
