"""The one accumulator of a measured network: moments, class sums, recall, as a torchmetrics metric."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from collapsekit.errors import CollapseError
from collapsekit.losses import Loss
from collapsekit.metrics.batches import as_rows, as_tensor, checked_batch, label_number, one_of, require_finite
from collapsekit.metrics.decisions import (
    NOBODY,
    PLAIN,
    Centres,
    checked_head,
    checked_logits,
    decisions,
    named_classes,
)
from collapsekit.metrics.functional import span_of_means
from collapsekit.metrics.losses import checked_loss
from collapsekit.metrics.measurement import Measurement, as_array
from collapsekit.metrics.moments import ClassMoments, Precision, Within, merge_states, state_size
from collapsekit.metrics.rows import row_blocks
from collapsekit.metrics.states import EMPTY, first_basis, first_centres, last_head, packed_head, unpacked_head
from collapsekit.prediction import predict
from collapsekit.problem import UFM
from collapsekit.validation import class_names, whole_number

LEAST_LEAD = 0.01
"""Share of the median lead by which a sample's own logit must lead: a lost class ties all logits but for remnants."""
LEADS = 1e-37, 1e37
"""Within which a lead is kept: float32 holds it. Beyond, all count alike."""
FROZEN = 2
IGNORED = -100
"""The label of samples that do not count, as in torch's losses."""


