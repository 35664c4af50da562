"""How fast a run is, and how well it uses its devices."""

import contextlib
import time
from collections.abc import Iterator

import jax

from jaxvlm.models.vlm import vlm_config
from jaxvlm.training.feed import Feed
from jaxvlm.training.hardware import GIB, by_kind
from jaxvlm.training.prepare import Run
from jaxvlm.training.state import abstract_parameters
from jaxvlm.training.work import Work, model_flops, trained_shares


class Pace:
    """What happened a second, since the last time it was asked."""

    def __init__(self, run: Run, step: int, feed: Feed):
        """Begins behind update `step`."""
        self._feed, self._last = feed, run.config.train.max_steps
        self._before = step, time.perf_counter(), feed.waited
        self._cached = run.config.data.features.folder is not None
        # The whole model, with the vision that a run with cached features leaves out.
        self._model = vlm_config(run.config.model)
        self._image = run.image
        self._trained = trained_shares(abstract_parameters(self._model), run.learning)
        known = by_kind(jax.devices()[0].device_kind)
        self._peak = known and known.peak(run.config.precision) * jax.device_count()

    @contextlib.contextmanager
    def left_out(self) -> Iterator[None]:
        """What happens within is no part of the pace: a validation, for one."""
        began = time.perf_counter()
        yield
        step, since, waited = self._before
        self._before = step, since + time.perf_counter() - began, waited

    def read(self, step: int, work: Work | None = None) -> dict[str, float | None]:
        """Figures of the updates up to `step`; what cannot be known is None.

        Args:
          step: updates made.
          work: of an update, on average; None where nobody asks.
        """
        now = step, time.perf_counter(), self._feed.waited
        steps, seconds, waited = (a - b for a, b in zip(now, self._before, strict=True))
        self._before = now
        seconds = max(seconds, 1e-9)
        if work is None:
            return {}
        pace = steps / seconds
        flops = model_flops(self._model, work, self._image, self._trained, self._cached)
        return {
            "updates_per_second": pace,
            "samples_per_second": work.samples * pace,
            "tokens_per_second": work.tokens * pace,
            "mfu": self._peak and flops * pace / self._peak,
            "memory_gib": peak_memory(),
            "input_wait": waited / seconds,
            "eta_seconds": (self._last - step) / pace,
        }


def peak_memory() -> float | None:
    """The most GiB that were in use on the fullest of this process's devices; None on CPU."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    if not all(stats):
        return None
    return max(each["peak_bytes_in_use"] for each in stats) / GIB
