"""The general orthogonal frame (GOF): the global optimum of UFM+ in closed form, and its thresholds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from collapsekit.errors import CollapseError
from collapsekit.geometry import Geometry
from collapsekit.problem import UFM
from collapsekit.validation import Array, frozen, whole_number

LARGEST_GEOMETRY_BYTES = 2 * 1024**3


@dataclass(frozen=True, eq=False, repr=False)
class GeneralOrthogonalFrame:
    r"""The predicted optimum: orthogonal class features, centred and scaled class means as classifier.

    .. math::

        h_k \perp h_l, \qquad W = \sum_k a_k (e_k - \mathbf 1/K)\, h_k^\top, \qquad
        a_k = \sqrt{\frac{K \lambda_{H,k}\, n_k}{(K-1)\lambda_W}}

    Attributes
    ----------
    problem : UFM
        What was solved.
    margins : ndarray, shape (K,)
        ``M_k``: target logit minus any other logit; 0 for a collapsed class.
    confidences : ndarray, shape (K,)
        Softmax probability of the target on training samples; 1/K for a collapsed class.
    feature_sqnorms : ndarray, shape (K,)
        ``‖h_k‖²``.
    classifier_sqnorms : ndarray, shape (K,)
        ``‖w_k‖²``.
    collapsed : ndarray of bool, shape (K,)
        Classes whose features vanish at the optimum.
    headroom : ndarray, shape (K,)
        Critical λ_W λ_H divided by λ_W λ_H; a class dies at headroom ≤ 1, and both decays may grow by its square
        root before it does.
    objective : float
        The optimal value.
    """

    problem: UFM
    margins: Array
    confidences: Array
    feature_sqnorms: Array
    classifier_sqnorms: Array
    collapsed: np.ndarray[Any, np.dtype[np.bool_]]
    headroom: Array
    objective: float

    def geometry(self) -> Geometry:
        """Return the Gram matrices, (K, K) each.

        Raises
        ------
        CollapseError
            If the three matrices together would exceed 2 GiB.

        Examples
        --------
        >>> from collapsekit import UFM, predict
        >>> frame = predict(UFM([500, 300, 40, 10], lambda_w=3e-2, lambda_h=1e-3))
        >>> round(float(frame.geometry().gram_w[0, 1]), 10)
        -3.8336768322
        """
        size = self.problem.num_classes
        needed = 3 * 8 * size**2
        if needed > LARGEST_GEOMETRY_BYTES:
            raise CollapseError(
                f"geometry: K = {size} needs {needed / 1024**3:.1f} GiB for three {size} × {size} matrices, above the "
                "limit of 2 GiB; use the per-class vectors of the frame instead"
            )
        b = _scaled_means_sqnorms(self.problem, self.feature_sqnorms)
        gram_w, cross = np.zeros((2, size, size))
        if self.problem.loss.centred:
            gram_w += b.sum() / size**2 - (b[:, None] + b) / size
            cross -= self.margins / size
        gram_w[np.diag_indices(size)] = self.classifier_sqnorms
        cross[np.diag_indices(size)] += self.margins
        return Geometry(np.diag(self.feature_sqnorms), gram_w, cross, self.problem.counts, names=self.problem.names)

    def weights_and_features(self, dim: int | None = None) -> tuple[Array, Array]:
        """Return one optimal pair of classifier and class features, (K, d) each; others are its rotations.

        Parameters
        ----------
        dim : int, optional
            d; at least the number of surviving classes. None: the problem's own `dim`, or else that number.

        Raises
        ------
        CollapseError
            If `dim` leaves no room for the surviving classes.

        Examples
        --------
        >>> from collapsekit import UFM, predict
        >>> problem = UFM([200, 100, 50, 50], lambda_w=5e-3, lambda_h=5e-4)
        >>> frame = predict(problem)
        >>> weights, features = frame.weights_and_features()
        >>> abs(problem.objective(weights, features) - frame.objective) < 1e-12
        True
        """
        alive = np.flatnonzero(~self.collapsed)
        if dim is None:
            dim = self.problem.dim or max(1, alive.size)
        dim = whole_number("dim", dim, 1, "give the feature dimension or leave it out")
        if dim < alive.size:
            raise CollapseError(f"dim={dim}: {alive.size} surviving classes need as many dimensions")
        size = self.problem.num_classes
        features = np.zeros((size, dim))
        features[alive, np.arange(alive.size)] = np.sqrt(self.feature_sqnorms[alive])
        weights = _duality_scales(self.problem)[:, None] * features
        if self.problem.loss.centred:
            weights = weights - weights.mean(axis=0)
        return weights, features

    def to_dict(self) -> dict[str, Any]:
        """Return the per-class prediction as plain lists (JSON-ready), with its schema version."""
        return {
            "schema": 1,
            "problem": self.problem.to_dict(),
            "margins": self.margins.tolist(),
            "confidences": self.confidences.tolist(),
            "feature_sqnorms": self.feature_sqnorms.tolist(),
            "classifier_sqnorms": self.classifier_sqnorms.tolist(),
            "collapsed": self.collapsed.tolist(),
            "headroom": self.headroom.tolist(),
            "objective": self.objective,
        }

    def __repr__(self) -> str:
        return (
            f"GeneralOrthogonalFrame(K={self.problem.num_classes}, {int(self.collapsed.sum())} collapsed, "
            f"confidences {self.confidences.min():.4g} … {self.confidences.max():.4g}, "
            f"smallest headroom {self.headroom.min():.4g}, objective {self.objective:.6g})"
        )


def predict(problem: UFM) -> GeneralOrthogonalFrame:
    r"""Return the global optimum of a bias-free UFM+ in closed form, in O(K) time and memory.

    The problem splits into one scalar problem a class,

    .. math::

        \min_{s \ge 0}\; \alpha_k \varphi(s) + c_k s, \qquad
        c_k = \sqrt{\lambda_W \lambda_{H,k}\, n_k (K-1)/K},

    whose minimiser is the margin :math:`M_k`. For plain cross-entropy the error probability of a surviving class is
    :math:`q_k = c_k/\alpha_k`, and the class collapses when :math:`q_k \ge (K-1)/K`; label smoothing, target margins
    and temperature move both (:meth:`CrossEntropy.margin`).

    Parameters
    ----------
    problem : UFM
        Without bias, with ReLU features, and with `dim` (if given) at least the number of surviving classes.

    Returns
    -------
    GeneralOrthogonalFrame

    Raises
    ------
    CollapseError
        If the problem has no closed form; the message says which property is in the way.

    References
    ----------
    Dang et al., ICML 2024 (arXiv 2401.02058), Theorem 4.1, restated through error probabilities; class weights,
    per-class λ_H and `dim` below K: derived here (docs/theory.md).

    Examples
    --------
    >>> frame = predict(UFM([500, 300, 40, 10], lambda_w=3e-2, lambda_h=1e-3))
    >>> frame
    GeneralOrthogonalFrame(K=4, 1 collapsed, confidences 0.25 … 0.8197, smallest headroom 0.346, objective 0.75595)
    >>> frame.margins
    array([2.61284583, 2.29128039, 0.53408249, 0.        ])
    """
    _require_closed_form(problem)
    size, loss = problem.num_classes, problem.loss
    prices, costs = _margin_prices(problem), margin_costs(problem)
    margins = loss.margin(prices, size)
    alive = margins > 0
    survivors = int(alive.sum())
    if problem.dim is not None and problem.dim < survivors:
        raise CollapseError(
            f"dim={problem.dim}: {survivors} classes survive and need as many dimensions; below that no closed form "
            "is known; widen the feature layer"
        )
    feature_sqnorms = margins / _duality_scales(problem)
    b = _scaled_means_sqnorms(problem, feature_sqnorms)
    collapsed = ~alive
    collapsed.flags.writeable = False
    return GeneralOrthogonalFrame(
        problem=problem,
        margins=frozen(margins),
        confidences=frozen(loss.confidence(margins, size)),
        feature_sqnorms=frozen(feature_sqnorms),
        classifier_sqnorms=frozen((1 - 2 / size) * b + b.sum() / size**2 if loss.centred else b),
        collapsed=collapsed,
        headroom=frozen(_headroom(problem)),
        objective=float(problem.loss_weights @ loss.scalar(margins, size) + costs @ margins),
    )


@dataclass(frozen=True, eq=False)
class Thresholds:
    """Where classes die, all else fixed.

    Attributes
    ----------
    critical_product : ndarray, shape (K,)
        λ_W λ_H from which the class is dead (it survives below).
    critical_count : ndarray, shape (K,)
        ``n_k`` up to which the class is dead at the problem's own N and penalties; real-valued.
    headroom : ndarray, shape (K,)
        Critical λ_W λ_H divided by λ_W λ_H, which equals ``n_k`` divided by its critical count.
    """

    critical_product: Array
    critical_count: Array
    headroom: Array

    @property
    def minority_collapse(self) -> float:
        """λ_W λ_H at which the first class dies."""
        return float(self.critical_product.min())

    @property
    def complete_collapse(self) -> float:
        """λ_W λ_H at which the last class dies and the network predicts nothing."""
        return float(self.critical_product.max())

    def to_dict(self) -> dict[str, Any]:
        """Return the thresholds as plain lists (JSON-ready), with the schema version."""
        return {
            "schema": 1,
            "critical_product": self.critical_product.tolist(),
            "critical_count": self.critical_count.tolist(),
            "headroom": self.headroom.tolist(),
            "minority_collapse": self.minority_collapse,
            "complete_collapse": self.complete_collapse,
        }


def thresholds(problem: UFM) -> Thresholds:
    r"""Return where each class of a bias-free UFM+ dies.

    .. math::

        (\lambda_W\lambda_H)^{\rm crit}_k = \frac{\omega_k^2 (K-1) n_k}{K N^2}

    for cross-entropy; the price of margin grows with the square root of the product for every loss.

    Parameters
    ----------
    problem : UFM
        As for :func:`predict`.

    Returns
    -------
    Thresholds

    Raises
    ------
    CollapseError
        If the problem has no closed form.

    References
    ----------
    Dang et al., ICML 2024, Theorem 4.1; derived here for class weights (docs/theory.md).

    Examples
    --------
    >>> limits = thresholds(UFM([900, 100], lambda_w=1e-3, lambda_h=1e-3))
    >>> limits.headroom
    array([450.,  50.])
    >>> limits.critical_count
    array([2., 2.])
    """
    _require_closed_form(problem)
    size, headroom = problem.num_classes, _headroom(problem)
    per_root_product = np.sqrt(problem.counts * _centring_share(problem))  # c_k over the root of λ_W λ_H
    critical_root = problem.loss.critical_price(size) * problem.loss_weights / per_root_product
    return Thresholds(
        critical_product=frozen(critical_root**2),
        critical_count=frozen(problem.counts / headroom),
        headroom=frozen(headroom),
    )


def _require_closed_form(problem: UFM) -> None:
    if not isinstance(problem, UFM):
        raise CollapseError(f"problem={problem!r}: give a UFM(counts, lambda_w, lambda_h)")
    if problem.bias is not None:
        raise CollapseError(
            f"bias={problem.bias!r}: a bias changes the geometry under imbalance and has no closed form; "
            "train the head without one (bias=False in torch.nn.Linear) or give bias=None"
        )
    obstacle = getattr(problem.loss, "obstacle", None)
    if obstacle is not None:
        raise CollapseError(f"loss: {obstacle}; use collapsekit.solve")
    critical = np.broadcast_to(problem.loss.critical_price(problem.num_classes), problem.num_classes)
    if critical.min() < 0:
        raise CollapseError(
            f"loss={problem.loss!r}: with label smoothing the target margin of class {critical.argmin()} lies so "
            "low that its loss falls towards negative margins; no closed form; raise that margin or smooth less"
        )
    if not problem.relu:
        raise CollapseError("relu=False: under imbalance no closed form is known without ReLU features; give relu=True")


def margin_costs(problem: UFM) -> Array:
    """Return c_k, (K,): what a unit of margin costs in penalty; square roots apart, so that no product underflows."""
    return np.asarray(
        np.sqrt(problem.lambda_w) * np.sqrt(problem.lambda_h) * np.sqrt(problem.counts * _centring_share(problem))
    )


def _centring_share(problem: UFM) -> float:
    """(K−1)/K where the optimal classifier is centred: what is left of a unit row; 1 otherwise."""
    return (problem.num_classes - 1) / problem.num_classes if problem.loss.centred else 1.0


def _margin_prices(problem: UFM) -> Array:
    """q_k = c_k/α_k, (K,): the price of margin per unit of loss weight."""
    return margin_costs(problem) / problem.loss_weights


def _headroom(problem: UFM) -> Array:
    """(Critical price / price)², (K,); infinite where penalties are too small for float64 to tell."""
    with np.errstate(over="ignore"):
        return np.asarray((problem.loss.critical_price(problem.num_classes) / _margin_prices(problem)) ** 2)


def _duality_scales(problem: UFM) -> Array:
    """a_k, (K,), in W = Σ a_k (e_k − 1/K) h_kᵀ, or Σ a_k e_k h_kᵀ without centring."""
    return np.sqrt(problem.lambda_h * problem.counts / (_centring_share(problem) * problem.lambda_w))


def _scaled_means_sqnorms(problem: UFM, feature_sqnorms: Array) -> Array:
    """b_k = a_k² ‖h_k‖², (K,)."""
    return _duality_scales(problem) ** 2 * feature_sqnorms
