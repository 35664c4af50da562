"""Work on many items in several processes."""

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from jaxvlm.errors import UserError

Item, Made = TypeVar("Item"), TypeVar("Made")


def made_of(
    work: Callable[[Item], Made], items: Sequence[Item], workers: int
) -> Iterator[tuple[Item, Made]]:
    """(item, what was made of it) of each, as they are finished.

    Raises:
      UserError: what `work` raised, or a worker that was killed.
    """
    if workers == 1 or len(items) < 2:
        yield from ((item, work(item)) for item in items)
        return
    # The work may hold every question of a data set: it is sent once a process, not once an item.
    pool = ProcessPoolExecutor(
        min(workers, len(items)), multiprocessing.get_context("spawn"), _start, (work,)
    )
    with pool:
        running = {pool.submit(_do, item): item for item in items}
        try:
            for done in as_completed(running):
                yield running[done], done.result()
        except BrokenProcessPool:
            raise UserError(
                "a worker was killed (was the memory full?); the same command goes on where it "
                "stopped, with fewer --workers if need be"
            ) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _start(work: Callable) -> None:
    global _work
    _work = work
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    """Ends this process when its parent is gone: killed, it could tell nobody."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _do(item):
    return _work(item)
