"""Training experiments on imbalanced data (needs the `torch` extra)."""

import collapsekit.metrics  # names the missing extra if torch is absent  # noqa: F401
from collapsekit.training.data import Split as Split
from collapsekit.training.data import load_split as load_split
from collapsekit.training.grid import Outcome as Outcome
from collapsekit.training.grid import Standing as Standing
from collapsekit.training.grid import sweep as sweep
from collapsekit.training.loop import train as train
from collapsekit.training.recipe import LastLayer as LastLayer
from collapsekit.training.recipe import TrainConfig as TrainConfig
from collapsekit.training.runs import Run as Run
from collapsekit.training.runs import load_run as load_run
