"""One-pass neural-collapse metrics of real networks (needs the `torch` extra)."""

import traceback

from collapsekit.errors import CollapseError

try:
    import torch as torch
    import torchmetrics as torchmetrics
except ModuleNotFoundError as missing:
    raise CollapseError(
        f"collapsekit.metrics: {missing.name} is not installed; run: pip install 'collapsekit[torch]'"
    ) from None
except Exception as error:  # torchmetrics imports torchvision where it is installed; a build for another torch raises
    package = "torchvision" if "torchvision" in traceback.format_exc() else "torchmetrics"
    failed = " ".join(f"{type(error).__name__}: {error}".split())
    raise CollapseError(
        f"collapsekit.metrics: {package} cannot be imported ({failed}); run: pip uninstall {package}, "
        "or install the build that belongs to this torch"
    ) from error

from collapsekit.metrics import conventions as conventions
from collapsekit.metrics._features import Features as Features
from collapsekit.metrics._features import features_of as features_of
from collapsekit.metrics._measure import measure as measure
from collapsekit.metrics._measure import measure_features as measure_features
from collapsekit.metrics._metric import NeuralCollapse as NeuralCollapse
from collapsekit.metrics.measurement import Measurement as Measurement
from collapsekit.metrics.moments import ClassMoments as ClassMoments
