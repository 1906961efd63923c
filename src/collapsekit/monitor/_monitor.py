"""Monitor: how each class fares while a network trains, from the passes that training makes anyway."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence, Sized
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, distributed, nn

from collapsekit.diagnosis import Diagnosis, Finding, diagnose
from collapsekit.diagnosis._diagnose import last_layer, problem_of
from collapsekit.diagnosis.findings import RANKS
from collapsekit.diagnosis.status import GONE, statuses
from collapsekit.errors import CollapseError
from collapsekit.heads.verdict import nc0_share
from collapsekit.losses import Loss
from collapsekit.metrics import Measurement
from collapsekit.metrics import functional as F
from collapsekit.metrics._metric import IGNORED
from collapsekit.metrics.batches import label_number, several_processes
from collapsekit.metrics.decisions import PLAIN
from collapsekit.metrics.losses import checked_loss
from collapsekit.metrics.measurement import as_array
from collapsekit.monitor import table as tables
from collapsekit.monitor.alarms import SILENT, Alarms
from collapsekit.monitor.decay import Horizon
from collapsekit.monitor.findings import dying_finding
from collapsekit.monitor.stream import Stream, estimate
from collapsekit.monitor.tap import Tap
from collapsekit.prediction import predict
from collapsekit.recipe import Recipe
from collapsekit.validation import class_counts, class_names, shorten, whole_number

PREFIX = "collapse/"
EVERY = 8
"""Steps of which one is kept for NC1: about 6 of 40 steps, or 10,000 rows of 80,000, for an error of a few per cent."""
TIME_LIMIT = 10.0
"""Seconds for a prediction that has to be searched for, once."""
OF_SAMPLES = (
    *("worst_confidence", "worst_recall", "never_predicted", "lost", "weak", "dying"),
    *("nc0", "bias_sum", "cdnv", "nc1", "nc1_error", "min_headroom"),
)
"""What is not known of an epoch without samples."""
VERSION = 1
"""Of what state_dict holds."""


class Monitor:
    """Watch every class of a classifier while it trains, from the forward passes that training makes anyway.

    Three lines: make it, hand it the labels after each forward pass, and ask for the numbers at the end of an epoch.
    Weights, gradients and random states stay as they are without it. Numbers are those of the passes of the epoch, in
    training mode, while the network moves; evaluation passes do not count.

    Parameters
    ----------
    model : torch.nn.Module
        What is trained; wrapped in DistributedDataParallel or compiled as it may be. (Of what is compiled, make the
        monitor before the first call.)
    head : str or torch.nn.Module, optional
        The layer that makes the logits, by name or itself; left out: found in the first training pass.
    counts : array_like of int, shape (K,), optional
        Training samples of each class, for the prediction; left out: those of the first epoch.
    recipe : Penalty, BatchNorm or Plain, optional
        What is penalised: for headroom and causes.
    optimizer : torch.optim.Optimizer, optional
        What takes the steps: for the horizon, and for causes.
    names : sequence of str, optional
        K class names.
    every : int, optional
        One step in so many is kept for NC1, whose standard error is given; 1: all steps, no error; None: no NC1.
    loss : CrossEntropy, Focal, Hinge or MSE
        The training loss.
    ignore_index : int
        The label of samples that do not count.
    table : path, optional
        A ``.csv`` or ``.jsonl`` file to which each epoch adds one row a class.

    Attributes
    ----------
    scalars : dict of str to float
        What the last :meth:`epoch` returned.
    reasons : dict of str to str
        Why a number is not among them, by key, and what was left out.
    measured : Measurement or None
        Of the last epoch, over all processes.
    dying : tuple of str
        The classes that are dying as of the last epoch.

    Raises
    ------
    CollapseError
        If what is given does not fit, here or in the first training pass.

    References
    ----------
    docs/monitor.md: each key, the early warnings and how often they were right.

    Examples
    --------
    >>> import torch
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=1e-3)
    >>> monitor = Monitor(model, optimizer=optimizer)
    >>> for _ in range(10):
    ...     x, y = torch.randn(12, 4), torch.arange(12) % 3
    ...     torch.nn.functional.cross_entropy(model(x), y).backward()
    ...     monitor.update(y)
    ...     optimizer.step()
    >>> scalars = monitor.epoch()
    >>> round(scalars["collapse/horizon"], 6), sorted(monitor.reasons)
    (0.001, ['collapse/min_headroom', 'findings'])
    """

    def __init__(
        self,
        model: nn.Module,
        head: str | nn.Module | None = None,
        *,
        counts: ArrayLike | None = None,
        recipe: Recipe | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        names: Sequence[str] | None = None,
        every: int | None = EVERY,
        loss: Loss = PLAIN,
        ignore_index: int = IGNORED,
        table: str | os.PathLike[str] | None = None,
    ) -> None:
        if names is not None and not isinstance(names, Sized):
            raise CollapseError(f"names={shorten(names)}: give a list of names, one a class")
        checked_loss(loss)
        if recipe is not None and not isinstance(recipe, Recipe):
            raise CollapseError(f"recipe={shorten(recipe)}: give a Penalty, BatchNorm or Plain")
        self.counts = None if counts is None else class_counts(counts)
        self.names = None if names is None else class_names(names, len(names))
        self.every = None if every is None else whole_number("every", every, 1, "give a number of steps, or None")
        self.recipe, self.loss, self.ignore_index = recipe, loss, label_number("ignore_index", ignore_index)
        self.table = None if table is None else tables.checked_path(table)
        self.horizon = None if optimizer is None else Horizon(optimizer)
        self.tap = Tap(model, head)
        self.scalars: dict[str, float] = {}
        self.reasons: dict[str, str] = {}
        self.measured: Measurement | None = None
        self.epochs = self.updates = 0
        self.losses: list[float] = []
        self.recalls: list[list[float]] = []
        self._stream: Stream | None = None
        self._alarms: Alarms | None = None
        self._headroom: tuple[float, str] | None = None
        self._diagnosis: Diagnosis | None = None
        self._early: tuple[Finding, ...] = ()

    def update(self, labels: ArrayLike | Tensor) -> None:
        """Count the last forward pass; call it once after each one, before or after the step.

        Parameters
        ----------
        labels : array_like or Tensor, shape (n,) or that of the positions
            Class numbers of the samples, in their order; any device.

        Raises
        ------
        CollapseError
            If there was no training pass since the last call, or labels do not fit; nothing is counted then.
        """
        found, head = self.tap.take()
        shape = found.logits.shape[-1], found.features.shape[-1]
        stream = self._stream or self._begin(shape, found.features.device)
        stream.add(found, labels, head)
        self.updates += 1

    def epoch(self) -> dict[str, float]:
        """Return the numbers of the epoch to log, and begin the next one; every process has to call it.

        Returns
        -------
        dict of str to float
            Finite numbers by key; what is not known is absent, and :attr:`reasons` says why.

        Raises
        ------
        CollapseError
            If no process has counted anything since the last call, or the table cannot be written.
        """
        whole, spreads = self._gathered()
        self.epochs += 1
        self.scalars, self.reasons, self._diagnosis, self._early = {}, {}, None, ()
        self.measured = whole.measurement(self.names)
        self._stream = None
        self._note("not_finite", whole.not_finite)
        if self.tap.dropped:
            self.reasons["updates"] = f"{self.tap.dropped} training passes had no update and were not counted"
            self.tap.dropped = 0
        self._note_horizon()
        if self.measured.recalls is None:
            diverged = "no sample with finite features: training has diverged"
            why = diverged if whole.not_finite else "no sample of a class: every label is ignore_index, or was refused"
            self.reasons |= {"findings": why} | {PREFIX + key: why for key in OF_SAMPLES}
            return dict(self.scalars)
        self._note_classes(whole, self.measured)
        self._note_geometry(whole, self.measured, spreads)
        self._note_headroom(self.measured)
        return dict(self.scalars)

    @property
    def diagnosis(self) -> Diagnosis | None:
        """What :func:`collapsekit.diagnosis.diagnose` says of the last epoch, made when it is first asked for.

        None before there is one, and during warm-up.
        """
        if self._diagnosis is None and self.measured is not None and "findings" not in self.reasons:
            described = None if self.horizon is None else self.horizon.described
            steps = self.updates if self.horizon is None else self.horizon.steps
            history = {"loss": self.losses, "recalls": self.recalls, "steps": max(1, steps)}
            self._diagnosis = diagnose(self.measured, recipe=self.recipe, optimizer=described, history=history)
        return self._diagnosis

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The early warning, and what :func:`collapsekit.diagnosis.diagnose` finds, the worst first."""
        found = () if self.diagnosis is None else self.diagnosis.findings
        return tuple(sorted((*self._early, *found), key=lambda one: RANKS[one.severity]))

    @property
    def dying(self) -> tuple[str, ...]:
        """The classes that are dying as of the last epoch."""
        return self._early[0].classes if self._early else ()

    def close(self) -> None:
        """Take all hooks away."""
        self.tap.close()
        if self.horizon is not None:
            self.horizon.handle.remove()

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain values from which another monitor goes on, in the middle of an epoch, too."""
        return {
            "version": VERSION,
            "epochs": self.epochs,
            "updates": self.updates,
            "dropped": self.tap.dropped,
            "head": self.tap.state(),
            "losses": list(self.losses),
            "recalls": list(self.recalls),
            "stream": None if self._stream is None else self._stream.state(),
            "alarms": None if self._alarms is None else self._alarms.state(),
            "horizon": None if self.horizon is None else self.horizon.state(),
            "headroom": self._headroom,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was called.

        Parameters
        ----------
        state : mapping
            What it returned, on any device.

        Raises
        ------
        CollapseError
            If it is of another kind, or was taken with another `every`.
        """
        own = self.state_dict()
        if not isinstance(state, Mapping) or not state.keys() >= own.keys() or state["version"] != VERSION:
            raise CollapseError("state: is none of this monitor's; give what monitor.state_dict() returned")
        stream, alarms = state["stream"], state["alarms"]
        if stream is not None and stream["every"] != self.every:
            raise CollapseError(f"every={self.every}: the state was taken with every={stream['every']}; give the same")
        self.epochs, self.updates, self.tap.dropped = state["epochs"], state["updates"], state["dropped"]
        self.losses, self.recalls = list(state["losses"]), list(state["recalls"])
        self._headroom, self._stream, self._alarms = state["headroom"], None, None
        if state["head"] is not None:
            self.tap.load(state["head"])
        if stream is not None:
            device = next((one.device for one in self.tap.root.parameters()), torch.device("cpu"))
            self._begin(stream["shape"], device).load(stream)
        if alarms is not None:
            self._alarms = Alarms(len(alarms["dying"]))
            self._alarms.load(alarms)
        if self.horizon is not None and state["horizon"] is not None:
            self.horizon.load(state["horizon"])

    def _begin(self, shape: tuple[int, int], device: torch.device) -> Stream:
        """An empty epoch, once the shape of the head, (K, d), is known."""
        num_classes, dim = shape
        for what, given in (("counts", self.counts), ("names", self.names)):
            if given is not None and len(given) != num_classes:
                raise CollapseError(
                    f"{what}: {len(given)} for a head of {num_classes} classes; give one a class, or name the head of "
                    f"{len(given)} classes with head="
                )
        self._stream = Stream(
            num_classes, dim, every=self.every, loss=self.loss, ignore_index=self.ignore_index, device=device
        )
        return self._stream

    def _gathered(self) -> tuple[Stream, list[tuple[int, float]]]:
        """What all processes have counted, and the rows kept for NC1."""
        own = self._stream
        if own is not None and self.tap.head is not None:
            own.flush(self.tap.head)
        states = gathered(None if own is None else own.counted())
        known = [state for state in states if state is not None]
        if not known:
            raise CollapseError(
                "epoch: nothing was counted since the last one; call monitor.update(labels) after each forward pass in "
                "training mode"
            )
        if len({state["shape"] for state in known}) > 1:
            raise CollapseError(f"model: its heads differ between processes, {known[0]['shape']}; train one model")
        whole = own
        if len(states) > 1 or own is None:
            whole = self._begin(known[0]["shape"], torch.device("cpu") if own is None else own.device)
            for state in known:
                whole.merge(state)
        assert whole is not None
        spreads = [] if own is None or self.every in (None, 1) else own.spreads(whole.metric.moments)
        return whole, [one for part in gathered(spreads) for one in part or ()]

    def _note(self, key: str, value: float, reason: str = "") -> None:
        """Put a number among those to log, or say why it is not known."""
        if math.isfinite(value):
            self.scalars[PREFIX + key] = float(value)
        else:
            self.reasons[PREFIX + key] = reason

    def _note_classes(self, whole: Stream, measured: Measurement) -> None:
        words, names = statuses(measured), measured.names or tuple(map(str, range(len(measured.counts))))
        assert measured.recalls is not None
        assert measured.confidences is not None
        assert measured.losses is not None
        self.losses.append(float(np.nansum(measured.losses * measured.counts) / measured.counts.sum()))
        self.recalls.append(measured.recalls.tolist())
        warming = self.horizon is not None and self.horizon.warming
        if self._alarms is None:
            self._alarms = Alarms(len(words))
        dying = self._alarms.add(measured.recalls, measured.confidences, warming=warming)
        if warming or self.epochs <= SILENT:
            self.reasons["findings"] = "none during warm-up and the first epochs: nothing has been learned yet"
        decays = self.horizon is not None and any(g.get("weight_decay") for g in self.horizon.optimizer.param_groups)
        self._early = dying_finding(self._alarms, names, decays=decays)
        self._note("worst_confidence", np.nanmin(measured.confidences))
        self._note("worst_recall", np.nanmin(measured.recalls))
        self._note("never_predicted", sum(word in GONE for word in words))
        for word in ("lost", "weak"):
            self._note(word, words.count(word))
        self._note("dying", int(dying.sum()))
        if self.table is not None and (not several_processes() or distributed.get_rank() == 0):
            columns = {"count": measured.counts.astype(int).tolist(), "status": words, "dying": dying.tolist()}
            numbers = {"recall": measured.recalls, "confidence": measured.confidences, "margin": whole.mean_margins()}
            columns |= {key: value.tolist() for key, value in (numbers | {"loss": measured.losses}).items()}
            rows = [
                {"epoch": self.epochs, "class": name} | {key: values[k] for key, values in columns.items()}
                for k, name in enumerate(names)
            ]
            tables.append(self.table, rows)

    def _note_geometry(self, whole: Stream, measured: Measurement, spreads: list[tuple[int, float]]) -> None:
        assert measured.weight is not None
        norms = as_array(measured.weight.norm(dim=1))
        self._note("nc0", nc0_share(float(measured.weight.sum(dim=0).norm()), norms))
        bias = float("nan") if measured.bias is None else float(measured.bias.sum())
        self._note("bias_sum", bias, "the head has no bias")
        few = "fewer than two classes, or no class with two samples"
        self._note("cdnv", F.cdnv(measured.moments)[0], f"{few}, or two class means coincide")
        if self.every is None:
            value = error = float("nan")
            few = "every=None: no rows are kept"
        elif self.every == 1:
            value = F.nc1(measured.moments)
            error = 0.0 if math.isfinite(value) else float("nan")
        else:
            value, error = estimate(spreads, whole.steps)
        self._note("nc1", value, few)
        self._note(
            "nc1_error", error, "fewer than two steps were kept; give a smaller every" if value == value else few
        )

    def _note_horizon(self) -> None:
        efolds, why = float("nan"), "no optimizer; make the monitor with optimizer=optimizer"
        if self.horizon is not None and self.tap.head is not None:
            efolds, why = self.horizon.of(self.tap.head.module)
        self._note("horizon", efolds, why)

    def _note_headroom(self, measured: Measurement) -> None:
        if self._headroom is None:
            self._headroom = self._least_headroom(measured)
        self._note("min_headroom", *self._headroom)

    def _least_headroom(self, measured: Measurement) -> tuple[float, str]:
        """By the recipe's own problem, once; or why there is none."""
        unknown = float("nan")
        if self.recipe is None:
            return unknown, "no recipe; make the monitor with recipe=Penalty(...), BatchNorm(...) or Plain(...)"
        counts = measured.counts if self.counts is None else self.counts
        if not counts.all():
            return unknown, "not every class has samples; give counts="
        described = None if self.horizon is None else self.horizon.described
        layer = last_layer(self.recipe, biased=measured.bias is not None)
        problem, refusal = problem_of(self.recipe, layer, described, counts, loss=self.loss, names=self.names)
        if problem is None:
            return unknown, str(refusal)
        found = predict(problem, time_limit=TIME_LIMIT)
        return float(found.headroom.min()), f"no headroom is known for this problem ({found.basis.value})"


def gathered(value: Any) -> list[Any]:
    """Return the value of every process, in their order; of this one alone where there is only one."""
    if not several_processes():
        return [value]
    found: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(found, value)
    return found
