"""Checkpoints: `checkpoints/<update>/{params,optimizer,meta}`, written in the background.

`params` are the trained float32 masters; frozen weights are named by their hash, not copied. `meta`
holds the data position, the configuration and versions.
"""

import contextlib
import json
import math
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from jaxvlm.config import default
from jaxvlm.console import say
from jaxvlm.errors import UserError, first_line
from jaxvlm.paths import flatten, unflatten
from jaxvlm.training.processes import is_first, wait_for_all
from jaxvlm.training.state import Params, TrainState
from jaxvlm.training.weights import check_fits

# What the meta of every checkpoint has.
_META = ("step", "position", "config", "frozen", "data")
_PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "grain")
# Fields of the configuration that may differ between the runs of one workdir. Rows may be spread
# over devices and micro-batches in another way, as long as an update has as many.
_FREE = ("data.num_workers", "train.log_every", "train.histograms_every", "train.save_every",
         "train.keep", "mesh.data",
         "mesh.fsdp", "data.val", "data.test", "data.image_roots", "train.rows_per_device",
         "train.accumulation", "train.remat", "data.features.folder", "optimizer.offload",
         "train.watchdog_minutes", "train.max_skipped", "train.eval_every",
         "train.eval_samples", "train.best_by")  # fmt: skip
# The folder in a workdir of frozen parameters that came from another run, and its identity in meta.
KEPT = "frozen"
# What the storage library raises where it cannot write; for a full disk it is a ValueError.
_WRITING = (OSError, ValueError)
_RETRY_SECONDS = 60
_SCORE = "score"


def _is_free(name: str) -> bool:
    return name in _FREE or name.startswith("evaluation.")


def versions() -> dict[str, str]:
    """Versions of the packages that results depend on."""
    return {name: version(name) for name in _PACKAGES}


