"""Trains like `python -m jaxvlm.train` and asks itself to stop: `stop_after.py UPDATE FLAGS`."""

import os
import signal
import sys

from jaxvlm import entry, train
from jaxvlm.training.metric_log import MetricLog

if __name__ == "__main__":
    last = int(sys.argv[1])
    write = MetricLog.write

    def stopping(self, step, metrics, eta):
        write(self, step, metrics, eta)
        if step == last:
            os.kill(os.getpid(), signal.SIGTERM)

    MetricLog.write = stopping
    entry.run(train.parser(), train.main, sys.argv[2:])
