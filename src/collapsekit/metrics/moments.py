"""Per-class moments of features in one pass: exact merging, float64 state, no loop over classes; head and centres."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from collapsekit.errors import CollapseError
from collapsekit.metrics.batches import as_tensor
from collapsekit.validation import whole_number

LARGEST_SCATTER_BYTES = 2 * 1024**3
TIED = 1e-12
"""Squared distances that differ by less, relative to the squared lengths they come from, are equal but for rounding."""


class ClassMoments:
    r"""Counts, means and within-class scatter of labelled features; a mergeable accumulator.

    With :math:`\mu_k` the mean of class k over its :math:`n_k` samples it holds

    .. math::

        n_k, \qquad \mu_k, \qquad s_k = \sum_i \lVert h_{k,i}-\mu_k\rVert^2, \qquad
        S = \sum_k\sum_i (h_{k,i}-\mu_k)(h_{k,i}-\mu_k)^\top .

    A batch is centred by its own class means and joined by Chan's formula, so within-class spread keeps its digits
    however far from the origin the means lie (raw second moments lose all of them). Joining is associative:
    batches, shards and processes give the same result in any split.

    Parameters
    ----------
    num_classes : int
        K.
    dim : int
        d, the width of the features.
    scatter : bool
        Whether S (d × d) is kept; without it only its trace is, and NC1 is not available.
    device : torch.device or str, optional
        Where the float64 state lives; the CPU by default and where the device has no float64.

    Raises
    ------
    CollapseError
        If a size is no whole number above 0, or the scatter matrix would exceed 2 GiB.

    References
    ----------
    Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979.

    Examples
    --------
    >>> import torch
    >>> moments = ClassMoments(num_classes=2, dim=1)
    >>> moments.update(torch.tensor([[1.0], [3.0], [5.0]]), torch.tensor([0, 0, 1]))
    >>> moments.counts.tolist(), moments.means[:, 0].tolist(), moments.within.tolist()
    ([2.0, 1.0], [2.0, 5.0], [1.0, 0.0])
    """

    def __init__(
        self, num_classes: int, dim: int, *, scatter: bool = True, device: torch.device | str | None = None
    ) -> None:
        num_classes = whole_number("num_classes", num_classes, 1, "give the number of classes")
        dim = whole_number("dim", dim, 1, "give the width of the features")
        device = torch.device(device or "cpu")
        size, place = state_size(num_classes, dim, scatter=scatter), "cpu" if device.type == "mps" else device
        self._view(torch.zeros(size, dtype=torch.float64, device=place), num_classes, dim)

    @classmethod
    def from_state(cls, state: Tensor, num_classes: int, dim: int) -> ClassMoments:
        """Return moments that live in `state` itself, a flat float64 tensor of `state_size` entries."""
        moments = cls.__new__(cls)
        moments._view(state, num_classes, dim)
        return moments

    def _view(self, state: Tensor, num_classes: int, dim: int) -> None:
        per_class = num_classes * (dim + 2)
        self.state, self.num_classes, self.dim = state, num_classes, dim
        table = state[:per_class].view(num_classes, dim + 2)
        self._counts, self._sums_of_squares, self._means = table[:, 0], table[:, 1], table[:, 2:]
        self._scatter = state[per_class:].view(dim, dim) if state.numel() > per_class else None

    @property
    def counts(self) -> Tensor:
        """n_k, (K,) float64."""
        return self._counts.clone()

    @property
    def means(self) -> Tensor:
        """μ_k, (K, d) float64; NaN for classes without samples."""
        return torch.where(self._counts[:, None] > 0, self._means, torch.nan)

    @property
    def within(self) -> Tensor:
        """Mean squared distance to the class mean, ``s_k / n_k``, (K,); NaN for classes without samples."""
        return self._sums_of_squares / torch.where(self._counts > 0, self._counts, torch.nan)

    @property
    def scatter(self) -> Tensor | None:
        """S, (d, d), summed over all samples; None if it is not kept."""
        return None if self._scatter is None else self._scatter.clone()

    def centred(self) -> ClassMoments:
        """Return the moments of the features less their mean over all samples."""
        moved = self.from_state(self.state.clone(), self.num_classes, self.dim)
        moved._means -= self.overall_mean
        return moved

    @property
    def overall_mean(self) -> Tensor:
        """Mean of all features, (d,)."""
        return (self._counts / self._counts.sum()) @ self._means

    @property
    def seen(self) -> Tensor:
        """Which classes have samples, (K,) bool."""
        return self._counts > 0

    @property
    def unseen(self) -> list[int]:
        """Classes without samples."""
        return torch.nonzero(self._counts == 0).flatten().tolist()

    @property
    def singletons(self) -> list[int]:
        """Classes with one sample: their within-class spread is 0 by definition, not by collapse."""
        return torch.nonzero(self._counts == 1).flatten().tolist()

    @torch.no_grad()
    def update(self, features: Tensor, labels: Tensor) -> None:
        """Add a batch.

        Parameters
        ----------
        features : Tensor, shape (n, d)
            Any floating dtype; n may be 0 or 1.
        labels : Tensor, shape (n,)
            Any integer dtype, in [0, K).

        Raises
        ------
        CollapseError
            If shapes, types or values do not fit; the moments are then unchanged.
        """
        x, y = checked_batch(features, labels, self.num_classes, self.dim, self.state.device)
        classes, where, n = torch.unique(y, return_inverse=True, return_counts=True)
        n = n.to(torch.float64)
        means = torch.zeros(len(classes), self.dim, dtype=torch.float64, device=x.device)
        means.index_add_(0, where, x).div_(n[:, None])
        residuals = x - means[where]
        squares = torch.zeros_like(n).index_add_(0, where, residuals.square().sum(dim=1))
        if not torch.isfinite(squares).all():
            require_finite(x)
        between = self._join(classes, n, means, squares)
        if self._scatter is not None:
            rows = torch.cat([residuals, between])
            self._scatter.addmm_(rows.T, rows)

    @torch.no_grad()
    def merge(self, other: ClassMoments) -> ClassMoments:
        """Return the moments of both sets of samples together; neither operand changes.

        Raises
        ------
        CollapseError
            If numbers of classes, widths or scatter differ.
        """
        if (self.num_classes, self.dim, self.state.numel()) != (other.num_classes, other.dim, other.state.numel()):
            raise CollapseError(
                f"other: {other!r} cannot join {self!r}; numbers of classes, widths and scatter must agree"
            )
        merged = ClassMoments.from_state(self.state.clone(), self.num_classes, self.dim)
        added = ClassMoments.from_state(other.state.to(self.state.device), self.num_classes, self.dim)
        classes = torch.nonzero(added._counts > 0).flatten()
        between = merged._join(classes, added._counts[classes], added._means[classes], added._sums_of_squares[classes])
        if merged._scatter is not None and added._scatter is not None:
            merged._scatter.add_(added._scatter).addmm_(between.T, between)
        return merged

    def _join(self, classes: Tensor, n: Tensor, means: Tensor, squares: Tensor) -> Tensor:
        """Chan's formula for the named classes; returns the rows whose Gram matrix joins the scatter."""
        before = self._counts[classes]
        share = n / (before + n)
        delta = means - self._means[classes]
        rows = delta * (before * share).sqrt()[:, None]
        squares = squares + rows.square().sum(dim=1)
        if not torch.isfinite(squares).all():
            raise CollapseError("features: squares overflow float64; scale them down")
        self._means[classes] += delta * share[:, None]
        self._sums_of_squares[classes] += squares
        self._counts[classes] = before + n
        return rows

    def __repr__(self) -> str:
        kept = "scatter" if self._scatter is not None else "trace only"
        return f"ClassMoments(K={self.num_classes}, d={self.dim}, {int(self._counts.sum())} samples, {kept})"


