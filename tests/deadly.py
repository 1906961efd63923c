"""Networks that end their own process, or fail; named in configurations as ``deadly:kills`` and ``deadly:breaks``."""

import os
import signal


def kills(shape, num_classes):
    os.kill(os.getpid(), signal.SIGKILL)


def breaks(shape, num_classes):
    raise RuntimeError("no such\nlayer")
