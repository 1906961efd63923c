"""Geometry: what theory, solver and trained network have in common, so that they can be laid side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from collapsekit.errors import CollapseError
from collapsekit.validation import LARGEST, LARGEST_EXACT, Array, class_names, frozen, numeric, shorten


@dataclass(frozen=True, eq=False, repr=False, init=False)
class Geometry:
    r"""Class Gram matrices of a last layer; free of the arbitrary rotation of feature space.

    With class-mean features :math:`h_k` and classifier rows :math:`w_k`:

    Parameters
    ----------
    gram_h : array_like, shape (K, K)
        ``⟨h_k, h_l⟩``. Rows and columns of classes without samples are NaN.
    gram_w : array_like, shape (K, K)
        ``⟨w_k, w_l⟩``.
    cross : array_like, shape (K, K)
        ``⟨w_k, h_l⟩``: column l holds the logits (without bias) of the mean feature of class l.
    counts : array_like, shape (K,)
        Samples of each class; 0 marks a class without samples.
    within : array_like, shape (K,), optional
        Mean squared distance of a class's features to their mean; 0 for an exactly collapsed class.
    names : sequence of str, optional
        K distinct class names.

    Raises
    ------
    CollapseError
        If shapes do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> frame = Geometry(2 * np.eye(3), np.eye(3) - 1 / 3, np.eye(3) - 1 / 3, [5, 5, 5])
    >>> frame.feature_cosines
    array([[1., 0., 0.],
           [0., 1., 0.],
           [0., 0., 1.]])
    >>> frame.margins
    array([1., 1., 1.])
    """

    gram_h: Array
    gram_w: Array
    cross: Array
    counts: Array
    within: Array
    names: tuple[str, ...] | None

    def __init__(
        self,
        gram_h: ArrayLike,
        gram_w: ArrayLike,
        cross: ArrayLike,
        counts: ArrayLike,
        within: ArrayLike | None = None,
        names: Sequence[str] | None = None,
    ) -> None:
        n = numeric("counts", counts)
        if n.ndim != 1 or n.size < 2:
            raise CollapseError(f"counts: shape {n.shape}; give one count a class, for at least two classes")
        bad = np.flatnonzero(~((n >= 0) & (n < LARGEST_EXACT) & (n == np.floor(n))))
        if bad.size:
            raise CollapseError(
                f"counts: class {bad[0]} has {n[bad[0]]:g}; give whole numbers below 2**53, 0 for an unseen class"
            )
        for name, value in (("gram_h", gram_h), ("gram_w", gram_w), ("cross", cross)):
            matrix = numeric(name, value)
            if matrix.shape != (n.size, n.size):
                raise CollapseError(f"{name}: shape {matrix.shape}; expected ({n.size}, {n.size}) for {n.size} counts")
            if (np.abs(matrix) > LARGEST).any():
                raise CollapseError(
                    f"{name}: holds infinite or huge entries; give numbers within ±{LARGEST:g}, NaN for unseen classes"
                )
            object.__setattr__(self, name, frozen(matrix))
        spread = np.zeros(n.size) if within is None else numeric("within", within)
        if spread.shape != n.shape:
            raise CollapseError(f"within: shape {spread.shape}; expected ({n.size},)")
        object.__setattr__(self, "within", frozen(spread))
        object.__setattr__(self, "counts", frozen(n))
        object.__setattr__(self, "names", class_names(names, n.size))

    @property
    def num_classes(self) -> int:
        """K."""
        return self.counts.size

    @property
    def feature_sqnorms(self) -> Array:
        """``‖h_k‖²``, (K,)."""
        return np.diagonal(self.gram_h)

    @property
    def classifier_sqnorms(self) -> Array:
        """``‖w_k‖²``, (K,)."""
        return np.diagonal(self.gram_w)

    @property
    def margins(self) -> Array:
        """Target logit minus the mean of the others at each class mean, without bias, (K,)."""
        target = np.diagonal(self.cross)
        others = (self.cross.sum(axis=0) - target) / (self.num_classes - 1)
        return np.asarray(target - others)

    @property
    def feature_cosines(self) -> Array:
        """Cosines between class means, (K, K); NaN where a norm is 0."""
        return _cosines(self.gram_h, self.feature_sqnorms, self.feature_sqnorms)

    @property
    def classifier_cosines(self) -> Array:
        """Cosines between classifier rows, (K, K); NaN where a norm is 0."""
        return _cosines(self.gram_w, self.classifier_sqnorms, self.classifier_sqnorms)

    @property
    def alignment(self) -> Array:
        """``cos(w_k, h_k)``, (K,); NaN where a norm is 0."""
        return np.diagonal(_cosines(self.cross, self.classifier_sqnorms, self.feature_sqnorms))

    def distance(self, other: Geometry) -> Distance:
        """Return how far this geometry is from `other` (the reference), split into shape and scale.

        Classes that either side has not seen (NaN features) are left out of the feature and cross matrices.

        Parameters
        ----------
        other : Geometry
            The reference, over the same classes.

        Returns
        -------
        Distance

        Raises
        ------
        CollapseError
            If `other` is no geometry of the same number of classes, or names them otherwise.

        Examples
        --------
        >>> import numpy as np
        >>> one = Geometry(np.eye(2), np.eye(2), np.eye(2), [3, 1])
        >>> twice = Geometry(2 * np.eye(2), np.eye(2), np.eye(2), [3, 1])
        >>> far = twice.distance(one)
        >>> far.shape["features"], round(far.scale["features"], 6), far.residual["features"]
        (0.0, 0.693147, 1.0)
        """
        if not isinstance(other, Geometry):
            raise CollapseError(f"other={shorten(other)}: give a Geometry")
        if other.num_classes != self.num_classes:
            raise CollapseError(
                f"other: {other.num_classes} classes against {self.num_classes}; compare geometries of the same classes"
            )
        require_same_names("other", other.names, self.names)
        parts = {
            "features": _apart(self.gram_h, other.gram_h),
            "classifier": _apart(self.gram_w, other.gram_w),
            "cross": _apart(self.cross, other.cross),
        }
        return Distance(*({name: values[i] for name, values in parts.items()} for i in range(3)))

    def to_dict(self) -> dict[str, Any]:
        """Return the geometry as plain lists (JSON-ready), with its schema version."""
        return {
            "schema": 1,
            "gram_h": self.gram_h.tolist(),
            "gram_w": self.gram_w.tolist(),
            "cross": self.cross.tolist(),
            "counts": self.counts.tolist(),
            "within": self.within.tolist(),
            "names": None if self.names is None else list(self.names),
        }

    def __repr__(self) -> str:
        off = self.feature_cosines[~np.eye(self.num_classes, dtype=bool)]
        known = np.abs(off[np.isfinite(off)])
        widest = f"{known.max():.2g}" if known.size else "undefined"
        return f"Geometry(K={self.num_classes}, largest |cos| between class means {widest})"


@dataclass(frozen=True)
class Distance:
    """Distance of a geometry from a reference, for "features", "classifier" and "cross".

    Attributes
    ----------
    shape : mapping of str to float
        ``‖A/‖A‖ − B/‖B‖‖_F`` in [0, 2]: what published NC2 and NC3 metrics report; blind to scale. 0 if both are zero,
        1 if just one is.
    scale : mapping of str to float
        ``log(‖A‖_F/‖B‖_F)``: 0 if the sizes agree.
    residual : mapping of str to float
        ``‖A − B‖_F/‖B‖_F``: sees both. 0 if both are zero, infinite if only the reference is.
    """

    shape: Mapping[str, float]
    scale: Mapping[str, float]
    residual: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Return the three parts as plain dicts, with the schema version."""
        return {"schema": 1, "shape": dict(self.shape), "scale": dict(self.scale), "residual": dict(self.residual)}