def state_size(num_classes: int, dim: int, *, scatter: bool) -> int:
    """Return how many float64 numbers the moments occupy; refuse a scatter matrix above 2 GiB."""
    if scatter and 8 * dim**2 > LARGEST_SCATTER_BYTES:
        raise CollapseError(
            f"dim={dim}: the scatter matrix needs {8 * dim**2 / 1024**3:.1f} GiB, above the limit of 2 GiB; pass "
            "scatter=False to keep its trace only (NC1 is then not available)"
        )
    return num_classes * (dim + 2) + (dim**2 if scatter else 0)


def merge_states(states: Sequence[Tensor] | Tensor, num_classes: int, dim: int) -> Tensor:
    """Return the flat state of all samples in `states`: the one reduction for batches, shards and processes."""
    total = ClassMoments.from_state(states[0].clone(), num_classes, dim)
    for state in states[1:]:
        total = total.merge(ClassMoments.from_state(state, num_classes, dim))
    return total.state


def checked_batch(
    features: Tensor, labels: Tensor, num_classes: int, dim: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return features as float64 (n, d) and labels as int64 (n,) on `device`, or say what is wrong with them."""
    x, y = as_tensor("features", features), as_tensor("labels", labels)
    if not x.is_floating_point():
        raise CollapseError(f"features: dtype {x.dtype}; give floating point numbers")
    if x.ndim != 2 or x.shape[1] != dim:
        raise CollapseError(f"features: shape {tuple(x.shape)}; expected (n, {dim})")
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise CollapseError(f"labels: dtype {y.dtype}; give integers from 0 to {num_classes - 1}")
    if y.shape != x.shape[:1]:
        raise CollapseError(f"labels: shape {tuple(y.shape)} for {len(x)} features; expected ({len(x)},)")
    y = y.detach().to(device).to(torch.int64)
    bad = torch.nonzero((y < 0) | (y >= num_classes)).flatten()
    if len(bad):
        i = int(bad[0])
        raise CollapseError(f"labels: sample {i} has label {int(y[i])}; expected 0 to {num_classes - 1}")
    return x.detach().to(device).to(torch.float64), y


def require_finite(features: Tensor) -> None:
    """Name the first sample that is not finite, if there is one."""
    bad = torch.nonzero(~torch.isfinite(features).all(dim=1)).flatten()
    if len(bad):
        i = int(bad[0])
        value = features[i][~torch.isfinite(features[i])][0].item()
        raise CollapseError(f"features: sample {i} holds {value}; {len(bad)} of {len(features)} samples are not finite")


def packed_head(weight: ArrayLike | Tensor, bias: ArrayLike | Tensor | None, num_classes: int, dim: int) -> Tensor:
    """Return weight, bias and a flag as one (K, d + 2) float64 tensor; flag 0: no head, 1: no bias, 2: bias."""
    W = as_tensor("weight", weight)
    if tuple(W.shape) != (num_classes, dim):
        raise CollapseError(f"weight: shape {tuple(W.shape)}; expected ({num_classes}, {dim}), one row a class")
    b = torch.zeros(num_classes) if bias is None else as_tensor("bias", bias)
    if tuple(b.shape) != (num_classes,):
        raise CollapseError(f"bias: shape {tuple(b.shape)}; expected ({num_classes},)")
    if not (torch.isfinite(W).all() and torch.isfinite(b).all()):
        raise CollapseError("weight or bias: not finite; the head has diverged")
    flag = torch.full((num_classes, 1), 1.0 if bias is None else 2.0, dtype=torch.float64, device=W.device)
    return torch.cat([W.to(torch.float64), b.to(W.device, torch.float64)[:, None], flag], dim=1)


def unpacked_head(state: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Return (weight, bias) from a packed head, None for what it does not hold."""
    flag = float(state[0, -1])
    return (state[:, :-2] if flag > 0 else None), (state[:, -2] if flag > 1 else None)


def last_head(states: Tensor) -> Tensor:
    """Return the last packed head that holds one: batches without a head, and ranks without data, do not count."""
    return next((state for state in reversed(list(states)) if float(state[0, -1]) > 0), states[-1])


def first_centres(states: Tensor) -> Tensor:
    """Return the first centres that were frozen; those of all processes are the same."""
    return next((state for state in states if state.isfinite().any()), states[0])


def nearest_centre(features: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Return the class of each feature's nearest centre, (n,), and whether there is one and no other as near.

    Classes without a centre (NaN) never win.
    """
    known = torch.nonzero(torch.isfinite(centres).all(dim=1))[:, 0]
    middle = centres[known].mean(dim=0)
    x, points = features - middle, centres[known] - middle
    if len(known) < 2:
        return known.expand(len(x)), torch.zeros(len(x), dtype=torch.bool, device=x.device)
    sqnorms = points.square().sum(dim=1)
    squares, order = torch.addmm(sqnorms, x, points.T, alpha=-2).topk(2, dim=1, largest=False)
    size = x.square().sum(dim=1) + sqnorms.max()
    return known[order[:, 0]], squares[:, 1] - squares[:, 0] > TIED * size
