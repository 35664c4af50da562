"""A run from configuration to the last checkpoint."""

import contextlib
import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from jaxvlm.config import to_json
from jaxvlm.console import console, duration, print_table, progress
from jaxvlm.data.pipeline import batches
from jaxvlm.data.training_set import Rows, training_rows
from jaxvlm.errors import UserError
from jaxvlm.files import write_text
from jaxvlm.models.vlm import VLMConfig, vlm_config
from jaxvlm.training.checkpoints import Checkpoints, check_same_run, read_meta
from jaxvlm.training.feed import Feed
from jaxvlm.training.mesh import batch_sharding, make_mesh
from jaxvlm.training.metric_log import MetricLog
from jaxvlm.training.optimizer import make_optimizer, schedule
from jaxvlm.training.parameters import FROZEN, Group, assign_groups, summary
from jaxvlm.training.setup import (
    all_parameters,
    compute_dtype,
    frozen_identity,
    vision_identity,
)
from jaxvlm.training.state import (
    Params,
    TrainState,
    abstract_parameters,
    new_state,
)
from jaxvlm.training.step import make_steps

# Passes over the same questions after which hardly anything is learnt.
_MANY_EPOCHS = 40
# Share of real tokens below which a warning is due.
_EMPTY = 0.6
# Updates in a row without a single label, after which a run stops.
_EMPTY_UPDATES = 5


@dataclasses.dataclass
class Run:
    """Everything that stays the same from update to update.

    Attributes:
      model: sizes, without VGGT where its features are read from a cache.
    """

    config: object
    model: VLMConfig
    mesh: Mesh
    rows: Rows
    groups: dict[str, Group]
    frozen: Params
    optimizer: optax.GradientTransformation
    workdir: Path

    @property
    def rows_per_batch(self) -> int:
        """Rows of a global micro-batch."""
        return self.config.train.rows_per_device * jax.device_count()

    @property
    def rows_per_update(self) -> int:
        """Rows an update consumes."""
        return self.rows_per_batch * self.config.train.accumulation

    def meta(self, step: int) -> dict:
        """What is stored beside the parameters."""
        return {
            "position": step * self.rows_per_update,
            "config": self.config.to_dict(),
            "frozen": frozen_identity(self.config, self.groups),
            "data": self.rows.fingerprint,
            "mesh": dict(self.mesh.shape),
            "processes": jax.process_count(),
        }


def train(config, workdir: Path) -> None:
    """Trains as configured, resuming from the workdir's newest checkpoint.

    Raises:
      UserError: anything wrong with what the user gave, before the first update.
    """
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp)
    with jax.set_mesh(mesh):
        run, state = _prepare(config, workdir, mesh)
        _print_start(run)
        checkpoints = Checkpoints(workdir, config.train.keep)
        try:
            state = _resume(run, state, checkpoints)
            _updates(run, state, checkpoints)
        finally:
            checkpoints.close()


def _prepare(config, workdir: Path, mesh: Mesh) -> tuple[Run, TrainState]:
    model = vlm_config(config.model)
    shapes = abstract_parameters(model)
    groups = assign_groups(config.parameters, shapes, config.optimizer.learning_rate)
    rows_total = (
        config.train.max_steps
        * config.train.accumulation
        * config.train.rows_per_device
        * jax.device_count()
    )
    cached = config.data.features.folder is not None
    rows = training_rows(config, rows_total, vision_identity(config, groups) if cached else None)
    unused = {path for path in shapes if cached and path.startswith("vision/")}
    parameters = all_parameters(config, model, groups, mesh, skip=frozenset(unused))
    if cached:
        model = dataclasses.replace(model, vision=None)
    trainable = {p: leaf for p, leaf in parameters.items() if groups[p].name != FROZEN}
    frozen = {p: leaf for p, leaf in parameters.items() if groups[p].name == FROZEN}
    optimizer = make_optimizer(
        {p: groups[p] for p in trainable}, config.optimizer, config.train.max_steps
    )
    run = Run(config, model, mesh, rows, groups, frozen, optimizer, workdir)
    return run, new_state(trainable, optimizer, mesh)