def require_same_names(argument: str, given: tuple[str, ...] | None, names: tuple[str, ...] | None) -> None:
    """Refuse class names in another order, or others: row k would be set beside another class. None fits all."""
    if given is None or names is None or given == names:
        return
    k = next(k for k, pair in enumerate(zip(given, names, strict=True)) if pair[0] != pair[1])
    raise CollapseError(
        f"{argument}: class {k} is {shorten(given[k])} against {shorten(names[k])}; give both the same classes in one "
        "order"
    )


def _apart(a: Array, b: Array) -> tuple[float, float, float]:
    """Shape, scale and residual of a against b; entries that either side does not know (NaN) do not count."""
    known = np.isfinite(a) & np.isfinite(b)
    a, b = np.where(known, a, 0.0), np.where(known, b, 0.0)
    size_a, size_b = float(np.linalg.norm(a)), float(np.linalg.norm(b))
    shape = float(np.linalg.norm(a / (size_a or 1.0) - b / (size_b or 1.0)))
    if size_b == 0:
        return shape, (np.inf if size_a else 0.0), (np.inf if size_a else 0.0)
    ratio = size_a / size_b
    return shape, float(np.log(ratio)) if ratio > 0 else -np.inf, float(np.linalg.norm(a - b)) / size_b


def _cosines(products: Array, sqnorms_rows: Array, sqnorms_columns: Array) -> Array:
    with np.errstate(invalid="ignore", divide="ignore"):
        cosines = products / np.sqrt(sqnorms_rows)[:, None] / np.sqrt(sqnorms_columns)
    return np.where(np.isfinite(cosines), np.clip(cosines, -1.0, 1.0), np.nan)