class NeuralCollapse(Metric):
    r"""Neural-collapse metrics of a stream of labelled features in one pass, balanced or not.

    The state is that of :class:`ClassMoments`, the last head seen, sums over each class (confidence, loss) and, for
    recalls, two float32 numbers a sample with a head: its lead and its class. The result does not depend on how the
    samples are split over batches, shards or processes. :meth:`measurement` gives what :func:`measure` gives.

    Parameters
    ----------
    num_classes : int
        K.
    dim : int
        d, the width of the features.
    within : {"full", "trace", "projected"}
        What is kept of the scatter matrix within classes: all of it (d²); its trace only, and there is no ``nc1``; or
        its projection on the span of the centred class means, at most (K−1)², from a second pass over the same samples
        after :meth:`use_centres`, with which ``nc1`` is the same as with all of it.
    precision : {"input", "float64"}
        In what products are formed, as :class:`ClassMoments` has it; confidences and losses then have seven digits.
    problem : UFM, optional
        The problem whose prediction ``nc2_h``, ``nc2_wwt``, ``nc3_wh`` and the residuals compare with; without it
        they are absent.
    loss : CrossEntropy, Focal, Hinge or MSE
        The training loss.
    ignore_index : int
        The label of samples that do not count.
    **kwargs
        Passed to ``torchmetrics.Metric``.

    Raises
    ------
    CollapseError
        If sizes are out of range or `problem` has other classes.

    Notes
    -----
    Nearest-centre agreement needs centres before the samples come. After one pass, :meth:`use_centres` freezes the
    current class means. Until :meth:`reset` each update then leaves moments and class sums alone and only counts how
    often the nearest centre names the class that the head names (``ncc``), and how often the true one
    (``ncc_accuracy``); after it moments and agreement are both counted, and the centres stay.

    Calling the metric as a function, which returns the value of a batch, is refused: loggers average such values over
    the epoch, and the mean of ``nc1`` over batches is not ``nc1``.

    Examples
    --------
    >>> import torch
    >>> metric = NeuralCollapse(num_classes=2, dim=2)
    >>> features = torch.tensor([[1.5, 0.0], [0.5, 0.0], [0.0, 2.0]])
    >>> metric.update(features, torch.tensor([0, 0, 1]), weight=torch.eye(2))
    >>> round(metric.compute()["nc1"], 4)
    0.012
    >>> metric.compute_per_class()["feature_sqnorm"]
    tensor([1., 4.], dtype=torch.float64)
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    moments_state: Tensor
    head_state: Tensor
    class_sums: Tensor
    leads: list[Tensor] | Tensor
    least: Tensor
    spacing: Tensor
    centres: Tensor
    phase: Tensor
    centre_hits: Tensor
    basis: Tensor
    projected_state: Tensor

    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        within: Within = "full",
        precision: Precision = "input",
        problem: UFM | None = None,
        loss: Loss = PLAIN,
        ignore_index: int = IGNORED,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.num_classes = whole_number("num_classes", num_classes, 2, "give the number of classes")
        self.dim = whole_number("dim", dim, 1, "give the width of the features")
        one_of("within", within, Within)
        one_of("precision", precision, Precision)
        self.prediction = None if problem is None else predict(problem)
        if problem is not None and problem.num_classes != self.num_classes:
            raise CollapseError(f"problem: {problem.num_classes} classes; num_classes={num_classes}")
        self.within, self.precision = within, precision
        self.loss: Loss = checked_loss(loss)
        self.ignore_index: int = label_number("ignore_index", ignore_index)
        K, d = self.num_classes, self.dim
        self._add_large_state("moments_state", state_size(K, d, d if within == "full" else 0), self._joined_moments)
        self.add_state("head_state", torch.zeros(0, d + 2), last_head)
        self.add_state("class_sums", torch.zeros(3, K).double(), "sum")  # samples with a head, confidence, loss
        self.add_state("leads", [], "cat")  # of each sample with a head: signed lead, class
        self.add_state("least", torch.tensor(torch.inf).double(), "min")  # of all features
        self.add_state("spacing", torch.tensor(0.0).double(), "max")  # of the coarsest storage of features, at 1
        self.add_state("centres", torch.zeros(0, d).double(), first_centres)
        if within == "projected":
            q = min(K - 1, d)
            self.add_state("basis", torch.zeros(q, d).double(), first_basis)
            self.add_state(
                "projected_state",
                torch.zeros(state_size(1, q, q)).double(),
                partial(merge_states, num_classes=1, dim=q),
            )
        self.add_state("phase", torch.tensor(0.0).double(), "max")  # 1: there are centres; 2: moments are left alone
        self.add_state("centre_hits", torch.zeros(4, K).double(), "sum")  # decided, correct; headed, agreeing

    def _add_large_state(self, name: str, size: int, reducer: Callable[[Tensor], Tensor]) -> None:
        """Add a state of zeros whose default, which torchmetrics keeps a copy of, takes up no memory."""
        self.add_state(name, torch.zeros(1).double(), reducer)
        self._defaults[name] = torch.zeros(1).double().expand(size)
        setattr(self, name, torch.zeros(size).double())

    def update(
        self,
        features: ArrayLike | Tensor,
        labels: ArrayLike | Tensor,
        weight: ArrayLike | Tensor | None = None,
        bias: ArrayLike | Tensor | None = None,
        logits: ArrayLike | Tensor | None = None,
    ) -> None:
        """Add a batch; a rejected batch leaves the state unchanged.

        Parameters
        ----------
        features : array_like or Tensor, shape (..., d)
            Inputs of the head, any floating dtype; every position (a token, a pixel) is a sample.
        labels : array_like or Tensor, shape (...)
            Any integer dtype, in [0, K), or `ignore_index`.
        weight : array_like or Tensor, shape (K, d), optional
            The head as it is now; the last one given is kept.
        bias : array_like or Tensor, shape (K,), optional
            Its bias; only with `weight`.
        logits : array_like or Tensor, shape (..., K), optional
            What the network has made of the features, if it need not be computed again; only with `weight`.

        Raises
        ------
        CollapseError
            If shapes, types or values do not fit.
        """
        head = self._head(weight, bias)
        if head is None and logits is not None:
            raise CollapseError("logits: given without weight; pass both of the head")
        self._add(features, labels, head, None if logits is None else as_tensor("logits", logits))
        if head is not None and self.phase != FROZEN:
            self._keep_head(*head)

    def _head(
        self, weight: ArrayLike | Tensor | None, bias: ArrayLike | Tensor | None
    ) -> tuple[Tensor, Tensor | None] | None:
        """The head on the device of the state, or what is wrong with it."""
        if weight is None:
            if bias is not None:
                raise CollapseError("bias: given without weight; pass both of the head")
            return None
        W, b = as_tensor("weight", weight), None if bias is None else as_tensor("bias", bias)
        checked_head(W, b, self.num_classes, self.dim)
        return W.to(self.device), None if b is None else b.to(self.device)

    def _keep_head(self, weight: Tensor, bias: Tensor | None) -> None:
        self.head_state = packed_head(self.head_state, weight, bias)

    @torch.no_grad()
    def _add(
        self,
        features: ArrayLike | Tensor,
        labels: ArrayLike | Tensor,
        head: tuple[Tensor, Tensor | None] | None,
        logits: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Add a batch; return its samples, their labels, and what the head names them."""
        x, y, z = as_rows(features, labels, logits, self.ignore_index)
        x, y = checked_batch(x, y, self.num_classes, self.dim, self.moments_state.device)
        self._leave_inference_mode()
        named = None
        if not len(x):
            return x, y, named
        require_finite(x)
        z = None if z is None else checked_logits(z, len(x), self.num_classes).to(x.device)
        moments = self.moments
        dtype = moments.products(x)
        if self.phase != FROZEN:
            moments.add_checked(x, y)
            self.least = torch.minimum(self.least, x.min())
            self.spacing = self.spacing.clamp(min=torch.finfo(x.dtype).eps if x.dtype != torch.float64 else 0.0)
            if head is not None:
                named = self._add_class_sums(x, y, z, head, dtype)
        elif head is not None:
            named = named_classes(x, z, head, dtype)
        if self.phase:
            self._count_centres(x, y, named, Centres(self.centres, dtype))
        if self.phase == FROZEN and self.within == "projected":
            self._add_projected(x, y)
        return x, y, named

    def _add_projected(self, x: Tensor, y: Tensor) -> None:
        """Add deviations from the frozen class means, along the directions between these."""
        projected = ClassMoments.from_state(self.projected_state, 1, len(self.basis))
        for rows in row_blocks(len(x), self.dim):
            deviations = x[rows].to(torch.float64) - self.centres[y[rows]]
            known = deviations[~deviations[:, 0].isnan()]  # a class that the first pass has not met has no mean
            projected.update(known @ self.basis.T, y.new_zeros(len(known)))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse: the value of one batch would be averaged over the epoch, which gives another number."""
        raise CollapseError(
            "NeuralCollapse: was called as a function, and means of its values over batches are wrong; call "
            "metric.update(...) in each step, and metric.compute() and metric.reset() at the end of the epoch"
        )

    @property
    def moments(self) -> ClassMoments:
        """The moments so far, living in the metric's state."""
        return ClassMoments.from_state(self.moments_state, self.num_classes, self.dim, precision=self.precision)

    def _joined_moments(self, states: Tensor | Sequence[Tensor]) -> Tensor:
        return merge_states(states, self.num_classes, self.dim)

    def use_centres(self) -> None:
        """Freeze the current class means as the centres of later nearest-centre decisions, and the moments with them.

        Raises
        ------
        CollapseError
            If there are no samples yet.
        """
        with self._all_ranks():
            if not bool(self.moments.seen.any()):
                raise CollapseError("use_centres: no centres yet; update with samples first")
            centres = self.moments.means
            directions = span_of_means(self.moments) if self.within == "projected" else None
        if directions is not None:  # now that the state is this process's own again
            self.basis = self.basis.new_zeros(self.basis.shape)
            self.basis[: len(directions)] = directions
            self.projected_state = torch.zeros_like(self.projected_state)
        self.centres, self.phase = centres, torch.full_like(self.phase, FROZEN)

    def reset(self) -> None:
        """Forget all samples; the centres stay, and moments are counted again."""
        centres, phase = self.centres, self.phase
        self.moments_state = self.moments_state.new_empty(0)  # gone before there is a new one
        super().reset()
        self.centres, self.phase = centres, phase.clamp(max=1)

    def compute(self) -> dict[str, float]:
        """Return every metric that the inputs allow, as floats by lower-case key: loggable as is.

        Keys: ``nc1``, ``cdnv``, ``nc2_largest_cosine``, ``nc2_mean_cosine``, ``nc2_etf_h``, ``nc2_norm_spread_h``; with
        a head ``nc2_w``, ``nc2_etf_w``, ``nc2_norm_spread_w``, ``nc3_duality``, ``train_accuracy``; with a problem
        ``nc2_h``, and with a head too ``nc2_wwt``, ``nc3_wh``, and each one's ``_residual``; after :meth:`use_centres`
        ``ncc_accuracy`` and, with a head, ``ncc``.
        """
        result = self._measurement().metrics(self.prediction)
        decided, correct, headed, agreeing = self.centre_hits.sum(dim=1).tolist()
        shares = {"ncc_accuracy": (correct, decided), "ncc": (agreeing, headed)}
        return result | {key: part / whole for key, (part, whole) in shares.items() if whole}

    def compute_per_class(self) -> dict[str, Tensor]:
        """Return what is known of each class, (K,) float64 by key; NaN for classes without samples."""
        with self._all_ranks():
            result = {key: torch.from_numpy(value) for key, value in self._measurement().per_class().items()}
            if self.centre_hits[0].any():
                result["ncc_accuracy"] = self.centre_hits[1] / self.centre_hits[0]
        return result

    def measurement(self, names: Sequence[str] | None = None) -> Measurement:
        """Return everything measured so far, over all processes, as :func:`measure` does.

        Parameters
        ----------
        names : sequence of str, optional
            K class names.
        """
        with self._all_ranks():
            return self._measurement(class_names(names, self.num_classes))

    def _measurement(self, names: tuple[str, ...] | None = None, *, copy: bool = True) -> Measurement:
        """What is measured on this process; not copied, it lives in the state itself."""
        moments = self._with_projection(self.moments)
        moments = moments.copy() if copy and moments.state is self.moments_state else moments
        weight, bias = unpacked_head(self.head_state.to(torch.float64, copy=copy))
        headed, *sums = (as_array(row) for row in self.class_sums)
        confidences = losses = recalls = agreement = None
        if headed.any():
            leads, classes = as_array(dim_zero_cat(self.leads)).reshape(-1, 2).T
            right = leads > LEAST_LEAD * np.median(np.abs(leads))
            with np.errstate(invalid="ignore"):  # classes without samples
                confidences, losses = (row / headed for row in sums)
                recalls = np.bincount(classes.astype(int), right, minlength=self.num_classes) / headed
                agreement = as_array(self.centre_hits[3]) / as_array(self.centre_hits[2]) if self.phase else None
        return Measurement(
            moments,
            weight,
            bias,
            confidences=confidences,
            losses=losses,
            recalls=recalls,
            centre_agreement=agreement,
            names=names,
            nonnegative=bool(self.least >= 0),
            loss=self.loss,
            spacing=float(self.spacing),
        )

    def _with_projection(self, moments: ClassMoments) -> ClassMoments:
        """The moments with the projected scatter, if the second pass has met as many samples as the first."""
        if self.within != "projected":
            return moments
        projected = ClassMoments.from_state(self.projected_state, 1, len(self.basis))
        number, mean = projected.counts[0], projected.table[0]
        if number == 0 or number != moments.counts.sum() or projected.scatter is None:
            return moments
        scatter = projected.scatter + number * torch.outer(mean, mean)
        state = torch.cat([moments.state, scatter.flatten()])
        return ClassMoments.from_state(state, self.num_classes, self.dim, basis=self.basis.clone())

    def _all_ranks(self) -> AbstractContextManager[None]:
        """Within it the state is that of all processes: what torchmetrics does around `compute` only."""
        return self.sync_context(dist_sync_fn=self.dist_sync_fn, should_sync=self.sync_on_compute)

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Join the state of another metric, or a state itself; what was computed before is forgotten."""
        other = incoming_state if isinstance(incoming_state, dict) else getattr(incoming_state, "metric_state", {})
        missing = [name for name in self._defaults if name not in other]
        if missing:
            raise CollapseError(f"incoming_state: has no {missing[0]}; give a NeuralCollapse, or its metric_state")
        size = other["moments_state"].numel()
        if size != self.moments_state.numel():
            raise CollapseError(
                f"incoming_state: {size} numbers cannot join {self.moments_state.numel()}; num_classes, dim and "
                "within must agree"
            )
        self._fill()
        super().merge_state(other | {name: self._filled(name, other[name]) for name in EMPTY})
        self._computed = None

    def _sync_dist(self, *args: Any, **kwargs: Any) -> None:
        self._fill()
        super()._sync_dist(*args, **kwargs)

    def _fill(self) -> None:
        """Give head and centres the one shape and type in which processes can exchange them."""
        self.head_state = self._filled("head_state", self.head_state)
        self.centres = self._filled("centres", self.centres)

    def _filled(self, name: str, state: Tensor) -> Tensor:
        shape = (self.num_classes, state.shape[1])
        return state.to(self.moments_state) if len(state) else self.moments_state.new_full(shape, EMPTY[name])

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name, default in self._defaults.items():
            stored = state_dict.get(prefix + name, default)
            if isinstance(default, Tensor) and stored.shape != default.shape:
                if name in EMPTY and stored.shape == (self.num_classes, default.shape[1]):
                    continue
                raise CollapseError(
                    f"state_dict: {prefix}{name} has the shape {tuple(stored.shape)}, here {tuple(default.shape)}; "
                    "num_classes, dim and within must agree"
                )
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _leave_inference_mode(self) -> None:
        """Replace states that were made in inference mode (Lightning resets there): they cannot be updated outside."""
        if torch.is_inference_mode_enabled():
            return
        for name in self._defaults:
            state = getattr(self, name)
            if isinstance(state, Tensor) and state.is_inference():
                setattr(self, name, state.clone())

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = ()) -> nn.Module:
        """Let `half`, `to` and the like move the state to another device, but never to another precision."""

        def moved(state: Tensor) -> Tensor:
            return state.to(fn(state.new_empty(0)).device)

        applied = super()._apply(moved, exclude_state)
        self._defaults["moments_state"] = self.moments_state.new_zeros(1).expand(self.moments_state.shape)
        return applied

    def _add_class_sums(
        self, x: Tensor, y: Tensor, z: Tensor | None, head: tuple[Tensor, Tensor | None], dtype: torch.dtype
    ) -> Tensor:
        """Add what the logits say by class; return the class named for each sample."""
        if not isinstance(self.leads, list):  # as after loading a synchronised state
            self.leads = [self.leads]
        named = []
        for rows, said in decisions(x, y, z, head, self.loss, dtype):
            own, ones = y[rows], torch.ones_like(said.losses)
            self.class_sums.index_add_(1, own, torch.stack([ones, said.confidences, said.losses]))
            kept = said.leads.sign() * said.leads.abs().clamp(*LEADS)
            self.leads.append(torch.stack([kept, own], dim=1).float().flatten())
            named.append(said.named)
        return torch.cat(named)

    def _count_all(self, samples: Sequence[tuple[Tensor, Tensor, Tensor | None]]) -> None:
        """Count nearest centres of what `_add` has returned."""
        centres: Centres | None = None
        for x, y, named in samples:
            if len(x):
                centres = centres or Centres(self.centres, self.moments.products(x))
                self._count_centres(x, y, named, centres)
                if self.within == "projected":
                    self._add_projected(x, y)

    @torch.no_grad()
    def _count_centres(self, x: Tensor, y: Tensor, named: Tensor | None, centres: Centres) -> None:
        nearest = centres.nearest(x)
        decided = nearest != NOBODY
        rows = [decided, nearest == y]
        if named is not None:
            both = decided & (named != NOBODY)
            rows += [both, both & (nearest == named)]
        hits = torch.stack(rows).double()
        self.centre_hits[: len(hits)].index_add_(1, y, hits)
