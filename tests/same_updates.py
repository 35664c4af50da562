"""Updates of the toy on whatever devices there are, for comparison: `same_updates.py RECORDS OUT`.

Writes loss and gradients of the first update, and the parameters after five of plain SGD, for each
mesh and number of micro-batches.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

sys.path.insert(0, str(Path(__file__).parent))
import tiny
from conftest import make_toy

from jaxvlm.models import partition
from jaxvlm.training import mesh
from jaxvlm.training.optimizer import Optimizer
from jaxvlm.training.state import new_state
from jaxvlm.training.step import make_steps

ROWS, UPDATES = 32, 5
MESHES = ((8, 1), (2, 4), (1, 8))


def updates(toy, accumulation: int) -> dict[str, np.ndarray]:
    """`loss`, `gradient/…` of the first update and `after/…` of the last."""
    sgd = Optimizer(
        transforms=dict.fromkeys(toy.trained, optax.identity()),
        rates=dict.fromkeys(toy.trained, 0.05),
        factor=lambda step: 1.0,
        clip=1.0,
    )
    state = new_state({p: jnp.copy(v) for p, v in toy.trained.items()}, sgd, toy.mesh)
    steps = make_steps(toy.model, sgd, jnp.float32, "full", state)
    placed = mesh.batch_sharding(toy.mesh)
    sums, size, found = steps.start(state.params), ROWS // accumulation, {}
    for update in range(UPDATES):
        for micro in range(accumulation):
            batch = toy.batch(update * ROWS + micro * size, size)
            batch.pop("lost")
            batch = {name: jax.device_put(value, placed) for name, value in batch.items()}
            sums = steps.accumulate(state.params, toy.frozen, sums, batch, jax.random.key(0))
        if update == 0:
            found["loss"] = np.asarray(sums.loss / sums.labels)
            for path, gradient in sums.gradients.items():
                found[f"gradient/{path}"] = np.asarray(gradient / sums.labels)
        state, _, sums = steps.update(state, sums)
    return found | {f"after/{path}": np.asarray(leaf) for path, leaf in state.params.items()}


def main(records: str, out: str) -> None:
    # So low that most of the toy's parameters are split.
    partition.WHOLE_BELOW = mesh.WHOLE_BELOW = 256
    for data, fsdp in MESHES:
        toy = make_toy(tiny.config_for(Path(records), mesh__data=data, mesh__fsdp=fsdp))
        with jax.set_mesh(toy.mesh):
            for accumulation in (1, 2, 4):
                name = f"{out}/{data}x{fsdp}_{accumulation}.npz"
                np.savez(name, **updates(toy, accumulation))


if __name__ == "__main__":
    main(*sys.argv[1:])
