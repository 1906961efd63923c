"""inspect_head: what the weights of a softmax head alone tell about its classes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from collapsekit.errors import CollapseError
from collapsekit.heads.activations import Activation, ActivationName, as_activation
from collapsekit.heads.coincidence import Group, coinciding_groups, distances_from
from collapsekit.heads.least_norm import least_norm as shortest
from collapsekit.heads.model_head import Output
from collapsekit.heads.proofs import Head, Proof, decide_all, twins
from collapsekit.heads.verdict import LARGE, nc0_share, sentences
from collapsekit.validation import Array, class_names, numeric, positive_number, shorten

Prove = Literal["flagged", "all", "none"]
Advance = Callable[[float, float, str], None]
NEAR = 0.5
"""Distance from the dead point, in its norms, up to which a class is flagged: shipped text readers recognised at most
13 % of the characters between 0.3 and 0.5, and at least 50 % of those between 0.5 and 1."""
PROVED = 200
"""Of more flagged classes those nearest the dead point are decided, unless all are asked for."""
TINY = 1e-3
"""Share of the median row's norm below which the dead point has no length to measure distances by."""


@dataclass(frozen=True, eq=False)
class Inspection:
    """What the weights of a head tell, class by class; made by :func:`inspect_head`.

    Attributes
    ----------
    names : tuple of str
        Names of the classes, in the order of the head's rows.
    distance : (K,) array
        Distance of each row from the dead point, in norms of the dead point; NaN without one, or where its norm is
        below a thousandth of the median row's.
    norm : (K,) array
        Euclidean norm of each row.
    coinciding : (K,) array of bool
        Whether the row is one of a group that coincides far more tightly than chance.
    reachable : tuple of bool or None
        False where a proof says that the class never has the largest logit, True where an input was found at which it
        has, None where nothing is known.
    least_norm : (K,) array
        Norm of the shortest input at which the class has the largest logit; NaN where not asked for.
    share_at_least : (K,) array
        Lower bound on the class's share of the training data; NaN where not asked for, without a dead point, with a
        bias that is not said to decay, or where the sum of the rows excludes a stationary point with coupled decay, on
        which the bound rests.
    groups : tuple of Group
        Groups of coinciding rows, the largest first; the first is the dead point's.
    dead_norm : float
        Norm of the dead point, NaN where there is none.
    nc0 : float
        ``‖Σ_j w_j‖``, zero at a stationary point with coupled decay.
    bias_sum : float or None
        Sum of the biases, zero there if they decay, too; None without a bias.
    activation : Activation or None
        What the inputs of the head come from, read or said; None where nothing is known.
    proofs : dict of int to Proof
        For each class that is never output the mixture of other rows that beats it.
    counts : (K,) array or None
        Samples of each class, where given.
    output : {"largest", "sigmoids", "unknown"}
        What becomes of the logits, as far as a graph says it; left out: the class is that of the largest.
    bias_decays : bool or None
        Whether the bias is said to decay as the weight does; None where no shares were asked for.
    """

    names: tuple[str, ...]
    distance: Array
    norm: Array
    coinciding: NDArray[np.bool_]
    reachable: tuple[bool | None, ...]
    least_norm: Array
    share_at_least: Array
    groups: tuple[Group, ...]
    dead_norm: float
    nc0: float
    bias_sum: float | None
    activation: Activation | None
    proofs: dict[int, Proof] = field(repr=False)
    counts: Array | None = None
    output: Output = "largest"
    bias_decays: bool | None = None

    def __repr__(self) -> str:
        return f"Inspection({len(self.names)} classes: {self.verdict[0]})"

    @property
    def flagged(self) -> NDArray[np.intp]:
        """Return the rows that coincide or lie near the dead point, the nearest first."""
        return flagged(self.distance, self.coinciding)

    @property
    def unreachable(self) -> list[int]:
        """Return the rows that are proved never to have the largest logit."""
        return [k for k, reachable in enumerate(self.reachable) if reachable is False]

    @property
    def verdict(self) -> list[str]:
        """Return what follows, in sentences: first which classes can never or hardly be output."""
        return sentences(self)

    def winners(self, group: Group) -> list[int]:
        """Return which rows of a group may still win: those not proved unreachable."""
        return [int(k) for k in group.rows if self.reachable[k] is not False]

    def table(self) -> list[dict[str, Any]]:
        """Return one row a class, those at risk first."""
        key = np.where(np.isnan(self.distance), np.where(self.coinciding, 0, np.inf), self.distance)
        return [self._class(int(k)) for k in np.lexsort((self.norm, key, ~self.coinciding))]

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and words, classes in the order of the head's rows; what is unknown is None."""
        return {
            "schema": 1,
            "classes": [self._class(k) for k in range(len(self.names))],
            "dead_point": self._dead_point(),
            "groups": [{"rows": one.rows.tolist(), "can_win": self.winners(one)} for one in self.groups],
            "nc0": self.nc0,
            "bias_sum": self.bias_sum,
            "output": self.output,
            "verdict": " ".join(self.verdict),
        }

    def _dead_point(self) -> dict[str, Any] | None:
        if not self.groups:
            return None
        group = self.groups[0]
        return {"norm": self.dead_norm, "rows": group.rows.tolist(), "radius": group.radius}

    def _class(self, k: int) -> dict[str, Any]:
        return {
            "label": self.names[k],
            "row": k,
            "distance": _known(self.distance[k]),
            "norm": float(self.norm[k]),
            "coinciding": bool(self.coinciding[k]),
            "reachable": self.reachable[k],
            "least_norm": _known(self.least_norm[k]),
            "share_at_least": _known(self.share_at_least[k]),
        }


