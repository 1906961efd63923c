"""Networks that end their own process, fail or talk; named in configurations as ``deadly:kills`` and the like."""

import math
import os
import signal

from torch import nn


def kills(shape, num_classes):
    os.kill(os.getpid(), signal.SIGKILL)


def breaks(shape, num_classes):
    raise RuntimeError("no such\nlayer")


def talks(shape, num_classes):
    print("a word")  # noqa: T201
    return nn.Sequential(
        nn.Flatten(), nn.Linear(math.prod(shape), 12), nn.ReLU(), nn.Linear(12, num_classes, bias=False)
    )
