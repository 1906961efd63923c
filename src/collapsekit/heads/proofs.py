"""Proof that a class is never output: a mixture of other rows dominates its row, checked in whole numbers.

With inputs ``h ≥ lo`` in every coordinate, class j is never among the largest logits if and only if there are weights
``μ_l ≥ 0`` of other classes, ``Σ μ_l = 1``, with ``w_j ≤ Σ μ_l w_l`` in every coordinate and ``b'_j < Σ μ_l b'_l``,
``b' = b + lo Σ_i w_i`` (derived here, by Motzkin's theorem: both sides are the logits at ``h = lo`` and what a larger
input adds). Where all b' are equal, as without a bias behind a ReLU, all classes tie at ``h = lo``; there the
inequality of every coordinate is strict, and the class is beaten at every other input. Otherwise the multipliers of the
same linear program are an input at which the class wins.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from collapsekit.heads.coincidence import row_blocks
from collapsekit.validation import Array

PART = 32
"""Rows that are decided one after the other, each with the help of the last: what is found depends on no more."""
ADDED = 150
"""Columns added a round: the rows that the current multipliers price highest."""
ROUNDS = 60
CERTAIN = 1e-9
"""Slack, in units of the largest entry, from which the exact check is tried and below which a price has settled."""
GRID = 2**44
"""Weights of a mixture are rounded to whole numbers of this grid; what lies below it is left out."""
WINS = 1e-9
"""Lead of a witness, in units of its largest logit: float64 sums of d products err by less."""


@dataclass(frozen=True)
class Proof:
    """A mixture of other classes that beats a class whatever the input.

    Attributes
    ----------
    row : int
        The class.
    mixture : dict of int to Fraction
        Other rows and their weights; they add up to 1 exactly.
    """

    row: int
    mixture: dict[int, Fraction]


@dataclass(frozen=True)
class Head:
    """Rows and biases of a head whose inputs are at least `lower`, as the linear programs see them: columns [w, b'].

    They are in units of their largest entry, in float64, and never all in memory. Without b' where it is the same for
    all rows.
    """

    weight: NDArray[np.floating]
    bias: NDArray[np.floating]
    lower: float

    @cached_property
    def shifted(self) -> Array:
        """Return b', each logit where all inputs are at their bound, (K,)."""
        sums = np.concatenate([block.sum(axis=1) for block in row_blocks(self.weight)])
        shifted: Array = self.bias + self.lower * sums
        return shifted

    @cached_property
    def scale(self) -> float:
        """Return the largest entry."""
        ends = (self.weight.max(), -self.weight.min(), np.abs(self.shifted).max() * (np.ptp(self.shifted) > 0))
        return max(*map(float, ends), float(np.finfo(float).tiny))

    @cached_property
    def highest(self) -> NDArray[np.intp]:
        """Return the rows that are largest in some coordinate: the linear programs start with them."""
        best, where = np.full(self.weight.shape[1], -np.inf), np.zeros(self.weight.shape[1], dtype=np.intp)
        start = 0
        for block in row_blocks(self.weight):
            top = block.argmax(axis=0)
            higher = np.take_along_axis(block, top[None], axis=0)[0]
            where, best = np.where(higher > best, start + top, where), np.maximum(best, higher)
            start += len(block)
        return np.append(where, self.shifted.argmax())

    def columns(self, rows: NDArray[np.intp]) -> Array:
        """Return the columns of some rows, (m, d + 1)."""
        taken = self.weight[rows].astype(np.float64)
        return (np.column_stack([taken, self.shifted[rows]]) if np.ptp(self.shifted) else taken) / self.scale

    def worth(self, prices: Array) -> Array:
        """Return what each row is worth at these prices of the coordinates, (K,)."""
        ways, offset = prices[: self.weight.shape[1]], prices[self.weight.shape[1] :].sum()
        found: Array = np.concatenate([block @ ways for block in row_blocks(self.weight)])
        found += offset * self.shifted
        found /= self.scale
        return found


def decide_all(
    head: Head, rows: Sequence[int], advance: Callable[[int], None] = lambda _: None, workers: int = 1
) -> dict[int, Proof | bool]:
    """Return what is decided of each row: a proof that it never wins, or True; undecided rows are left out.

    Neighbours are beaten by the same mixtures, so the last one is tried first. Parts of PART rows are decided by as
    many threads as there are `workers`, and what is found does not depend on how many. `advance` is called with each
    number of rows that are done.
    """
    ended, lock, done = threading.Event(), threading.Lock(), 0

    def tell() -> None:
        nonlocal done
        with lock:
            done += 1
            try:
                advance(done)
            except BaseException:
                ended.set()
                raise

    def decided(part: Sequence[int]) -> dict[int, Proof | bool]:
        found, last = dict[int, Proof | bool](), None
        for row in part:
            if ended.is_set():
                break
            verdict = again(head, row, last) or decide(head, row, list(last.mixture) if last else ())
            if verdict is not None:
                found[row] = verdict
            last = verdict if isinstance(verdict, Proof) else last
            tell()
        return found

    pool = ThreadPoolExecutor(workers)
    try:
        parts = list(pool.map(decided, [rows[start : start + PART] for start in range(0, len(rows), PART)]))
    finally:  # after an interrupt no thread begins another row
        ended.set()
        pool.shutdown(cancel_futures=True)
    return {row: verdict for part in parts for row, verdict in part.items()}


def again(head: Head, row: int, last: Proof | None) -> Proof | None:
    """Return the proof that an earlier mixture is, for another row."""
    if last is None or row in last.mixture:
        return None
    rows, weights = list(last.mixture), np.array([float(share) for share in last.mixture.values()])
    return exact(head, row, rows, weights)


def decide(head: Head, row: int, hint: Sequence[int] = ()) -> Proof | bool | None:
    """Return a proof that a row never wins, True with an input at which it wins, or None where neither is found.

    Parameters
    ----------
    head : Head
        What is decided about, and what the proof is checked on.
    row : int
        The class.
    hint : sequence of int
        Rows that the linear program starts with, too, e.g. those of a neighbour's mixture.

    Notes
    -----
    The linear program maximises the least slack of all d + 1 inequalities over mixtures. Columns are generated: the
    program over a few rows gives multipliers ``y ≥ 0``, ``Σ y = 1``; the rows with the largest ``(a_l − a_j)·y`` come
    in. No such price above 0 means that the input ``lo + y / y_0`` makes the class win.
    """
    for chosen in (head.highest, _spread(head, row)):
        verdict = _generate(head, row, np.setdiff1d(np.union1d(chosen, hint).astype(np.intp), [row]))
        if verdict is not None:
            return verdict
    return None


def _generate(head: Head, row: int, chosen: NDArray[np.intp]) -> Proof | bool | None:
    own = head.columns(np.array([row]))
    for _ in range(ROUNDS):
        solved = _program(head.columns(chosen) - own)
        if solved is None:
            return None
        slack, mixture, prices = solved
        if slack > CERTAIN:
            proof = exact(head, row, chosen, mixture)
            if proof is not None:
                return proof
        gains = head.worth(prices)
        gains -= gains[row]
        gains[row] = -np.inf
        if gains.max() < 0 and wins(head, row, prices):
            return True
        gains[chosen] = -np.inf
        if gains.max() <= slack + CERTAIN:
            return None
        fresh = np.argsort(-gains)[: min(ADDED, np.isfinite(gains).sum())]
        chosen = np.concatenate([chosen[mixture > 0] if len(chosen) > _most(head) else chosen, fresh])
    return None


def _program(lead: Array) -> tuple[float, Array, Array] | None:
    """The largest common slack of a mixture of these columns, the mixture, and the prices of the inequalities."""
    from scipy.optimize import linprog

    count, rows = lead.shape
    found = linprog(
        np.append(np.zeros(count), -1.0),
        A_ub=np.column_stack([-lead.T, np.ones(rows)]),
        b_ub=np.zeros(rows),
        A_eq=np.append(np.ones(count), 0.0)[None],
        b_eq=[1.0],
        bounds=[(0, None)] * count + [(None, None)],
        method="highs",
    )
    if found.x is None or found.status != 0:
        return None
    prices = np.maximum(-found.ineqlin.marginals, 0)
    return float(found.x[-1]), np.maximum(found.x[:-1], 0), prices / max(prices.sum(), np.finfo(float).tiny)


def exact(head: Head, row: int, others: Sequence[int] | NDArray[np.intp], mixture: Array) -> Proof | None:
    """Return the proof if the mixture, rounded to a grid and normalised in rationals, dominates the row exactly.

    All sums are whole numbers: the floats of the file are multiples of a power of two. Nothing is rounded, so a proof
    is a theorem about the weights as they are stored.
    """
    shares = {int(k): int(v) for k, v in zip(others, np.rint(mixture * GRID), strict=True) if v > 0 and k != row}
    total = sum(shares.values())
    if not total:
        return None
    rows = [row, *shares]
    entries = _whole(np.column_stack([head.weight[rows], head.bias[rows]]).astype(np.float64))
    own, rest = entries[0], entries[1:]
    top, bottom = Fraction(head.lower).as_integer_ratio()
    shifted = [bottom * one[-1] + top * sum(one[:-1]) for one in entries]
    leads = [
        sum(share * other[i] for share, other in zip(shares.values(), rest, strict=True)) - total * own[i]
        for i in range(len(own) - 1)
    ]
    lead = sum(share * value for share, value in zip(shares.values(), shifted[1:], strict=True)) - total * shifted[0]
    if min(leads) < 0 or lead < 0 or (lead == 0 and min(leads) == 0):
        return None
    return Proof(row, {k: Fraction(share, total) for k, share in shares.items()})


def _whole(values: Array) -> list[list[int]]:
    """The same numbers times one power of two that makes them whole."""
    pairs = [[value.as_integer_ratio() for value in line] for line in values.tolist()]
    common = max(bottom for line in pairs for _, bottom in line)
    return [[top * (common // bottom) for top, bottom in line] for line in pairs]


def wins(head: Head, row: int, prices: Array) -> bool:
    """Return whether the class leads all others at the input that these multipliers stand for."""
    ways, offset = prices[: head.weight.shape[1]], prices[head.weight.shape[1] :].sum()
    return any(leads(head, row, head.lower + ways / max(offset, least)) for least in (1e-12, 1e-6, 1e-3))


def leads(head: Head, row: int, point: Array) -> bool:
    """Return whether the class has the largest logit at an input, beyond rounding."""
    logits = np.concatenate([block @ point for block in row_blocks(head.weight)]) + head.bias
    size = float(np.abs(head.weight[row].astype(np.float64)) @ np.abs(point)) + float(np.abs(logits).max())
    own = logits[row]
    logits[row] = -np.inf
    return bool(own - logits.max() > WINS * size)


def _spread(head: Head, row: int) -> NDArray[np.intp]:
    """Another set to start with: rows drawn at random."""
    size, dim = head.weight.shape
    drawn: NDArray[np.intp] = np.random.default_rng(row).choice(size, min(size, 2 * dim + 2), replace=False)
    return drawn


def _most(head: Head) -> int:
    """Above so many columns those out of the mixture are dropped."""
    return 4 * (int(head.weight.shape[1]) + 1) + ADDED


def twins(weight: NDArray[np.floating], bias: NDArray[np.floating], among: NDArray[np.intp]) -> list[Proof]:
    """Return a proof for every one of these rows that equals another one in each entry and has the smaller bias.

    It holds for any input, with no activation at all.
    """
    if not among.size:
        return []
    _, inverse = np.unique(weight[among], axis=0, return_inverse=True)
    order = np.lexsort((-bias[among], inverse.ravel()))
    starts = np.flatnonzero(np.diff(inverse.ravel()[order], prepend=-1))
    best = among[order[starts]][inverse.ravel()]
    return [Proof(int(j), {int(k): Fraction(1)}) for j, k in zip(among, best, strict=True) if bias[j] < bias[k]]
