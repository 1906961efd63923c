"""Neural collapse as a torchmetrics metric: a shell around ClassMoments with packed float64 states."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torchmetrics import Metric

from collapsekit.errors import CollapseError
from collapsekit.metrics import summary
from collapsekit.metrics.moments import ClassMoments, checked_batch, merge_states, state_size
from collapsekit.prediction import predict
from collapsekit.problem import UFM
from collapsekit.validation import whole_number


class NeuralCollapse(Metric):
    r"""Neural-collapse metrics of a stream of labelled features in one pass, balanced or not.

    The state is that of :class:`ClassMoments` plus the last head seen, so the result does not depend on how the
    samples are split over batches, shards or processes.

    Parameters
    ----------
    num_classes : int
        K.
    dim : int
        d, the width of the features.
    scatter : bool
        Whether to keep the d × d scatter matrix; without it there is no ``nc1``.
    problem : UFM, optional
        The problem whose prediction ``nc2_h``, ``nc2_wwt``, ``nc3_wh`` and the residuals compare with; without it
        they are absent.
    **kwargs
        Passed to ``torchmetrics.Metric``.

    Raises
    ------
    CollapseError
        If sizes are out of range or `problem` has other classes.

    Notes
    -----
    Nearest-centre agreement needs centres before the samples come. After one pass, :meth:`use_centres` freezes the
    current class means; from then on each update with a head also counts how often the nearest centre names the
    class that the head names (``ncc``), and how often the true one (``ncc_accuracy``).

    Examples
    --------
    >>> import torch
    >>> metric = NeuralCollapse(num_classes=2, dim=2)
    >>> features = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    >>> metric.update(features, torch.tensor([0, 0, 1]), weight=torch.eye(2))
    >>> round(metric.compute()["nc1"], 12)
    0.0
    >>> metric.compute_per_class()["feature_sqnorm"]
    tensor([1., 4.], dtype=torch.float64)
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    moments_state: Tensor
    head_state: Tensor
    centre_hits: Tensor

    def __init__(
        self, num_classes: int, dim: int, *, scatter: bool = True, problem: UFM | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.num_classes = whole_number("num_classes", num_classes, 2, "give the number of classes")
        self.dim = whole_number("dim", dim, 1, "give the width of the features")
        self.frame = None if problem is None else predict(problem)
        if problem is not None and problem.num_classes != self.num_classes:
            raise CollapseError(f"problem: {problem.num_classes} classes; num_classes={num_classes}")
        size = state_size(self.num_classes, self.dim, scatter=scatter)
        reducer = partial(merge_states, num_classes=self.num_classes, dim=self.dim)
        self.add_state("moments_state", torch.zeros(size, dtype=torch.float64), dist_reduce_fx=reducer)
        head = torch.zeros(self.num_classes, self.dim + 2, dtype=torch.float64)
        self.add_state("head_state", head, dist_reduce_fx=last_head)
        hits = torch.zeros(4, self.num_classes, dtype=torch.float64)  # samples, correct; with a head: samples, agreeing
        self.add_state("centre_hits", hits, dist_reduce_fx="sum")
        self.register_buffer("centres", None, persistent=False)

    def update(
        self, features: Tensor, labels: Tensor, weight: Tensor | None = None, bias: Tensor | None = None
    ) -> None:
        """Add a batch; a rejected batch leaves the state unchanged.

        Parameters
        ----------
        features : Tensor, shape (n, d)
            Inputs of the head, any floating dtype.
        labels : Tensor, shape (n,)
            Any integer dtype, in [0, K).
        weight : Tensor, shape (K, d), optional
            The head as it is now; the last one given is kept.
        bias : Tensor, shape (K,), optional
            Its bias; only with `weight`.

        Raises
        ------
        CollapseError
            If shapes, types or values do not fit.
        """
        head = None if weight is None else packed_head(weight, bias, self.num_classes, self.dim)
        if weight is None and bias is not None:
            raise CollapseError("bias: given without weight; pass both of the head")
        self._leave_inference_mode()
        self.moments.update(features, labels)
        if head is not None:
            self.head_state = head.to(self.head_state.device)
        if isinstance(self.centres, Tensor):
            self._count_centres(features, labels, head)

    @property
    def moments(self) -> ClassMoments:
        """The moments so far, living in the metric's state."""
        return ClassMoments.from_state(self.moments_state, self.num_classes, self.dim)

    def use_centres(self) -> None:
        """Freeze the current class means as the centres of later nearest-centre decisions.

        Raises
        ------
        CollapseError
            If there are no samples yet.
        """
        with self._all_ranks():
            if not bool(self.moments.seen.any()):
                raise CollapseError("use_centres: no centres yet; update with samples first")
            self.centres = self.moments.means

    def compute(self) -> dict[str, float]:
        """Return every metric that can be known, as floats by lower-case key: loggable as is.

        Keys: ``nc1``, ``cdnv``, ``nc2_largest_cosine``, ``nc2_mean_cosine``, ``nc2_etf_h``, ``nc2_norm_spread_h``; with
        a head ``nc2_w``, ``nc2_etf_w``, ``nc2_norm_spread_w``, ``nc3_duality``; with a problem ``nc2_h``, and with a
        head too ``nc2_wwt``, ``nc3_wh``, and each one's ``_residual``; after :meth:`use_centres` ``ncc_accuracy`` and,
        with a head, ``ncc``.
        """
        weight, _ = unpacked_head(self.head_state)
        result = summary.scalars(self.moments, weight, self.frame)
        samples, correct, headed, agreeing = self.centre_hits.sum(dim=1).tolist()
        if samples:
            result["ncc_accuracy"] = correct / samples
        if headed:
            result["ncc"] = agreeing / headed
        return result

    def compute_per_class(self) -> dict[str, Tensor]:
        """Return what is known of each class, (K,) float64 by key; NaN for classes without samples."""
        with self._all_ranks():
            weight, bias = unpacked_head(self.head_state)
            result = summary.vectors(self.moments, weight, bias)
            samples, correct, headed, agreeing = self.centre_hits
            if samples.any():
                result["ncc_accuracy"] = correct / samples
            if headed.any():
                result["ncc"] = agreeing / headed
        return result

    def _all_ranks(self) -> AbstractContextManager[None]:
        """Within it the state is that of all processes: what torchmetrics does around `compute` only."""
        return self.sync_context(dist_sync_fn=self.dist_sync_fn, should_sync=self.sync_on_compute)

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Join the state of another metric, or a state itself; what was computed before is forgotten."""
        other = incoming_state if isinstance(incoming_state, dict) else vars(incoming_state)
        size = other["moments_state"].numel() if "moments_state" in other else 0
        if size != self.moments_state.numel():
            raise CollapseError(
                f"incoming_state: {size} numbers cannot join {self.moments_state.numel()}; num_classes, dim and "
                "scatter must agree"
            )
        super().merge_state(incoming_state)
        self._computed = None

    def _leave_inference_mode(self) -> None:
        """Replace states that were made in inference mode (Lightning resets there): they cannot be updated outside."""
        if torch.is_inference_mode_enabled():
            return
        for name in self._defaults:
            state = getattr(self, name)
            if state.is_inference():
                setattr(self, name, state.clone())

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = ()) -> Module:
        """Let `half`, `to` and the like move the state to another device, but never to another precision."""
        names = [name for name in (*self._defaults, "centres") if isinstance(getattr(self, name), Tensor)]
        states = {name: getattr(self, name) for name in names}
        defaults = dict(self._defaults)
        super()._apply(fn, exclude_state)
        for name, state in states.items():
            setattr(self, name, state.to(getattr(self, name).device))
        for name, default in defaults.items():
            self._defaults[name] = default.to(getattr(self, name).device)  # type: ignore[union-attr]
        return self

    def _count_centres(self, features: Tensor, labels: Tensor, head: Tensor | None) -> None:
        x, y = checked_batch(features, labels, self.num_classes, self.dim, self.centre_hits.device)
        nearest = nearest_centre(x, self.centres)
        one, zero = torch.ones_like(nearest), torch.zeros_like(nearest)
        rows = [one, nearest == y, zero, zero]
        if head is not None:
            weight, bias = unpacked_head(head)
            assert weight is not None
            rows[2:] = [one, nearest == decision(x, weight, bias)]
        self.centre_hits.index_add_(1, y, torch.stack([row.to(torch.float64) for row in rows]))


def packed_head(weight: Tensor, bias: Tensor | None, num_classes: int, dim: int) -> Tensor:
    """Return weight, bias and a flag as one (K, d + 2) float64 tensor; flag 0: no head, 1: no bias, 2: bias."""
    W = torch.as_tensor(weight).detach()
    if tuple(W.shape) != (num_classes, dim):
        raise CollapseError(f"weight: shape {tuple(W.shape)}; expected ({num_classes}, {dim}), one row a class")
    b = torch.zeros(num_classes) if bias is None else torch.as_tensor(bias).detach()
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


def nearest_centre(features: Tensor, centres: Tensor) -> Tensor:
    """Return the class of the nearest centre for each feature, (n,); classes without a centre (NaN) never win."""
    known = torch.isfinite(centres).all(dim=1)
    points = torch.where(known[:, None], centres, 0.0)
    middle = points[known].mean(dim=0)
    distances = torch.cdist(features - middle, points - middle)
    return distances.masked_fill(~known, torch.inf).argmin(dim=1)


def decision(features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the class that the head names for each feature, (n,)."""
    return torch.nn.functional.linear(
        features, weight.to(features), None if bias is None else bias.to(features)
    ).argmax(1)
