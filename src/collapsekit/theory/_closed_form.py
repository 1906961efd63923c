"""The general orthogonal frame (GOF): the global optimum of UFM+ in closed form, and its thresholds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collapsekit.compensated import exact_product, pair
from collapsekit.errors import CollapseError
from collapsekit.geometry import Geometry
from collapsekit.losses import CrossEntropy
from collapsekit.problem import UFM
from collapsekit.validation import Array, frozen, shorten, whole_number

LARGEST_GEOMETRY_BYTES = 2 * 1024**3
Classes = slice | NDArray[np.intp]
EVERY = slice(None)
PART = 2**16
"""Classes at a time: what fits a processor's cache."""
SOLVE = "solve it numerically: collapsekit.solve(problem)"


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
        b = _scaled_means_sqnorms(self)
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
    require_closed_form(problem)
    size, loss = problem.num_classes, problem.loss
    headroom, table = np.empty(size), np.empty((4, size))
    near = [_fill(problem, part, headroom[part], table[:, part]) for part in _parts(problem)]
    _refine(problem, np.concatenate(near), table)
    collapsed = np.empty(size, dtype=bool)
    sums = [_finish(problem, part, table[:, part], collapsed[part]) for part in _parts(problem)]
    total_loss, total = np.array(sums).sum(axis=0)
    margins, confidences, feature_sqnorms, classifier_sqnorms = table
    survivors = size - int(np.count_nonzero(collapsed))
    if problem.dim is not None and problem.dim < survivors:
        raise CollapseError(
            f"dim={problem.dim}: {survivors} classes survive and need as many dimensions; with fewer no closed form is "
            f"known; widen the feature layer, or {SOLVE}"
        )
    penalties = problem.lambda_w * centring_share(problem) * total  # Σ c_k M_k
    objective = float(total_loss / problem.num_samples + penalties)
    if not np.isfinite(objective):
        raise CollapseError(
            f"lambda_w={problem.lambda_w:g}: with these penalties norms exceed float64; give penalties nearer to 1"
        )
    if loss.centred:
        classifier_sqnorms *= 1 - 2 / size
        classifier_sqnorms += total / size**2
    collapsed.flags.writeable = False
    return GeneralOrthogonalFrame(
        problem=problem,
        margins=frozen(margins),
        confidences=frozen(confidences),
        feature_sqnorms=frozen(feature_sqnorms),
        classifier_sqnorms=frozen(classifier_sqnorms),
        collapsed=collapsed,
        headroom=frozen(headroom),
        objective=objective,
    )


def predicted(problem: UFM) -> GeneralOrthogonalFrame | str:
    """Return the prediction, or in a sentence why there is no closed form."""
    try:
        require_closed_form(problem)
    except CollapseError as refused:
        return str(refused)
    return predict(problem)


def require_closed_form(problem: UFM) -> None:
    if not isinstance(problem, UFM):
        raise CollapseError(f"problem={problem!r}: give a UFM(counts, lambda_w, lambda_h)")
    if problem.bias is not None:
        raise CollapseError(
            f"bias={problem.bias!r}: a bias changes the geometry under imbalance and has no closed form; train the "
            f"head without one (bias=False in torch.nn.Linear) and give bias=None, or {SOLVE}"
        )
    if not problem.relu:
        raise CollapseError(
            f"relu=False: under imbalance no closed form is known without ReLU features; give relu=True, or {SOLVE}"
        )
    critical = problem.loss.critical_price(problem.num_classes)  # refuses a loss that is no function of the margin
    if critical.min() <= 0:
        raise CollapseError(
            f"loss={shorten(problem.loss)}: with label smoothing the target margin of class {critical.argmin()} lies "
            "so low that its loss falls towards negative margins; no closed form; raise that margin, smooth less, or "
            f"{SOLVE}"
        )


def _parts(problem: UFM) -> list[slice]:
    """Classes in parts that a processor's cache holds; all at once where the loss tells classes apart."""
    if getattr(problem.loss, "margins", None) is not None:
        return [slice(0, problem.num_classes)]
    return [slice(start, start + PART) for start in range(0, problem.num_classes, PART)]


def _fill(problem: UFM, part: slice, headroom: Array, table: Array) -> NDArray[np.intp]:
    """Fill in headroom, margins, confidences, losses and a_k of some classes; return which are near their threshold."""
    root = np.sqrt(problem.counts[part], out=table[3])
    prices = _margin_prices(problem, root, part, out=table[2])
    problem.loss.optimum(prices, problem.num_classes, table[:3])
    root *= _scale_per_root(problem, part)
    with np.errstate(over="ignore"):
        np.multiply(problem.counts[part], _headroom_per_sample(problem, part), out=headroom)
    return np.asarray(part.start + np.flatnonzero((headroom < 1.1) & (headroom > 1.0 - 1e-9)))


def margin_costs(problem: UFM) -> Array:
    """Return c_k, (K,): what a unit of margin costs in penalty; square roots apart, so that no product underflows."""
    return np.asarray(
        np.sqrt(problem.lambda_w) * np.sqrt(problem.lambda_h) * np.sqrt(problem.counts * centring_share(problem))
    )


