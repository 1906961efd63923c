"""The optimisation problem (UFM) of a last layer; recipes, which are turned into it, are in recipe.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
        ω_k > 0 as they stand in the formula above (torch's ``weight=`` is normalised: see :mod:`collapsekit.recipe`).
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

    def confidence_floor(self) -> Array:
        r"""Return what no class's confidence falls below at the global optimum, whatever the bias or the offsets.

        There ``‖∇_z ℓ_k‖ ≤ (N/ω_k) √(λ_W λ_{H,k}/n_k)``: a new coordinate for class k alone would pay otherwise. For
        plain cross-entropy it reads ``p_k ≥ max(0, 1 − q_k)``, an equality for a class that the closed form keeps.

        Returns
        -------
        ndarray, shape (K,)
            Of the softmax that the loss sees (`training_confidences`: with offsets, margins, scales and temperature);
            0 where nothing is promised. NaN for losses other than cross-entropy, and for fewer dimensions than
            classes (without ReLU: fewer than K − 1). With ReLU, K > 4 and ``K ≤ dim < K (K+1)/2 − 4`` it holds where
            the optimum leaves a coordinate unused.

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
        if narrow or not isinstance(self.loss, CrossEntropy):
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
