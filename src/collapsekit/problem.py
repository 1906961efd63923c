"""The optimisation problem (UFM) and the one table that turns a training recipe into its penalties."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from collapsekit.errors import CollapseError
from collapsekit.losses import MSE, CrossEntropy, Focal, Hinge, Loss
from collapsekit.validation import (
    Array,
    class_counts,
    class_names,
    frozen,
    numeric,
    positive_number,
    positive_vector,
    shorten,
    whole_number,
)

FeatureReduction = Literal["batch_sum", "batch_mean", "entry_mean", "full_sum"]
BatchNormDecay = Literal["gain_and_shift", "gain_frozen_shift", "gain", "none"]
COUPLED_OPTIMIZERS = ("sgd", "adam")


@dataclass(frozen=True, eq=False, repr=False, init=False)
class UFM:
    r"""Unconstrained feature model with ReLU features (UFM+) of a last layer under class imbalance.

    .. math::

        \min_{W,\; H \ge 0,\; b}\quad
        \frac1N \sum_{k=1}^{K} \sum_{i=1}^{n_k} \omega_k\, \ell_k(W h_{k,i} + b)
        \;+\; \frac{\lambda_W}{2}\lVert W\rVert_F^2
        \;+\; \frac12 \sum_k \lambda_{H,k} \sum_i \lVert h_{k,i}\rVert^2
        \;\Bigl(+\; \frac{\lambda_b}{2}\lVert b\rVert^2\Bigr)

    The feature penalty is a SUM over all N samples; :meth:`from_training` converts the other conventions.
    At every minimiser of a convex loss all features of a class coincide, so the class features decide.

    Parameters
    ----------
    counts : array_like of int, shape (K,), or mapping of name to count
        Training samples of each class, ``n_k ≥ 1``; ``N = Σ n_k``. A mapping also sets `names`.
    lambda_w : float
        λ_W > 0, the penalty on the classifier.
    lambda_h : float or array_like, shape (K,)
        λ_H > 0, the penalty on the features; one value a class if the recipe treats classes differently.
    loss : CrossEntropy, Focal, Hinge or MSE
        The loss ℓ.
    class_weights : array_like, shape (K,), optional
        ω_k > 0 as they stand in the formula above (torch's ``weight=`` is normalised: see :meth:`from_training`).
    bias : None, "free" or float
        No bias, an unpenalised one, or its penalty λ_b > 0.
    relu : bool
        Whether features are nonnegative.
    dim : int, optional
        Feature dimension d; None means as wide as needed.
    names : sequence of str, optional
        K distinct class names.

    Raises
    ------
    CollapseError
        If an argument is out of range; the message names it, its value and the remedy.

    References
    ----------
    Dang, Tran, Nguyen, Ho, "Neural Collapse for Cross-entropy Class-Imbalanced Learning with Unconstrained ReLU
    Features Model", ICML 2024, equation (1). Class weights, bias and per-class λ_H: derived here.

    Examples
    --------
    >>> problem = UFM([500, 300, 40, 10], lambda_w=3e-2, lambda_h=1e-3)
    >>> problem
    UFM(K=4, N=850, counts 500 … 10, lambda_w=0.03, lambda_h=0.001)
    >>> import numpy as np
    >>> float(problem.objective(np.zeros((4, 2)), np.zeros((4, 2))))  # everything collapsed: log K
    1.3862943611198906
    """

    counts: Array
    lambda_w: float
    lambda_h: float | Array
    loss: Loss
    class_weights: Array | None
    bias: float | Literal["free"] | None
    relu: bool
    dim: int | None
    names: tuple[str, ...] | None

    def __init__(
        self,
        counts: ArrayLike | Mapping[str, int],
        lambda_w: float,
        lambda_h: float | ArrayLike,
        *,
        loss: Loss = CrossEntropy(),  # noqa: B008  (frozen, so one instance may be shared)
        class_weights: ArrayLike | None = None,
        bias: float | Literal["free"] | None = None,
        relu: bool = True,
        dim: int | None = None,
        names: Sequence[str] | None = None,
    ) -> None:
        if isinstance(counts, Mapping) and names is None:
            names = list(counts)
        n = class_counts(counts)
        remedy = "without a penalty no minimiser exists (margins grow for ever)"
        self._set("counts", n)
        self._set("names", class_names(names, n.size))
        self._set("lambda_w", positive_number("lambda_w", lambda_w, remedy))
        per_class = numeric("lambda_h", lambda_h).ndim > 0
        check = partial(positive_vector, num_classes=n.size) if per_class else positive_number
        self._set("lambda_h", check("lambda_h", lambda_h, remedy=remedy))
        if class_weights is not None:
            class_weights = positive_vector("class_weights", class_weights, n.size, "leave it out for equal weights")
        self._set("class_weights", class_weights)
        if not (bias is None or (isinstance(bias, str) and bias == "free")):
            bias = positive_number("bias", bias, "give None, 'free' or a penalty")
        self._set("bias", bias)
        if not isinstance(relu, bool):
            raise CollapseError(f"relu={shorten(relu)}: give True or False")
        self._set("relu", relu)
        if dim is not None:
            dim = whole_number("dim", dim, 1, "give the feature dimension or None")
        self._set("dim", dim)
        if not isinstance(loss, CrossEntropy | Focal | Hinge | MSE):
            raise CollapseError(f"loss={shorten(loss)}: give a loss of this package, e.g. CrossEntropy()")
        given = loss.per_class if isinstance(loss, CrossEntropy) else None
        if given is not None and given != n.size:
            raise CollapseError(
                f"loss: {given} values (margins, offsets or scales) for {n.size} classes; give one a class"
            )
        self._set("loss", loss)

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    @property
    def num_classes(self) -> int:
        """K."""
        return self.counts.size

    @cached_property
    def num_samples(self) -> float:
        """N, all samples (a whole number; float because it may exceed 2^53 only in jest)."""
        return float(self.counts.sum())

    @property
    def loss_weights(self) -> Array:
        """α_k = ω_k n_k / N, (K,): the weight of each class in the mean loss."""
        shares = self.counts / self.num_samples
        return shares if self.class_weights is None else shares * self.class_weights

    @property
    def bias_penalty(self) -> float:
        """λ_b, 0 for a free bias or none."""
        return self.bias if isinstance(self.bias, float) else 0.0

    def objective(self, weights: ArrayLike, features: ArrayLike, bias: ArrayLike | None = None) -> float:
        """Return the objective at collapsed features.

        Parameters
        ----------
        weights : array_like, shape (K, d)
            Classifier, row k the weights of class k.
        features : array_like, shape (K, d)
            Row k the common feature of class k.
        bias : array_like, shape (K,), optional
            Bias; only for a problem that has one.

        Returns
        -------
        float
            Mean weighted loss plus penalties.

        Raises
        ------
        CollapseError
            If shapes do not fit, or a bias is given to a problem without one.
        """
        W, H = numeric("weights", weights), numeric("features", features)
        size = self.num_classes
        for name, array in (("weights", W), ("features", H)):
            if not np.isfinite(array).all():
                raise CollapseError(f"{name}: not finite; give finite numbers")
        if W.ndim != 2 or W.shape != H.shape or len(W) != size:
            raise CollapseError(f"weights {W.shape}, features {H.shape}: both must be (K, d) with K = {size}")
        if bias is not None and self.bias is None:
            raise CollapseError("bias: the problem has none; build it with UFM(..., bias='free') or a penalty")
        b = np.zeros(size) if bias is None else numeric("bias", bias)
        if b.shape != (size,):
            raise CollapseError(f"bias: shape {b.shape}; expected ({size},)")
        loss = self.loss_weights @ self.loss.value(H @ W.T + b)
        penalties = self.lambda_w * (W**2).sum() + (self.lambda_h * self.counts) @ (H**2).sum(axis=1)
        return float(loss + 0.5 * (penalties + self.bias_penalty * (b @ b)))

    @classmethod
    def from_training(
        cls,
        counts: ArrayLike | Mapping[str, int],
        *,
        weight_decay: float,
        feature_decay: float | None = None,
        batch_size: int | None = None,
        drop_last: bool = False,
        feature_reduction: FeatureReduction = "batch_sum",
        feature_dim: int | None = None,
        loss_factor: float = 1.0,
        optimizer: str = "sgd",
        batchnorm_branches: int | None = None,
        batchnorm_decay: BatchNormDecay = "gain_and_shift",
        class_weights: ArrayLike | None = None,
        **problem: Any,
    ) -> UFM:
        r"""Return the problem that a training recipe minimises: the one table of units.

        With ``wd = weight_decay``, ``fd = feature_decay``, ``B = batch_size`` and N samples, a step minimises
        ``loss_factor · mean CE + (wd/2)‖W‖² + (fd/2) R`` where R is

        ==================== ================================================ ==================================
        `feature_reduction`  R                                                λ_H (λ_W is wd)
        ==================== ================================================ ==================================
        ``"batch_sum"``      Σ over the batch of ‖h‖²                         fd B/N (fd / steps an epoch when the
                                                                              last batch is shorter and kept)
        ``"batch_mean"``     mean over the batch of ‖h‖²                      fd / N
        ``"entry_mean"``     mean over all entries, ``h.pow(2).mean()``       fd / (N d)
        ``"full_sum"``       Σ over all N samples of ‖h‖²                     fd
        BatchNorm, no fd     (wd/2)(‖γ‖² + ‖β‖²) of m BatchNorms              wd / (m N)
        the same, β = 0      (wd/2)‖γ‖²                                       wd / (m N (1 − π_k)), π_k ≤ 1/2
        ==================== ================================================ ==================================

        with ``π_k = n_k/N``. Both penalties are divided by `loss_factor` (0.5 for a halved loss).

        Parameters
        ----------
        counts : array_like of int, shape (K,), or mapping
            As in :class:`UFM`.
        weight_decay : float
            wd on the head, as an L2 penalty with the factor ½: what torch's SGD and Adam call ``weight_decay``.
        feature_decay : float, optional
            fd of an explicit feature penalty with the factor ½.
        batch_size : int, optional
            B, samples a step; None is the full batch. With several processes or gradient accumulation: the size
            of ONE process's micro-batch.
        drop_last : bool
            Whether an incomplete last batch is dropped.
        feature_reduction : {"batch_sum", "batch_mean", "entry_mean", "full_sum"}
            How the feature penalty adds up; see the table.
        feature_dim : int, optional
            d; needed by ``"entry_mean"`` only.
        loss_factor : float
            Factor in front of the mean cross-entropy.
        optimizer : {"sgd", "adam", "adamw"}
            AdamW is refused: decoupled decay minimises no L2 objective.
        batchnorm_branches : int, optional
            m, the number of BatchNorm outputs summed before the ReLU that feeds the head; their γ and β decay with
            `weight_decay` and no feature penalty is used.
        batchnorm_decay : {"gain_and_shift", "gain_frozen_shift", "gain", "none"}
            What of those BatchNorms decays: γ and β; γ, with β frozen at 0; γ alone, with β free; nothing. The last
            two are refused, because no penalty on the features of this form follows from them.
        class_weights : array_like, shape (K,), optional
            torch's ``CrossEntropyLoss(weight=...)``, whose mean divides by the weights in the batch, so that
            ``ω_k = w_k N / Σ_m w_m n_m`` (exact for full batches).
        **problem
            Further arguments of :class:`UFM` (`loss`, `bias`, `relu`, `dim`, `names`). torch weighs label smoothing
            by the weights of the other classes too; the loss then gets them as its `smoothing_weights`.

        Returns
        -------
        UFM

        Raises
        ------
        CollapseError
            If the recipe defines no such problem (AdamW; neither feature penalty nor BatchNorm; both) or an
            argument is out of range.

        References
        ----------
        Derived here (docs/theory.md, "Units of a training recipe"); every row is tested against the gradient of the
        training objective itself.

        Examples
        --------
        >>> UFM.from_training([60, 30, 10], weight_decay=1e-3, feature_decay=1e-4, batch_size=20)
        UFM(K=3, N=100, counts 60 … 10, lambda_w=0.001, lambda_h=2e-05)
        """
        n = class_counts(counts)
        unknown = set(problem) - {"loss", "bias", "relu", "dim", "names"}
        if unknown:
            raise CollapseError(f"{min(unknown)}: no argument of a recipe; see UFM.from_training")
        decay = positive_number("weight_decay", weight_decay, "the closed form needs a penalty on the head")
        factor = positive_number("loss_factor", loss_factor, "give 1 for the mean cross-entropy")
        _check_optimizer(optimizer)
        total = float(n.sum())
        share = _penalty_share(total, batch_size, drop_last, feature_reduction, feature_dim)
        lambda_h: float | Array
        if feature_decay is None and batchnorm_branches is None:
            raise CollapseError(
                "feature_decay=None: without a feature penalty or BatchNorm before the last ReLU the recipe fixes no "
                "λ_H; give feature_decay, or batchnorm_branches=1 if the head is fed by BatchNorm → ReLU"
            )
        if feature_decay is not None and batchnorm_branches is not None:
            raise CollapseError(
                f"feature_decay={shorten(feature_decay)} with batchnorm_branches={shorten(batchnorm_branches)}: the "
                "decay of a BatchNorm before the ReLU is itself the feature penalty; give one of the two"
            )
        if batchnorm_branches is not None:
            branches = whole_number("batchnorm_branches", batchnorm_branches, 1, "count the summed BatchNorm outputs")
            lambda_h = decay / (branches * total) * _batchnorm_factor(n / total, batchnorm_decay)
        else:
            lambda_h = share * positive_number("feature_decay", feature_decay, "give None for no feature penalty")
        if class_weights is not None:
            w = positive_vector("class_weights", class_weights, n.size, "leave it out for equal weights")
            class_weights = frozen(w * (total / (w @ n)))
            loss = problem.get("loss")
            if isinstance(loss, CrossEntropy) and loss.smoothing and loss.smoothing_weights is None:
                problem["loss"] = replace(loss, smoothing_weights=tuple(w.tolist()))
        return cls(
            counts,
            decay / factor,
            lambda_h / factor,
            class_weights=class_weights,
            **problem,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the problem as plain numbers, lists and strings (JSON-ready), with its schema version."""
        return {
            "schema": 1,
            "counts": self.counts.astype(int).tolist(),
            "lambda_w": self.lambda_w,
            "lambda_h": np.asarray(self.lambda_h).tolist(),
            "loss": self.loss.to_dict(),
            "class_weights": None if self.class_weights is None else self.class_weights.tolist(),
            "bias": self.bias,
            "relu": self.relu,
            "dim": self.dim,
            "names": None if self.names is None else list(self.names),
        }

    def __repr__(self) -> str:
        spread = f"{self.counts.max():.0f} … {self.counts.min():.0f}"
        extras = {"bias": (self.bias, None), "relu": (self.relu, True), "dim": (self.dim, None)}
        shown = "".join(f", {key}={value!r}" for key, (value, default) in extras.items() if value != default)
        weighted = "" if self.class_weights is None else ", class-weighted"
        lambda_h = "per class" if np.ndim(self.lambda_h) else f"{self.lambda_h:g}"
        return (
            f"UFM(K={self.num_classes}, N={self.num_samples:.0f}, counts {spread}, "
            f"lambda_w={self.lambda_w:g}, lambda_h={lambda_h}{weighted}{shown})"
        )


def _check_optimizer(optimizer: str) -> None:
    name = str(optimizer).lower()
    if name == "adamw":
        raise CollapseError(
            "optimizer='adamw': decoupled decay minimises no L2 objective, so λ_W is undefined; use torch's SGD or "
            "Adam with weight_decay, or add the penalty to the loss and set AdamW's weight_decay to 0"
        )
    if name not in COUPLED_OPTIMIZERS:
        raise CollapseError(f"optimizer={optimizer!r}: give one of {', '.join(COUPLED_OPTIMIZERS)} or adamw")


def _batchnorm_factor(shares: Array, decayed: str) -> float | Array:
    """Return λ_H relative to that of decay on γ and β, from the class shares π_k."""
    if decayed == "gain_and_shift":
        return 1.0
    if decayed == "gain_frozen_shift":
        if shares.max() > 0.5:
            raise CollapseError(
                f"batchnorm_decay='gain_frozen_shift': class {shares.argmax()} holds {shares.max():.0%} of the "
                "samples, and above one half features of a class do not collapse; no closed form; let β decay too"
            )
        return np.asarray(1 / (1 - shares))
    if decayed == "gain":
        raise CollapseError(
            "batchnorm_decay='gain': with γ decayed and β free the cost of a feature is its variance, not its square, "
            "which is another model; let β decay too or freeze it at 0"
        )
    if decayed == "none":
        raise CollapseError(
            "batchnorm_decay='none': with γ and β excluded from weight decay nothing penalises the features, and no "
            "class is lost to regularisation; let γ and β decay to predict"
        )
    raise CollapseError(
        f"batchnorm_decay={shorten(decayed)}: give 'gain_and_shift', 'gain_frozen_shift', 'gain' or 'none'"
    )


def _penalty_share(
    total: float, batch_size: int | None, drop_last: bool, reduction: str, feature_dim: int | None
) -> float:
    """Return λ_H / feature_decay for an explicit feature penalty."""
    batch = total if batch_size is None else whole_number("batch_size", batch_size, 1, "give None for full batch")
    if drop_last and batch > total:
        raise CollapseError(f"batch_size={batch:g}: larger than N = {total:g} with drop_last, so no step is taken")
    if reduction == "batch_sum":
        return batch / total if drop_last else 1.0 / math.ceil(total / batch)
    if reduction == "batch_mean":
        return 1.0 / total
    if reduction == "full_sum":
        return 1.0
    if reduction == "entry_mean":
        if feature_dim is None:
            raise CollapseError("feature_dim=None: a mean over all entries divides by N d; give feature_dim")
        return 1.0 / (total * whole_number("feature_dim", feature_dim, 1, "give the width of the features"))
    raise CollapseError(f"feature_reduction={reduction!r}: give 'batch_sum', 'batch_mean', 'entry_mean' or 'full_sum'")
