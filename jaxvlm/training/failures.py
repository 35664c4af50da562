"""How the failure of one process ends the others, and how they learn of its reason."""

import contextlib
import json
import sys
import threading
import time

import jax

# The coordinator's client is public nowhere.
from jax._src.distributed import global_state

from jaxvlm.errors import UserError, first_line
from jaxvlm.training.leaving import leave

_KEY, _ALIVE = "jaxvlm/failure", "jaxvlm/alive/"
# Less than half of JAX's own (processes.py): a process is heard twice in that time, and all may end
# when half of it has passed.
_SILENT_SECONDS = 14
_SECONDS_APART = 1.0
# How long the coordinator stays: the others, who ask it every second, are killed when it leaves.
_LINGER_SECONDS = 5.0


class Failures:
    """Looks for the failure of another process, and tells the others of this one's.

    The word goes through the coordinator, the first process: the service by which they have found
    each other keeps it.
    """

    def __init__(self, index: int):
        """Begins to look, for process `index`, in a thread of its own."""
        self._index, self._client = index, global_state.client
        # What each process has said last, and since when; those that were named.
        self._heard: dict[str, tuple[str | None, float]] = {}
        self._told: set[str] = set()
        self._listened = 0.0
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._look, name="failures", daemon=True)
        self._thread.start()

    def tell(self, error: Exception) -> None:
        """Tells the others that this process fails with `error`.

        Where another has failed before, which may be why this one does, the process ends with
        that one's reason instead.
        """
        self.close()
        if not isinstance(error, UserError):
            # It may be that the devices heard of the other's end before we did.
            time.sleep(2 * _SECONDS_APART)
        mine = {
            "process": self._index,
            "code": 2 if isinstance(error, UserError) else 1,
            "reason": f"{'' if isinstance(error, UserError) else type(error).__name__ + ': '}"
            f"{first_line(error)}",
        }
        first = self._first_failure(mine)
        self._linger()
        if first["process"] != self._index:
            _end_with(first)
        if _of_the_network(error):
            leave(
                f"another process was killed, or cut off, without a word ({first_line(error)}); "
                "its own log may say why; the same commands go on from the newest checkpoint",
                1,
            )

    def part(self, seconds: float) -> None:
        """Leaves when all the others do, or fails with one that fails meanwhile."""
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._client.wait_at_barrier("jaxvlm/parting", int(1000 * seconds))
        self.close()
        # The others are killed if the first, with which they keep in touch, leaves before them.
        jax.distributed.shutdown()

    def close(self) -> None:
        """Looks no more."""
        self._closed.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._closed.wait(_SECONDS_APART):
            found = self._found()
            if found:
                self._linger()
                _end_with(found)
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                self._listen()

    def _listen(self) -> None:
        """Tells that this process lives; the first says of which of the others nothing is heard.

        JAX ends all when one has been silent for longer, in words that do not name it.
        """
        now = time.monotonic()
        self._client.key_value_set(f"{_ALIVE}{self._index}", str(now), allow_overwrite=True)
        if self._index or now < self._listened + _SILENT_SECONDS / 6:
            return
        self._listened = now
        for key, word in self._client.key_value_dir_get(_ALIVE):
            last, since = self._heard.get(key, (None, now))
            self._heard[key] = (word, now if word != last else since)
            if now - since > _SILENT_SECONDS and word == last and key not in self._told:
                self._told.add(key)
                print(
                    f"warning: nothing was heard of process {key.rpartition('/')[2]} for "
                    f"{now - since:.0f} seconds: it was killed, suspended or cut off; unless it "
                    "comes back all end soon, and the same commands go on from the newest "
                    "checkpoint",
                    file=sys.stderr,
                    flush=True,
                )

    def _linger(self) -> None:
        if self._index == 0:
            time.sleep(_LINGER_SECONDS)

    def _found(self) -> dict | None:
        # There is none, or there is no coordinator, which ends this process by itself.
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            return json.loads(self._client.key_value_try_get(_KEY))
        return None

    def _first_failure(self, mine: dict) -> dict:
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._client.key_value_set(_KEY, json.dumps(mine))
        return self._found() or mine


def _of_the_network(error: Exception) -> bool:
    """Whether the devices could not reach those of another process."""
    return isinstance(error, jax.errors.JaxRuntimeError) and any(
        name in str(error) for name in ("Gloo", "NCCL", "Connection reset", "Connection closed")
    )


def first_word(name: str, mine: str) -> str:
    """What the first process, asked soon after all have joined, has under this name."""
    client, key = global_state.client, f"jaxvlm/{name}"
    if jax.process_index() == 0:
        client.key_value_set(key, mine)
        return mine
    return client.blocking_key_value_get(key, 60_000)


def _end_with(failure: dict) -> None:
    leave(f"process {failure['process']} has failed: {failure['reason']}", failure["code"])
