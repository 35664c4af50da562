"""Batches are on the devices before they are asked for, and what goes wrong is heard."""

import threading
import time

import jax
import numpy as np
import pytest
from waiting import until

from jaxvlm.errors import UserError
from jaxvlm.training.feed import Feed
from jaxvlm.training.mesh import batch_sharding, make_mesh


class Stream:
    """A stream that counts what was taken from it and may wait, break off, or end."""

    def __init__(self, count, seconds=0.0, error_at=None):
        self.taken, self.closed = 0, False
        self._count, self._seconds, self._error_at = count, seconds, error_at

    def __iter__(self):
        return self

    def __next__(self):
        if self.taken == self._error_at:
            raise UserError("the image 'a.jpg' cannot be read")
        if self.taken == self._count:
            raise StopIteration
        time.sleep(self._seconds)
        self.taken += 1
        return {"tokens": np.full((2, 3), self.taken), "lost": np.array([1, 0], np.int32)}

    def close(self):
        self.closed = True


@pytest.fixture
def feed():
    feeds = []

    def start(stream):
        feeds.append(Feed(stream, batch_sharding(make_mesh(1, -1))))
        return feeds[-1]

    yield start
    for one in feeds:
        one.close()


def test_batches_come_in_order_as_arrays_of_the_devices(feed):
    fed = list(feed(Stream(5)))
    assert [int(item.batch["tokens"][0, 0]) for item in fed] == [1, 2, 3, 4, 5]
    assert all(isinstance(item.batch["tokens"], jax.Array) for item in fed)
    assert all(set(item.batch) == {"tokens"} and item.lost == 1 for item in fed)


def test_batches_wait_before_they_are_asked_for_but_not_all_of_them(feed):
    stream = Stream(100)
    feed(stream)
    until(lambda: stream.taken >= 3)
    time.sleep(0.2)
    # Two wait, one is in hand.
    assert stream.taken == 3


def test_only_waiting_is_counted(feed):
    quick, slow = Stream(3), Stream(3, seconds=0.2)
    ready = feed(quick)
    until(lambda: quick.taken == 3)
    next(ready)
    assert ready.waited < 0.1
    starving = feed(slow)
    list(starving)
    assert starving.waited > 0.4


def test_an_error_of_the_data_is_raised_where_its_batch_is_asked_for(feed):
    fed = feed(Stream(9, error_at=2))
    next(fed), next(fed)
    for _ in range(2):
        with pytest.raises(UserError, match=r"a.jpg"):
            next(fed)


def test_an_ended_stream_stays_ended(feed):
    fed = feed(Stream(1))
    next(fed)
    for _ in range(2):
        with pytest.raises(StopIteration):
            next(fed)


@pytest.mark.parametrize("asked", [0, 2])
def test_closing_ends_the_thread_and_the_stream(asked):
    stream = Stream(100)
    fed = Feed(stream, batch_sharding(make_mesh(1, -1)))
    for _ in range(asked):
        next(fed)
    fed.close()
    assert stream.closed
    assert not any(thread.name == "feed" and thread.is_alive() for thread in threading.enumerate())


class Busy:
    """Something that the devices compute."""

    def __init__(self, seconds):
        self._seconds = seconds

    def block_until_ready(self):
        time.sleep(self._seconds)
        return self


def test_devices_that_still_compute_do_not_wait(feed):
    """A batch that comes while they are busy costs nothing, though it was not ready."""
    slow = feed(Stream(3, seconds=0.15))
    slow.take(Busy(0.5))
    assert slow.waited < 0.05
    idle = feed(Stream(3, seconds=0.3))
    idle.take(Busy(0.0))
    assert idle.waited > 0.2