class Checkpoints:
    """The checkpoints of one workdir, written in the background."""

    def __init__(self, workdir: Path, keep: int):
        """Opens the folder, which need not exist yet for writing."""
        self.folder = workdir / "checkpoints"
        self._keep = keep
        self._retry_at = math.inf
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        self._scores = scores_in(self.folder)
        policy = checkpoint_managers.AnyPreservationPolicy(
            [checkpoint_managers.LatestN(self._keep), _Best(self._scores)]
        )
        options = ocp.CheckpointManagerOptions(preservation_policy=policy, step_prefix=None)
        return ocp.CheckpointManager(self.folder.absolute(), options=options)

    def due(self) -> bool:
        """Whether a checkpoint that could not be written should be tried again now."""
        if self._retry_at == math.inf and not self._manager.is_saving_in_progress():
            self._finish()
        return time.monotonic() >= self._retry_at

    def save(self, state: TrainState, meta: Mapping[str, Any], score: float | None = None) -> None:
        """Starts writing `state`; returns as soon as it may be changed again.

        What cannot be written is said, and `due` later: the run goes on.

        Args:
          state: what is trained.
          meta: stored beside it.
          score: by validation; the checkpoint with the highest is kept.
        """
        self._finish()
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        if score is not None:
            self._scores[step] = score
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.StandardSave(unflatten(state.params)),
                    optimizer=ocp.args.StandardSave(_named(state.optimizer)),
                    meta=ocp.args.JsonSave(
                        {**meta, "step": step, _SCORE: score, "versions": versions()}
                    ),
                ),
            )
            self._retry_at = math.inf
        except _WRITING as error:
            self._failed(error)

    def finish(
        self, state: TrainState, meta: Mapping[str, Any], score: float | None = None
    ) -> None:
        """Writes `state` as `save` does, if it does not stand yet, and waits for it.

        Raises:
          UserError: it cannot be written.
        """
        self.save(state, meta, score)
        self._finish()
        if self._retry_at == math.inf:
            return
        raise UserError(
            f"the checkpoint of update {int(state.step)} could not be written to {self.folder}. "
            "The newest complete one stands; make room or mend the folder, and repeat the command"
        )

    def _finish(self) -> None:
        """Waits for the writer."""
        try:
            self._manager.wait_until_finished()
        except _WRITING as error:
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        if jax.process_count() > 1:
            # The others wait for this one inside the storage library.
            raise UserError(
                f"a checkpoint could not be written to {self.folder}: {first_line(error)}. The "
                "newest complete one stands; make room or mend the folder, and repeat the command"
            ) from error
        self._retry_at = time.monotonic() + _RETRY_SECONDS
        say(
            f"warning: a checkpoint could not be written to {self.folder}: {first_line(error)}. "
            f"The newest complete one stands; trying again in {_RETRY_SECONDS} s, make room "
            "meanwhile"
        )
        # What was half written takes the room that the next one needs.
        for draft in self.folder.glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(draft, ignore_errors=True)
        # The manager may have lost count of what it was about to delete.
        self._manager = self._open()

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The state of an update, with the shapes, dtypes and shardings of an abstract one.

        Raises:
          UserError: the checkpoint is damaged.
        """
        with _reading(self.folder / str(step)):
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.StandardRestore(unflatten(like.params)),
                    optimizer=ocp.args.StandardRestore(_named(like.optimizer)),
                ),
            )
        _, structure = jax.tree.flatten(like.optimizer)
        leaves = [restored.optimizer[name] for name in _named(like.optimizer)]
        count = jax.device_put(np.int32(step), like.step.sharding)
        return TrainState(count, flatten(restored.params), jax.tree.unflatten(structure, leaves))

    def set_aside_behind(self, step: int) -> None:
        """Moves checkpoints of later updates to `set_aside/`: the run will make them anew."""
        later = [other for other in steps_in(self.folder) if other > step]
        wait_for_all("later checkpoints are known")
        for other in later if is_first() else ():
            place = self.folder.parent / "set_aside" / f"{other}-{secrets.token_hex(3)}"
            place.parent.mkdir(exist_ok=True)
            (self.folder / str(other)).rename(place)
            say(f"the checkpoint of update {other} was moved to {place}")
        wait_for_all("later checkpoints are set aside")
        self._manager.close()
        self._manager = self._open()

    def close(self) -> None:
        """Waits for the writer."""
        self._finish()
        self._manager.close()


def update_to_resume(workdir: Path, chosen: int | None) -> Path | None:
    """The folder of the update that a run goes on from, or None for one that begins.

    Raises:
      UserError: the one that was `chosen` is not there; without a choice it is the newest.
    """
    folder = workdir / "checkpoints"
    found = steps_in(folder)
    if chosen is not None and chosen not in found:
        raise UserError(
            f"--resume_from {chosen}: {folder} holds no such update, but "
            f"{', '.join(map(str, found)) or 'no checkpoint at all'}"
        )
    if not found:
        return None
    return folder / str(max(found) if chosen is None else chosen)


def steps_in(folder: Path) -> list[int]:
    """The updates of which a folder holds complete checkpoints, damaged or not."""
    names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if name.isascii() and name.isdigit())


def best_in(folder: Path) -> int | None:
    """The update with the highest score by validation, or None where there is none."""
    return _highest(scores_in(folder))


def scores_in(folder: Path) -> dict[int, float]:
    """The scores by validation of the updates that have one; damaged checkpoints have none."""
    scores = {}
    for step in steps_in(folder):
        with contextlib.suppress(OSError, ValueError, UserError):
            score = read_meta(folder / str(step)).get(_SCORE)
            if score is not None:
                scores[step] = float(score)
    return scores


def _highest(scores: Mapping[int, float]) -> int | None:
    """The update with the highest score, of equals the later."""
    finite = {step: score for step, score in scores.items() if math.isfinite(score)}
    return max(finite, key=lambda step: (finite[step], step), default=None)


class _Best(checkpoint_managers.PreservationPolicy):
    """Keeps the update with the highest score, also of those that earlier starts of a run made."""

    def __init__(self, scores: Mapping[int, float]):
        """Takes scores that may become more."""
        self._scores = scores

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        """See `PreservationPolicy`."""
        del context
        standing = {info.step for info in checkpoints}
        best = _highest({s: score for s, score in self._scores.items() if s in standing})
        return [info.step == best for info in checkpoints]


def _named(states: Mapping[str, Any]) -> dict[str, jax.Array]:
    """The leaves of the optimiser's states by names that are the same in every run."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(states)
    names = (jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves)
    # A tree's keys must not look like paths.
    return {name.replace("/", "."): leaf for name, (_, leaf) in zip(names, leaves, strict=True)}


