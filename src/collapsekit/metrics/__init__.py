"""One-pass neural-collapse metrics of real networks (needs the `torch` extra)."""

from collapsekit.errors import CollapseError

try:
    import torch as torch
    import torchmetrics as torchmetrics
except ModuleNotFoundError as missing:
    raise CollapseError(
        f"collapsekit.metrics: {missing.name} is not installed; run: pip install 'collapsekit[torch]'"
    ) from None

from collapsekit.metrics._measure import measure as measure
from collapsekit.metrics._measure import measure_features as measure_features
from collapsekit.metrics._metric import NeuralCollapse as NeuralCollapse
from collapsekit.metrics.measurement import Measurement as Measurement
from collapsekit.metrics.moments import ClassMoments as ClassMoments
