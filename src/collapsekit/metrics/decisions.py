"""What logits and class centres say of samples: the class they name, losses, leads; a row block at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from collapsekit.errors import CollapseError
from collapsekit.losses import CrossEntropy, Focal, Loss
from collapsekit.metrics.losses import sample_losses
from collapsekit.metrics.rows import row_blocks

PLAIN = CrossEntropy()
TIED = 1e-12
"""Squared distances that differ by less, relative to the squared lengths they come from, are equal but for rounding."""
BLOCK_ENTRIES = 2**22
MOST_ROWS = 4096
SAFE_LOGITS = 1e-30, torch.finfo(torch.float32).max
"""The largest of a block, in float32: below, roundings reach down to numbers that it cannot hold."""
NOBODY = -1
"""Named where two classes are in front."""


class Decisions(NamedTuple):
    """What logits say of some samples: target probability, loss, signed lead, class named; (n,) each."""

    confidences: Tensor
    losses: Tensor
    leads: Tensor
    named: Tensor


def decisions(
    features: Tensor,
    labels: Tensor,
    logits: Tensor | None,
    head: tuple[Tensor, Tensor | None],
    loss: Loss,
    dtype: torch.dtype,
) -> Iterator[tuple[slice, Decisions]]:
    """Give what the head's logits say of each sample, block by block; logits that are given are not computed again.

    Parameters
    ----------
    features : Tensor, shape (n, d)
    labels : Tensor, shape (n,)
        int64, in [0, K).
    logits : Tensor, shape (n, K), or None
    head : tuple of Tensor
        Weight (K, d) and bias (K,) or None.
    loss : CrossEntropy, Focal, Hinge or MSE
    dtype : torch.dtype
        In which to compute, float32 or float64.
    """
    for rows, z in _logits(features, logits, head, dtype):
        yield rows, _decided(z, labels[rows], loss)


def named_classes(
    features: Tensor, logits: Tensor | None, head: tuple[Tensor, Tensor | None], dtype: torch.dtype
) -> Tensor:
    """Return the class that the head names for each sample, (n,), `NOBODY` where logits tie."""
    found = [_two_largest(z) for _, z in _logits(features, logits, head, dtype)]
    return torch.cat([torch.where(first > second, who, NOBODY) for who, first, second in found])


def decision_blocks(size: int, width: int) -> Iterator[slice]:
    """Cut rows so that a block of their logits stays in the cache, and is high enough for fast products."""
    height = min(MOST_ROWS, max(64, BLOCK_ENTRIES // width // 64 * 64))
    for start in range(0, size, height):
        yield slice(start, min(start + height, size))


def _logits(
    features: Tensor, logits: Tensor | None, head: tuple[Tensor, Tensor | None], dtype: torch.dtype
) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of logits, to be overwritten; in float64 where float32 does not hold them."""
    weight, bias = (None if part is None else part.to(dtype) for part in head)
    assert weight is not None
    buffer = torch.empty(0, dtype=dtype, device=features.device)
    for rows in decision_blocks(len(features), len(weight)):
        if logits is not None:
            z = logits[rows].to(dtype, copy=True)
        else:
            shape = (rows.stop - rows.start, len(weight))
            buffer = buffer if buffer.shape == shape else buffer.new_empty(shape)
            z = torch.mm(features[rows].to(dtype), weight.T, out=buffer)
            z = z if bias is None else z.add_(bias)
            if dtype == torch.float32 and not SAFE_LOGITS[0] < float(_largest(z)) <= SAFE_LOGITS[1]:
                yield from ((rows, z) for _, z in _logits(features[rows], None, head, torch.float64))
                continue
        yield rows, z


def _largest(z: Tensor) -> Tensor:
    low, high = torch.aminmax(z)
    return torch.maximum(-low, high)


def _decided(z: Tensor, y: Tensor, loss: Loss) -> Decisions:
    """Confidences by the sum over the OTHER classes, so that small losses keep their digits in float32 too."""
    index = y[:, None]
    own = z.gather(1, index)[:, 0].double()
    other_loss = None if loss == PLAIN or isinstance(loss, Focal) else sample_losses(z, y, loss).double()
    z.scatter_(1, index, -torch.inf)
    runner, top, third = _two_largest(z)
    z.sub_(top.clamp(min=torch.finfo(z.dtype).min)[:, None]).mul_(1 / math.log(2)).exp2_()
    top, third = top.double(), third.double()
    odds = top - own + (1 + z.sum(dim=1).double()).log()  # of error; the runner itself is the 1
    losses = odds.logaddexp(odds.new_zeros(())) if other_loss is None else other_loss
    if isinstance(loss, Focal):
        losses = odds.sigmoid() ** loss.gamma * losses
    lead = torch.where(own > top, own - top, top - torch.maximum(own, third))
    named = torch.where(lead > 0, torch.where(own > top, y, runner), NOBODY)
    return Decisions((-odds).sigmoid(), losses, torch.where(own >= top, lead, -lead), named)