def _print_start(run: Run) -> None:
    """The table of parameter groups, and what the run amounts to."""
    config = run.config
    shapes = abstract_parameters(vlm_config(config.model))
    table = summary(run.groups, shapes, config.optimizer.learning_rate)
    if config.data.features.folder is not None:
        table = [row for row in table if row[0] != "vision"]
    columns = ("part", "group", "learning rate", "tensors", "parameters")
    print_table("Parameters", columns, table)
    usage = run.rows.usage()
    epochs = len(run.rows) / usage.rows
    each = usage.samples / usage.rows
    console().print(
        f"{config.train.max_steps} updates of {run.rows_per_update} rows (about "
        f"{run.rows_per_update * each:,.0f} samples); the data makes {usage.samples:,} samples in "
        f"{usage.rows:,} rows an epoch: {epochs:.1f} epochs on "
        f"{jax.device_count()} {jax.devices()[0].platform} device(s)"
    )
    if config.data.pack:
        console().print(
            f"rows hold {each:.1f} samples: {usage.tokens:.1%} of their tokens are real, "
            f"{usage.sets:.1%} of their image sets, and {usage.views:.1%} of the views of those"
        )
        if usage.tokens < _EMPTY:
            console().print(
                "warning: the rest is computed for nothing. A larger data.row_sets or "
                "data.questions_per_set, or a smaller data.row_length, fills rows better"
            )
    if epochs > _MANY_EPOCHS:
        console().print(
            f"warning: more than {_MANY_EPOCHS} epochs of the same questions; fewer updates "
            "(train.max_steps) or fewer rows in each (train.accumulation) would do"
        )


def _resume(run: Run, state: TrainState, checkpoints: Checkpoints) -> TrainState:
    step = checkpoints.latest()
    if step is not None:
        stored = read_meta(checkpoints.folder / str(step))
        check_same_run(stored, run.meta(step), run.workdir)
    # Also when resuming: fields that do not change results may have.
    write_text(run.workdir / "config.json", to_json(run.config))
    if step is None:
        return state
    console().print(f"resuming {run.workdir} after update {step}")
    return checkpoints.restore(step, state)


def _updates(run: Run, state: TrainState, checkpoints: Checkpoints) -> None:
    """All updates that are left."""
    config, first = run.config, int(state.step)
    last = config.train.max_steps
    if first >= last:
        console().print(f"all {last} updates stand in {run.workdir}; nothing to do")
        return
    steps = make_steps(run.model, run.optimizer, compute_dtype(config), config.train.remat, state)
    sums = steps.start(state.params)
    stream = batches(
        run.rows,
        run.rows_per_batch,
        first * run.rows_per_update,
        0 if config.data.features.folder else config.data.num_workers,
        jax.process_index(),
        jax.process_count(),
    )
    feed = Feed(stream, batch_sharding(run.mesh))
    log = MetricLog(run.workdir, first, last)
    base_key = jax.random.key(config.seed)
    timer, health = _Timer(first, feed), _Health(first)
    recent: list[dict[str, jax.Array]] = []
    lost, before, computing = 0, (), ()
    console().print(f"writing to {run.workdir}")
    console().print("compiling the update, which the first one waits for")
    # Closing the feed ends its worker processes.
    with contextlib.closing(feed), progress("training", last, first, lines=False) as advance:
        for step in range(first, last):
            for micro in range(config.train.accumulation):
                try:
                    batch, left_out = feed.take(computing)
                except Exception as error:
                    health.check(recent, step)
                    if jax.process_count() == 1:
                        # The data breaks off; the updates that were made are kept.
                        checkpoints.save(state, run.meta(step))
                    if "Worker process" in str(error):
                        raise _killed_worker(error, step) from error
                    raise
                # No more than two micro-batches are under way: each has a batch of its own.
                jax.block_until_ready(before)
                before = computing
                lost += left_out
                key = jax.random.fold_in(base_key, step * config.train.accumulation + micro)
                sums = steps.accumulate(state.params, run.frozen, sums, batch, key)
                # The sums themselves are given up in the next micro-batch.
                computing = jnp.copy(sums.loss)
            state, metrics, sums = steps.update(state, sums)
            computing = metrics["loss"]
            recent.append(metrics)
            advance()
            done = step + 1
            log_now = done % config.train.log_every == 0 or done == last
            save_now = done % config.train.save_every == 0 or done == last
            if step == first and not log_now:
                # Compiling is not the pace of what follows.
                jax.block_until_ready(metrics)
                timer.read(done)
            if log_now or save_now:
                health.check(recent, done)
            if log_now:
                values = _means(recent)
                recent = []
                values["schedule"] = float(_factor(config)(step))
                values |= timer.read(done)
                values["lost_samples"] = lost
                eta = duration((last - done) / values["updates_per_second"])
                log.write(done, values, eta)
            if save_now:
                checkpoints.save(state, run.meta(done))
    log.close()
    console().print(
        f"all {last} updates stand in {run.workdir}; next: python -m jaxvlm.evaluate "
        f"--checkpoint {run.workdir}"
    )


