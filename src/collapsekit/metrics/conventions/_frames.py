"""NC2 and NC3: how rows (class means, a classifier) lie to each other and to each other's counterparts.

Give rows (K, d): a classifier, or :func:`means_about`. Rows of NaN (classes without samples) are left out.
"""

from __future__ import annotations

import torch
from torch import Tensor

from collapsekit.metrics import functional as F
from collapsekit.metrics.conventions._reading import Centre, Reading, averaging, means_about, placed, reading, unknown
from collapsekit.metrics.conventions._rows import Own, finite, over_rows, unit_rows
from collapsekit.metrics.moments import ClassMoments


def equinorm(rows_of: Tensor) -> Reading:
    """Return the coefficient of variation of row norms, and each row's ``|norm/mean − 1|``: 0 if all are equal.

    Parameters
    ----------
    rows_of : Tensor, shape (K, d)
        A classifier, or class means about a centre.

    Returns
    -------
    Reading

    References
    ----------
    Papyan, Han, Donoho, PNAS 2020 (equinorm), on centred means and on classifier rows.

    Examples
    --------
    >>> import torch
    >>> round(equinorm(torch.tensor([[3.0, 0.0], [0.0, 5.0]])).value, 6)
    0.25
    """
    rows, known = _known(rows_of)
    if not len(rows):
        return unknown(len(known))
    norms = rows.norm(dim=1)
    return reading(F.norm_spread(rows), placed((norms / norms.mean() - 1).abs(), known))


def equiangularity(rows_of: Tensor) -> Reading:
    """Return the standard deviation of cosines over pairs of rows: 0 if all angles are equal, whatever they are.

    Parameters
    ----------
    rows_of : Tensor, shape (K, d)
        A classifier, or class means about a centre.

    Returns
    -------
    Reading
        Per class the root mean square of how far its cosines are from the mean of all.

    References
    ----------
    Papyan, Han, Donoho, PNAS 2020 (equiangularity). Their maximal-angle figure is :func:`functional.etf_angles`.

    Examples
    --------
    >>> import torch
    >>> round(equiangularity(torch.eye(3) - 1 / 3).value, 6)
    0.0
    """
    rows, known = _known(rows_of)
    if len(rows) < 2:
        return unknown(len(known))
    unit = unit_rows(rows)
    total, size = unit.sum(dim=0), len(unit)
    mean = (total @ total - size) / (size * (size - 1))
    squares = over_rows(unit, lambda block, own: (block @ unit.T - mean).square()) / (size - 1)
    return reading(squares.mean().sqrt(), placed(squares.sqrt(), known))


def structure_error(weight: Tensor, means: Tensor) -> Reading:
    r"""Return how far the products of two sets of rows are from those of a simplex ETF.

    .. math::

        \Bigl\lVert \frac{W M^\top}{\lVert W M^\top\rVert_F} - \frac{1}{\sqrt{K-1}}\Bigl(I - \frac{11^\top}{K}\Bigr)
        \Bigr\rVert_F

    Parameters
    ----------
    weight : Tensor, shape (K, d)
        Head.
    means : Tensor, shape (K, d)
        Class means about a centre.

    Returns
    -------
    Reading
        Per class the norm of its row of the difference; their squares add up to the square of the value.

    Notes
    -----
    Not 0 at an imbalanced optimum, converged or not: see `docs/conventions.md`. Two passes over row blocks.

    References
    ----------
    Zhu et al., NeurIPS 2021 (their NC3, means about the samples); Kothapalli 2023 (self-duality, about classes).

    Examples
    --------
    >>> import torch
    >>> frame = torch.eye(3) - 1 / 3
    >>> round(structure_error(2 * frame, frame).value, 6)
    0.0
    """
    known = finite(weight) & finite(means)
    W, M = weight.detach()[known].double(), means.detach()[known].double()
    size = len(W)
    norm = over_rows(W, lambda block, own: (block @ M.T).square(), diagonal=True).sum().sqrt() if size else 0
    if size < 2 or not norm > 0:
        return unknown(len(known))
    side = 1 / (size - 1) ** 0.5

    def differences(block: Tensor, own: Own) -> Tensor:
        apart: Tensor = block @ M.T / norm + side / size
        apart[own] -= side
        return apart.square()

    squares = over_rows(W, differences, diagonal=True)
    return reading(squares.sum().sqrt(), placed(squares.sqrt(), known))


def etf_error(rows_of: Tensor) -> Reading:
    """Return how far the Gram matrix of rows is from that of a simplex ETF, each over its Frobenius norm.

    Parameters
    ----------
    rows_of : Tensor, shape (K, d)
        Class means about a centre, or a classifier (as it is: rows that do not add up to 0 count as an error).

    Returns
    -------
    Reading
        As :func:`structure_error` of the rows and themselves.

    References
    ----------
    Zhu et al., NeurIPS 2021 (their NC2, on the classifier); Kothapalli 2023 (on centred means).

    Examples
    --------
    >>> import torch
    >>> round(etf_error(torch.eye(4) - 0.25).value, 6), round(etf_error(torch.eye(4)).value, 6)
    (0.0, 0.517638)
    """
    return structure_error(rows_of, rows_of)


