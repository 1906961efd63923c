"""effective_penalties: which λ_W and λ_H a trained network behaves as if it had, or that none fit."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize_scalar

from collapsekit.errors import CollapseError
from collapsekit.losses import Loss
from collapsekit.metrics import Measurement
from collapsekit.metrics.functional import largest_cosine
from collapsekit.metrics.measurement import as_array
from collapsekit.prediction import predict
from collapsekit.problem import UFM
from collapsekit.validation import Array, positive_vector, whole_number

LARGEST_MISFIT = 0.05
"""The fitted margins may deviate by this share of the margins themselves (root mean squares)."""
LARGEST_COSINE = 0.1
"""Surviving class means may be this far from orthogonal."""
LARGEST_WITHIN = 0.05
"""Features may scatter within classes by this share of their mean square."""


@dataclass(frozen=True)
class EffectivePenalties:
    """The penalties that a trained bias-free network behaves as if it had: an estimate, never a setting.

    Attributes
    ----------
    applies : bool
        Whether the model fits well enough for the numbers to mean something; otherwise they are None.
    reason : str
        In what it does not fit, or how well it does.
    lambda_w, lambda_h : float or None
        Estimates in the theory's units (the feature penalty sums over all samples).
    product : float or None
        λ_W λ_H, from the margins.
    product_interval : tuple of float, or None
        Its 95 % interval, from resampling classes.
    ratio : float or None
        λ_H / λ_W, from the balance identity.
    misfit : float
        Root mean square deviation of the margins from those of the fit, as a share of the margins' own.
    """

    applies: bool
    reason: str
    lambda_w: float | None = None
    lambda_h: float | None = None
    product: float | None = None
    product_interval: tuple[float, float] | None = None
    ratio: float | None = None
    misfit: float = float("nan")

    def to_dict(self) -> dict[str, Any]:
        """Return the estimate as plain values, with its schema version."""
        known = {"misfit": self.misfit if np.isfinite(self.misfit) else None}
        return {"schema": 1, "estimate": True} | asdict(self) | known

    def __str__(self) -> str:
        if not self.applies or self.product_interval is None:
            return f"Effective penalties: the model does not apply ({self.reason})."
        low, high = self.product_interval
        return (
            f"Effective penalties (an estimate): λ_W ≈ {self.lambda_w:.4g}, λ_H ≈ {self.lambda_h:.4g}; product "
            f"{self.product:.4g} (95 % interval {low:.4g} to {high:.4g}); {self.reason}."
        )


def effective_penalties(
    measured: Measurement,
    *,
    class_weights: ArrayLike | None = None,
    loss: Loss | None = None,
    resamples: int = 300,
    seed: int = 0,
) -> EffectivePenalties:
    r"""Estimate λ_W and λ_H of a trained bias-free network from its last layer alone.

    At every minimiser ``λ_W ‖W‖² = λ_H Σ_i ‖h_i‖²`` (balance), which gives the ratio; the product is the one whose
    closed form comes nearest to the measured margins,

    .. math:: \min_{\lambda_W\lambda_H}\ \sum_k \bigl(M_k(\lambda_W\lambda_H) - m_k\bigr)^2.

    Where class means are not orthogonal, features scatter, margins do not follow one product, features are negative
    or the head has a bias, the answer is that the model does not apply, in place of a number.

    Parameters
    ----------
    measured : Measurement
        With head, over the training samples.
    class_weights : array_like, shape (K,), optional
        ω_k of the training loss, in the theory's normalisation.
    loss : CrossEntropy, Focal, Hinge or MSE, optional
        The training loss; by default that of the measurement.
    resamples : int
        Bootstrap samples of the classes for the interval.
    seed : int
        Of the bootstrap.

    Returns
    -------
    EffectivePenalties

    Raises
    ------
    CollapseError
        If there is no head, or a class has no samples.

    References
    ----------
    Balance: Dang et al., ICML 2024; the estimate: derived here (docs/theory.md).

    Examples
    --------
    >>> import numpy as np
    >>> from collapsekit.metrics import measure_features
    >>> weights, features = predict(UFM([60, 30, 10], lambda_w=0.01, lambda_h=0.0002)).weights_and_features()
    >>> labels = np.repeat([0, 1, 2], [60, 30, 10])
    >>> found = effective_penalties(measure_features(features[labels], labels, weights))
    >>> print(f"{found.lambda_w:.6f} {found.lambda_h:.6f}")
    0.010000 0.000200
    """
    if measured.weight is None:
        raise CollapseError("measured: without a head there are no margins; measure with weight=")
    if measured.moments.unseen:
        raise CollapseError(f"measured: class {measured.moments.unseen[0]} has no samples; measure the training set")
    if class_weights is not None:
        class_weights = positive_vector("class_weights", class_weights, measured.moments.num_classes, "or None")
    resamples = whole_number("resamples", resamples, 1, "give the number of bootstrap samples")
    loss, counts, margins = loss or measured.loss, measured.counts, measured.margins
    size, within = len(counts), as_array(measured.moments.within)
    total = float(counts @ (measured.per_class()["feature_sqnorm"] + within))
    headroom = predict(UFM(counts, 1.0, 1.0, class_weights=class_weights, loss=loss)).headroom  # at λ_W λ_H = 1
    obstacle = _obstacle(measured, float(counts @ within) / (total or 1.0))
    if obstacle is not None:
        return EffectivePenalties(False, obstacle)
    prices = loss.critical_price(size) / np.sqrt(headroom)
    grid = np.linspace(np.log(headroom.min()) - 60, np.log(headroom.max()), 200)

    def errors(log_product: float) -> Array:
        """Squared deviations of the measured margins from those of a λ_W λ_H, (K,)."""
        return np.asarray((loss.margin(prices * np.sqrt(np.exp(log_product)), size) - margins) ** 2)

    grid_errors = np.array([errors(x) for x in grid])

    def fit(times: Array) -> float:
        """Return the product of the least squares fit: a grid over all that matters, then Brent's method."""
        best = int((grid_errors @ times).argmin())
        bounds = (grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)])
        found = minimize_scalar(lambda x: float(times @ errors(x)), bounds=bounds, options={"xatol": 1e-10})
        return float(np.exp(found.x))

    product = fit(np.ones(size))
    misfit = float(np.sqrt(np.mean(errors(np.log(product))) / np.mean(margins**2)))
    if misfit > LARGEST_MISFIT:
        return EffectivePenalties(False, f"margins deviate by {misfit:.0%} from those of any λ_W λ_H", misfit=misfit)
    ratio = float(measured.weight.square().sum()) / total
    drawn = np.random.default_rng(seed).multinomial(size, np.full(size, 1 / size), resamples)
    draws, times = np.unique(drawn, axis=0, return_counts=True)
    fits = [fit(draw.astype(np.float64)) for draw in draws]
    low, high = np.quantile(np.repeat(fits, times), [0.025, 0.975])
    return EffectivePenalties(
        applies=True,
        reason=f"margins within {misfit:.2%} of that fit",
        lambda_w=float(np.sqrt(product / ratio)),
        lambda_h=float(np.sqrt(product * ratio)),
        product=product,
        product_interval=(float(low), float(high)),
        ratio=ratio,
        misfit=misfit,
    )


def _obstacle(measured: Measurement, within: float) -> str | None:
    """Why the model cannot apply, before any fit; `within` is the share of the features' mean square within classes."""
    if measured.bias is not None and float(measured.bias.abs().max()) > 0:
        return "the head has a bias"
    if measured.loss.obstacle is not None:
        return measured.loss.obstacle
    if measured.nonnegative is False:
        return "features are negative, so they did not leave a ReLU"
    if not float(np.max(measured.margins)) > 0:
        return "no class has a margin above 0"
    if within > LARGEST_WITHIN:
        return f"features scatter within classes by {within:.0%} of their mean square"
    cosine = largest_cosine(measured.moments)
    if cosine > LARGEST_COSINE:
        return f"class means are not orthogonal, largest |cosine| {cosine:.2f}"
    return None