@contextlib.contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """Whatever goes wrong in reading a checkpoint of the right shapes, the checkpoint is damaged.

    The storage libraries raise errors of many kinds.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        number = int(folder.name) if folder.name.isdigit() else 0
        before = [step for step in steps_in(folder.parent) if step < number]
        hint = "there is none before it; train anew in another --workdir"
        if before:
            hint = (
                f"the one before it is {folder.parent / str(before[-1])}, from which "
                f"--resume_from {before[-1]} goes on"
            )
        raise UserError(
            f"the checkpoint {folder} is damaged ({type(error).__name__}: {first_line(error)}); "
            f"{hint}"
        ) from error


def restore_params(folder: Path, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> Params:
    """The parameters of one update's folder `…/checkpoints/<update>`."""
    stored = stored_shapes(folder)
    check_fits(f"the checkpoint {folder} holds", stored, wanted)
    for name in stored:
        if name not in wanted:
            raise UserError(f"the checkpoint {folder} holds {name!r}, not in this configuration")
    with _reading(folder), ocp.StandardCheckpointer() as reader:
        found = flatten(reader.restore((folder / "params").absolute(), unflatten(wanted)))
    finite = jax.jit(lambda params: {p: jnp.isfinite(x).all() for p, x in params.items()})
    check_finite(folder, jax.device_get(finite(found)))
    return found


def check_finite(folder: Path, finite: Mapping[str, bool]) -> None:
    """Checks which parameters of an update have finite numbers only.

    Raises:
      UserError: some have others, of which nothing would be answered or learnt.
    """
    bad = [path for path, fine in finite.items() if not fine]
    if bad:
        raise UserError(
            f"the checkpoint {folder} holds numbers that are not finite in {bad[0]!r}: its files "
            "are damaged, or the training had come to no good; name another update of the run"
        )


def stored_shapes(folder: Path) -> dict[str, Any]:
    """Path of every parameter in an update's folder, with its `shape` and `dtype`."""
    path = (folder / "params").absolute()
    if not path.is_dir():
        raise UserError(f"the checkpoint {folder} holds no 'params'; it is incomplete")
    with _reading(folder):
        # Not a checkpointer's metadata: it warns of a file that parts of a checkpoint do not have.
        return flatten(ocp.StandardCheckpointHandler().metadata(path).tree)


def read_meta(folder: Path) -> dict:
    """What was stored beside the parameters in an update's folder.

    Raises:
      UserError: it cannot be read, lacks something, or is of another update than the folder says.
    """
    with _reading(folder):
        meta = json.loads((folder / "meta" / "metadata").read_text(encoding="utf-8"))
        missing = [name for name in _META if name not in meta]
        if missing:
            raise ValueError(f"its meta has no {missing[0]!r}")
        if not isinstance(meta["config"], dict):
            raise ValueError("the config of its meta is no configuration")
        if str(meta["step"]) != folder.name:
            raise ValueError(f"it is of update {meta['step']}, the folder was renamed")
        return meta


def check_same_run(stored: Mapping, current: Mapping, workdir: Path) -> None:
    """Compares the meta of a checkpoint with that of the same update in a run that is started.

    Raises:
      UserError: a field that changes results differs, or the rows of an update, or the frozen
        weights.
    """
    known, old, new = (
        _flat_config(json.loads(json.dumps(config)))
        for config in (default().to_dict(), stored["config"], current["config"])
    )
    # What a field has been given since is what it is by default.
    old |= {name: known[name] for name in new.keys() & known.keys() - old.keys()}
    for name in sorted(set(old) | set(new)):
        if not _is_free(name) and old.get(name) != new.get(name):
            raise UserError(
                f"{workdir} holds a run with {name}={old.get(name)!r}, now it is "
                f"{new.get(name)!r}; resume with the same value, or choose another --workdir (with "
                "init_from it begins with this run's parameters)"
            )
    if stored["position"] != current["position"]:
        raise UserError(
            f"{workdir} holds a run of {stored['position'] // stored['step']} rows an update, now "
            f"they would be {current['position'] // stored['step']}; choose train.rows_per_device "
            "and train.accumulation so that their product with the number of devices is as before"
        )
    if stored["data"] != current["data"]:
        raise UserError(
            f"the records of data.train, or their views, differ from those {workdir} was trained "
            "with; give it the same files and the same feature cache or none, or choose another "
            "--workdir"
        )
    check_same_frozen(stored["frozen"], current["frozen"], workdir)


def check_same_frozen(stored: Mapping, current: Mapping, workdir: Path) -> None:
    """Raises a UserError where frozen weights are not those that a run was trained beside."""
    if stored.get(KEPT) != current.get(KEPT):
        raise UserError(
            f"{workdir / KEPT} is not there, or not the one that {workdir} was trained with: the "
            "frozen parameters that came from init_from. Put it back, or a copy of it"
        )
    for part in sorted(set(stored) | set(current)):
        if stored.get(part) != current.get(part):
            raise UserError(
                f"the frozen weights of {part} are {current.get(part)}, {workdir} was trained with "
                f"{stored.get(part)}; check model.{part}.weights"
            )


def _flat_config(config: Mapping) -> dict[str, Any]:
    return {path.replace("/", "."): value for path, value in flatten(config).items()}