def inspect_head(
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    names: Sequence[str] | None = None,
    counts: ArrayLike | None = None,
    activation: Activation | ActivationName | None = None,
    weight_decay: float | None = None,
    feature_norm: float | None = None,
    bias_decays: bool = False,
    prove: Prove = "flagged",
    least_norm: bool = False,
    advance: Advance = lambda *_: None,
) -> Inspection:
    """Return what the weights of a softmax head tell about its classes, without any data.

    At a stationary point of cross-entropy with coupled weight decay all classes without samples have one row, the dead
    point, and ``‖w_j − w_dead‖ ≤ share_j ‖mean feature of j‖ / decay``: rows near it belong to classes that training
    hardly saw, or that the decay has taken (derived here). Where the inputs of the head are bounded from below, a
    mixture of other rows that dominates a row proves that its class is never output, whatever the input.

    Parameters
    ----------
    weight : (K, d) array
        One row a class.
    bias : (K,) array, optional
        Left out: none.
    names : sequence of str, optional
        Names of the classes, in the order of the rows; left out: the rows' numbers.
    counts : (K,) array, optional
        Training samples of each class, 0 allowed; they tell the never seen from the regularised away.
    activation : {"relu", "swish", "gelu", "hardswish", "mish", "none"} or Activation, optional
        What the inputs of the head come from; left out: not known, and nothing is proved but of equal rows.
    weight_decay, feature_norm : float, optional
        Decay of the head, coupled and as in torch, and an upper bound on the norm of its inputs' class means; both
        give `share_at_least`.
    bias_decays : bool
        Whether the bias decays as the weight does, as torch's optimisers have it by default; of a head with a bias that
        does not there is no bound.
    prove : {"flagged", "all", "none"}
        Which classes are decided: the 200 flagged ones nearest the dead point, all, or none.
    least_norm : bool
        Whether to compute the shortest input at which a class wins, for the flagged ones that are not unreachable.
    advance : callable
        Called with how many classes are decided, of how many, and a word, as work goes on.

    Raises
    ------
    CollapseError
        If shapes do not match, numbers are not finite, or a word is none of those above.

    Examples
    --------
    The last two rows are all but equal, and behind a ReLU the first three together beat both:

    >>> import numpy as np
    >>> rows = np.vstack([3 * np.eye(3), np.full((2, 3), -1.0)])
    >>> rows[4] += 1e-9
    >>> found = inspect_head(rows, activation="relu", names=["ant", "bee", "cat", "dog", "elk"])
    >>> found.coinciding.tolist()
    [False, False, False, True, True]
    >>> found.reachable
    (None, None, None, False, False)
    >>> found.verdict[0].partition(":")[0]
    "2 of 5 classes can never be output, whatever the input, if the head's inputs come from a relu (inputs ≥ 0)"
    >>> {found.names[k]: str(share) for k, share in found.proofs[3].mixture.items()}
    {'ant': '1/3', 'bee': '1/3', 'cat': '1/3'}
    """
    rows, given = _matrix(weight), as_activation(activation)
    size = len(rows)
    offsets = np.zeros(size) if bias is None else _vector("bias", bias, size)
    seen = None if counts is None else _counts(counts, size)
    shown = class_names(names, size) or tuple(str(k) for k in range(size))
    if prove not in get_args(Prove):
        raise CollapseError(f"prove={shorten(prove)}: give one of {', '.join(get_args(Prove))}")
    groups = coinciding_groups(rows)
    norm = distances_from(rows, np.zeros(rows.shape[1]))
    coinciding = np.isin(np.arange(size), np.concatenate([np.empty(0, np.intp), *(one.rows for one in groups)]))
    apart, dead = np.full(size, np.nan), np.nan
    if groups:
        apart, dead = distances_from(rows, groups[0].centre), float(np.linalg.norm(groups[0].centre))
    measurable = dead > TINY * float(np.median(norm))
    distance = apart / dead if measurable else np.full(size, np.nan)
    risky = flagged(distance, coinciding)
    asked = {"flagged": risky[:PROVED], "all": np.arange(size), "none": risky[:0]}[prove]
    decided = _decided(rows, offsets, given, coinciding, asked, advance)
    reachable = tuple(None if k not in decided else decided[k] is True for k in range(size))
    lengths = np.full(size, np.nan)
    nc0 = float(np.linalg.norm(rows.sum(axis=0, dtype=np.float64)))
    shares = _shares(apart, bias is not None, weight_decay, feature_norm)
    bounded = nc0_share(nc0, norm) < LARGE and (bias is None or bias_decays)
    for k in risky if least_norm else ():
        if reachable[k] is not False:
            lengths[k] = shortest(rows, offsets, int(k), None if given is None else given.lower)
    return Inspection(
        names=shown,
        distance=distance,
        norm=norm,
        coinciding=coinciding,
        reachable=reachable,
        least_norm=lengths,
        share_at_least=shares if bounded else np.full(size, np.nan),
        groups=tuple(groups),
        dead_norm=dead,
        nc0=nc0,
        bias_sum=None if bias is None else float(offsets.sum()),
        activation=given,
        proofs={k: verdict for k, verdict in decided.items() if isinstance(verdict, Proof)},
        counts=seen,
        bias_decays=None if weight_decay is None else bias_decays,
    )


