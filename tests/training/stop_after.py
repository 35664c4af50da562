"""Trains like `python -m jaxvlm.train` until something happens: `stop_after.py WHEN FLAGS`.

WHEN is UPDATE, after which the first process is asked to stop, `UPDATE:kill` (process 1 is killed)
or `UPDATE:error` (it fails); update 0 is for never. Most parameters are split over the devices, as
those of a large model are.
"""

import os
import signal
import sys

import jax

from jaxvlm import entry, train
from jaxvlm.models import partition
from jaxvlm.training import loop, mesh

if __name__ == "__main__":
    last, _, what = sys.argv[1].partition(":")
    partition.WHOLE_BELOW = mesh.WHOLE_BELOW = 256
    update = loop._Updates._update

    def stopping(self, steps, sums, made):
        sums = update(self, steps, sums, made)
        if made + 1 == int(last) and jax.process_index() == (1 if what else 0):
            if what == "error":
                raise RuntimeError("the disk is gone")
            os.kill(os.getpid(), signal.SIGKILL if what == "kill" else signal.SIGTERM)
        return sums

    loop._Updates._update = stopping
    entry.run(train.parser(), train.main, sys.argv[2:])
