"""Requests to stop: a scheduler's SIGTERM (or SIGUSR1, ahead of a time limit), or Ctrl-C."""

import contextlib
import signal
from collections.abc import Iterator

from jaxvlm.errors import Requeue

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopRequest:
    """What was asked for; at once unless updates are being made, which may be finished first."""

    def __init__(self):
        self._asked: signal.Signals | None = None
        self._deferring = False

    def __bool__(self) -> bool:
        return self._asked is not None

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Within, requests are only noted; a second Ctrl-C ends the process as always."""
        before, self._deferring = self._deferring, True
        try:
            yield
        finally:
            self._deferring = before

    def answer(self, kept: str) -> BaseException:
        """What to raise when everything is `kept`."""
        name = self._asked.name if self._asked else "a signal to another process"
        text = f"{name}: {kept}; the same command goes on from here"
        return (
            KeyboardInterrupt(text)
            if self._asked is signal.SIGINT
            else Requeue(f"stopped by {text}")
        )

    def handle(self, number: int, frame: object) -> None:
        """The signal handler."""
        first, self._asked = self._asked is None, signal.Signals(number)
        if not self._deferring:
            raise self.answer("nothing is lost")
        if first:
            print(f"{self._asked.name}: stopping after this update, or as soon as it is compiled "
                  "(Ctrl-C ends at once)", flush=True)  # fmt: skip
        elif self._asked is signal.SIGINT:
            raise self.answer("asked twice, updates after the newest checkpoint are lost")


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Takes the signals over; they are handled as before afterwards."""
    request = StopRequest()
    before = {number: signal.signal(number, request.handle) for number in _SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
