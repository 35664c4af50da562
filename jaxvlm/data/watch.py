"""Worker processes that end with the process that started them, and not before."""

import multiprocessing
import os
import signal
import threading


def end_with_parent() -> None:
    """In a worker process: ends it when its parent is gone; elsewhere does nothing.

    A parent that is killed cannot tell its workers to stop. Signals that ask all processes of a job
    to stop are the parent's to answer, which needs the workers for the update under way.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=watch, name="watch-parent", daemon=True).start()
