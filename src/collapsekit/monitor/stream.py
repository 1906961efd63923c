"""What the passes of one epoch leave: rows wait in a buffer and enter the one accumulator in blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from collapsekit.errors import CollapseError
from collapsekit.losses import Loss
from collapsekit.metrics import ClassMoments, Measurement, NeuralCollapse
from collapsekit.metrics import functional as F
from collapsekit.metrics.batches import as_rows, as_tensor, evaluating
from collapsekit.metrics.last_layer import Head
from collapsekit.metrics.measurement import as_array
from collapsekit.monitor.tap import Pass
from collapsekit.validation import Array

BLOCK_ROWS, BLOCK_BYTES = 2048, 64 * 1024**2
"""Rows that wait before they are counted: a block costs hardly more than one step of 128 rows."""
SAMPLE_ROWS, SAMPLE_BYTES = 1024, 16 * 1024**2
"""Rows of a step that are kept for NC1, and all that are kept: past it every second step is dropped again."""


class Stream:
    """Sums over the samples of one epoch, on one process.

    Parameters
    ----------
    num_classes, dim : int
        K and d.
    every : int or None
        1: the full scatter; n: rows of every n-th step are kept for NC1; None: no NC1.
    loss : CrossEntropy, Focal, Hinge or MSE
        The training loss.
    ignore_index : int
        The label of samples that do not count.
    device : torch.device
        Where the features are.
    """

    def __init__(
        self, num_classes: int, dim: int, *, every: int | None, loss: Loss, ignore_index: int, device: torch.device
    ) -> None:
        self.every, self.device = every, torch.device("cpu") if device.type == "mps" else device  # no float64 there
        self.metric = NeuralCollapse(
            num_classes, dim, scatter=every == 1, loss=loss, ignore_index=ignore_index, sync_on_compute=False
        ).to(self.device)
        self.metric.persistent(True)
        self.margins = torch.zeros(num_classes, dtype=torch.float64, device=self.device)
        self.rows: list[tuple[Tensor, Tensor, Tensor]] = []
        self.sample: list[tuple[Tensor, Tensor]] = []
        self.stride = every or 0
        self.steps = self.not_finite = 0

    def add(self, found: Pass, labels: ArrayLike | Tensor, head: Head) -> None:
        """Take the rows of a step; a rejected one leaves everything as it was."""
        x, z = found
        y = as_tensor("labels", labels)
        if y.shape != x.shape[:-1]:
            as_rows(x, y, z, self.metric.ignore_index)  # says what is wrong with the shape
        self._check(y)
        x, y, z = x.flatten(0, -2), y.flatten().to(x.device, copy=True), z.flatten(0, -2)
        self.rows.append((x, y, z))
        if self.stride > 1 and self.steps % self.stride == 0:
            self._keep(x, y)
        self.steps += 1
        size = sum(len(one) for one, _, _ in self.rows)
        if size >= BLOCK_ROWS or size * x.itemsize * (x.shape[1] + z.shape[1]) >= BLOCK_BYTES:
            self.flush(head)

    def _check(self, labels: Tensor) -> None:
        """Refuse what are no class numbers; on an accelerator the training loss does, and we do not wait for it."""
        if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            raise CollapseError(f"labels: dtype {labels.dtype}; give class numbers, integers")
        K = self.metric.num_classes
        if labels.device.type == "cpu" and labels.numel() and not 0 <= labels.min() <= labels.max() < K:
            bad = labels[((labels < 0) | (labels >= K)) & (labels != self.metric.ignore_index)]
            if len(bad):
                raise CollapseError(f"labels: {int(bad[0])} is no class; the head has classes 0 to {K - 1}")

    def _keep(self, x: Tensor, y: Tensor) -> None:
        thinned = slice(None, None, -(-len(x) // SAMPLE_ROWS)) if len(x) else slice(None)
        self.sample.append((x[thinned], y[thinned]))
        while len(self.sample) > 1 and sum(one.nbytes for one, _ in self.sample) > SAMPLE_BYTES:
            self.sample, self.stride = self.sample[::2], 2 * self.stride

    @torch.no_grad()
    def flush(self, head: Head) -> None:
        """Count the rows that wait."""
        if not self.rows:
            return
        x, y, z = (torch.cat(parts).to(self.device) for parts in zip(*self.rows, strict=True))
        self.rows = []
        with torch.autocast(self.device.type, enabled=False), evaluating(head.module):
            weight, bias = head.weight.detach(), head.bias
        known = (y != self.metric.ignore_index) & (x.sum(dim=1) + z.sum(dim=1)).isfinite()
        known &= weight.isfinite().all() & (bias is None or bias.detach().isfinite().all())
        counted = int(known.sum())
        if counted < len(y):
            self.not_finite += int((y != self.metric.ignore_index).sum()) - counted
            x, y, z = x[known], y[known], z[known]
        if not counted:
            return
        with torch.autocast(self.device.type, enabled=False):
            self.metric.update(x, y, weight, bias, logits=z)
        own = z.gather(1, y[:, None])[:, 0].double()
        others = (z.sum(dim=1, dtype=torch.float64) - own) / (z.shape[1] - 1)
        self.margins.index_add_(0, y.long(), own - others)

    def counted(self) -> dict[str, Any]:
        """Return what this process has counted, on the CPU, without the rows that wait."""
        place = torch.device("cpu")
        return {
            "shape": (self.metric.num_classes, self.metric.dim),
            "metric": {key: _moved(value, place) for key, value in self.metric.state_dict().items()},
            "margins": self.margins.to(place, copy=True),
            "steps": self.steps,
            "not_finite": self.not_finite,
        }

    def state(self) -> dict[str, Any]:
        """Return everything that this process has counted and kept, as tensors and plain values."""
        rows = {key: [tuple(part.clone() for part in one) for one in getattr(self, key)] for key in ("rows", "sample")}
        return self.counted() | rows | {"every": self.every, "stride": self.stride}

    def load(self, state: dict[str, Any]) -> None:
        """Go on where a state was taken."""
        self.metric.load_state_dict({key: _moved(value, self.device) for key, value in state["metric"].items()})
        self.margins.copy_(state["margins"])
        self.rows = [(x, y, z) for x, y, z in _placed(state["rows"], self.device)]
        self.sample = [(x, y) for x, y in _placed(state["sample"], self.device)]
        self.stride, self.steps, self.not_finite = state["stride"], state["steps"], state["not_finite"]

    def merge(self, state: dict[str, Any]) -> None:
        """Join what another process has counted; its rows and samples stay there."""
        self.metric.merge_state({key: _moved(value, self.device) for key, value in state["metric"].items()})
        self.margins += state["margins"].to(self.device)
        self.steps += state["steps"]
        self.not_finite += state["not_finite"]

    def measurement(self, names: Sequence[str] | None) -> Measurement:
        """Return what was counted."""
        return self.metric.measurement(names)

    def mean_margins(self) -> Array:
        """Return the mean target logit minus the mean of the others, as the passes had them, (K,)."""
        with np.errstate(invalid="ignore"):
            return as_array(self.margins) / as_array(self.metric.moments.counts)

    def spreads(self, whole: ClassMoments) -> list[tuple[int, float]]:
        """Return for each kept step its rows, and the sum of ``‖R (h − μ_k)‖²`` over them: NC1 is their mean.

        Parameters
        ----------
        whole : ClassMoments
            Of all samples of all processes: R, which takes the spread between classes away, and the class means are
            theirs.
        """
        inverse, means = F.inverse_between(whole), whole.means.to(self.device)
        if inverse is None or not bool((whole.counts > 1).any()):
            return []
        found = []
        for x, y in self.sample:
            known = (y != self.metric.ignore_index) & x.sum(dim=1).isfinite()
            rows = (x[known].double() - means[y[known].long()]) @ inverse.T.to(self.device)
            found.append((len(rows), float(rows.square().sum())))
        return found


def estimate(spreads: Sequence[tuple[int, float]], steps: int) -> tuple[float, float]:
    """Return NC1 by the kept steps of an epoch of so many, and its standard error (NaN below two kept steps).

    Steps are the units, since rows of one step share a state of the network: a ratio of two sums over a sample of steps
    without replacement, its error by linearisation (Cochran, Sampling Techniques, 1977, section 6.4).

    Examples
    --------
    >>> estimate([(2, 2.0), (2, 4.0)], steps=2)  # every step was kept: no error
    (1.5, 0.0)
    """
    sizes, sums = np.array([one for one in spreads if one[0]], dtype=float).reshape(-1, 2).T
    if not len(sizes):
        return float("nan"), float("nan")
    value = sums.sum() / sizes.sum()
    if len(sizes) < 2:
        return float(value), float("nan")
    unexplained = max(0.0, 1 - len(sizes) / steps) * len(sizes) / (len(sizes) - 1)
    error = np.sqrt(unexplained * ((sums - value * sizes) ** 2).sum()) / sizes.sum()
    return float(value), float(error)


def _placed(entries: Sequence[Sequence[Tensor]], device: torch.device) -> list[list[Tensor]]:
    return [[part.to(device) for part in one] for one in entries]


def _moved(value: Any, device: torch.device) -> Any:
    return [one.to(device) for one in value] if isinstance(value, list) else value.to(device)