class _Health:
    """Whether updates still teach anything."""

    def __init__(self, step: int):
        """Begins behind update `step`."""
        self._checked = step
        self._empty = 0

    def check(self, recent: Sequence[Mapping[str, jax.Array]], done: int) -> None:
        """Looks at the metrics of the latest updates, the last of which is `done`.

        Raises:
          UserError: an update had no finite loss or gradient, or several in a row no label at all:
            of few rows one may lose all its images, of many or often it is a disk that is gone.
        """
        for step, metrics in enumerate(jax.device_get(list(recent)), done - len(recent) + 1):
            if step <= self._checked:
                continue
            self._checked = step
            loss, norm = metrics["loss"], metrics["gradient_norm"]
            if not (np.isfinite(loss) and np.isfinite(norm)):
                raise UserError(
                    f"update {step}: the loss is {loss} and the gradient's norm {norm}; nothing of "
                    "it was saved, the newest checkpoint is of before. Lower "
                    "optimizer.learning_rate, or look for numbers that are not finite in the "
                    "imported weights"
                )
            self._empty = 0 if metrics["label_tokens"] else self._empty + 1
            if self._empty == _EMPTY_UPDATES:
                raise UserError(
                    f"update {step}: for {_EMPTY_UPDATES} updates not one sample was left, no "
                    "image of them could be read. Mend the images (is a disk gone?) and repeat "
                    "the command, which goes on from the newest checkpoint"
                )


def _killed_worker(error: Exception, step: int) -> UserError:
    return UserError(
        f"after update {step}: {str(error).splitlines()[0]} (was the memory full?); fewer "
        "data.num_workers need less of it. The same command goes on from here"
    )


def _means(recent: Sequence[Mapping[str, jax.Array]]) -> dict[str, float]:
    """Metrics over several updates; those of label tokens are weighted by how many there were."""
    table = jax.device_get(list(recent))
    series = {name: np.array([metrics[name] for metrics in table]) for name in table[0]}
    labels = series["label_tokens"]
    means = {name: float(values.mean()) for name, values in series.items()}
    for name in ("loss", "token_accuracy"):
        means[name] = float((series[name] * labels).sum() / max(labels.sum(), 1))
    return means


def _factor(config):
    optimizer = config.optimizer
    return schedule(config.train.max_steps, optimizer.warmup_ratio, optimizer.final_ratio)


class _Timer:
    """Pace and waiting since the last time it was asked."""

    def __init__(self, step: int, feed: Feed):
        self._feed = feed
        self._before = step, time.perf_counter(), feed.waited

    def read(self, step: int) -> dict[str, float]:
        """`updates_per_second`, and the share of time that was waited for input."""
        now = step, time.perf_counter(), self._feed.waited
        steps, seconds, waited = (a - b for a, b in zip(now, self._before, strict=True))
        self._before = now
        seconds = max(seconds, 1e-9)
        return {"updates_per_second": steps / seconds, "input_wait": waited / seconds}
