"""Trains like `python -m jaxvlm.train` and asks itself to stop: `stop_after.py UPDATE FLAGS`."""

import os
import signal
import sys

import jax

from jaxvlm import entry, train
from jaxvlm.training import loop

if __name__ == "__main__":
    last = int(sys.argv[1])
    update = loop._Updates._update

    def stopping(self, steps, sums, made):
        sums = update(self, steps, sums, made)
        # Of several processes the first alone.
        if made + 1 == last and jax.process_index() == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return sums

    loop._Updates._update = stopping
    entry.run(train.parser(), train.main, sys.argv[2:])
