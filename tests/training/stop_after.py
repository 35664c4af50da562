"""Trains like `python -m jaxvlm.train` and asks itself to stop: `stop_after.py UPDATE FLAGS`.

Update 0 is for never. Most parameters are split over the devices, as those of a large model are.
"""

import os
import signal
import sys

import jax

from jaxvlm import entry, train
from jaxvlm.models import partition
from jaxvlm.training import loop, mesh

if __name__ == "__main__":
    last = int(sys.argv[1])
    partition.WHOLE_BELOW = mesh.WHOLE_BELOW = 256
    update = loop._Updates._update

    def stopping(self, steps, sums, made):
        sums = update(self, steps, sums, made)
        # Of several processes the first alone.
        if made + 1 == last and jax.process_index() == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return sums

    loop._Updates._update = stopping
    entry.run(train.parser(), train.main, sys.argv[2:])
