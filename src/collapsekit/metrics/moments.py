"""Per-class moments of features in one pass: exact merging, float64 state, row blocks that stay in cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from collapsekit.errors import CollapseError
from collapsekit.metrics.batches import as_tensor, checked_batch, one_of, require_finite
from collapsekit.metrics.rows import ROWS, Apart, add_gram, mirrored, row_blocks
from collapsekit.validation import whole_number

Within = Literal["full", "trace", "projected"]
Precision = Literal["input", "float64"]

LARGEST_SCATTER_BYTES = 2 * 1024**3
FEWEST_ROWS, FEWEST_COLUMNS = 2**14, 64
"""Below, roundings of float32 products have not averaged out, and float64 costs nothing that is felt."""
SAFE = 1e-20, 1e30
"""Squared lengths of residuals for float32: the largest of them; then no sum overflows, and no part of it is lost."""
LEAST_SAFE = 1e-30
"""Of a single residual: below, its squares leave float32's normal numbers."""
COARSE = 64
"""Spread of fewer than eight steps of the storage takes few values: sums of them in float32 round all the same way."""
GOLDEN = 0.6180339887498949
NEGLIGIBLE = 1e-12
ORTHONORMAL = 1e-6


class ClassMoments:
    r"""Counts, means and within-class scatter of labelled features; a mergeable accumulator.

    With :math:`\mu_k` the mean of class k over its :math:`n_k` samples it holds

    .. math::

        n_k, \qquad \mu_k, \qquad s_k = \sum_i \lVert h_{k,i}-\mu_k\rVert^2, \qquad
        S = \sum_k\sum_i (h_{k,i}-\mu_k)(h_{k,i}-\mu_k)^\top .

    A batch is centred by its own class means and joined by Chan's formula, so within-class spread keeps its digits
    however far from the origin the means lie (raw second moments lose all of them). Joining is associative:
    batches, shards and processes give the same result in any split.

    Parameters
    ----------
    num_classes : int
        K.
    dim : int
        d, the width of the features.
    within : {"full", "trace", "projected"}
        What is kept of S: all of it (d²); its trace only, by class, without which there is no NC1; or its projection
        ``Q S Qᵀ`` on the directions `basis` (q²), which is all that NC1 needs if they span the centred class means.
    basis : array_like or Tensor, shape (q, d), optional
        Q, with orthonormal rows; just for "projected".
    precision : {"input", "float64"}
        In what products of residuals are formed. "input": in float32 for features of at most float32, added up in
        float64; S is then exact to 1e-7 of its norm, its trace and NC1 to 1e-8, counts and means as ever. (Few samples
        or less than 64 dimensions: float64 nevertheless.) "float64", and float64 features: to 1e-9.
    device : torch.device or str, optional
        Where the float64 state lives; the CPU by default and where the device has no float64.

    Raises
    ------
    CollapseError
        If a size is no whole number above 0, a word or `basis` does not fit, or S would exceed 2 GiB.

    Notes
    -----
    The state has ``K (d + 2)`` float64 numbers, with S ``d²`` (or ``q²``) more, of which the upper triangle counts.
    With the trace alone K = 200,000 and d = 4096 take 8 K (d + 2) bytes = 6.1 GiB. An update adds to that what the
    classes it meets take (d float64 and d float32 numbers each) and a block of 1024 rows.

    References
    ----------
    Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979.

    Examples
    --------
    >>> import torch
    >>> moments = ClassMoments(num_classes=2, dim=1)
    >>> moments.update(torch.tensor([[1.0], [3.0], [5.0]]), torch.tensor([0, 0, 1]))
    >>> moments.counts.tolist(), moments.means[:, 0].tolist(), moments.within.tolist()
    ([2.0, 1.0], [2.0, 5.0], [1.0, 0.0])
    """

    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        within: Within = "full",
        basis: ArrayLike | Tensor | None = None,
        precision: Precision = "input",
        device: torch.device | str | None = None,
    ) -> None:
        num_classes = whole_number("num_classes", num_classes, 1, "give the number of classes")
        dim = whole_number("dim", dim, 1, "give the width of the features")
        one_of("within", within, Within)
        one_of("precision", precision, Precision)
        if (within == "projected") != (basis is not None):
            raise CollapseError(f"within={within!r}: give basis= with within='projected', and only with it")
        device = torch.device(device or "cpu")
        place = torch.device("cpu") if device.type == "mps" else device
        rows = None if basis is None else orthonormal_rows(basis, dim).to(place)
        size = state_size(num_classes, dim, {"full": dim, "trace": 0}.get(within, 0 if rows is None else len(rows)))
        self._view(torch.zeros(size, dtype=torch.float64, device=place), num_classes, dim, rows, precision)

    @classmethod
    def from_state(
        cls,
        state: Tensor,
        num_classes: int,
        dim: int,
        *,
        basis: Tensor | None = None,
        precision: Precision = "input",
    ) -> ClassMoments:
        """Return moments that live in `state` itself, a flat float64 tensor of `state_size` entries."""
        moments = cls.__new__(cls)
        moments._view(state, num_classes, dim, basis, precision)
        return moments

    def _view(self, state: Tensor, num_classes: int, dim: int, basis: Tensor | None, precision: Precision) -> None:
        per_class = num_classes * (dim + 2)
        self.state, self.num_classes, self.dim, self.basis, self.precision = state, num_classes, dim, basis, precision
        table = state[:per_class].view(num_classes, dim + 2)
        self._counts, self._sums_of_squares, self._means = table[:, 0], table[:, 1], table[:, 2:]
        side = dim if basis is None else len(basis)
        self._scatter = state[per_class:].view(side, side) if state.numel() > per_class else None

    @property
    def counts(self) -> Tensor:
        """n_k, (K,) float64."""
        return self._counts.clone()

    @property
    def means(self) -> Tensor:
        """μ_k, (K, d) float64; NaN for classes without samples."""
        return torch.where(self._counts[:, None] > 0, self._means, torch.nan)

    @property
    def table(self) -> Tensor:
        """μ_k, (K, d), as they stand in the state: not a copy, and 0 for classes without samples."""
        return self._means

    @property
    def within(self) -> Tensor:
        """Mean squared distance to the class mean, ``s_k / n_k``, (K,); NaN for classes without samples."""
        return self._sums_of_squares / torch.where(self._counts > 0, self._counts, torch.nan)

    @property
    def scatter(self) -> Tensor | None:
        """S, (d, d), summed over all samples, or ``Q S Qᵀ``, (q, q), if there is a basis; None if it is not kept."""
        return None if self._scatter is None else mirrored(self._scatter.clone())

    @property
    def keeps_scatter(self) -> bool:
        """Whether :attr:`scatter` is not None."""
        return self._scatter is not None

    def centred(self) -> ClassMoments:
        """Return the moments of the features less their mean over all samples."""
        moved = self.copy()
        moved._means -= self.overall_mean
        return moved

    def copy(self) -> ClassMoments:
        """Return the same moments with a state of their own."""
        return self._like(self.state.clone())

    @property
    def overall_mean(self) -> Tensor:
        """Mean of all features, (d,)."""
        return (self._counts / self._counts.sum()) @ self._means  # those of unseen classes are 0

    @property
    def seen(self) -> Tensor:
        """Which classes have samples, (K,) bool."""
        return self._counts > 0

    @property
    def unseen(self) -> list[int]:
        """Classes without samples."""
        return torch.nonzero(self._counts == 0).flatten().tolist()

    @property
    def singletons(self) -> list[int]:
        """Classes with one sample: their within-class spread is 0 by definition, not by collapse."""
        return torch.nonzero(self._counts == 1).flatten().tolist()

    @torch.no_grad()
    def update(self, features: Tensor, labels: Tensor) -> None:
        """Add a batch.

        Parameters
        ----------
        features : Tensor, shape (n, d)
            Any floating dtype; n may be 0 or 1. Many at once are best: they are visited in blocks of rows.
        labels : Tensor, shape (n,)
            Any integer dtype, in [0, K).

        Raises
        ------
        CollapseError
            If shapes, types or values do not fit; the moments are then unchanged.
        """
        x, y = checked_batch(features, labels, self.num_classes, self.dim, self.state.device)
        if len(y):
            self.add_checked(x, y)

    def add_checked(self, x: Tensor, y: Tensor) -> None:
        """Add at least one sample, as `checked_batch` returns them."""
        classes, where, n = torch.unique(y, return_inverse=True, return_counts=True)
        n = n.to(torch.float64)
        means = torch.zeros(len(classes), self.dim, dtype=torch.float64, device=x.device)
        for rows in row_blocks(len(x), self.dim):
            means.index_add_(0, where[rows], x[rows].to(torch.float64))
        means /= n[:, None]
        dtype = self.gram_products(x)
        spread = self._spread(x, where, n, means, dtype)
        if spread is None:  # float32 cannot hold these squares, or sum them evenly
            dtype = torch.float64
            spread = self._spread(x, where, n, means, dtype)
        assert spread is not None
        squares, gram, residuals = spread
        if not torch.isfinite(squares).all():
            require_finite(x)
        self._join(classes, n, means, squares, gram, residuals, dtype)

    def products(self, x: Tensor) -> torch.dtype:
        """Return in what the products of these features with others are formed, float32 or float64."""
        exact = self.precision == "float64" or x.dtype == torch.float64 or self.dim < FEWEST_COLUMNS
        return torch.float64 if exact or torch.get_float32_matmul_precision() != "highest" else torch.float32

    def gram_products(self, x: Tensor) -> torch.dtype:
        """Return in what their scatter is formed: of small batches in float64, whose single visit of S costs less."""
        if self._scatter is None:  # only lengths, which are added up in float64
            return self.products(x)
        if len(x) <= ROWS or len(x) + (0 if len(x) >= FEWEST_ROWS else float(self._counts.sum())) < FEWEST_ROWS:
            return torch.float64
        return self.products(x)

    def _spread(
        self, x: Tensor, where: Tensor, n: Tensor, means: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor | None, Tensor | None] | None:
        """Sums of squares by class, and the scatter, or the residuals that it is made of if they are few.

        Residuals are taken from means that are rounded to `dtype`; Chan's formula corrects for the difference. None if
        float32 overflows or loses digits.
        """
        centres, squares = means.to(dtype), torch.zeros_like(n)
        few = dtype == torch.float64 and len(x) <= ROWS  # then the matrix is better visited once, at the end
        gram = None if self._scatter is None or few else torch.zeros_like(self._scatter)
        largest = squares.new_zeros(())
        scales = None if dtype == torch.float64 or self.basis is not None else _off_grid(self.dim, x.device)
        buffer = torch.empty(min(ROWS, len(x)), self.dim, dtype=dtype, device=x.device)
        for rows in row_blocks(len(x), 1):
            own = where[rows]
            r = torch.index_select(centres, 0, own, out=buffer[: len(own)])
            torch.sub(x[rows].to(dtype), r, out=r)
            lengths = r.square().sum(dim=1).to(torch.float64)
            if dtype == torch.float32:
                largest = torch.maximum(largest, lengths.max())
                small = torch.nonzero(lengths < LEAST_SAFE).flatten()
                if len(small):
                    lengths[small] = r[small].to(torch.float64).square().sum(dim=1)
            squares.index_add_(0, own, lengths)
            if gram is not None:
                add_gram(gram, r if scales is None else r.mul_(scales), self.basis)
        if dtype == torch.float32:
            if gram is not None and scales is not None:
                gram /= scales.double()[:, None] * scales.double()
            if not SAFE[0] <= float(largest) <= SAFE[1]:
                return None
            apart = Apart(centres, torch.arange(len(n), device=x.device), means, n)
            moved = apart.squares()
            if gram is not None and moved.sum() > NEGLIGIBLE * squares.sum():
                apart.add_gram(gram, self.basis, torch.float64, sign=-1)
            squares = (squares - moved).clamp_(min=0)
            if gram is not None and squares.sum() < COARSE * torch.finfo(x.dtype).eps ** 2 * _weighted(n, means):
                return None
        return squares, gram, buffer if few and self._scatter is not None else None

    @torch.no_grad()
    def merge(self, other: ClassMoments) -> ClassMoments:
        """Return the moments of both sets of samples together; neither operand changes.

        Raises
        ------
        CollapseError
            If numbers of classes, widths, what is kept of the scatter or its basis differ.
        """
        merged = self.copy()
        merged._absorb(other)
        return merged

    def _absorb(self, other: ClassMoments) -> None:
        """Add the samples of another accumulator to this one."""
        same = (self.num_classes, self.dim, self.state.numel()) == (other.num_classes, other.dim, other.state.numel())
        if not (same and _same_basis(self.basis, other.basis)):
            raise CollapseError(
                f"other: {other!r} cannot join {self!r}; numbers of classes, widths, within and basis must agree"
            )
        added = other._like(other.state.to(self.state.device))
        classes = torch.nonzero(added._counts > 0).flatten()
        if not len(classes):
            return
        whole = len(classes) == self.num_classes
        n, squares = added._counts[classes], added._sums_of_squares[classes]
        means = added._means if whole else added._means[classes]
        gram = None if added._scatter is None else added._scatter.clone()
        self._join(classes, n, means, squares, gram, None, torch.float64)

    def _join(
        self,
        classes: Tensor,
        n: Tensor,
        means: Tensor,
        squares: Tensor,
        gram: Tensor | None,
        residuals: Tensor | None,
        dtype: torch.dtype,
    ) -> None:
        """Chan's formula for the named classes, with their scatter or residuals; `gram` is overwritten."""
        before = self._counts[classes]
        share = n / (before + n)
        apart = Apart(self._means, classes, means, before * share)
        moved = apart.squares()
        if not torch.isfinite(squares + moved).all():
            raise CollapseError("features: squares overflow float64; scale them down")
        if self._scatter is not None and residuals is not None:
            add_gram(self._scatter, torch.cat([residuals, apart.rows()]), self.basis)
        elif self._scatter is not None and gram is not None:
            safe = SAFE[0] <= float(moved.max()) <= SAFE[1]
            apart.add_gram(gram, self.basis, dtype if safe else torch.float64)
            self._scatter += gram
        for part in row_blocks(len(classes), self.dim):
            rows = classes[part]
            self._means[rows] += (means[part] - self._means[rows]) * share[part, None]
        self._sums_of_squares[classes] += squares + moved
        self._counts[classes] = before + n

    def _like(self, state: Tensor) -> ClassMoments:
        return self.from_state(state, self.num_classes, self.dim, basis=self.basis, precision=self.precision)

    def __repr__(self) -> str:
        kept = "trace only" if self._scatter is None else "scatter" if self.basis is None else "projected scatter"
        return f"ClassMoments(K={self.num_classes}, d={self.dim}, {int(self._counts.sum())} samples, {kept})"


