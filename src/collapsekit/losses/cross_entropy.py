"""Cross-entropy with label smoothing, target margins, temperature, offsets and scales."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from collapsekit.errors import CollapseError
from collapsekit.losses.scalar import SNAP, confidence_at, softplus
from collapsekit.losses.sums import EPS, Labels, MatrixLoss, SoftmaxSum
from collapsekit.validation import Array, class_counts, numeric, positive_number, positive_vector

LARGEST_MARGIN = 100.0
"""Target margins and offsets beyond this overflow float64 once exponentiated and divided by a small price."""
PER_CLASS = ("margins", "offsets", "scales", "smoothing_weights")


@dataclass(frozen=True)
class CrossEntropy(MatrixLoss):
    r"""Cross-entropy with label smoothing ε, target margins Δ_k, temperature T, offsets o_j and scales s_j.

    .. math::

        \ell_k(z) = -\sum_j y_{kj} \log\frac{e^{u_j}}{\sum_i e^{u_i}}, \qquad
        u = s \odot z/T + o - \Delta_k e_k, \qquad
        y_k = (1-\varepsilon_k)\, e_k + \tfrac{\varepsilon_k}{K}\, v/v_k

    with ``v = 1`` unless `smoothing_weights` are given. Without offsets, scales and smoothing weights, and for logits
    whose margin (target logit minus any other) is s, it equals

    .. math:: \varphi_k(s) = \log\bigl(1 + (K-1)\, e^{\Delta_k - s/T}\bigr)
              + \varepsilon_k\,\tfrac{K-1}{K}\,(s/T - \Delta_k);

    with any of the three there is no scalar form, and no closed form: use :func:`collapsekit.solve`.
    Class weights belong to the problem (:class:`collapsekit.UFM`).

    Parameters
    ----------
    smoothing : float or sequence of float
        ε in [0, 1); torch's ``label_smoothing``. One ε_k a class: label noise, under which a sample whose true class is
        k has a label drawn from all classes alike at the rate ε_k; `counts` are of true classes then.
    margins : sequence of float, optional
        Δ_k, one a class, in logits; LDAM's are ``C n_k^(−1/4)``. None: no margins.
    temperature : float
        T > 0, by which logits are divided.
    offsets : sequence of float, optional
        o_j, one a class, added to that class's logit in training, whatever the target: logit adjustment has
        ``τ log π_j``, the vector-scaling (VS) loss its ι_j.
    scales : sequence of float, optional
        s_j > 0, one a class, by which that class's logit is multiplied in training, whatever the target: the Δ_j of
        VS, or one over the class-dependent temperature of CDT, ``(n_j/n_max)^γ``.
    smoothing_weights : sequence of float, optional
        v_j > 0, one a class: ``CrossEntropyLoss(weight=v, label_smoothing=ε)`` of torch weighs the smoothing term by
        v_j, the target term by v_k, and the problem's class weight already carries v_k. Needs ``smoothing > 0``.

    Raises
    ------
    CollapseError
        If an argument is out of range.

    References
    ----------
    Szegedy et al., CVPR 2016 (smoothing); Cao et al., NeurIPS 2019 (LDAM); Menon et al., ICLR 2021 (logit
    adjustment); Ye et al., 2020 (CDT); Kini et al., NeurIPS 2021 (VS). Scalar forms: derived here.

    Examples
    --------
    >>> import numpy as np
    >>> loss = CrossEntropy()
    >>> loss.value(np.zeros((3, 3)))
    array([1.09861229, 1.09861229, 1.09861229])
    >>> loss.scalar(np.array([0.0]), 3)
    array([1.09861229])
    >>> CrossEntropy(smoothing=0.1).margin(np.array([0.05, 0.5]), 10).round(4)
    array([4.0125, 1.8333])
    >>> CrossEntropy(offsets=np.log([0.5, 0.3, 0.2])).value(np.zeros((3, 3))).round(4)
    array([0.6931, 1.204 , 1.6094])
    """

    smoothing: float | tuple[float, ...] = 0.0
    margins: tuple[float, ...] | None = None
    temperature: float = 1.0
    offsets: tuple[float, ...] | None = None
    scales: tuple[float, ...] | None = None
    smoothing_weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "smoothing", _shares(self.smoothing))
        temperature = positive_number("temperature", self.temperature, "logits are divided by it")
        object.__setattr__(self, "temperature", temperature)
        for name in PER_CLASS:
            value = getattr(self, name)
            if value is not None:
                check = _in_logits if name in ("margins", "offsets") else _factors
                object.__setattr__(self, name, check(name, value))
        sizes = self._sizes
        if len(set(sizes.values())) > 1:
            raise CollapseError(f"{', '.join(sizes)}: {sizes} entries; give each one number a class")
        if self.smoothing_weights is not None and not self.smooths:
            raise CollapseError("smoothing_weights: they weigh the smoothing term; give smoothing above 0")

    @property
    def per_class(self) -> int | None:
        """K if any argument has one value a class."""
        return next(iter(self._sizes.values()), None)

    @property
    def smooths(self) -> bool:
        """Whether any target is smoothed."""
        return bool(self._rates.any())

    @property
    def obstacle(self) -> str | None:
        """Why this loss is no function of the margin, or None if it is one."""
        if self.offsets is not None:
            return "additive offsets (logit adjustment) have no closed form"
        if self.scales is not None:
            return "class-dependent scales (CDT, VS) have no closed form"
        return None if self.smoothing_weights is None else "class-weighted label smoothing has no closed form"

    @classmethod
    def ldam(cls, counts: ArrayLike, largest: float = 0.5, **terms: Any) -> CrossEntropy:
        """Return the loss with LDAM's margins ``Δ_k = largest (n_min/n_k)^¼``; `terms` are further arguments.

        Examples
        --------
        >>> CrossEntropy.ldam([16, 1]).margins
        (0.25, 0.5)
        """
        n = class_counts(counts)
        return cls(margins=largest * (n.min() / n) ** 0.25, **terms)

    @classmethod
    def logit_adjusted(cls, counts: ArrayLike, tau: float = 1.0, **terms: Any) -> CrossEntropy:
        """Return the loss with offsets ``τ log π_k``; `terms` are further arguments.

        Examples
        --------
        >>> CrossEntropy.logit_adjusted([30, 10]).value(np.zeros((2, 2))).round(4)
        array([0.2877, 1.3863])
        """
        n = class_counts(counts)
        return cls(offsets=tau * np.log(n / n.sum()), **terms)

    @classmethod
    def cdt(cls, counts: ArrayLike, gamma: float = 0.1, **terms: Any) -> CrossEntropy:
        """Return the loss with CDT's scales ``(n_k/n_max)^γ``; `terms` are further arguments.

        Examples
        --------
        >>> CrossEntropy.cdt([100, 25], 0.5).scales
        (1.0, 0.5)
        """
        n = class_counts(counts)
        return cls(scales=(n / n.max()) ** gamma, **terms)

    def summed(self, weights: Array, labels: Labels, num_classes: int, smoothing: float = 1.0) -> SoftmaxSum:
        own = np.eye(num_classes)[labels]
        rates = self._rates[labels][:, None] if self._rates.ndim else self._rates
        v = np.ones(num_classes) if self.smoothing_weights is None else np.asarray(self.smoothing_weights)
        offsets = 0.0 if self.offsets is None else np.asarray(self.offsets)
        scales = np.ones(num_classes) if self.scales is None else np.asarray(self.scales)
        return SoftmaxSum(
            weights,
            labels,
            slopes=scales / self.temperature,
            shifts=np.asarray(offsets - own * self._margins),
            targets=(1 - rates) * own + rates / num_classes * (v / v[labels][:, None]),
        )

    def scalar(self, margins: Array, num_classes: int) -> Array:
        """Return φ_k at each margin, (…, K) or any shape without target margins."""
        self._require_scalar_form()
        lead = self._lead(margins)
        losses = softplus(np.log(num_classes - 1) - lead)
        return losses + self._rates * (num_classes - 1) / num_classes * lead if self.smooths else losses

    def confidence(self, margins: Array, num_classes: int) -> Array:
        """Return the target's softmax probability (of z/T, without target margin) at each margin, same shape."""
        self._require_scalar_form()
        return confidence_at(margins if self.temperature == 1.0 else margins / self.temperature, num_classes)

    def training_confidence(self, margins: Array, num_classes: int) -> Array:
        """Return the same inside the loss, where the target's logit lacks its margin Δ_k."""
        self._require_scalar_form()
        return confidence_at(self._lead(margins), num_classes)

    def critical_price(self, num_classes: int) -> Array:
        """Return the price q of margin, per unit of loss weight, from which a class keeps none: ``−φ_k'(0)``.

        Shape (), or (K,) with target margins or one smoothing a class. Below 0 the loss falls towards negative margins
        (smoothing with a negative target margin) and the closed form does not hold.
        """
        self._require_scalar_form()
        error = (num_classes - 1) / (num_classes - 1 + np.exp(-self._margins))  # softmax probability of it at margin 0
        return np.asarray((error - self._rates * ((num_classes - 1) / num_classes)) / self.temperature)

    def margin(self, prices: Array, num_classes: int) -> Array:
        r"""Return the minimiser of ``φ_k(s) + q s`` over s ≥ 0 for each price q, same shape.

        With ``r = T q + ε_k (K−1)/K`` stationarity reads ``s = T (Δ + log((K−1)(1/r − 1)))``. A price within a few
        roundings of the critical one counts as critical.
        """
        self._require_scalar_form()
        prices = np.asarray(prices)
        with np.errstate(divide="ignore", over="ignore"):
            r = self._times_temperature(prices)
            if self.smooths:
                r = r + self._rates * (num_classes - 1) / num_classes
            r = np.minimum(r, 1.0)
            s = np.asarray((num_classes - 1) * ((1.0 - r) / r))  # e^{s/T − Δ}; 1/r − 1 would cancel near r = 1
        # one array from here on, as in losses/scalar.py
        np.maximum(s, np.exp(-self._margins), out=s)
        np.log(s, out=s)
        if self.margins is not None:
            s += self._margins
        s *= prices < SNAP * self.critical_price(num_classes)
        return self._times_temperature(s)

    def confidence_floor(self, slopes: Array, num_classes: int) -> Array:
        r"""Return the least softmax probability of each target inside the loss if ``‖∇_z ℓ_k‖`` is at most its slope.

        The gradient is ``(s/T) ⊙ (τ_k p − y_k)``, τ_k the sum of the targets, and its entries over s add up to 0, so
        that ``τ_k p_k ≥ y_kk − T · slope · (s_k² + 1/Σ_{j≠k} s_j⁻²)^(−1/2)``.
        """
        size = num_classes
        s = np.ones(size) if self.scales is None else np.asarray(self.scales)
        v = np.ones(size) if self.smoothing_weights is None else np.asarray(self.smoothing_weights)
        others = np.maximum((1 / s**2).sum() - 1 / s**2, EPS)
        target = 1 - self._rates + self._rates / size
        total = 1 - self._rates + self._rates * v.mean() / v
        return np.asarray(np.maximum(0.0, (target - self.temperature * slopes / np.sqrt(s**2 + 1 / others)) / total))

    def price(self, margins: Array, num_classes: int) -> Array:
        """Return ``−φ_k'`` at each margin: the price at which that margin is optimal, the inverse of :meth:`margin`."""
        self._require_scalar_form()
        odds = np.log(num_classes - 1) + self._margins - margins / self.temperature
        with np.errstate(over="ignore"):
            error = 1.0 / (1.0 + np.exp(-odds))
        return np.asarray((error - self._rates * (num_classes - 1) / num_classes) / self.temperature)

    def _lead(self, margins: Array) -> Array:
        """s/T − Δ, what the target's logit leads by inside the loss; plain cross-entropy saves two passes."""
        divided = margins if self.temperature == 1.0 else margins / self.temperature
        return divided if self.margins is None else divided - self._margins

    def _times_temperature(self, values: Array) -> Array:
        return values if self.temperature == 1.0 else self.temperature * values

    @cached_property
    def _margins(self) -> Array:
        """Δ, () or (K,)."""
        return np.asarray(0.0 if self.margins is None else self.margins)

    @cached_property
    def _rates(self) -> Array:
        """ε, () or (K,)."""
        return np.asarray(self.smoothing)

    @property
    def _sizes(self) -> dict[str, int]:
        """How many values each argument has that has one a class."""
        given = {name: getattr(self, name) for name in ("smoothing", *PER_CLASS)}
        return {name: len(value) for name, value in given.items() if isinstance(value, tuple)}

    def _require_scalar_form(self) -> None:
        if self.obstacle is not None:
            raise CollapseError(f"loss: {self.obstacle}; use collapsekit.solve")


