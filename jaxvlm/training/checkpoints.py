"""Checkpoints: `checkpoints/<update>/{params,optimizer,meta}`, written in the background.

`params` are the trained float32 masters; frozen weights are named by their hash, not copied. `meta`
holds the data position, the configuration and versions.
"""

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from jaxvlm.errors import UserError
from jaxvlm.paths import flatten, unflatten
from jaxvlm.training.state import Params, TrainState
from jaxvlm.training.weights import check_fits

_PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "grain")
# Fields of the configuration that may differ between the runs of one workdir. Rows may be spread
# over devices and micro-batches in another way, as long as an update has as many.
_FREE = ("data.num_workers", "train.log_every", "train.save_every", "train.keep", "mesh.data",
         "mesh.fsdp", "data.val", "data.test", "data.image_roots", "evaluation.max_new_tokens",
         "evaluation.batch_sets", "evaluation.batch_questions", "train.rows_per_device",
         "train.accumulation")  # fmt: skip


def versions() -> dict[str, str]:
    """Versions of the packages that results depend on."""
    return {name: version(name) for name in _PACKAGES}


class Checkpoints:
    """The checkpoints of one workdir."""

    def __init__(self, workdir: Path, keep: int | None = None):
        """Opens the folder, which need not exist yet for writing."""
        self.folder = workdir / "checkpoints"
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, step_prefix=None)
        self._manager = ocp.CheckpointManager(self.folder.absolute(), options=options)

    def latest(self) -> int | None:
        """The newest complete checkpoint's update, or None."""
        return self._manager.latest_step()

    def save(self, state: TrainState, meta: Mapping[str, Any]) -> None:
        """Starts writing `state`; returns as soon as it may be changed again."""
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        leaves, _ = jax.tree.flatten(state.optimizer)
        self._manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(unflatten(state.params)),
                optimizer=ocp.args.StandardSave({str(i): leaf for i, leaf in enumerate(leaves)}),
                meta=ocp.args.JsonSave({**meta, "step": step, "versions": versions()}),
            ),
        )

    def meta(self, step: int) -> dict:
        """What was stored beside the parameters of an update."""
        restored = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))
        return restored.meta

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The state of an update, with the shapes, dtypes and shardings of `like`."""
        leaves, structure = jax.tree.flatten(like.optimizer)
        wanted = {str(i): _abstract(leaf) for i, leaf in enumerate(leaves)}
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(
                    unflatten({p: _abstract(v) for p, v in like.params.items()})
                ),
                optimizer=ocp.args.StandardRestore(wanted),
            ),
        )
        optimizer = [restored.optimizer[str(i)] for i in range(len(leaves))]
        count = jax.device_put(jax.numpy.int32(step), like.step.sharding)
        return TrainState(count, flatten(restored.params), jax.tree.unflatten(structure, optimizer))

    def close(self) -> None:
        """Waits for the writer."""
        self._manager.wait_until_finished()
        self._manager.close()


def restore_params(folder: Path, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> Params:
    """The parameters of one update's folder `…/checkpoints/<update>`."""
    path = (folder / "params").absolute()
    if not path.is_dir():
        raise UserError(f"the checkpoint {folder} holds no 'params'; it is incomplete")
    with ocp.StandardCheckpointer() as reader:
        # Not the reader's metadata: it warns of a file that parts of a checkpoint do not have.
        stored = flatten(ocp.StandardCheckpointHandler().metadata(path).tree)
        check_fits(f"the checkpoint {folder} holds", stored, wanted)
        for name in stored:
            if name not in wanted:
                raise UserError(
                    f"the checkpoint {folder} holds {name!r}, not in this configuration"
                )
        return flatten(reader.restore(path, unflatten(wanted)))


def read_meta(folder: Path) -> dict:
    """What was stored beside the parameters in an update's folder."""
    path = folder / "meta" / "metadata"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"the checkpoint {folder} has no readable meta: {error}") from None


def check_same_run(stored: Mapping, current: Mapping, workdir: Path) -> None:
    """Compares the meta of a checkpoint with that of the same update in a run that is started.

    Raises:
      UserError: a field that changes results differs, or the rows of an update, or the frozen
        weights.
    """
    old, new = (_flat_config(json.loads(json.dumps(m["config"]))) for m in (stored, current))
    for name in sorted(set(old) | set(new)):
        if name not in _FREE and old.get(name) != new.get(name):
            raise UserError(
                f"{workdir} holds a run with {name}={old.get(name)!r}, now it is "
                f"{new.get(name)!r}; resume with the same value or choose another --workdir"
            )
    if stored["position"] != current["position"]:
        raise UserError(
            f"{workdir} holds a run that used {stored['position']} rows in {stored['step']} "
            f"updates, now they would be {current['position']}; choose train.rows_per_device and "
            "train.accumulation so that their product with the number of devices is as before"
        )
    if stored["frozen"] != current["frozen"]:
        raise UserError(
            f"the frozen weights differ from those {workdir} was trained with (SHA-256 "
            f"{current['frozen'][:12]}…, then {stored['frozen'][:12]}…)"
        )


def _flat_config(config: Mapping) -> dict[str, Any]:
    return {path.replace("/", "."): value for path, value in flatten(config).items()}


def _abstract(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
