r"""Many classes in few groups of alike classes: the same optimum in a few scalars a pair of groups, whatever K.

K classes in G groups of m_g, alike in counts, weights, penalties and in what the loss does to them. Averaging an
optimum of the convex problem over permutations inside groups leaves a block-constant one: for a class of g a target
logit, one logit for the other classes of g, and one for those of each other group. With ``Z̄`` the block sums over
``√(m_g m_h)`` and ``x'_g`` the target's logit minus another one of the group, the penalty is

.. math:: \tfrac12\Bigl[\operatorname{tr}\bar C + \operatorname{tr}\bar X^\top \bar C^{-1}\bar X\Bigr]
          + \tfrac12\sum_g (m_g - 1)\Bigl(C'_g + \frac{x_g'^2}{C'_g}\Bigr)

over a Gram matrix C̄ of group means and contrasts ``C'_g``, with ReLU C̄ completely positive and ``C'_g ≤ C̄_gg``. Here
``C̄ = V Vᵀ``, ``X̄ = V Uᵀ``, V nonnegative, ``C'_g = s_g² ‖V_g‖²`` with s_g in [0, 1], ``x'_g = u_g s_g ‖V_g‖``: any such
point is one of the full problem. Its lower bound is Fenchel's, as for single classes, with the polar taken by groups.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from collapsekit.errors import CollapseError
from collapsekit.geometry import Geometry
from collapsekit.losses import CrossEntropy
from collapsekit.losses.sums import EPS
from collapsekit.problem import UFM
from collapsekit.solver.model import Balanced
from collapsekit.solver.polar import upper_bound
from collapsekit.validation import Array, shorten

STARTS = 20
"""Random starts, until one is certified: with ReLU the factors may end in a spurious point, one descent in twenty."""
NUDGE = 1e-6
"""Of central differences for the Hessian, in balanced units, where entries are of order 1."""
LARGEST_DUAL = 2_000
"""Classes up to which the lower bound is computed: from K × K matrices, without any decomposition of them."""
MOST_GROUPS = 8
"""Beyond, the supports of a polar grow too many, and the problem is no smaller than one of single classes."""


@dataclass(frozen=True, eq=False)
class Grouped:
    """A block-constant point: Gram matrices from one number a pair of groups.

    Attributes
    ----------
    problem : UFM
    group : ndarray of int, shape (K,)
        The group of each class.
    sizes : ndarray, shape (G,)
        m_g.
    gram_h, gram_w, cross : tuple of ndarray
        Value of a class with itself (G,), and between different classes of two groups (G, G); `cross` has rows as
        features: logits without the bias.
    bias : ndarray, shape (K,), or None
    objective, lower_bound : float
    """

    problem: UFM
    group: NDArray[np.intp]
    sizes: Array
    gram_h: tuple[Array, Array]
    gram_w: tuple[Array, Array]
    cross: tuple[Array, Array]
    bias: Array | None
    objective: float
    lower_bound: float

    @property
    def gap(self) -> float:
        """Relative distance between the two."""
        return (self.objective - self.lower_bound) / max(abs(self.objective), 1e-300)

    @property
    def representatives(self) -> NDArray[np.intp]:
        """Two classes of each group, or its only one: all others are like them."""
        order = np.argsort(self.group, kind="stable")
        firsts = np.concatenate([[0], np.cumsum(self.sizes)[:-1]]).astype(int)
        seconds = (firsts + 1)[self.sizes > 1]
        return np.asarray(order[np.concatenate([firsts, seconds])])

    def logit_rows(self, rows: slice | NDArray[np.intp]) -> Array:
        """Return the logits of some classes at their features, (r, K)."""
        return self._rows(self.cross, rows) + (0.0 if self.bias is None else self.bias)

    def gram_rows(self, rows: slice | NDArray[np.intp]) -> tuple[Array, Array, Array]:
        """Return some rows of the Gram matrices of features, of the classifier and between the two, (r, K) each."""
        own, between = self.cross  # rows of the last are rows of the classifier
        return self._rows(self.gram_h, rows), self._rows(self.gram_w, rows), self._rows((own, between.T), rows)

    def geometry(self) -> Geometry:
        """Return the Gram matrices, (K, K) each."""
        return Geometry(*self.gram_rows(slice(None)), self.problem.counts, names=self.problem.names)

    def weights_and_features(self, dim: int | None = None) -> tuple[Array, Array]:
        """A point with these Gram matrices is not made: with ReLU it may need about K² dimensions."""
        raise CollapseError("weights_and_features: known of groups of alike classes are Gram matrices; use geometry()")

    def _rows(self, blocks: tuple[Array, Array], rows: slice | NDArray[np.intp]) -> Array:
        own, between = blocks
        g = self.group[rows]
        same = np.arange(len(self.group))[rows, None] == np.arange(len(self.group))
        return np.where(same, own[g][:, None], between[g][:, self.group])


def groups_of(problem: UFM) -> NDArray[np.intp]:
    """Return the group of each class, (K,): classes alike in all that the problem says of them."""
    loss = problem.loss
    columns = [problem.counts, problem.loss_weights, np.broadcast_to(problem.lambda_h, problem.num_classes)]
    if isinstance(loss, CrossEntropy):
        columns += [
            np.asarray(part)
            for part in (loss.smoothing, loss.margins, loss.offsets, loss.scales, loss.smoothing_weights)
            if isinstance(part, tuple)
        ]
    return np.unique(np.stack(columns), axis=1, return_inverse=True)[1].ravel()


def solve_groups(problem: UFM, tol: float = 1e-8, seed: int = 0) -> Grouped:
    """Return the best block-constant point and a lower bound on the optimum, for no `dim` and a smooth, convex loss."""
    if not (problem.loss.smooth and problem.loss.convex):
        raise CollapseError(f"loss={shorten(problem.loss)}: groups need a smooth, convex loss; use collapsekit.solve")
    reduced, rng = _Reduced(problem), np.random.default_rng(seed)
    best: Grouped | None = None
    for _ in range(STARTS):
        point = reduced.point(reduced.descended(reduced.start(rng)))
        if best is None or point.gap < best.gap or (np.isinf(best.gap) and point.objective < best.objective):
            best = point
        if best.gap <= tol:
            break
    assert best is not None
    return best


class _Reduced:
    """The reduced problem in the factors V, U (G, r), s, u (G,) and the bias (G,), as one vector."""

    def __init__(self, problem: UFM) -> None:
        self.problem, self.model = problem, Balanced(problem)
        self.group = groups_of(problem)
        self.first = np.unique(self.group, return_index=True)[1]
        self.sizes = np.bincount(self.group).astype(np.float64)
        self.roots = np.sqrt(self.sizes)
        self.count = len(self.sizes)
        self.rank = self.count * (self.count + 1) // 2 if problem.relu else self.count
        self.factors = self.model.factors[self.first]
        self.loss = problem.loss.summed(
            problem.loss_weights[self.first] * self.sizes, self.first, problem.num_classes, 1.0
        )
        self.one_hot = np.eye(self.count)[self.group]
        self.low, self.high = self.limits()

    def limits(self) -> tuple[Array, Array]:
        """Bounds of the entries: no contrast in a group of one, no bias where there is none."""
        relu, size, several = self.problem.relu, self.count * self.rank, self.sizes > 1
        far, any_bias = np.where(several, np.inf, 0.0), np.full(self.count, np.inf if self.model.has_bias else 0.0)
        spread = np.where(several, 1.0 if relu else np.inf, 0.0)
        high = np.concatenate([np.full(2 * size, np.inf), spread, far, any_bias])
        low = -high
        if relu:
            low[:size] = 0.0
            low[2 * size : 2 * size + self.count] = 0.0
        return low, high

    def start(self, rng: np.random.Generator) -> Array:
        """A random start."""
        size, scale = self.count * self.rank, 10 ** rng.uniform(-1.5, 0.5)
        x = np.concatenate(
            [rng.normal(0, scale, 2 * size), rng.uniform(0, 1, self.count), rng.normal(0, scale, self.count)]
        )
        if self.problem.relu:
            x[:size] = np.abs(x[:size])
        return np.asarray(np.clip(np.concatenate([x, np.zeros(self.count)]), self.low, self.high))

    def split(self, x: Array) -> tuple[Array, Array, Array, Array, Array]:
        """V, U, s, u, b."""
        size, G = self.count * self.rank, self.count
        V, U = x[:size].reshape(G, -1), x[size : 2 * size].reshape(G, -1)
        s, u, b = np.split(x[2 * size :], [G, 2 * G])
        return V, U, s, u, b

    def blocks(self, V: Array, U: Array, contrast: Array) -> tuple[Array, Array]:
        """A block-constant product of factors: of a class with itself, and between others of two groups."""
        means = V @ U.T / np.outer(self.roots, self.roots)
        own = np.diagonal(means) + (1 - 1 / self.sizes) * contrast
        between = means - np.diag(contrast / self.sizes)
        return own, between

    def spread(self, V: Array, s: Array) -> Array:
        """√C'_g."""
        return np.asarray(s * np.linalg.norm(V, axis=1)) if self.problem.relu else s

    def logits(self, V: Array, U: Array, s: Array, u: Array, b: Array) -> Array:
        """Of one class a group, (G, K)."""
        own, between = self.blocks(V, U, u * self.spread(V, s))
        rows = (self.factors[:, None] * between + b)[:, self.group]
        rows[np.arange(self.count), self.first] = self.factors * own + b
        return np.asarray(rows)

    def value(self, x: Array) -> tuple[float, Array]:
        """The objective and its gradient."""
        V, U, s, u, b = self.split(x)
        kappa, relu = self.model.kappa, self.problem.relu
        loss, slopes, _ = self.loss.evaluate(self.logits(V, U, s, u, b))
        lengths = np.linalg.norm(V, axis=1)
        spread = s * lengths if relu else s
        inner = self.sizes - 1
        penalty = 0.5 * kappa * ((V**2).sum() + (U**2).sum() + inner @ (spread**2 + u**2))
        penalty += 0.5 * self.model.bias_penalty * (self.sizes @ b**2)

        own = slopes[np.arange(self.count), self.first]
        columns = slopes @ self.one_hot  # the target's column included
        scaled = self.factors[:, None] * columns / np.outer(self.roots, self.roots)  # of the means
        rest = columns[np.arange(self.count), np.arange(self.count)] - own
        contrast = self.factors * (own * (1 - 1 / self.sizes) - rest / self.sizes)
        by_spread = contrast * u + kappa * inner * spread
        DV = scaled @ U + kappa * V
        if relu:
            DV = DV + (by_spread * s / np.maximum(lengths, 1e-300))[:, None] * V
        Ds = by_spread * lengths if relu else by_spread
        Du = contrast * spread + kappa * inner * u
        Db = columns.sum(axis=0) + self.model.bias_penalty * self.sizes * b
        return loss + float(penalty), np.concatenate([DV.ravel(), (scaled.T @ V + kappa * U).ravel(), Ds, Du, Db])

    def descended(self, x: Array) -> Array:
        """Where L-BFGS ends and, as bounds need gradients of 0, Newton's method with differences for a Hessian."""
        from scipy.optimize import Bounds, minimize

        options = {"maxiter": 3000, "maxfun": 20000, "ftol": 0, "gtol": 1e-12, "maxcor": 40}
        bounds = Bounds(self.low, self.high)
        x = np.asarray(minimize(self.value, x, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x)
        for _ in range(4):
            value, slope = self.value(x)
            free = np.flatnonzero((x > self.low) & (x < self.high))
            steps = NUDGE * np.eye(len(x))[free]
            hessian = np.array([self.value(x + d)[1][free] - self.value(x - d)[1][free] for d in steps]) / (2 * NUDGE)
            move = np.zeros_like(x)
            move[free] = -np.linalg.lstsq(hessian + hessian.T, 2 * slope[free], rcond=1e-9)[0]
            trial = np.clip(x + move, self.low, self.high)
            found, turned = self.value(trial)
            if np.abs(turned[free]).max() >= np.abs(slope[free]).max() or found > value + 1e-12 * abs(value):
                break
            x = trial
        return np.asarray(x)

    def point(self, x: Array) -> Grouped:
        """The point of the full problem, with its lower bound."""
        V, U, s, u, b = self.split(x)
        spread, model = self.spread(V, s), self.model
        unit_h = model.unit_h[self.first]
        own, between = self.blocks(V, V, spread**2)
        gram_h = (unit_h**2 * own, np.outer(unit_h, unit_h) * between)
        own, between = self.blocks(U, U, u**2)
        gram_w = (model.unit_w**2 * own, model.unit_w**2 * between)
        own, between = self.blocks(V, U, u * spread)
        cross = (self.factors * own, self.factors[:, None] * between)
        bias = b[self.group] if model.has_bias else None
        found = Grouped(self.problem, self.group, self.sizes, gram_h, gram_w, cross, bias, self.value(x)[0], -np.inf)
        if self.problem.num_classes > LARGEST_DUAL:
            return found
        return Grouped(**{**vars(found), "lower_bound": self.lower_bound(found)})

    def lower_bound(self, point: Grouped) -> float:
        """No feasible point lies below: the dual of the full problem, its polar by groups."""
        model = self.model
        dual = model.loss.dual(point.logit_rows(slice(None)), balanced=model.has_bias and not model.bias_penalty)
        if dual is None:
            return -np.inf
        Y = model.factors[:, None] * dual.gradient
        target, other = self.averaged(Y)
        even = np.where(np.eye(len(Y), dtype=bool), target[self.group][:, None], other[self.group][:, self.group])
        doubt = np.linalg.norm(Y - even) + np.linalg.norm(model.factors[:, None] * dual.error)
        square = self.polar(target, other, model.kappa**2) * (1 + 16 * (self.count + 4) * EPS)
        polar = (np.sqrt(square) + doubt) / model.kappa
        scale = min(1.0, (1 - 4 * EPS) / max(polar, 1e-300))
        value = dual.value(scale)
        if model.bias_penalty:
            value -= float((dual.drift(scale) ** 2).sum()) * (1 + len(Y) * EPS) / (2 * model.bias_penalty)
        return value

    def averaged(self, Y: Array) -> tuple[Array, Array]:
        """Means of a matrix over the classes of groups: diagonal (G,), and other entries (G, G)."""
        target = np.bincount(self.group, np.diagonal(Y)) / self.sizes
        sums = self.one_hot.T @ (Y - np.diag(np.diagonal(Y))) @ self.one_hot
        pairs = np.outer(self.sizes, self.sizes) - np.diag(self.sizes)
        return target, sums / np.maximum(pairs, 1.0)

    def polar(self, target: Array, other: Array, kappa_square: float) -> float:
        """An upper bound on ``Ω°²`` where it matters, above κ²: A = YYᵀ by groups, v its block means and contrasts.

        Contrasts of v ≥ 0 have at most ``(m_g − 1) v̄_g²``, where they come from single classes.
        """
        G, m = self.count, self.sizes
        off = other - np.diag(np.diagonal(other))
        inner = np.diagonal(other)
        shared = (off * m) @ off.T  # over third groups and, for g with itself, all others
        own = target**2 + (m - 1) * inner**2 + np.diagonal(shared)
        within = 2 * target * inner + (m - 2) * inner**2 + np.diagonal(shared)
        # between classes of g and h: their own columns, the rest of their groups, third groups
        lead = target + (m - 1) * inner
        between = shared + lead[:, None] * off.T + off * lead[None, :]
        A = np.outer(self.roots, self.roots) * between
        A[np.diag_indices(G)] = own + (m - 1) * within
        contrasts = np.where(m > 1, own - within, 0.0)
        if not self.problem.relu:
            return max(upper_bound(A, None, False, kappa_square)[0], float(contrasts.max()))
        lifted = A + np.diag((m - 1) * np.maximum(contrasts - kappa_square, 0.0))
        tight = max(kappa_square, upper_bound(lifted, None, True, kappa_square)[0])
        loose = max(kappa_square, float(contrasts.max()), upper_bound(A, None, True, kappa_square)[0])
        return min(tight, loose)