def duality_direct(
    weight: Tensor, moments: ClassMoments, *, centre: Centre = "classes", squared: bool = False
) -> Reading:
    r"""Return ``‖W/‖W‖ − M/‖M‖‖_F`` or its square: 0 where the classifier is the centred means up to scale.

    Parameters
    ----------
    weight : Tensor, shape (K, d)
        Head.
    moments : ClassMoments
        Scatter is not needed.
    centre : {"samples", "classes"}
        What M subtracts from class means. About "classes" it is :func:`functional.duality`.
    squared : bool
        Whether to return the square, as Papyan et al. define it.

    Returns
    -------
    Reading
        Per class the norm (or its square) of its row of the difference.

    References
    ----------
    Papyan, Han, Donoho, PNAS 2020 (squared, about samples).

    Examples
    --------
    >>> import torch
    >>> from collapsekit.metrics import ClassMoments
    >>> moments = ClassMoments(2, 2)
    >>> moments.update(torch.eye(2), torch.tensor([0, 1]))
    >>> duality_direct(torch.tensor([[1.0, -1.0], [-1.0, 1.0]]), moments).value
    0.0
    """
    return _apart(weight, means_about(moments, centre), squared=squared)


def duality_generalised(weight: Tensor, moments: ClassMoments) -> Reading:
    """Return the published NC2-W class by class: ``‖W/‖W‖ − V/‖V‖‖_F``, ``V_k = K √n_k μ_k − Σ_m √n_m μ_m``.

    0 at an imbalanced optimum of cross-entropy, where it asks for no penalty to be known.

    Parameters
    ----------
    weight : Tensor, shape (K, d)
        Head.
    moments : ClassMoments
        Scatter is not needed.

    Returns
    -------
    Reading
        As :func:`functional.generalised_duality`; per class the norm of its row of the difference (a class without
        samples has one: its mean counts as 0).

    References
    ----------
    Dang et al., ICML 2024, section 5.

    Examples
    --------
    >>> import torch
    >>> from collapsekit.metrics import ClassMoments
    >>> moments = ClassMoments(2, 2)
    >>> moments.update(torch.eye(2), torch.tensor([0, 1]))
    >>> duality_generalised(torch.tensor([[1.0, -1.0], [-1.0, 1.0]]), moments).value
    0.0
    """
    rows = moments.counts.sqrt()[:, None] * torch.where(moments.seen[:, None], moments.means, 0.0)
    return _apart(weight, rows - rows.mean(dim=0))


def _apart(weight: Tensor, target: Tensor, *, squared: bool = False) -> Reading:
    """The distance of two sets of rows, each over its Frobenius norm; rows of NaN are left out of both."""
    known = finite(target)
    W, V = weight.detach().to(target)[known], target[known]
    squares = (W / W.norm() - V / V.norm()).square().sum(dim=1)
    value = squares.sum()
    if squared:
        return reading(value, placed(squares, known))
    return reading(value.sqrt(), placed(squares.sqrt(), known))


def alignment(
    weight: Tensor, moments: ClassMoments, *, centre: Centre | None = "classes", normalised: bool = True
) -> Reading:
    r"""Return ``cos(w_k, μ_k − μ_G)`` class by class and on average, or the inner products.

    Uniform duality asks that they be equal, not that they be 1: the variance or coefficient of variation of
    `per_class`. Inner products carry the scale of the network, so their variance cannot be compared between networks.

    Parameters
    ----------
    weight : Tensor, shape (K, d)
        Head.
    moments : ClassMoments
        Scatter is not needed.
    centre : {"samples", "classes"} or None
        What is subtracted from class means.
    normalised : bool
        Whether to return cosines.

    Returns
    -------
    Reading
        The worst is the least aligned class. NaN for a class without samples, and the cosine of a row or mean of 0.

    References
    ----------
    Wu, Papyan, "Linguistic collapse", NeurIPS 2024 (uniform duality).

    Examples
    --------
    >>> import torch
    >>> from collapsekit.metrics import ClassMoments
    >>> moments = ClassMoments(2, 2)
    >>> moments.update(2 * torch.eye(2), torch.tensor([0, 1]))
    >>> alignment(torch.eye(2), moments).per_class.numpy().round(4)
    array([0.7071, 0.7071])
    """
    M = means_about(moments, centre)
    W = weight.detach().to(M)
    products = (W * M).sum(dim=1)
    if normalised:
        products = products / (W.norm(dim=1) * M.norm(dim=1))
    return reading(products.nanmean(), products, lowest=True)


def bias_residual(weight: Tensor, bias: Tensor | None, moments: ClassMoments, *, centre: Centre = "samples") -> Reading:
    """Return ``‖W μ_G + b‖``: 0 where the bias takes out exactly what the global mean adds to the logits.

    It is in units of logits, not normalised.

    Parameters
    ----------
    weight : Tensor, shape (K, d)
        Head.
    bias : Tensor, shape (K,), or None
        Its bias; None counts as 0.
    moments : ClassMoments
        Scatter is not needed.
    centre : {"samples", "classes"}
        Whether μ_G averages samples or class means.

    Returns
    -------
    Reading
        Per class the logit that is left over, without sign.

    References
    ----------
    Zhu et al., NeurIPS 2021 (self-duality of the bias).

    Examples
    --------
    >>> import torch
    >>> from collapsekit.metrics import ClassMoments
    >>> moments = ClassMoments(2, 2)
    >>> moments.update(torch.eye(2), torch.tensor([0, 1]))
    >>> bias_residual(torch.eye(2), torch.tensor([-0.5, -0.5]), moments).value
    0.0
    """
    seen = moments.seen
    if not seen.any():
        return unknown(len(seen))
    middle = averaging(moments.counts[seen], centre) @ moments.means[seen]
    left = weight.detach().to(middle) @ middle + (0 if bias is None else bias.detach().to(middle))
    return reading(left.norm(), left.abs())


def _known(rows_of: Tensor) -> tuple[Tensor, Tensor]:
    known = finite(rows_of)
    return rows_of.detach()[known].double(), known
