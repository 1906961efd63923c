"""The general orthogonal frame (GOF): the global optimum of UFM+ in closed form."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from collapsekit.errors import CollapseError
from collapsekit.geometry import Geometry
from collapsekit.problem import UFM
from collapsekit.theory._simplex import Simplex, is_balanced, simplex
from collapsekit.validation import SMALLEST, Array, frozen, shorten, whole_number

LARGEST_GEOMETRY_BYTES = 2 * 1024**3
NOTHING = "with these penalties a margin costs next to nothing; give penalties and class weights nearer to 1"
SOLVE = "predict(problem) finds its optimum numerically"


@dataclass(frozen=True, eq=False)
class Frame:
    r"""Orthogonal class features, with centred and scaled class means as classifier.

    .. math::

        h_k \perp h_l, \qquad W = \sum_k a_k (e_k - \mathbf 1/K)\, h_k^\top, \qquad
        a_k = \sqrt{\frac{K \lambda_{H,k}\, n_k}{(K-1)\lambda_W}}

    and ``W = Σ a_k e_k h_kᵀ``, ``a_k = √(λ_H n_k/λ_W)`` for a loss that is not centred (squared error).

    Attributes
    ----------
    problem : UFM
        Whose optimum it is.
    margins : ndarray, shape (K,)
        ``M_k``; 0 for a class that is lost.
    scales : ndarray, shape (K,)
        ``a_k``.
    headroom : ndarray, shape (K,)
        Critical λ_W λ_H over λ_W λ_H: the square of the critical over the actual price of margin.
    """

    problem: UFM
    margins: Array
    scales: Array
    headroom: Array

    @property
    def feature_sqnorms(self) -> Array:
        """``‖h_k‖² = M_k / a_k``, (K,)."""
        return self.margins / self.scales

    @property
    def classifier_sqnorms(self) -> Array:
        """``‖w_k‖²``, (K,): with ``b_k = a_k M_k`` and their sum B, ``(1 − 2/K) b_k + B/K²``; uncentred ``b_k``."""
        b, size = self.scales * self.margins, self.problem.num_classes
        if self.problem.loss.centred:
            total = b.sum()
            b *= 1 - 2 / size
            b += total / size**2
        return b

    @property
    def objective(self) -> float:
        """The optimal value ``Σ α_k φ(M_k) + c_k M_k``, where ``c_k = λ_W a_k (K−1)/K``."""
        problem = self.problem
        losses = problem.loss.scalar(self.margins, problem.num_classes)
        if problem.class_weights is not None:
            losses = losses * problem.class_weights
        penalties = problem.lambda_w * centring_share(problem) * (self.scales @ self.margins)
        return float(problem.counts @ losses / problem.num_samples + penalties)

    def gram_rows(self, rows: slice) -> tuple[Array, Array, Array]:
        """Return some rows of the Gram matrices of features, of the classifier and between the two, (r, K) each."""
        size, b = self.problem.num_classes, self.scales * self.margins
        own = np.arange(size)[rows, None] == np.arange(size)
        gram_h, gram_w, cross = own * self.feature_sqnorms, own * b, own * self.margins
        if self.problem.loss.centred:
            gram_w = gram_w + (b.sum() / size**2 - (b[rows, None] + b) / size)
            cross = cross - self.margins / size
        return gram_h, gram_w, cross

    def geometry(self) -> Geometry:
        """Return the Gram matrices, (K, K) each; refused above 2 GiB."""
        size = self.problem.num_classes
        needed = 3 * 8 * size**2
        if needed > LARGEST_GEOMETRY_BYTES:
            raise CollapseError(
                f"geometry: K = {size} needs {needed / 1024**3:.1f} GiB for three {size} × {size} matrices, above the "
                "limit of 2 GiB; use gram_rows, or the vectors of the prediction"
            )
        return Geometry(*self.gram_rows(slice(None)), self.problem.counts, names=self.problem.names)

    def weights_and_features(self, dim: int | None = None) -> tuple[Array, Array]:
        """Return one optimal pair of classifier and class features, (K, d) each; others are its rotations."""
        alive = np.flatnonzero(self.margins > 0)
        if dim is None:
            dim = self.problem.dim or max(1, alive.size)
        dim = whole_number("dim", dim, 1, "give the feature dimension or leave it out")
        if dim < alive.size:
            raise CollapseError(f"dim={dim}: {alive.size} surviving classes need as many dimensions")
        features = np.zeros((self.problem.num_classes, dim))
        features[alive, np.arange(alive.size)] = np.sqrt(self.feature_sqnorms[alive])
        weights = self.scales[:, None] * features
        return weights - weights.mean(axis=0) if self.problem.loss.centred else weights, features


class NoClosedForm(CollapseError):
    """The problem is a problem, but no formula is known for its optimum."""


def closed_form(problem: UFM) -> Frame | Simplex:
    r"""Return the global optimum in closed form, in O(K) time and memory.

    With ReLU features and without a bias the problem splits into one scalar problem a class,

    .. math::

        \min_{s \ge 0}\; \alpha_k \varphi(s) + c_k s, \qquad
        c_k = \sqrt{\lambda_W \lambda_{H,k}\, n_k (K-1)/K},

    whose minimiser is the margin :math:`M_k`, and the features' lengths follow from it. Squared error has the same
    optimum without ReLU. Balanced classes need no bias, and without ReLU they form a simplex.

    References
    ----------
    Dang et al., ICML 2024 (arXiv 2401.02058), Theorem 4.1, restated through error probabilities; class weights,
    per-class λ_H, `dim` below K, squared error, bias and simplex: derived here (docs/theory.md).
    """
    require_classes(problem)
    flat = isinstance(problem, UFM) and not problem.relu and problem.loss.centred and is_balanced(problem)
    require_closed_form(replace(problem, relu=True) if flat else problem)
    found = simplex(problem) if flat else _frame(problem)
    survivors = int(np.count_nonzero(found.margins))
    needed = survivors - 1 if flat and survivors else survivors
    if problem.dim is not None and problem.dim < needed:
        raise NoClosedForm(
            f"dim={problem.dim}: {survivors} classes survive and need {needed} dimensions; with fewer no closed form "
            f"is known; widen the feature layer, or {SOLVE}"
        )
    return found


def _frame(problem: UFM) -> Frame:
    prices = margin_prices(problem)
    margins = problem.loss.margin(prices, problem.num_classes)
    return Frame(problem, frozen(margins), frozen(duality_scales(problem)), frozen(_headroom(problem, prices)))


def require_classes(problem: UFM) -> None:
    """Refuse types of samples, unless each one is all of a class."""
    types = getattr(problem, "types", None)
    if types is not None and not types.are_classes:
        raise NoClosedForm(
            f"targets: {types.counts.size} types of samples have a closed form only where type k is all of class k; "
            f"{SOLVE}"
        )


def require_closed_form(problem: UFM) -> None:
    require_classes(problem)
    if not isinstance(problem, UFM):
        raise CollapseError(f"problem={problem!r}: give a UFM(counts, lambda_w, lambda_h)")
    if problem.bias is not None and not (problem.loss.centred and problem.loss.convex and is_balanced(problem)):
        raise NoClosedForm(
            f"bias={problem.bias!r}: a bias changes the geometry under imbalance and has no closed form; train the "
            f"head without one (bias=False in torch.nn.Linear) and give bias=None, or {SOLVE}"
        )
    if not problem.relu and problem.loss.centred:
        raise NoClosedForm(
            f"relu=False: under imbalance no closed form is known without ReLU features; give relu=True, or {SOLVE}"
        )
    if problem.loss.obstacle is not None:
        raise NoClosedForm(f"loss: {problem.loss.obstacle}; {SOLVE}")
    critical = problem.loss.critical_price(problem.num_classes)
    if critical.min() <= 0:
        raise NoClosedForm(
            f"loss={shorten(problem.loss)}: with label smoothing the target margin of class {critical.argmin()} lies "
            "so low that its loss falls towards negative margins; no closed form; raise that margin, smooth less, or "
            f"{SOLVE}"
        )


def duality_scales(problem: UFM) -> Array:
    """Return a_k, (K,): how much longer a classifier row is than the class mean that it is made of."""
    ratio = np.sqrt(problem.lambda_h) / np.sqrt(centring_share(problem) * problem.lambda_w)
    return np.asarray(ratio * np.sqrt(problem.counts))


def margin_prices(problem: UFM) -> Array:
    """Return q_k = c_k/α_k, (K,): the price of margin per unit of loss weight.

    ``(N/ω_k) √(λ_W λ_H (K−1)/(K n_k))``, with square roots apart so that no product underflows.
    """
    require_classes(problem)
    scale = problem.num_samples * np.sqrt(problem.lambda_w) * np.sqrt(centring_share(problem))
    with np.errstate(over="ignore"):  # a class of next to no weight is lost at any price
        roots = np.sqrt(problem.counts)
        prices: Array = np.divide(scale * np.sqrt(problem.lambda_h), roots, out=roots)
        if problem.class_weights is not None:
            prices /= problem.class_weights
    if not prices.min() >= SMALLEST:
        raise CollapseError(f"lambda_w={problem.lambda_w:g}: {NOTHING}")
    return prices


def centring_share(problem: UFM) -> float:
    """(K−1)/K where the optimal classifier is centred: what is left of a unit row; 1 otherwise."""
    return (problem.num_classes - 1) / problem.num_classes if problem.loss.centred else 1.0


def headroom_of(problem: UFM) -> Array:
    """(Critical price / price)², (K,); infinite where penalties are too small for float64 to tell."""
    return _headroom(problem, margin_prices(problem))


def _headroom(problem: UFM, prices: Array) -> Array:
    """As :func:`headroom_of`, in the place of the prices."""
    with np.errstate(over="ignore", divide="ignore"):
        ratios = np.divide(problem.loss.critical_price(problem.num_classes), prices, out=prices)
        return np.square(ratios, out=ratios)
