"""collapsekit: predict, measure and prevent minority collapse in neural network classifiers."""

from typing import Any

from collapsekit.errors import CollapseError as CollapseError
from collapsekit.geometry import Geometry as Geometry
from collapsekit.losses import MSE as MSE
from collapsekit.losses import CrossEntropy as CrossEntropy
from collapsekit.losses import Focal as Focal
from collapsekit.losses import Hinge as Hinge
from collapsekit.prediction import Prediction as Prediction
from collapsekit.prediction import predict as predict
from collapsekit.problem import UFM as UFM
from collapsekit.profiles import long_tail as long_tail
from collapsekit.profiles import step as step
from collapsekit.solver._certify import certify as certify
from collapsekit.solver._solve import solve as solve
from collapsekit.theory._thresholds import thresholds as thresholds


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version  # here, because it costs as much as all of the above

        return version("collapsekit")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
