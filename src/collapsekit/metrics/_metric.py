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
from collapsekit.metrics.batches import as_rows
from collapsekit.metrics.losses import sample_losses
from collapsekit.metrics.measurement import PLAIN, Measurement, as_array
from collapsekit.metrics.moments import (
    ClassMoments,
    checked_batch,
    first_centres,
    last_head,
    merge_states,
    nearest_centre,
    packed_head,
    require_finite,
    state_size,
    unpacked_head,
)
from collapsekit.prediction import predict
from collapsekit.problem import UFM
from collapsekit.validation import class_names, whole_number

LEAST_LEAD = 0.01
"""Share of the median lead by which a sample's own logit must lead: a lost class ties all logits but for remnants."""
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
    scatter : bool
        Whether to keep the d × d scatter matrix; without it there is no ``nc1``.
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
    class_sums: Tensor
    leads: list[Tensor] | Tensor
    least: Tensor
    centres: Tensor
    phase: Tensor
    centre_hits: Tensor

    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        scatter: bool = True,
        problem: UFM | None = None,
        loss: Loss = PLAIN,
        ignore_index: int = IGNORED,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.num_classes = whole_number("num_classes", num_classes, 2, "give the number of classes")
        self.dim = whole_number("dim", dim, 1, "give the width of the features")
        self.prediction = None if problem is None else predict(problem)
        if problem is not None and problem.num_classes != self.num_classes:
            raise CollapseError(f"problem: {problem.num_classes} classes; num_classes={num_classes}")
        self.loss, self.ignore_index = loss, ignore_index
        K, size = self.num_classes, state_size(self.num_classes, self.dim, scatter=scatter)
        reducer = partial(merge_states, num_classes=K, dim=self.dim)
        self.add_state("moments_state", torch.zeros(size).double(), reducer)
        self.add_state("head_state", torch.zeros(K, self.dim + 2).double(), last_head)
        self.add_state("class_sums", torch.zeros(3, K).double(), "sum")  # samples with a head, confidence, loss
        self.add_state("leads", [], "cat")  # of each sample with a head: signed lead, class
        self.add_state("least", torch.tensor(torch.inf).double(), "min")  # of all features
        self.add_state("centres", torch.full((K, self.dim), torch.nan).double(), first_centres)
        self.add_state("phase", torch.tensor(0.0).double(), "max")  # 1: there are centres; 2: moments are left alone
        self.add_state("centre_hits", torch.zeros(4, K).double(), "sum")  # decided, correct; headed, agreeing

    def update(
        self,
        features: ArrayLike | Tensor,
        labels: ArrayLike | Tensor,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        logits: Tensor | None = None,
    ) -> None:
        """Add a batch; a rejected batch leaves the state unchanged.

        Parameters
        ----------
        features : array_like or Tensor, shape (..., d)
            Inputs of the head, any floating dtype; every position (a token, a pixel) is a sample.
        labels : array_like or Tensor, shape (...)
            Any integer dtype, in [0, K), or `ignore_index`.
        weight : Tensor, shape (K, d), optional
            The head as it is now; the last one given is kept.
        bias : Tensor, shape (K,), optional
            Its bias; only with `weight`.
        logits : Tensor, shape (..., K), optional
            What the network has made of the features, if it need not be computed again; only with `weight`.

        Raises
        ------
        CollapseError
            If shapes, types or values do not fit.
        """
        if weight is None and not (bias is None and logits is None):
            raise CollapseError(
                f"{'bias' if logits is None else 'logits'}: given without weight; pass both of the head"
            )
        head = None if weight is None else packed_head(weight, bias, self.num_classes, self.dim).to(self.device)
        x, y, z = as_rows(features, labels, logits, self.ignore_index)
        x, y = checked_batch(x, y, self.num_classes, self.dim, self.moments_state.device)
        if head is not None:
            z = x @ head[:, :-2].T + head[:, -2] if z is None else z.detach().to(x)
        self._leave_inference_mode()
        if self.phase == FROZEN:
            require_finite(x)
        else:
            self.moments.update(x, y)
            if len(x):
                self.least = torch.minimum(self.least, x.min())
            if head is not None and z is not None:
                self.head_state = head
                self._add_class_sums(z, y)
        if self.phase:
            self._count_centres(x, y, z)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse: the value of one batch would be averaged over the epoch, which gives another number."""
        raise CollapseError(
            "NeuralCollapse: was called as a function, and means of its values over batches are wrong; call "
            "metric.update(...) in each step, and metric.compute() and metric.reset() at the end of the epoch"
        )

    @property
    def moments(self) -> ClassMoments:
        """The moments so far, living in the metric's state."""
        return ClassMoments.from_state(self.moments_state, self.num_classes, self.dim)

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
        self.centres, self.phase = centres, torch.full_like(self.phase, FROZEN)

    def reset(self) -> None:
        """Forget all samples; the centres stay, and moments are counted again."""
        centres, phase = self.centres, self.phase
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

    def _measurement(self, names: tuple[str, ...] | None = None) -> Measurement:
        moments = ClassMoments.from_state(self.moments_state.clone(), self.num_classes, self.dim)
        weight, bias = unpacked_head(self.head_state)
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
        )

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

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name, default in self._defaults.items():
            stored = state_dict.get(prefix + name, default)
            if isinstance(default, Tensor) and stored.shape != default.shape:
                raise CollapseError(
                    f"state_dict: {prefix}{name} has the shape {tuple(stored.shape)}, here {tuple(default.shape)}; "
                    "num_classes, dim and scatter must agree"
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

        return super()._apply(moved, exclude_state)

    def _add_class_sums(self, z: Tensor, y: Tensor) -> None:
        own = nn.functional.cross_entropy(z, y, reduction="none")
        losses = own if self.loss == PLAIN else sample_losses(z, y, self.loss)
        self.class_sums.index_add_(1, y, torch.stack([torch.ones_like(own), (-own).exp(), losses]))
        largest, second = z.topk(2, dim=1).values.T
        lead = largest - second
        signed = torch.where(z.gather(1, y[:, None])[:, 0] == largest, lead, -lead)
        if not isinstance(self.leads, list):  # as after loading a synchronised state
            self.leads = [self.leads]
        self.leads.append(torch.stack([signed, y], dim=1).float().flatten())

    def _count_centres(self, x: Tensor, y: Tensor, z: Tensor | None) -> None:
        nearest, decided = nearest_centre(x, self.centres)
        rows = [decided, decided & (nearest == y)]
        if z is not None:
            logits, named = z.topk(2, dim=1)
            both = decided & (logits[:, 0] > logits[:, 1])
            rows += [both, both & (nearest == named[:, 0])]
        hits = torch.stack(rows).double()
        self.centre_hits[: len(hits)].index_add_(1, y, hits)
