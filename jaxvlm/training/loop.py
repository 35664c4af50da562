"""A run from configuration to the last checkpoint."""

import contextlib
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxvlm.config import to_json
from jaxvlm.console import progress, say
from jaxvlm.data.pipeline import batches
from jaxvlm.errors import UserError, first_line
from jaxvlm.files import write_text
from jaxvlm.models import attention
from jaxvlm.training.checkpoints import (
    Checkpoints,
    best_in,
    check_same_run,
    read_meta,
    update_to_resume,
)
from jaxvlm.training.feed import Feed
from jaxvlm.training.frozen import keep
from jaxvlm.training.health import Health, head_losses, mean_work, means, source_losses
from jaxvlm.training.histograms import histograms
from jaxvlm.training.mesh import batch_sharding, make_mesh
from jaxvlm.training.metric_log import MetricLog, NoLog
from jaxvlm.training.pace import Pace
from jaxvlm.training.prepare import Run, prepare, print_start
from jaxvlm.training.processes import Agreement, is_first
from jaxvlm.training.profile import Profile
from jaxvlm.training.setup import compute_dtype, run_steps
from jaxvlm.training.signals import StopRequest, stop_requests
from jaxvlm.training.state import TrainState
from jaxvlm.training.status import status
from jaxvlm.training.step import Steps, Sums
from jaxvlm.training.validation import Validation
from jaxvlm.training.watchdog import watchdog


def train(
    config, workdir: Path, resume_from: int | None = None, traced: range | None = None
) -> None:
    """Trains as configured, resuming from the workdir's newest checkpoint.

    Args:
      config: checked.
      workdir: of the run.
      resume_from: the update to resume from instead; checkpoints behind it are set aside.
      traced: updates to trace, see `Profile`.

    Raises:
      UserError: anything wrong with what the user gave, before the first update.
      Requeue: the run was asked to stop, and its updates are kept.
    """
    # Wrong settings of the environment are found before anything is read.
    attention.choice()
    mesh: Mesh = make_mesh(config.mesh.data, config.mesh.fsdp)
    several = jax.process_count() > 1
    with (
        jax.set_mesh(mesh),
        stop_requests() as stop,
        # One of several must not leave before the others know.
        stop.deferred() if several else contextlib.nullcontext(),
        status(workdir) if is_first() else contextlib.nullcontext(lambda: None) as begin,
    ):
        resumed = update_to_resume(workdir, resume_from)
        made = 0 if resumed is None else int(resumed.name)
        profile = Profile.of_a_run(workdir, traced, made, config.train.max_steps)
        run, state = prepare(config, workdir, mesh, resumed)
        print_start(run)
        checkpoints = Checkpoints(workdir, config.train.keep)
        try:
            with watchdog(config.train.watchdog_minutes) as alive:
                if resumed is not None:
                    state = _resume(run, state, checkpoints, made)
                else:
                    keep(workdir, {path: run.frozen[path] for path in run.kept}, run.origin)
                # Also when resuming: fields that do not change results may have.
                if is_first():
                    write_text(workdir / "config.json", to_json(config))
                alive()
                begin()
                _Updates(run, state, checkpoints, stop, alive).make(profile)
                checkpoints.close()
        finally:
            checkpoints.close()


def _resume(run: Run, state: TrainState, checkpoints: Checkpoints, step: int) -> TrainState:
    """The state after update `step`, in the form of an abstract one."""
    stored = read_meta(checkpoints.folder / str(step))
    check_same_run(stored, run.meta(step), run.workdir)
    state = checkpoints.restore(step, state)
    checkpoints.set_aside_behind(step)
    say(f"resuming {run.workdir} after update {step}")
    return state


