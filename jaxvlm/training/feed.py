"""Batches on the devices before the step asks for them."""

import queue
import threading
import time
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding

# Batches that wait on the devices; each takes their memory.
AHEAD = 2


class Fed(NamedTuple):
    """A batch.

    Attributes:
      batch: this process's rows, as part of the global arrays on the devices.
      lost: samples of this process's rows that were left out, for their images cannot be read.
    """

    batch: Mapping[str, jax.Array]
    lost: int


class Feed:
    """Takes batches from a stream in a thread of its own and sends them to the devices.

    Attributes:
      waited: seconds that the devices had nothing to do, for no batch was ready.
    """

    def __init__(self, stream: Iterator[Mapping[str, np.ndarray]], sharding: NamedSharding):
        """Starts at once."""
        self.waited = 0.0
        self._stream = stream
        self._sharding = sharding
        self._ready: queue.Queue = queue.Queue(AHEAD)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="feed", daemon=True)
        self._thread.start()

    def __iter__(self) -> "Feed":
        return self

    def __next__(self) -> Fed:
        """The next batch; see `take`."""
        return self.take()

    def take(self, computing: object = ()) -> Fed:
        """The next batch.

        Args:
          computing: arrays that the devices compute now. Where no batch is ready it is not before
            these are that the devices wait.

        Raises:
          StopIteration: there is none.
          Exception: what reading it raised.
        """
        try:
            item = self._ready.get_nowait()
        except queue.Empty:
            jax.block_until_ready(computing)
            started = time.perf_counter()
            item = self._ready.get()
            self.waited += time.perf_counter() - started
        if isinstance(item, Fed):
            return item
        # The thread has ended; whoever asks again hears the same.
        self._ready.put(item)
        raise item

    def close(self) -> None:
        """Ends the thread, then the stream and its worker processes."""
        self._closed.set()
        while self._thread.is_alive():
            self._drain()
            self._thread.join(0.1)
        self._stream.close()

    def _drain(self) -> None:
        try:
            while True:
                self._ready.get_nowait()
        except queue.Empty:
            pass

    def _run(self) -> None:
        try:
            for local in self._stream:
                self._put(self._placed(local))
                if self._closed.is_set():
                    return
            self._put(StopIteration())
        except Exception as error:
            self._put(error)

    def _placed(self, local: Mapping[str, np.ndarray]) -> Fed:
        arrays = dict(local)
        lost = int(arrays.pop("lost").sum())
        place = jax.make_array_from_process_local_data
        return Fed({name: place(self._sharding, value) for name, value in arrays.items()}, lost)

    def _put(self, item: Fed | Exception) -> None:
        while not self._closed.is_set():
            try:
                self._ready.put(item, timeout=0.1)
                return
            except queue.Full:
                continue