def centring_share(problem: UFM) -> float:
    """(K−1)/K where the optimal classifier is centred: what is left of a unit row; 1 otherwise."""
    return (problem.num_classes - 1) / problem.num_classes if problem.loss.centred else 1.0


def _margin_prices(problem: UFM, root: Array, part: Classes = EVERY, *, out: Array | None = None) -> Array:
    """q_k = c_k/α_k, (K,): the price of margin per unit of loss weight, from √n_k."""
    scale = np.sqrt(problem.lambda_w) * np.sqrt(_of(problem.lambda_h, part)) * np.sqrt(centring_share(problem))
    if problem.class_weights is not None:
        root = root * problem.class_weights[part]
    return np.asarray(np.divide(scale * problem.num_samples, root, out=out))


def _of(values: float | Array, part: Classes) -> Array:
    """The values of some classes, where classes have values of their own."""
    values = np.asarray(values)
    return values[part] if values.ndim else values


def _price_tails(problem: UFM, q: Array, near: NDArray[np.intp]) -> Array:
    """What rounding took from the prices of some classes: q² n ω² = λ_W λ_H N² (K−1)/K, by compensated products."""
    share = Fraction(problem.num_classes - 1, problem.num_classes) if problem.loss.centred else Fraction(1)
    fixed = Fraction(problem.lambda_w) * share * Fraction(problem.num_samples) ** 2
    if np.ndim(problem.lambda_h) == 0:
        wanted, missing = map(np.asarray, pair(fixed * Fraction(float(problem.lambda_h))))
    else:
        high, low = pair(fixed)
        per_class = _of(problem.lambda_h, near)
        wanted, missing = exact_product(per_class, high)
        missing = missing + per_class * low
    squared, rest = exact_product(q, q)
    factors = [problem.counts[near]]
    if problem.class_weights is not None:
        factors += 2 * [problem.class_weights[near]]
    for factor in factors:
        squared, rounding = exact_product(squared, factor)
        rest = rest * factor + rounding
    return np.asarray(q * (((wanted - squared) + (missing - rest)) / (2 * squared)))


def _finish(problem: UFM, part: slice, table: Array, collapsed: NDArray[np.bool_]) -> tuple[float, float]:
    """Put ‖h_k‖² and b_k = a_k² ‖h_k‖² in the places of losses and a_k; return Σ ω_k n_k φ_k and Σ b_k."""
    margins, _, losses, scales = table
    np.equal(margins, 0.0, out=collapsed)
    if problem.class_weights is not None:
        losses *= problem.class_weights[part]
    loss = losses @ problem.counts[part]
    np.divide(margins, scales, out=losses)
    np.multiply(margins, scales, out=scales)
    return float(loss), float(scales.sum())


def _refine(problem: UFM, near: NDArray[np.intp], table: Array) -> None:
    """Solve again where the digits of a price matter: near the threshold a rounding counts K-fold in the margin."""
    loss, prices = problem.loss, _margin_prices(problem, np.sqrt(problem.counts[near]), near)
    if isinstance(loss, CrossEntropy) and loss.margins is not None:
        loss = replace(loss, margins=tuple(np.asarray(loss.margins)[near]))
    with np.errstate(over="ignore", invalid="ignore"):
        tails = _price_tails(problem, prices, near)
    tails[~np.isfinite(tails)] = 0.0  # penalties and weights beyond 1e±150 have no such products
    solved = loss.optimum(prices, problem.num_classes, np.empty((3, near.size)), tails)
    for row, values in zip(table, solved, strict=False):
        row[near] = values


def headroom_of(problem: UFM) -> Array:
    """(Critical price / price)², (K,); infinite where penalties are too small for float64 to tell."""
    with np.errstate(over="ignore"):
        return np.asarray(problem.counts * _headroom_per_sample(problem))


def _headroom_per_sample(problem: UFM, part: Classes = EVERY) -> Array:
    """Headroom over n_k, () or (K,): class weights, target margins and penalties of classes tell them apart."""
    with np.errstate(over="ignore"):
        root = _of(problem.loss.critical_price(problem.num_classes), part) / np.sqrt(problem.lambda_w)
        root = root / (problem.num_samples * np.sqrt(centring_share(problem))) / np.sqrt(_of(problem.lambda_h, part))
        if problem.class_weights is not None:
            root = root * problem.class_weights[part]
        return np.asarray(np.square(root))


def _duality_scales(problem: UFM) -> Array:
    """a_k, (K,), in W = Σ a_k (e_k − 1/K) h_kᵀ, or Σ a_k e_k h_kᵀ without centring."""
    return np.asarray(np.sqrt(problem.counts) * _scale_per_root(problem))


def _scale_per_root(problem: UFM, part: Classes = EVERY) -> Array:
    """a_k/√n_k, () or (K,)."""
    return np.asarray(np.sqrt(_of(problem.lambda_h, part)) / np.sqrt(centring_share(problem) * problem.lambda_w))


def _scaled_means_sqnorms(frame: GeneralOrthogonalFrame) -> Array:
    """b_k = a_k² ‖h_k‖² = a_k M_k, (K,)."""
    return np.asarray(_duality_scales(frame.problem) * frame.margins)
