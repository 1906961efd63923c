"""Training experiments on imbalanced data (needs the `torch` extra)."""

import collapsekit.metrics  # names the missing extra if torch is absent  # noqa: F401
from collapsekit.training._collect import collect as collect
from collapsekit.training._collect import write_table as write_table
from collapsekit.training._compare_run import compare_run as compare_run
from collapsekit.training._compare_run import run_scope as run_scope
from collapsekit.training._config import TrainConfig as TrainConfig
from collapsekit.training._split import Split as Split
from collapsekit.training._split import load_split as load_split
from collapsekit.training._sweep import Outcome as Outcome
from collapsekit.training._sweep import Standing as Standing
from collapsekit.training._sweep import sweep as sweep
from collapsekit.training._train import train as train
from collapsekit.training.runs import Run as Run
from collapsekit.training.runs import load_run as load_run