def _shares(given: float | Sequence[float]) -> float | tuple[float, ...]:
    values = numeric("smoothing", given)
    bad = np.flatnonzero(~((values >= 0) & (values < 1)))
    if values.ndim > 1 or bad.size:
        what = f"smoothing: class {bad[0]} has {values[bad[0]]:g}" if values.ndim == 1 else f"smoothing={given!r}"
        raise CollapseError(f"{what}; give a share of at least 0 and less than 1, or one a class")
    shares: float | tuple[float, ...] = values.tolist() if values.ndim == 0 else tuple(values.tolist())
    return shares


def _in_logits(name: str, given: Sequence[float]) -> tuple[float, ...]:
    values = numeric(name, given)
    bad = np.flatnonzero(~(np.abs(values) <= LARGEST_MARGIN))
    if values.ndim != 1 or bad.size:
        what = f"class {bad[0]} has {values.flat[bad[0]]:g}" if bad.size else f"shape {values.shape}, expected (K,)"
        raise CollapseError(f"{name}: {what}; give one number a class, within ±{LARGEST_MARGIN:g}")
    return tuple(values.tolist())


def _factors(name: str, given: Sequence[float]) -> tuple[float, ...]:
    values = numeric(name, given)
    return tuple(positive_vector(name, values, values.size, "give one factor a class").tolist())