class _Updates:
    """The updates that are left of a run."""

    def __init__(
        self,
        run: Run,
        state: TrainState,
        checkpoints: Checkpoints,
        stop: StopRequest,
        alive: Callable[[], None],
    ):
        self._run, self._config = run, run.config
        self._state = state
        self._checkpoints, self._stop, self._alive = checkpoints, stop, alive
        self._first, self._last = int(state.step), run.config.train.max_steps
        self._recent: list[dict[str, jax.Array]] = []
        self._lost = 0
        # What the devices compute: the micro-batch under way, and the one before.
        self._computing = self._before = ()

    def make(self, profile: Profile) -> None:
        """Makes them, tracing those of a profile; returns when the last checkpoint stands."""
        run, config, last = self._run, self._config, self._last
        if self._first >= last:
            say(f"all {last} updates stand in {run.workdir}; nothing to do")
            return
        steps = run_steps(config, run.model, run.optimizer, self._state, len(run.sources))
        sums = steps.start(self._state.params)
        self._feed = Feed(self._stream(), batch_sharding(run.mesh))
        self._health = Health(self._first, config.train.max_skipped, last)
        self._pace = Pace(run, self._first, self._feed)
        self._agreed = Agreement(run.mesh)
        self._log = MetricLog(run.workdir, self._first, last) if is_first() else NoLog()
        if run.validation is not None:
            self._validation = Validation(
                run.model, run.validation, run.rows_per_batch, compute_dtype(config), run.mesh
            )
        every = config.train.log_every
        apart = f"{every:,} updates" if every > 1 else "update"
        say(f"writing to {run.workdir}, a line every {apart}")
        say("compiling the update, which the first one waits for")
        # Closing the feed ends its worker processes.
        with (
            contextlib.closing(self._log),
            contextlib.closing(self._feed),
            progress("training", last, self._first, lines=False) as advance,
            self._stop.deferred(),
            contextlib.closing(profile),
        ):
            for step in range(self._first, last):
                with profile.update(step + 1, self._computing) as wanted:
                    sums = self._update(steps, sums, step)
                    if wanted:
                        jax.block_until_ready(self._computing)
                advance()
                self._after(step + 1)
        best = best_in(self._checkpoints.folder)
        say(
            f"all {last} updates stand in {run.workdir}"
            + (f", the best by validation is {best}" if best is not None else "")
            + f"; next: python -m jaxvlm.evaluate --checkpoint {run.workdir}"
        )

    def _stream(self):
        run = self._run
        return batches(
            run.rows,
            run.rows_per_batch,
            self._first * run.rows_per_update,
            0 if self._config.data.features.folder else self._config.data.num_workers,
            jax.process_index(),
            jax.process_count(),
        )

    def _update(self, steps: Steps, sums: Sums, step: int) -> Sums:
        """Makes update `step` (from 0); returns empty sums."""
        accumulation, seed = self._config.train.accumulation, jax.random.key(self._config.seed)
        for micro in range(accumulation):
            with jax.profiler.TraceAnnotation("waiting for the batch"):
                batch = self._batch(step)
            # No more than two micro-batches are under way: each has a batch of its own.
            jax.block_until_ready(self._before)
            self._alive()
            self._before = self._computing
            key = jax.random.fold_in(jax.random.fold_in(seed, step), micro)
            sums = steps.accumulate(self._state.params, self._run.frozen, sums, batch, key)
            # The sums themselves are given up in the next micro-batch.
            self._computing = jnp.copy(sums.loss)
        every = self._config.train.histograms_every
        if every and (step + 1) % every == 0:
            self._show_histograms(step + 1, sums)
        self._state, metrics, sums = steps.update(self._state, sums)
        self._computing = metrics["loss"]
        self._recent.append(metrics)
        return sums

    def _show_histograms(self, step: int, sums: Sums) -> None:
        """Of the parameters and gradients that make update `step`."""
        labels = jnp.maximum(sums.labels, 1.0)
        shown = {f"parameters/{path}": leaf for path, leaf in self._state.params.items()}
        found = histograms(shown)
        for path, leaf in sums.gradients.items():
            found |= histograms({f"gradients/{path}": leaf / labels})
        self._log.histograms(step, found)

    def _batch(self, made: int):
        """The next batch; where the data breaks off, the updates that were `made` are kept."""
        try:
            batch, lost = self._feed.take(self._computing)
        except Exception as error:
            self._health.check(self._recent, made)
            # Of several processes the others are not here.
            if jax.process_count() == 1:
                if made:
                    self._checkpoints.finish(self._state, self._run.meta(made))
                if self._stop:
                    # Workers that had just started ended with the same signal.
                    kept = f"the checkpoint of update {made} stands" if made else "nothing is lost"
                    raise self._stop.answer(kept) from error
            if "Worker process" in str(error):
                raise _killed_worker(error, made) from error
            raise
        self._lost += lost
        return batch

    def _after(self, done: int) -> None:
        """Logs, saves and stops, where any of it is due after update `done`."""
        train, final = self._config.train, done == self._last
        asked = train.eval_every and (done % train.eval_every == 0 or final)
        found = self._validate(done) if asked else {}
        # Asked once: a signal may come at any line.
        stop, retry = self._agreed(bool(self._stop)), self._checkpoints.due()
        log = done % train.log_every == 0 or final or stop or asked
        save = done % train.save_every == 0 or retry
        if done == self._first + 1 and not log:
            # Compiling is not the pace of what follows.
            jax.block_until_ready(self._computing)
            self._pace.read(done)
        if log or save:
            self._health.check(self._recent, done)
        if log:
            self._write(done, found)
        # Not while updates are skipped: what made them so may be in the parameters.
        save = (save or found) and not self._health.streak
        if final or stop or save:
            write = self._checkpoints.finish if final or stop else self._checkpoints.save
            write(self._state, self._run.meta(done) | found, self._score(found))
            self._alive()
        if stop and not final:
            raise self._stop.answer(f"the checkpoint of update {done} stands")

    def _validate(self, done: int) -> dict[str, float]:
        self._health.check(self._recent, done)
        with self._pace.left_out():
            return self._validation(self._state.params, self._run.frozen, self._alive)

    def _score(self, found: Mapping[str, float]) -> float | None:
        """What the best checkpoint has most of."""
        if not found:
            return None
        by_loss = self._config.train.best_by == "loss"
        score = -found["val_loss"] if by_loss else found["val_exact_match"]
        return score if math.isfinite(score) else None

    def _write(self, done: int, found: Mapping[str, float]) -> None:
        """Logs the updates since the last time, and what validation `found`."""
        values = means(self._recent)
        values |= source_losses(self._recent, self._run.sources)
        values |= head_losses(self._recent)
        work = mean_work(self._recent)
        self._recent = []
        values |= self._run.learning_rates(done - 1)
        values |= self._pace.read(done, work)
        values["lost_samples"] = self._lost
        self._log.write(done, values | found)


def _killed_worker(error: Exception, step: int) -> UserError:
    return UserError(
        f"after update {step}: {first_line(error)} (was the memory full?); fewer "
        "data.num_workers need less of it. The same command goes on from here"
    )