def _weighted(n: Tensor, means: Tensor) -> Tensor:
    """``Σ n_k ‖μ_k‖²``."""
    blocks = row_blocks(*means.shape)
    return torch.stack([n[rows] @ means[rows].square().sum(dim=1) for rows in blocks]).sum()


def _off_grid(dim: int, device: torch.device) -> Tensor:
    """Return factors, (d,) float32 from 0.7 to 1, that make roundings of residuals in float32 even out.

    Stored numbers far from 0 are multiples of one step, and so are residuals. Roundings of their squares are then not
    evenly spread (k² mod 4 is never 2 or 3): the trace was off by 2e-7, with a few distinct values by 4e-7.
    """
    return 0.7 + 0.3 * (GOLDEN * torch.arange(dim, dtype=torch.float64, device=device)).frac().float()


def state_size(num_classes: int, dim: int, side: int) -> int:
    """Return how many float64 numbers the moments occupy, with a scatter of `side` rows of at most 2 GiB."""
    if 8 * side**2 > LARGEST_SCATTER_BYTES:
        raise CollapseError(
            f"dim={dim}: the scatter matrix needs {8 * side**2 / 1024**3:.1f} GiB, above the limit of 2 GiB; pass "
            "within='trace' to keep its trace only (NC1 is then not available)"
        )
    return num_classes * (dim + 2) + side**2


def merge_states(states: Sequence[Tensor] | Tensor, num_classes: int, dim: int) -> Tensor:
    """Return the flat state of all samples in `states`: the one reduction for batches, shards and processes."""
    total = ClassMoments.from_state(states[0].clone(), num_classes, dim)
    for state in states[1:]:
        total._absorb(ClassMoments.from_state(state, num_classes, dim))
    return total.state


def orthonormal_rows(basis: ArrayLike | Tensor, dim: int) -> Tensor:
    """Return the directions of a projection as float64, (q, d), or say what is wrong with them."""
    rows = as_tensor("basis", basis).to(torch.float64)
    if rows.ndim != 2 or rows.shape[1] != dim or not 1 <= len(rows) <= dim:
        raise CollapseError(f"basis: shape {tuple(rows.shape)}; expected (q, {dim}), q at most {dim}")
    if not (rows @ rows.T - torch.eye(len(rows), device=rows.device)).abs().max() < ORTHONORMAL:
        raise CollapseError("basis: its rows are not orthonormal; give np.linalg.qr(basis.T)[0].T")
    return rows


def _same_basis(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return torch.equal(one, other.to(one.device))