def flagged(distance: Array, coinciding: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Return the rows that coincide or lie near the dead point, the nearest first."""
    near = np.where(np.isnan(distance), np.inf, distance)
    order = np.lexsort((near, ~coinciding))
    return order[coinciding[order] | (near[order] <= NEAR)]


def _decided(
    rows: NDArray[np.floating],
    bias: Array,
    given: Activation | None,
    coinciding: NDArray[np.bool_],
    asked: NDArray[np.intp],
    advance: Advance,
) -> dict[int, Proof | bool]:
    """Proofs and witnesses of the rows that are asked for; of equal rows without any activation."""
    if not asked.size:
        return {}
    found: dict[int, Proof | bool] = {one.row: one for one in twins(rows, bias, np.flatnonzero(coinciding))}
    if given is None or given.lower is None:
        return found
    left = [int(k) for k in asked if int(k) not in found]
    return found | decide_all(
        Head(rows, bias, given.lower), left, lambda done: advance(done, len(left), "classes decided"), cores()
    )


def cores() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _shares(apart: Array, biased: bool, weight_decay: float | None, feature_norm: float | None) -> Array:
    """Lower bounds on shares: λ ‖w_j − w_dead‖/R; with a bias that decays alike 2/(1 + sqrt(1 + 1/R²)) times that."""
    if (weight_decay is None) != (feature_norm is None):
        missing = "weight_decay" if weight_decay is None else "feature_norm"
        raise CollapseError(f"{missing}=None: a bound on shares needs weight_decay and feature_norm; give both")
    if weight_decay is None or feature_norm is None:
        return np.full(len(apart), np.nan)
    decay = positive_number("weight_decay", weight_decay, "give the head's coupled decay")
    bound = positive_number("feature_norm", feature_norm, "give an upper bound on the norm of the head's inputs")
    reach = (bound + np.sqrt(bound**2 + 1)) / 2 if biased else bound
    return np.minimum(decay * apart / reach, 1.0)


def _matrix(weight: ArrayLike) -> NDArray[np.floating]:
    """The weight as it is, in float32 or float64: a language model's output layer is never held twice."""
    raw = np.asarray(weight)
    rows: NDArray[np.floating] = raw if raw.dtype in (np.float32, np.float64) else numeric("weight", raw)
    if rows.ndim != 2 or len(rows) < 2 or not rows.shape[1]:
        raise CollapseError(
            f"weight: shape {shorten(raw.shape)}; give one row a class, (K, d), for at least two classes"
        )
    bad = next((k for k in range(len(rows)) if not np.isfinite(rows[k]).all()), None)
    if bad is not None:
        raise CollapseError(f"weight: row {bad} is not finite; give a trained head")
    if max(float(rows.max()), -float(rows.min())) > 1e100:
        raise CollapseError("weight: entries above 1e+100; divide the head by its largest entry")
    return rows


def _vector(name: str, value: ArrayLike, size: int) -> Array:
    vector = numeric(name, value)
    if vector.shape != (size,):
        raise CollapseError(f"{name}: shape {shorten(vector.shape)}; expected one value a row, ({size},); give as many")
    bad = np.flatnonzero(~np.isfinite(vector) | (np.abs(vector) > 1e100))
    if bad.size:
        raise CollapseError(f"{name}: class {bad[0]} has {vector[bad[0]]:g}; give finite numbers up to 1e+100")
    return vector


def _counts(value: ArrayLike, size: int) -> Array:
    counts = _vector("counts", value, size)
    bad = np.flatnonzero((counts < 0) | (counts != np.floor(counts)))
    if bad.size:
        raise CollapseError(f"counts: class {bad[0]} has {counts[bad[0]]:g} samples; give whole numbers, 0 or more")
    return counts


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
