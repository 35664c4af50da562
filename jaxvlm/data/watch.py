"""Worker processes that end with the process that started them, however that ends."""

import multiprocessing
import os
import threading


def end_with_parent() -> None:
    """In a worker process: ends it when its parent is gone; elsewhere does nothing.

    A parent that is killed cannot tell its workers to stop.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="watch-parent", daemon=True).start()