def _two_largest(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where the largest of each row is, the largest and the second; the largest is overwritten by −inf."""
    where = (
        torch.from_numpy(z.numpy().argmax(axis=1)) if z.device.type == "cpu" else z.argmax(dim=1)
    )  # ten times faster
    first = z.gather(1, where[:, None])[:, 0]
    z.scatter_(1, where[:, None], -torch.inf)
    return where, first, z.amax(dim=1)


class Centres:
    """Class centres, among which the nearest is found by products and, where it is close, once more in float64.

    Parameters
    ----------
    centres : Tensor, shape (K, d)
        float64; classes whose row is NaN have none and never win.
    dtype : torch.dtype
        Of the products, float32 or float64.
    """

    def __init__(self, centres: Tensor, dtype: torch.dtype) -> None:
        self.centres, self.dtype = centres, dtype
        self.known = torch.nonzero(centres.sum(dim=1).isfinite()).flatten()
        some = centres if len(self.known) == len(centres) else centres[self.known]
        self.middle = some.mean(dim=0).to(dtype)
        self.points = torch.empty_like(some, dtype=dtype)
        self.halves = torch.empty(len(some), dtype=torch.float64, device=some.device)
        for rows in row_blocks(*some.shape):
            moved = some[rows] - self.middle
            self.points[rows] = moved
            self.halves[rows] = moved.square().sum(dim=1) / 2

    def nearest(self, features: Tensor) -> Tensor:
        """Return the class of each feature's nearest centre, (n,), `NOBODY` where another is as near."""
        if len(self.known) < 2:
            return torch.full((len(features),), NOBODY, device=features.device)
        found = [self._nearest(features[rows]) for rows in decision_blocks(len(features), len(self.known))]
        return torch.cat(found) if found else features.new_empty(0, dtype=torch.int64)

    def _nearest(self, features: Tensor) -> Tensor:
        if self.dtype == torch.float64:
            return self._exactly(features)
        x = features.to(self.dtype) - self.middle
        scores = (x @ self.points.T).sub_(self.halves.to(self.dtype))  # half of |x|² − |x − c|²
        where, first, second = _two_largest(scores)
        close = torch.nonzero(~(first - second > 2 * self._rounding(x))).flatten()
        found = self.known[where]
        if len(close):
            found[close] = self._exactly(features[close])
        return found

    def _rounding(self, x: Tensor) -> Tensor:
        """Bound the error of each row's scores: d + 4 roundings of |x| |c|, two of |c|²/2, and lost small parts."""
        info, width = torch.finfo(self.dtype), x.shape[1]
        longest = float((2 * self.halves.max()).sqrt())
        bound: Tensor = (width + 4) * info.eps / 2 * longest * (x.norm(dim=1) + longest) + width * info.tiny
        return bound

    def _exactly(self, features: Tensor) -> Tensor:
        """The same in float64; distances that differ by rounding alone name nobody."""
        middle = self.middle.double()
        x = features.double() - middle
        best, next_best = x.new_full((2, len(x)), -torch.inf)
        who = torch.full((len(x),), NOBODY, device=x.device)
        for rows in row_blocks(len(self.known), max(len(x), x.shape[1])):
            scores = torch.addmm(-self.halves[rows], x, (self.centres[self.known[rows]] - middle).T)
            where, first, second = _two_largest(scores)
            who = torch.where(first > best, self.known[rows][where], who)
            next_best = torch.maximum(torch.minimum(best, first), torch.maximum(next_best, second))
            best = torch.maximum(best, first)
        size = x.square().sum(dim=1) + 2 * self.halves.max()
        return torch.where(2 * (best - next_best) > TIED * size, who, NOBODY)


def checked_head(weight: Tensor, bias: Tensor | None, num_classes: int, dim: int) -> None:
    """Refuse a head that does not fit, or has diverged."""
    if tuple(weight.shape) != (num_classes, dim):
        raise CollapseError(f"weight: shape {tuple(weight.shape)}; expected ({num_classes}, {dim}), one row a class")
    if bias is not None and tuple(bias.shape) != (num_classes,):
        raise CollapseError(f"bias: shape {tuple(bias.shape)}; expected ({num_classes},)")
    for part in (weight, bias):
        if part is not None and not bool(torch.isfinite(_largest(part))):
            raise CollapseError("weight or bias: not finite; the head has diverged")


def checked_logits(logits: Tensor, samples: int, num_classes: int) -> Tensor:
    """Return logits that a network has made, or say what is wrong with them; −inf masks a class."""
    if not logits.is_floating_point() or tuple(logits.shape) != (samples, num_classes):
        raise CollapseError(
            f"logits: {logits.dtype} of shape {tuple(logits.shape)}; expected floating point numbers, "
            f"({samples}, {num_classes})"
        )
    highest = logits.amax(dim=1) if samples else logits.new_zeros(1)
    bad = torch.nonzero(~torch.isfinite(highest)).flatten()
    if len(bad):
        raise CollapseError(
            f"logits: the largest of sample {int(bad[0])} is {float(highest[bad[0]])}; give finite ones"
        )
    return logits
