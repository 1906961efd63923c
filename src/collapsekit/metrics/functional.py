"""Neural-collapse metrics as pure functions of class moments, head and prediction; each names its convention.

Matrices of size K × K are visited in row blocks and never stored. Unseen classes are left out of feature metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from collapsekit.errors import CollapseError
from collapsekit.metrics.moments import ClassMoments
from collapsekit.metrics.pairs import Cosines, InverseDistances, over_pairs, simplex_cosines
from collapsekit.metrics.rows import row_blocks
from collapsekit.prediction import Basis, Prediction

BLOCK_ENTRIES = 2**22
QR_ENTRIES = 2**19
SPANNED = 1e-9
COLLAPSED_SHARE = 0.01
"""A class mean below this share of the largest squared norm counts as collapsed (design.md, "Words")."""


def nc1(moments: ClassMoments, *, centre: Literal["samples", "classes"] = "samples", per_class: bool = True) -> float:
    r"""Return within-class relative to between-class variability, ``tr(Σ_W Σ_B†)`` over K.

    .. math::

        \Sigma_W = S/N, \qquad \Sigma_B = \frac1K \sum_k (\mu_k-\mu_G)(\mu_k-\mu_G)^\top

    The pseudo-inverse comes from an SVD of the centred means, never from their squared matrix; directions whose
    singular value lies below ``max(K, d) · eps · ‖(μ_1 … μ_K)‖₂`` of the UNCENTRED means are rounding and are cut.

    Parameters
    ----------
    moments : ClassMoments
        With scatter, and at least two classes seen.
    centre : {"samples", "classes"}
        Whether μ_G averages samples (the published default; Σ_B then has rank K under imbalance) or class means.
    per_class : bool
        Whether to divide by the number of seen classes.

    Returns
    -------
    float
        0 for exactly collapsed features; NaN without scatter, below two classes, where no class has two samples (their
        spread is 0 by definition), and where all class means coincide.

    References
    ----------
    Papyan, Han, Donoho, PNAS 2020; Dang et al., ICML 2024, section 5.

    Examples
    --------
    >>> import torch
    >>> moments = ClassMoments(2, 1)
    >>> moments.update(torch.tensor([[0.0], [2.0], [9.0], [11.0]]), torch.tensor([0, 0, 1, 1]))
    >>> round(nc1(moments), 6)  # Σ_W = 1, Σ_B = 4.5²
    0.024691
    """
    ratio = nc1_of(moments, inverse_between(moments, centre))
    return ratio if per_class else ratio * int(moments.seen.sum())


def nc1_of(moments: ClassMoments, inverse: Tensor | None) -> float:
    """Return NC1, per class, from what `inverse_between` gives; NaN if a basis does not span the class means."""
    scatter = moments.scatter
    if scatter is None or inverse is None or not bool((moments.counts > 1).any()):
        return float("nan")
    if moments.basis is not None:
        projected = inverse @ moments.basis.T
        if not bool((dots(projected, projected) >= (1 - SPANNED) * dots(inverse, inverse)).all()):
            return float("nan")
        inverse = projected
    return float(dots(inverse @ scatter, inverse).sum() / moments.counts.sum())


def inverse_between(moments: ClassMoments, centre: Literal["samples", "classes"] = "samples") -> Tensor | None:
    """Return R (r, d) with ``RᵀR`` the pseudo-inverse of ``Σ (μ_k − μ_G)(μ_k − μ_G)ᵀ``; None if that is 0."""
    singular, directions = _between(moments, centre)
    return directions / singular[:, None] if len(singular) else None


def span_of_means(moments: ClassMoments) -> Tensor:
    """Return orthonormal directions, (r, d), that span the differences of class means."""
    return _between(moments, "samples")[1]


def _between(moments: ClassMoments, centre: Literal["samples", "classes"]) -> tuple[Tensor, Tensor]:
    """Singular values and directions of centred class means, those left out that are rounding."""
    means = seen_means(moments)
    middle = moments.overall_mean if centre == "samples" else means.mean(dim=0)
    _, singular, directions = torch.linalg.svd(_triangle(means, middle), full_matrices=False)
    size = torch.linalg.matrix_norm(_triangle(means), ord=2) if len(means) else singular.new_zeros(())
    kept = (singular > max(means.shape) * torch.finfo(torch.float64).eps * size) & (len(means) > 1)
    return singular[kept], directions[kept]


def _triangle(rows: Tensor, middle: Tensor | None = None) -> Tensor:
    """Return a matrix of few rows with the singular values and right directions of `rows` less `middle`.

    By QR of blocks: products with themselves would lose half of the digits.
    """
    size, dim = rows.shape
    found = rows.new_empty(0, dim)
    height = max(2 * dim, QR_ENTRIES // dim)
    for start in range(0, size, height):
        block = rows[start : start + height]
        found = torch.cat([found, block if middle is None else block - middle])
        found = torch.linalg.qr(found, mode="r")[1] if len(found) > 2 * dim else found
    return found


def cdnv(moments: ClassMoments, *, exponent: Literal[2, 4] = 2, unbiased: bool = False) -> tuple[float, Tensor]:
    r"""Return the class-distance-normalised variance, its mean over pairs and over the partners of each class.

    .. math::

        V_{kl} = \frac{v_k + v_l}{2\,\lVert\mu_k-\mu_l\rVert^{e}}, \qquad
        v_k = \tfrac1{n_k}\sum_i\lVert h_{k,i}-\mu_k\rVert^2

    Parameters
    ----------
    moments : ClassMoments
        Scatter is not needed.
    exponent : {2, 4}
        e; 2 is Galanti et al.'s definition, 4 occurs in later papers.
    unbiased : bool
        Divide by ``n_k − 1``; classes of one sample are then left out.

    Returns
    -------
    mean : float
        Mean over pairs of seen classes; infinite if two class means coincide (they are not separated at all), NaN
        below two classes and where no class has two samples.
    per_class : Tensor, shape (K,)
        Mean over the other classes; NaN for unseen classes.

    References
    ----------
    Galanti, György, Hutter, "On the role of neural collapse in transfer learning", ICLR 2022.
    """
    variance = moments.within
    if unbiased:
        variance = variance * moments.counts / (moments.counts - 1)
        variance = torch.where(moments.counts > 1, variance, torch.nan)
    known = torch.isfinite(variance)
    per_class = torch.full_like(variance, torch.nan)
    means, v = moments.means[known], variance[known]
    if len(means) < 2 or not bool((moments.counts > 1).any()):
        return float("nan"), per_class
    means -= means.mean(dim=0)
    pairs = InverseDistances(means, torch.stack([torch.ones_like(v), v], dim=1), exponent)
    over_pairs(means, [pairs])
    per_class[known] = mean_variances(pairs.sums, v[:, None])[:, 0]
    return float(per_class[known].mean()), per_class


def mean_variances(sums: Tensor, variances: Tensor) -> Tensor:
    """Return the CDNV of each class, mean over the others, from `InverseDistances` of ones and variances, (K, m)."""
    pairs = (variances * sums[:, :1] + sums[:, 1:]) / 2
    return pairs.nan_to_num(nan=torch.inf, posinf=torch.inf) / (len(sums) - 1)  # 0 × ∞ where means coincide


def cosines(means: Tensor) -> tuple[float, float]:
    """Return the largest and the mean |cosine| over pairs of surviving class means (K, d): 0 on any orthogonal frame.

    A class survives if its mean has at least 1 % of the largest squared norm; rows of NaN are left out. NaN below two.
    """
    known = means[~means.sum(dim=1).isnan()]
    pairs = Cosines(known, least=COLLAPSED_SHARE)
    over_pairs(known, [pairs])
    return pairs.largest, pairs.mean


def largest_cosine(moments: ClassMoments) -> float:
    """Return the largest |cosine| between two surviving class means."""
    return cosines(moments.means)[0]


def etf_angles(rows_of: Tensor) -> float:
    """Return the mean of ``|cos + 1/(K−1)|`` over pairs of rows (K, d): 0 on a simplex ETF.

    Give centred class means or a classifier. References: Papyan et al. 2020 (equiangularity, maximal angle).
    """
    points = rows_of.detach()
    pairs = simplex_cosines(points)
    over_pairs(points, [pairs])
    return pairs.mean


def norm_spread(rows_of: Tensor) -> float:
    """Return the coefficient of variation of row norms (population standard deviation over mean): 0 if equal."""
    norms = rows_of.detach().norm(dim=1)
    return float(norms.std(correction=0) / norms.mean())


def duality(weight: Tensor, moments: ClassMoments) -> float:
    """Return ``‖W/‖W‖ − M/‖M‖‖_F`` with M the class means minus their average: 0 on a balanced ETF.

    Classes without samples are left out of both. References: Papyan et al. 2020 (self-duality).
    """
    means, rows_of = seen_means(moments), weight.detach()
    rows_of = rows_of if len(means) == len(rows_of) else rows_of[moments.seen]
    middle = means.mean(dim=0)
    return _shape(lambda rows: (rows_of[rows].to(means), means[rows] - middle), means.shape)


def generalised_duality(weight: Tensor, moments: ClassMoments, *, centred: bool = True) -> float:
    r"""Return the published NC2_W: ``‖W/‖W‖ − V/‖V‖‖_F``, ``V_k = K √n_k μ_k − Σ_m √n_m μ_m``; needs no λ.

    Not `centred`, as under squared error: ``V_k = √n_k μ_k``. References: Dang et al., ICML 2024, section 5.
    """
    means, roots = moments.table, moments.counts.sqrt()
    middle = means.new_zeros(())
    if centred:
        middle = sum((roots[rows, None] * means[rows]).sum(dim=0) for rows in row_blocks(*means.shape)) / len(means)
    return _shape(lambda rows: (weight.detach()[rows].to(means), roots[rows, None] * means[rows] - middle), means.shape)


def frame_metrics(moments: ClassMoments, weight: Tensor | None, prediction: Prediction) -> dict[str, float]:
    r"""Return the published NC2 and NC3 metrics against a prediction, each beside its un-normalised residual.

    ========== ========================================= =====================================================
    key        compared (Frobenius-normalised both)      predicted for centred rows
    ========== ========================================= =====================================================
    nc2_h      Gram matrix of class means                ``diag(‖h_k‖²)``
    nc2_wwt    ``W Wᵀ``                                  ``δ_kl b_k − (b_k + b_l)/K + B/K²``
    nc3_wh     ``W (μ_1 … μ_K)``                         columns ``M_k (e_k − 1/K)``
    ========== ========================================= =====================================================

    ``*_residual`` is ``‖A − B‖_F/‖B‖_F`` without normalising, which errors of scale cannot hide from;
    ``nc2_w_residual`` compares W with what the prediction makes of the measured means: ``W* H*⁺ (μ_1 … μ_K)``, for
    centred rows ``Σ a_k (e_k − 1/K) μ_kᵀ`` over the classes that survive. NaN where a matrix that is divided by is 0.

    Parameters
    ----------
    moments : ClassMoments
        Measured.
    weight : Tensor, shape (K, d), optional
        Head; without it only ``nc2_h`` is returned.
    prediction : Prediction
        The prediction.

    Raises
    ------
    CollapseError
        If the prediction is for another number of classes.

    References
    ----------
    Dang et al., ICML 2024, section 5; residuals: derived here.
    """
    size = moments.num_classes
    if prediction.problem.num_classes != size:
        raise CollapseError(
            f"prediction: {prediction.problem.num_classes} classes, measured {size}; predict for the same classes"
        )
    seen = moments.seen
    means = torch.where(seen[:, None], moments.means, 0.0)
    called_by = _coordinates(prediction, means)
    names = ("nc2_h",) if weight is None else ("nc2_h", "nc2_wwt", "nc3_wh", "nc2_w")

    def pairs(rows: slice) -> list[tuple[Tensor, Tensor]]:
        """Measured and predicted rows of each matrix."""
        gram_h, gram_w, cross = map(means.new_tensor, prediction.gram_rows(rows))
        found = [(means[rows] @ means.T, gram_h * seen)]
        if weight is not None:
            W = weight.detach().to(means)
            found += [(W[rows] @ W.T, gram_w), (W[rows] @ means.T, cross * seen), (W[rows], cross @ called_by)]
        return found

    def total(norms_of: Callable[[int, Tensor, Tensor], list[Tensor]]) -> Tensor:
        """Norms over all rows of what `norms_of` makes of each matrix."""
        blocks = [
            torch.stack([torch.stack(norms_of(i, *pair)) for i, pair in enumerate(pairs(r))]) for r in _blocks(size)
        ]
        return torch.stack(blocks).square().sum(dim=0).sqrt()

    norms = total(lambda i, a, b: [a.norm(), b.norm(), (a - b).norm()])
    shapes = total(lambda i, a, b: [(a / norms[i, 0] - b / norms[i, 1]).norm()])
    result = dict(zip(names, shapes[:, 0].tolist(), strict=True))
    residuals = (norms[:, 2] / norms[:, 1]).tolist()
    result.pop("nc2_w", None)  # the published one needs no prediction
    return result | {f"{name}_residual": value for name, value in zip(names, residuals, strict=True)}


def _coordinates(prediction: Prediction, means: Tensor) -> Tensor:
    """``(H* H*ᵀ)⁺ M``, (K, d): times ``W* H*ᵀ`` it is the predicted head as the measured means have it."""
    if prediction.basis is Basis.CLOSED_FORM:  # an orthogonal frame: the Gram matrix is diagonal
        sqnorms = means.new_tensor(prediction.feature_sqnorms)[:, None]
        return torch.where(sqnorms > 0, means / sqnorms, 0.0)
    gram_h = means.new_tensor(prediction.gram_rows(slice(None))[0])
    inverse: Tensor = torch.linalg.pinv(gram_h, rtol=1e-10, hermitian=True)
    return inverse @ means


def _shape(pair: Callable[[slice], tuple[Tensor, Tensor]], shape: Sequence[int]) -> float:
    """Distance of two matrices, given by their rows, each divided by its Frobenius norm; NaN if one is 0."""
    blocks = list(row_blocks(*shape))
    norms = torch.stack([torch.stack([part.norm() for part in pair(rows)]) for rows in blocks]).norm(dim=0)
    apart = [(a / norms[0] - b / norms[1]).norm() for a, b in map(pair, blocks)]
    return float(torch.stack(apart).norm())


def seen_means(moments: ClassMoments) -> Tensor:
    """Return the means of classes with samples; not to be written to, it may be the state itself."""
    means = moments.table
    return means if bool(moments.seen.all()) else means[moments.seen]


def centred_means(moments: ClassMoments) -> Tensor:
    """Return the means of classes with samples, less their average."""
    means = seen_means(moments)
    return means - means.mean(dim=0)


def dots(a: Tensor, b: Tensor) -> Tensor:
    """Scalar products of rows, without an array of their size, and the same wherever in memory these lie."""
    return torch.cat([(a[rows] * b[rows]).sum(dim=1) for rows in row_blocks(*a.shape)] or [a.new_empty(0)])


def _blocks(size: int) -> Iterator[slice]:
    height = max(1, BLOCK_ENTRIES // size)
    for start in range(0, size, height):
        yield slice(start, min(start + height, size))
