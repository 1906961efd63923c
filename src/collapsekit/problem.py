"""The optimisation problem (UFM) of a last layer; recipes, which are turned into it, are in recipe.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from collapsekit.errors import CollapseError
from collapsekit.losses import MSE, CrossEntropy, Focal, Hinge, Loss
from collapsekit.losses.sums import LossSum, SoftmaxSum
from collapsekit.types import Types
from collapsekit.validation import (
    Array,
    class_counts,
    class_names,
    numeric,
    positive_number,
    positive_vector,
    shorten,
    whole_number,
)


@dataclass(frozen=True, eq=False, repr=False, init=False)
class UFM:
    r"""Unconstrained feature model with ReLU features (UFM+) of a last layer under class imbalance.

    .. math::

        \min_{W,\; H \ge 0,\; b}\quad
        \frac1N \sum_{k=1}^{K} \sum_{i=1}^{n_k} \omega_k\, \ell_k(W h_{k,i} + b)
        \;+\; \frac{\lambda_W}{2}\lVert W\rVert_F^2
        \;+\; \frac12 \sum_k \lambda_{H,k} \sum_i \lVert h_{k,i}\rVert^2
        \;\Bigl(+\; \frac{\lambda_b}{2}\lVert b\rVert^2\Bigr)

    The feature penalty is a SUM over all N samples; :mod:`collapsekit.recipe` converts other conventions.
    At every minimiser of a convex loss all features of a class coincide, so the class features decide. Where samples
    of several classes cannot be told apart, or labels are soft, see :meth:`from_types`.

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
        ω_k > 0 as they stand in the formula above (torch's ``weight=`` is normalised: see :mod:`collapsekit.recipe`).
    bias : None, "free" or float
        No bias, an unpenalised one, or its penalty λ_b > 0.
    relu : bool
        Whether features are nonnegative.
    dim : int, optional
        Feature dimension d; None means as wide as needed.
    names : sequence of str, optional
        K distinct class names.
    types : Types, optional
        What :meth:`from_types` sets.

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
    types: Types | None

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
        types: Types | None = None,
    ) -> None:
        if isinstance(counts, Mapping) and names is None:
            names = list(counts)
        n = class_counts(counts) if types is None else _of_types(types, counts)
        self._set("types", types)
        remedy = "without a penalty no minimiser exists (margins grow for ever)"
        self._set("counts", n)
        self._set("names", class_names(names, n.size))
        self._set("lambda_w", positive_number("lambda_w", lambda_w, remedy))
        per_class = numeric("lambda_h", lambda_h).ndim > 0
        check = partial(positive_vector, num_classes=self.samples.size) if per_class else positive_number
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
                f"loss: {given} values (smoothing, margins, offsets or scales) for {n.size} classes; give one a class"
            )
        if types is not None:
            _require_for_types(loss, class_weights)
        self._set("loss", loss)

    @classmethod
    def from_types(
        cls,
        counts: ArrayLike,
        targets: ArrayLike,
        lambda_w: float,
        lambda_h: float | ArrayLike,
        *,
        loss: Loss = CrossEntropy(),  # noqa: B008  (frozen)
        bias: float | Literal["free"] | None = None,
        relu: bool = True,
        dim: int | None = None,
        names: Sequence[str] | None = None,
    ) -> UFM:
        r"""Return the problem of T types of samples, each with one feature and a distribution of labels.

        .. math::

            \min_{W,\; H \ge 0,\; b}\quad \sum_t \frac{m_t}{N} \Bigl(-\sum_k Y_{tk} \log p_k(W h_t + b)\Bigr)
            + \frac{\lambda_W}{2}\lVert W\rVert_F^2 + \frac12 \sum_t \lambda_{H,t}\, m_t \lVert h_t\rVert^2

        A type is what the network cannot tell apart: all separable samples of a class, inputs that coincide though
        their labels differ, samples with one soft label. `counts` of the problem are ``Σ_t m_t Y_tk``, features have
        one row a type.

        Parameters
        ----------
        counts : array_like of int, shape (T,)
            Samples of each type, ``m_t ≥ 1``.
        targets : array_like, shape (T, K)
            Y_t: the share of each class in the labels of a type; rows sum to 1.
        lambda_w : float
            λ_W.
        lambda_h : float or array_like, shape (T,)
            λ_H; one value a type if they differ.
        loss : CrossEntropy
            With temperature, offsets and scales at most.
        bias, relu, dim, names
            As for :class:`UFM`.

        Raises
        ------
        CollapseError
            If an argument is out of range, or the loss is another one.

        References
        ----------
        Derived here (docs/theory.md, "Types of samples").

        Examples
        --------
        Ten samples of one class coincide with ten of another:

        >>> problem = UFM.from_types([150, 70, 20, 20], [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0.5, 0.5]], 1e-3, 1e-3)
        >>> problem
        UFM(K=3, N=260, counts 150 … 30, 4 types, lambda_w=0.001, lambda_h=0.001)
        >>> from collapsekit import predict
        >>> predict(problem).confidences.round(3)
        array([0.983, 0.915, 0.798])
        """
        types = Types.checked(counts, targets)
        n = types.class_counts
        return cls(n, lambda_w, lambda_h, loss=loss, bias=bias, relu=relu, dim=dim, names=names, types=types)

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    @property
    def num_classes(self) -> int:
        """K."""
        return self.counts.size

    @property
    def samples(self) -> Array:
        """Samples behind each row of features: of a class, (K,), or of a type, (T,)."""
        return self.counts if self.types is None else self.types.counts

    @cached_property
    def num_samples(self) -> float:
        """N, all samples (a whole number; float because it may exceed 2^53 only in jest)."""
        return float(self.samples.sum())

    @property
    def loss_weights(self) -> Array:
        """α_k = ω_k n_k / N, (K,): the weight of each class in the mean loss."""
        shares = self.counts / self.num_samples
        return shares if self.class_weights is None else shares * self.class_weights

    def summed_loss(self, smoothing: float = 1.0, copies: int = 1) -> LossSum:
        """Return the loss over the rows of features, `copies` of them; a hinge is smoothed by `smoothing`."""
        if self.types is None:
            labels, weights = np.arange(self.num_classes), self.loss_weights
        else:
            labels, weights = self.types.labels, self.types.counts / self.num_samples
        found = self.loss.summed(np.tile(weights, copies), np.tile(labels, copies), self.num_classes, smoothing)
        if self.types is None:
            return found
        assert isinstance(found, SoftmaxSum)
        return replace(found, targets=np.tile(self.types.targets, (copies, 1)))

    @property
    def bias_penalty(self) -> float:
        """λ_b, 0 for a free bias or none."""
        return self.bias if isinstance(self.bias, float) else 0.0

    def confidence_floor(self) -> Array:
        r"""Return what no class's confidence falls below at the global optimum, whatever the bias or the offsets.

        There ``‖∇_z ℓ_k‖ ≤ (N/ω_k) √(λ_W λ_{H,k}/n_k)``: a new coordinate for class k alone would pay otherwise. For
        plain cross-entropy it reads ``p_k ≥ max(0, 1 − q_k)``, an equality for a class that the closed form keeps.

        Returns
        -------
        ndarray, shape (K,)
            Of the softmax that the loss sees (`training_confidences`: with offsets, margins, scales and temperature);
            0 where nothing is promised. NaN for losses other than cross-entropy, for types of samples, and for fewer
            dimensions than classes (without ReLU: fewer than K − 1). With ReLU, K > 4 and
            ``K ≤ dim < K (K+1)/2 − 4`` it holds where the optimum leaves a coordinate unused.

        References
        ----------
        Derived here (docs/theory.md, "Any bias, any offsets").

        Examples
        --------
        >>> UFM([500, 300, 40, 10], lambda_w=3e-2, lambda_h=1e-3, bias="free").confidence_floor().round(4)
        array([0.8197, 0.7672, 0.3625, 0.    ])
        """
        size = self.num_classes
        narrow = self.dim is not None and self.dim < size - (not self.relu)
        if narrow or not isinstance(self.loss, CrossEntropy) or self.types is not None:
            return np.full(size, np.nan)
        with np.errstate(over="ignore"):
            slopes = self.num_samples * np.sqrt(self.lambda_w) * np.sqrt(self.lambda_h) / np.sqrt(self.counts)
            slopes = slopes if self.class_weights is None else slopes / self.class_weights
        return self.loss.confidence_floor(slopes, size)

    def objective(self, weights: ArrayLike, features: ArrayLike, bias: ArrayLike | None = None) -> float:
        """Return the objective at collapsed features.

        Parameters
        ----------
        weights : array_like, shape (K, d)
            Classifier, row k the weights of class k.
        features : array_like, shape (K, d)
            Row k the common feature of class k; with types row t that of type t, (T, d).
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
        rows = self.samples.size
        if self.types is None and (W.ndim != 2 or W.shape != H.shape or len(W) != size):
            raise CollapseError(f"weights {W.shape}, features {H.shape}: both must be (K, d) with K = {size}")
        if W.ndim != 2 or H.ndim != 2 or W.shape[1] != H.shape[1] or (len(W), len(H)) != (size, rows):
            raise CollapseError(
                f"weights {W.shape}, features {H.shape}: give (K, d) and (T, d) with K = {size} and T = {rows} types"
            )
        if bias is not None and self.bias is None:
            raise CollapseError("bias: the problem has none; build it with UFM(..., bias='free') or a penalty")
        b = np.zeros(size) if bias is None else numeric("bias", bias)
        if b.shape != (size,):
            raise CollapseError(f"bias: shape {b.shape}; expected ({size},)")
        logits = H @ W.T + b
        plain = self.types is None  # a hinge is summed without smoothing
        loss = self.loss_weights @ self.loss.value(logits) if plain else self.summed_loss().evaluate(logits)[0]
        penalties = self.lambda_w * (W**2).sum() + (self.lambda_h * self.samples) @ (H**2).sum(axis=1)
        return float(loss + 0.5 * (penalties + self.bias_penalty * (b @ b)))

    def to_dict(self) -> dict[str, Any]:
        """Return the problem as plain numbers, lists and strings (JSON-ready), with its schema version."""
        types = self.types
        given = {} if types is None else {"types": {"counts": types.counts.tolist(), "targets": types.targets.tolist()}}
        return {
            "schema": 1,
            "counts": (self.counts.astype(int) if types is None else self.counts).tolist(),
            "lambda_w": self.lambda_w,
            "lambda_h": np.asarray(self.lambda_h).tolist(),
            "loss": self.loss.to_dict(),
            "class_weights": None if self.class_weights is None else self.class_weights.tolist(),
            "bias": self.bias,
            "relu": self.relu,
            "dim": self.dim,
            "names": None if self.names is None else list(self.names),
            **given,
        }

    def __repr__(self) -> str:
        spread = f"{self.counts.max():.0f} … {self.counts.min():.0f}"
        spread += "" if self.types is None else f", {self.types.counts.size} types"
        extras = {"bias": (self.bias, None), "relu": (self.relu, True), "dim": (self.dim, None)}
        shown = "".join(f", {key}={value!r}" for key, (value, default) in extras.items() if value != default)
        weighted = "" if self.class_weights is None else ", class-weighted"
        lambda_h = (
            f"per {'class' if self.types is None else 'type'}" if np.ndim(self.lambda_h) else f"{self.lambda_h:g}"
        )
        return (
            f"UFM(K={self.num_classes}, N={self.num_samples:.0f}, counts {spread}, "
            f"lambda_w={self.lambda_w:g}, lambda_h={lambda_h}{weighted}{shown})"
        )


def _of_types(types: Types, counts: object) -> Array:
    if not isinstance(types, Types) or not np.array_equal(np.asarray(counts), types.class_counts):
        raise CollapseError("counts: not those of the types; build the problem anew with UFM.from_types")
    return types.class_counts


def _require_for_types(loss: Loss, class_weights: object) -> None:
    if class_weights is not None:
        raise CollapseError("class_weights: a type of samples has no single class; leave them out")
    if not isinstance(loss, CrossEntropy):
        raise CollapseError(f"loss={shorten(loss)}: labels of types are distributions; give CrossEntropy()")
    if loss.margins is not None or loss.smooths:
        what = "margins" if loss.margins is not None else "smoothing"
        remedy = "leave them out" if loss.margins is not None else "mix it into targets"
        raise CollapseError(f"loss: {what} of CrossEntropy need one label a sample, types have distributions; {remedy}")
