"""A trace of some updates: what the host and the devices did, for Perfetto and TensorBoard."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import jax

from jaxvlm.console import say
from jaxvlm.errors import UserError, first_line

FOLDER = "profile"


def traced_updates(text: str) -> range:
    """The updates that `N:M` names: from N to M, both among them, counted from 1.

    Raises:
      UserError: it names none.
    """
    found = re.fullmatch(r"([0-9]{1,18}):([0-9]{1,18})", text)
    first, last = (int(part) for part in found.groups()) if found else (0, 0)
    if not 1 <= first <= last:
        raise UserError(
            f"--profile {text}: expected two updates as N:M, the second not before the first, "
            "e.g. 10:12"
        )
    return range(first, last + 1)


class Profile:
    """Traces chosen updates of a run, in this process.

    Around each is a step of the trace, and around what the host does in it the names given to
    `jax.profiler.TraceAnnotation`.
    """

    def __init__(self, workdir: Path, updates: range):
        # Of each process its own: JAX makes one file of all that it finds in a trace's folder.
        own = f"process_{jax.process_index()}" if jax.process_count() > 1 else ""
        self._folder, self._updates = workdir / FOLDER / own, updates
        self._running = False

    @classmethod
    def of_a_run(cls, workdir: Path, updates: range | None, made: int, last: int) -> Self:
        """What of the updates that were asked for the run still makes.

        Those that it made before are warned of: the same command goes on where a run was stopped.

        Raises:
          UserError: it ends before them, or has ended; or there is no place for the trace.
        """
        if updates is None:
            return cls(workdir, range(0))
        if (workdir / FOLDER).is_file():
            raise UserError(f"{workdir / FOLDER} is a file, where the traces' folder should be")
        asked = f"--profile {updates[0]}:{updates[-1]}: this run"
        if made >= last:
            raise UserError(
                f"{asked} ended with update {last}; another --workdir, or a larger "
                "train.max_steps, makes more"
            )
        if updates[-1] > last:
            raise UserError(f"{asked} makes the updates {made + 1} to {last}")
        left = range(max(updates[0], made + 1), updates[-1] + 1)
        if len(left) < len(updates):
            traced = f"{left[0]} to {left[-1]} are traced" if left else "none is traced"
            say(f"warning: {asked} goes on behind update {made}: {traced}", warns=True)
        return cls(workdir, left)

    @contextlib.contextmanager
    def update(self, number: int, computing: object) -> Iterator[bool]:
        """Around update `number` (from 1); yields whether its results must be waited for within.

        What is still `computing` of the updates before is waited for, so that the trace has none of
        it.
        """
        if number not in self._updates:
            yield False
            return
        if not self._running:
            jax.block_until_ready(computing)
            self._start()
        with jax.profiler.StepTraceAnnotation("update", step_num=number):
            yield True
        if self._updates and number == self._updates[-1]:
            self.close()

    def close(self) -> None:
        """Writes what was traced; a run that stops early has less of it."""
        if not self._running:
            return
        self._running = False
        with self._warned():
            jax.profiler.stop_trace()
            (newest,) = sorted(self._folder.glob("plugins/profile/*"))[-1:]
            say(
                f"trace: {newest / 'perfetto_trace.json.gz'} (open it at ui.perfetto.dev, or "
                f"{self._folder} in TensorBoard with its profile plugin)"
            )

    def _start(self) -> None:
        options = jax.profiler.ProfileOptions()
        # Python's own calls would take most of the file.
        options.python_tracer_level = 0
        with self._warned():
            self._folder.mkdir(parents=True, exist_ok=True)
            jax.profiler.start_trace(
                self._folder, create_perfetto_trace=True, profiler_options=options
            )
            self._running = True

    @contextlib.contextmanager
    def _warned(self) -> Iterator[None]:
        """Training goes on without its trace, where for example the disk is full."""
        try:
            yield
        # Whatever the profiler or its files raise.
        except Exception as error:
            self._updates = range(0)
            say(f"warning: no trace in {self._folder}: {first_line(error)}", warns=True)
