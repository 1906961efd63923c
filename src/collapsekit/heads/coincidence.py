"""Where rows of a head coincide far more tightly than chance: found from the rows alone, never assumed.

Classes without samples have one row at a stationary point with decay (see :func:`collapsekit.heads.inspect_head`).
Healthy heads, long tails and pairs of like classes have near rows, too; what they lack is an empty shell around them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from collapsekit.validation import Array

CLOSE = 0.25
"""Radius of a group, at most, in root mean square distances of the rows from their mean."""
SHELL, PAIR = 3.0, 30.0
"""A group of m rows is alone within SHELL times its radius, or PAIR ** 1/(m - 1) times if that is more: two like
classes of a healthy head are near each other, four are not."""
STRAY = 0.1
"""Share of the group that may lie in the shell: in large groups distances run on without a gap."""
RARE = 1e-4
"""Expected number of groups so tight by chance in one head."""
RESOLUTION = 1e-6
"""Distances are told apart from this share of the scale on; float32 weights hold seven digits."""
PRODUCTS = 1e-5
"""Error of a squared distance by products in float32, over the squares that cancel, at most."""
EXAMINED = 64
"""So many rows with the nearest neighbours are tried as the middle of a group."""
ALL_PAIRS, SAMPLED = 20_000, 2048
"""Up to so many rows all pairs are looked at, of more those of a sample."""
BLOCK = 2**24
"""Entries of a block of distances: 64 MiB in float32."""


@dataclass(frozen=True)
class Group:
    """Rows that coincide.

    Attributes
    ----------
    rows : (m,) array of int
        Ascending.
    centre : (d,) array
        Their mean.
    radius : float
        The largest distance from the row in the middle.
    """

    rows: NDArray[np.intp]
    centre: Array
    radius: float


def coinciding_groups(weight: NDArray[np.floating]) -> list[Group]:
    """Return the disjoint groups of coinciding rows, the largest first; none on a head without any."""
    size = len(weight)
    scale = spread(weight)
    if scale <= RESOLUTION * float(np.sqrt(_square_mean(weight))):  # all rows are one
        every = np.arange(size)
        return [Group(every, weight.mean(axis=0, dtype=np.float64), scale)]
    dimension = _dimension(weight)
    middles = _middles(weight, scale)
    found = [_group(weight, apart, scale, dimension) for apart in _apart(weight, middles, scale)]
    groups, taken = list[Group](), np.zeros(size, dtype=bool)
    for group in sorted((one for one in found if one is not None), key=lambda one: -len(one.rows)):
        if not taken[group.rows].any():
            groups.append(group)
            taken[group.rows] = True
    return groups


def spread(weight: NDArray[np.floating]) -> float:
    """Return the root mean square distance of the rows from their mean."""
    mean = weight.mean(axis=0, dtype=np.float64)
    total = sum(float(((block - mean) ** 2).sum()) for block in row_blocks(weight))
    return float(np.sqrt(total / len(weight)))


def distances_from(weight: NDArray[np.floating], point: NDArray[np.floating]) -> Array:
    """Return each row's distance from a point, (K,), by differences: no cancellation."""
    return np.concatenate([np.linalg.norm(block - point.astype(np.float64), axis=1) for block in row_blocks(weight)])


def _apart(weight: NDArray[np.floating], middles: Sequence[int], scale: float) -> NDArray[np.float32]:
    """Distance of each row from each of these, in units of the scale, (m, K): in one pass, by their products; those of
    near rows by differences, which cancel nothing."""
    mean, chosen = weight.mean(axis=0, dtype=np.float64), weight[middles].astype(np.float64)
    own = ((chosen - mean) / scale).astype(np.float32)
    own_squares, found = (own**2).sum(axis=1)[:, None], np.empty((len(middles), len(weight)), dtype=np.float32)
    start = 0
    for rows in row_blocks(weight):
        block = ((rows - mean) / scale).astype(np.float32)
        sizes = own_squares + (block**2).sum(axis=1)
        squares = sizes - 2 * own @ block.T
        found[:, start : start + len(rows)] = np.sqrt(np.maximum(squares, 0))
        for i, near in enumerate(squares < 2 * CLOSE**2 + PRODUCTS * sizes):
            found[i, start + np.flatnonzero(near)] = np.linalg.norm(rows[near] - chosen[i], axis=1) / scale
        start += len(rows)
    return found


