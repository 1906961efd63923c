"""Reference geometries to tell apart, each as a Geometry; the nearest one to a measured network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from collapsekit.errors import CollapseError
from collapsekit.geometry import Distance, Geometry
from collapsekit.losses import MSE, Hinge
from collapsekit.problem import UFM
from collapsekit.theory._closed_form import Frame, closed_form, duality_scales, headroom_of
from collapsekit.theory._simplex import is_balanced, simplex
from collapsekit.validation import Array, class_counts, positive_number, positive_values, shorten, whole_number


def simplex_etf(num_classes: int) -> Geometry:
    """Return the simplex equiangular tight frame: unit means at the angle ``cos = −1/(K−1)``, classifier equal to them.

    What balanced classes converge to without ReLU.

    Parameters
    ----------
    num_classes : int
        K ≥ 2.

    References
    ----------
    Papyan, Han, Donoho, PNAS 2020.

    Examples
    --------
    >>> simplex_etf(3).gram_h.round(2)
    array([[ 1. , -0.5, -0.5],
           [-0.5,  1. , -0.5],
           [-0.5, -0.5,  1. ]])
    """
    size = whole_number("num_classes", num_classes, 2, "give the number of classes")
    gram = _centring(size) * (size / (size - 1))
    return Geometry(gram, gram, gram, np.ones(size))


def orthogonal_frame(num_classes: int, *, centred: bool = True) -> Geometry:
    """Return orthogonal unit means with themselves, centred, as classifier: balanced classes with ReLU features.

    Parameters
    ----------
    num_classes : int
        K ≥ 2.
    centred : bool
        Whether the classifier is centred: as all losses call for, except squared error.

    References
    ----------
    Tirer and Bruna, ICML 2022; Dang et al., ICML 2024.

    Examples
    --------
    >>> orthogonal_frame(3).classifier_cosines.round(2)[0]
    array([ 1. , -0.5, -0.5])
    """
    size = whole_number("num_classes", num_classes, 2, "give the number of classes")
    rows = _centring(size) if centred else np.eye(size)
    return Geometry(np.eye(size), rows, rows, np.ones(size))


def max_margin_frame(counts: ArrayLike, *, centred: bool = True) -> Geometry:
    r"""Return the general orthogonal frame in the limit of vanishing penalties: all margins 1, for λ_W = λ_H.

    ``‖h_k‖² = √((K−1)/(K n_k))`` and ``b_k = √(K n_k/(K−1))``: rarer classes have longer features. Exponential-tail
    losses reach it, up to scale, as λ → 0; so does the hinge, and, without the factors of K, squared error.

    Parameters
    ----------
    counts : array_like of int, shape (K,)
        Samples of each class.
    centred : bool
        Whether the classifier is centred: as all losses call for, except squared error.

    References
    ----------
    Derived here (docs/theory.md); for cross-entropy the limit of Dang et al., ICML 2024.

    Examples
    --------
    >>> frame = max_margin_frame([16, 1])
    >>> float(frame.feature_sqnorms[1] / frame.feature_sqnorms[0])  # (n_1/n_2)^(1/2)
    4.0
    """
    problem = UFM(counts, 1.0, 1.0, loss=Hinge() if centred else MSE())
    size = problem.num_classes
    return Frame(problem, np.ones(size), duality_scales(problem), headroom_of(problem)).geometry()


def seli(counts: ArrayLike) -> Geometry:
    r"""Return SELI, the simplex-encoded-labels interpolation: imbalanced classes without ReLU, vanishing ridge.

    With the labels' matrix ``Z = (I − 11ᵀ/K)`` repeated for every sample and its SVD ``Z = V Λ Uᵀ``, the classifier is
    ``V Λ^{1/2}`` and the features ``Λ^{1/2} Uᵀ``. Computed from the (K, K) matrix ``(I − 11ᵀ/K) diag(√n)``, whose
    left vectors and singular values are those of Z.

    Parameters
    ----------
    counts : array_like of int, shape (K,)
        Samples of each class.

    References
    ----------
    Thrampoulidis et al., NeurIPS 2022.

    Examples
    --------
    >>> seli([4, 4, 4]).distance(simplex_etf(3)).shape["features"] < 1e-12
    True
    """
    n = class_counts(counts)
    centring = _centring(n.size)
    left, singular, right = np.linalg.svd(centring * np.sqrt(n))
    features = right.T / np.sqrt(n)[:, None]
    return Geometry((features * singular) @ features.T, (left * singular) @ left.T, centring, n)


def balanced_without_relu(problem: UFM) -> Geometry:
    r"""Return the optimum of a balanced bias-free UFM without ReLU features in closed form: an ETF with norms.

    .. math::

        Z = s\,(I - \mathbf 1\mathbf 1^\top/K), \qquad
        s = \arg\min_{s \ge 0}\; \tfrac{\omega}{K}\,\varphi(s) + \sqrt{\lambda_W\lambda_H n}\,\tfrac{K-1}{K}\, s

    A unit of margin costs ``√((K−1)/K)`` times what it costs with ReLU: the price of ReLU is ``√(K/(K−1))``.

    Parameters
    ----------
    problem : UFM
        With equal counts, weights, λ_H and target margins, a loss of margins that falls at margin 0, no bias, and `dim`
        of at least K − 1. Its `relu` is not looked at.

    Raises
    ------
    CollapseError
        If the problem is not balanced, has a bias or too few dimensions, or its loss calls for negative margins.

    References
    ----------
    Zhu et al., NeurIPS 2021; norms and threshold: derived here (docs/theory.md).

    Examples
    --------
    >>> frame = balanced_without_relu(UFM([50, 50, 50], lambda_w=5e-3, lambda_h=5e-4, relu=False))
    >>> frame.feature_cosines.round(2)[0]
    array([ 1. , -0.5, -0.5])
    """
    size = problem.num_classes
    if not is_balanced(problem):
        raise CollapseError(
            f"problem: {problem!r} is not balanced; without ReLU a closed form needs equal counts, weights, penalties"
        )
    if problem.bias is not None or not problem.loss.centred:
        raise CollapseError(
            f"problem: {problem!r} has a bias or an uncentred loss; give bias=None and a loss of margins"
        )
    if not problem.loss.critical_price(size).min() > 0:
        raise CollapseError(
            f"loss={shorten(problem.loss)}: it falls towards negative margins, which without ReLU may be the optimum; "
            "raise its target margins, smooth less, or solve it numerically: collapsekit.solve(problem)"
        )
    if problem.dim is not None and problem.dim < size - 1:
        raise CollapseError(f"dim={problem.dim}: a simplex of {size} classes needs {size - 1} dimensions")
    return simplex(problem).geometry()


def deep_linear_mse(counts: ArrayLike, penalties: ArrayLike, lambda_h: float) -> Geometry:
    r"""Return the optimum of a deep linear head on free features under MSE: orthogonal means, classes die by a jump.

    .. math::

        \min\; \frac{1}{2N}\lVert W_M \cdots W_1 H - Y\rVert_F^2
        + \sum_j \frac{\lambda_j}{2}\lVert W_j\rVert_F^2 + \frac{\lambda_H}{2}\lVert H\rVert_F^2

    Class k's singular value ``s √n_k`` costs ``((M+1)/2) (λ_1 ⋯ λ_M λ_H)^{1/(M+1)} (s √n_k)^{2/(M+1)}``; for one layer
    (M = 1) this is :class:`collapsekit.MSE`, whose optimum needs no ReLU because its features are orthogonal anyway.

    Parameters
    ----------
    counts : array_like of int, shape (K,)
        Samples of each class.
    penalties : array_like, shape (M,)
        λ_1 … λ_M of the layers.
    lambda_h : float
        Penalty on the features, summed over all samples.

    Returns
    -------
    Geometry
        Of the features and of the end-to-end classifier ``W_M ⋯ W_1``.

    References
    ----------
    Dang et al., "Neural Collapse in Deep Linear Networks: From Balanced to Imbalanced Data", ICML 2023.

    Examples
    --------
    >>> deep_linear_mse([60, 30, 10], [1e-3], 1e-4).margins.round(4)
    array([0.9959, 0.9942, 0.99  ])
    """
    n, layers = class_counts(counts), positive_values("penalties", penalties, "give one penalty a layer")
    feature_penalty = positive_number("lambda_h", lambda_h, "without it features grow for ever")
    factors = layers.size + 1
    mean = np.exp((np.log(layers).sum() + np.log(feature_penalty)) / factors)
    scales = np.array([_deep_singular(k / n.sum(), mean * k ** (1 / factors), factors) for k in n])
    feature_sqnorms = mean / feature_penalty * (scales * np.sqrt(n)) ** (2 / factors) / n
    safe = np.where(scales > 0, feature_sqnorms, 1.0)
    return Geometry(np.diag(feature_sqnorms), np.diag(scales**2 / safe), np.diag(scales), n)


def merging_threshold(counts: ArrayLike, count: int | None = None) -> float:
    """Return λ_W λ_H from which the directions of equally frequent classes merge without ReLU: ``n_g/N²``.

    Exact for every group of at least two classes with one count, whatever the others are, with or without a bias:
    features and rows of the group coincide from there on. (With smoothing ε, temperature T and one class weight ω of
    the group it is ``((1−ε) ω/(T N))² n_g``.) Classes with a count of their own come nearer without merging.

    Parameters
    ----------
    counts : array_like of int, shape (K,)
        Samples of each class.
    count : int, optional
        n_g of the group; left out: the rarest group, which merges first.

    Raises
    ------
    CollapseError
        If no two classes have that count, or any count in common.

    References
    ----------
    Hong and Ling, "Neural collapse for unconstrained feature model under cross-entropy loss with imbalanced data",
    2023, for two count levels; for any group: derived here (docs/theory.md).

    Examples
    --------
    >>> merging_threshold([90, 90, 10, 10])
    0.00025
    >>> round(merging_threshold([300, 100, 10, 10]) * 420**2, 9)
    10.0
    """
    n = class_counts(counts)
    values, times = np.unique(n, return_counts=True)
    shared = values[times > 1]
    if count is not None:
        shared = shared[shared == count]
    if not shared.size:
        wanted = "no two classes have the same count" if count is None else f"no two classes have count={count}"
        raise CollapseError(
            f"counts={shorten(n.astype(int).tolist())}: {wanted}; only classes of one count merge at a threshold"
        )
    return float(shared[0] / n.sum() ** 2)


def layer_peeled_critical_ratio(num_majorities: int, num_minorities: int, energy_w: float, energy_h: float) -> float:
    r"""Return the imbalance ratio from which minorities die in the norm-constrained (layer-peeled) model with ReLU.

    .. math::

        \min \frac1N\sum_{k,i} \ell(W h_{k,i}) \quad\text{s.t.}\quad \frac1K\sum_k\lVert w_k\rVert^2 \le E_W,\;
        \frac1K\sum_k\frac1{n_k}\sum_i\lVert h_{k,i}\rVert^2 \le E_H, \qquad
        R^* = \frac{1}{K}\Bigl(\exp\Bigl(\tfrac{K}{K_A}\sqrt{\tfrac{K}{K-1} E_W E_H}\Bigr) + K - 1\Bigr)

    for ``K_A`` classes R times as large as the other ``K_B``. The constraint fixes the sum of all margins to
    ``K √(E_W E_H K/(K−1))``; a minority is dead when the majorities take it all.

    Parameters
    ----------
    num_majorities, num_minorities : int
        K_A and K_B, at least 1 each.
    energy_w, energy_h : float
        E_W and E_H.

    References
    ----------
    The model: Fang et al., "Exploring deep neural networks via layer-peeled model", PNAS 2021 (without ReLU); the
    closed form with ReLU: derived here (docs/theory.md).

    Examples
    --------
    >>> round(layer_peeled_critical_ratio(5, 5, 1.0, 1.0), 4)
    1.7233
    """
    majorities = whole_number("num_majorities", num_majorities, 1, "give at least one class")
    size = majorities + whole_number("num_minorities", num_minorities, 1, "give at least one class")
    energy = positive_number("energy_w", energy_w, "a bound on the classifier") * positive_number(
        "energy_h", energy_h, "a bound on the features"
    )
    with np.errstate(over="ignore"):
        return float((np.exp(size / majorities * np.sqrt(energy * size / (size - 1))) + size - 1) / size)


@dataclass(frozen=True)
class Nearness:
    """How far a geometry is from one reference.

    Attributes
    ----------
    name : str
        Which reference.
    distance : Distance
        In shape, scale and residual.
    """

    name: str
    distance: Distance

    @property
    def shape(self) -> float:
        """Root mean square of the shape distances of features and classifier, in [0, 2]: what ranks references."""
        parts = (self.distance.shape["features"], self.distance.shape["classifier"])
        return float(np.sqrt(np.mean(np.square(parts))))

    def to_dict(self) -> dict[str, Any]:
        """Return name, shape and distance as plain values, with the schema version."""
        return {"schema": 1, "name": self.name, "shape": self.shape, "distance": self.distance.to_dict()}


def nearest_reference(
    geometry: Geometry, problem: UFM | None = None, predicted: Geometry | None = None
) -> list[Nearness]:
    """Return every reference with its distance from a geometry, the nearest in shape first.

    Parameters
    ----------
    geometry : Geometry
        Of a network, a prediction or a solution; every class seen.
    problem : UFM, optional
        What was minimised; adds its closed form to the references, and under squared error their classifiers are not
        centred.
    predicted : Geometry, optional
        Of the problem's optimum where there is no closed form.

    Returns
    -------
    list of Nearness

    Raises
    ------
    CollapseError
        If a class has no samples, or the problem has no closed form and `predicted` is left out.

    Examples
    --------
    >>> from collapsekit import predict
    >>> problem = UFM([500, 300, 40, 10], lambda_w=3e-2, lambda_h=1e-3)
    >>> [near.name for near in nearest_reference(predict(problem).geometry(), problem)]
    ['prediction', 'orthogonal frame', 'simplex ETF', 'SELI', 'general orthogonal frame, λ → 0']
    """
    if not isinstance(geometry, Geometry):
        raise CollapseError(f"geometry={shorten(geometry)}: give a Geometry")
    counts = class_counts(geometry.counts)
    size, centred = counts.size, problem is None or problem.loss.centred
    references = {
        "simplex ETF": simplex_etf(size),
        "orthogonal frame": orthogonal_frame(size, centred=centred),
        "general orthogonal frame, λ → 0": max_margin_frame(counts, centred=centred),
        "SELI": seli(counts),
    }
    if problem is not None and predicted is None:
        predicted = closed_form(problem).geometry()
    if predicted is not None:
        references["prediction"] = predicted
    found = [Nearness(name, geometry.distance(reference)) for name, reference in references.items()]
    return sorted(found, key=lambda near: near.shape)


def _centring(size: int) -> Array:
    return np.asarray(np.eye(size) - 1 / size)


def _deep_singular(share: float, price: float, factors: int) -> float:
    """Global minimiser s ≥ 0 of ``(share/2)(1 − s)² + (factors/2) price s^(2/factors)``."""
    if factors == 2:
        return max(0.0, 1.0 - price / share)

    def slope(s: float) -> float:
        return float(share * (s - 1) + price * s ** (2 / factors - 1))

    # The slope falls up to s_min and rises after it; the minimum, if any, is its zero beyond s_min.
    low = (price * (1 - 2 / factors) / share) ** (1 / (2 - 2 / factors))
    if low >= 1 or slope(low) >= 0:
        return 0.0
    high = 1.0
    while low < (middle := 0.5 * (low + high)) < high:
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    value = 0.5 * share * (1 - high) ** 2 + 0.5 * factors * price * high ** (2 / factors)
    return high if value < 0.5 * share else 0.0
