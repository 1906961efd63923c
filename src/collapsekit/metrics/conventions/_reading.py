"""What every convention returns: a number, its classes and the worst of them; and class means about a centre."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from collapsekit.errors import CollapseError
from collapsekit.metrics.moments import ClassMoments, checked_batch

Centre = Literal["samples", "classes"]
"""Whether the global mean μ_G averages samples or class means; the two differ under imbalance."""
Weighting = Literal["samples", "classes"]
"""Whether an average over classes weighs each by its samples, or all alike."""


class Reading(NamedTuple):
    """A metric, its classes and the worst of them, so that one bad class does not vanish in an average.

    Attributes
    ----------
    value : float
        The metric as defined; NaN where it cannot be known.
    per_class : Tensor, shape (K,)
        The share or value of each class; NaN for classes without samples.
    worst : float
        The worst entry of `per_class`: the largest of an error, the smallest of an agreement.
    worst_class : int or None
        Its class; None where no class is known.

    Examples
    --------
    >>> from collapsekit.metrics.conventions import equinorm
    >>> import torch
    >>> equinorm(torch.tensor([[3.0, 0.0], [0.0, 3.0], [0.0, -6.0]])).worst_class
    2
    """

    value: float
    per_class: Tensor
    worst: float
    worst_class: int | None


def reading(value: Tensor | float, per_class: Tensor, *, lowest: bool = False) -> Reading:
    """Return a value with its classes and the worst of them."""
    known = ~per_class.isnan()
    if not known.any():
        return Reading(float(value), per_class, float("nan"), None)
    worst = int(torch.where(known, -per_class if lowest else per_class, -torch.inf).argmax())
    return Reading(float(value), per_class, float(per_class[worst]), worst)


def unknown(size: int) -> Reading:
    """Return a reading of which nothing is known."""
    return reading(float("nan"), torch.full((size,), torch.nan, dtype=torch.float64))


def placed(values: Tensor, known: Tensor) -> Tensor:
    """Return the values of the known classes at their places, NaN elsewhere, (K,)."""
    return torch.full(known.shape, torch.nan, dtype=values.dtype, device=values.device).masked_scatter(known, values)


def averaging(counts: Tensor, weighting: Weighting) -> Tensor:
    """Return the weights of an average over classes, adding up to 1."""
    if weighting not in ("samples", "classes"):
        raise CollapseError(f"{weighting!r}: give 'samples' or 'classes'")
    return counts / counts.sum() if weighting == "samples" else torch.full_like(counts, 1 / len(counts))


def means_about(moments: ClassMoments, centre: Centre | None = "classes") -> Tensor:
    """Return class means less a global mean, (K, d); NaN for classes without samples.

    Parameters
    ----------
    moments : ClassMoments
        Scatter is not needed.
    centre : {"samples", "classes"} or None
        Subtract the mean of all samples (Papyan et al. 2020), of the class means, or nothing. Under imbalance only the
        rows about "classes" add up to 0, as those of a simplex ETF do.

    Returns
    -------
    Tensor, shape (K, d)

    Raises
    ------
    CollapseError
        If `centre` is something else.

    Examples
    --------
    >>> import torch
    >>> from collapsekit.metrics import ClassMoments
    >>> moments = ClassMoments(2, 1)
    >>> moments.update(torch.tensor([[0.0], [0.0], [0.0], [4.0]]), torch.tensor([0, 0, 0, 1]))
    >>> means_about(moments, "samples")[:, 0].tolist(), means_about(moments, "classes")[:, 0].tolist()
    ([-1.0, 3.0], [-2.0, 2.0])
    """
    means, seen = moments.means, moments.seen
    if centre is None or not seen.any():
        return means
    return means - averaging(moments.counts[seen], centre) @ means[seen]


def whole_scatter(moments: ClassMoments) -> Tensor | None:
    """Return the scatter matrix if it is kept for all d dimensions, (d, d); else None."""
    scatter = moments.scatter
    return scatter if scatter is not None and len(scatter) == moments.dim else None


def class_order(features: Tensor, labels: Tensor, moments: ClassMoments) -> tuple[Tensor, Tensor, Tensor]:
    """Return features (N, d) float64, the rows that sort them by class, and the sorted classes, (N,) each.

    Raises
    ------
    CollapseError
        If they are not the samples that `moments` are of.
    """
    x, y = checked_batch(features, labels, moments.num_classes, moments.dim, moments.state.device)
    counts = torch.bincount(y, minlength=moments.num_classes)
    if not torch.equal(counts.to(moments.counts), moments.counts):
        raise CollapseError(
            f"features: {len(x)} samples whose classes are not those of moments ({int(moments.counts.sum())} samples); "
            "give the samples that moments were updated with"
        )
    classes, order = y.sort(stable=True)
    return x, order, classes