def _group(weight: NDArray[np.floating], apart: NDArray[np.float32], scale: float, dimension: float) -> Group | None:
    """The group around a row, where the rows within a radius are almost alone in the shell around it; distances are in
    units of the scale."""
    order = np.argsort(apart, kind="stable")
    ranked = np.maximum(apart[order].astype(np.float64), RESOLUTION)
    sizes = np.arange(2, len(weight))  # radius ranked[m - 1], next ranked[m]
    sizes = sizes[ranked[sizes - 1] <= CLOSE]
    if not sizes.size:
        return None
    by_chance = (len(weight) / RARE) ** (1 / (dimension * (sizes - 1.0)))
    shell = np.maximum(np.maximum(SHELL, PAIR ** (1 / (sizes - 1.0))), by_chance)
    within = np.searchsorted(ranked, shell * ranked[sizes - 1], side="left")
    alone = sizes[within <= sizes * (1 + STRAY)]
    if not alone.size:
        return None
    best = int(alone[np.argmax(ranked[alone] / ranked[alone - 1])])
    rows = np.sort(order[:best])
    return Group(rows, weight[rows].mean(axis=0, dtype=np.float64), scale * float(apart[order[best - 1]]))


def _middles(weight: NDArray[np.floating], scale: float) -> list[int]:
    """Rows to try: those with the nearest neighbours, as far as all pairs can be looked at, and adjacent ones in
    three random projections, which find any two rows that are all but equal."""
    size = len(weight)
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(weight.shape[1], 3)) / np.sqrt(weight.shape[1])
    projected = np.concatenate([block @ directions for block in row_blocks(weight)])
    order = np.argsort(projected[:, 0], kind="stable")
    steps = np.linalg.norm(np.diff(projected[order], axis=0), axis=1)
    adjacent = order[np.argsort(steps, kind="stable")[:EXAMINED]]
    asked = np.arange(size) if size <= ALL_PAIRS else rng.choice(size, SAMPLED, replace=False)
    near = asked[np.argsort(_nearest(weight, asked, scale), kind="stable")[:EXAMINED]]
    return [int(j) for j in dict.fromkeys([*near.tolist(), *adjacent.tolist()])]


def _nearest(weight: NDArray[np.floating], asked: NDArray[np.intp], scale: float) -> NDArray[np.float32]:
    """Squared distance of each asked row to its nearest other one, in units of the scale; float32 ranks well enough."""
    mean = weight.mean(axis=0, dtype=np.float64)
    step = max(1, BLOCK // max(len(asked), weight.shape[1]))
    own = ((weight[asked] - mean) / scale).astype(np.float32)
    own_squares = (own**2).sum(axis=1)
    best = np.full(len(asked), np.inf, dtype=np.float32)
    for start in range(0, len(weight), step):
        block = ((weight[start : start + step] - mean) / scale).astype(np.float32)
        apart = own_squares[:, None] + (block**2).sum(axis=1) - 2 * own @ block.T
        inside = np.flatnonzero((asked >= start) & (asked < start + step))
        apart[inside, asked[inside] - start] = np.inf
        np.minimum(best, apart.min(axis=1), out=best)
    return best


def _dimension(weight: NDArray[np.floating]) -> float:
    """Effective dimension of the cloud of rows, (tr C)² / tr C²: few directions make near rows likely."""
    mean = weight.mean(axis=0, dtype=np.float64)
    if len(weight) <= weight.shape[1]:
        centred = weight - mean
        gram = centred @ centred.T
    else:
        gram = np.zeros((weight.shape[1],) * 2)
        for block in row_blocks(weight):
            gram += (block - mean).T @ (block - mean)
    return max(1.0, float(np.trace(gram) ** 2 / (gram**2).sum()))


def _square_mean(weight: NDArray[np.floating]) -> float:
    return float(sum(float((block**2).sum()) for block in row_blocks(weight)) / len(weight))


def row_blocks(weight: NDArray[np.floating]) -> Iterator[Array]:
    """Blocks of rows in float64, so that a matrix in float32 is never held twice."""
    step = max(1, BLOCK // 2 // weight.shape[1])
    for start in range(0, len(weight), step):
        yield weight[start : start + step].astype(np.float64)
