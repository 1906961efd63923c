"""train: one configuration in, one finished and stored run out."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from collapsekit.errors import CollapseError
from collapsekit.metrics import Measurement, measure
from collapsekit.problem import UFM
from collapsekit.training import runs
from collapsekit.training.data import Split, load_split
from collapsekit.training.models import Classifier, mlp
from collapsekit.training.objective import penalised_loss
from collapsekit.training.recipe import TrainConfig
from collapsekit.training.runs import Run

EVALUATIONS = 60
EVALUATION_BATCH = 4096

Progress = Callable[[int, int, float], None]
"""Called as ``progress(step, total_steps, objective)`` after each evaluation."""


def train(
    config: TrainConfig,
    *,
    out: str | os.PathLike[str] = "runs",
    resume: bool = False,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Run:
    """Train a network as configured, measure it on its training set, and store the run.

    Parameters
    ----------
    config : TrainConfig
        What to train.
    out : path
        The run is stored in ``out/<hash of the configuration>``.
    resume : bool
        Go on from the last checkpoint, if there is one (or return the run, if it is finished); otherwise a run that
        is already stored there is replaced.
    device : torch.device or str
        Where to train.
    progress : callable, optional
        ``progress(step, total_steps, objective)`` after each evaluation.

    Returns
    -------
    Run

    Raises
    ------
    CollapseError
        If the configuration does not fit the data, the folder cannot be written or is in use, or training diverges.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as out:
    ...     run = train(TrainConfig(epochs=2, hidden=(8,), feature_dim=8), out=out)
    >>> run.measured
    Measurement(ClassMoments(K=10, d=8, 613 samples, scatter), head)
    """
    split = load_split(config)
    problem = config.problem(split.counts, split.names)
    place = _device(device)
    folder = runs.run_folder(out, config)
    with runs.locked(folder):
        if resume and (folder / runs.ENVIRONMENT).exists():
            return runs.load_run(folder)
        if not resume:
            for name in (runs.ENVIRONMENT, runs.ARRAYS, runs.CHECKPOINT, runs.HISTORY):
                (folder / name).unlink(missing_ok=True)
        runs.replace_text(folder / runs.CONFIG, json.dumps(config.to_dict(), indent=2) + "\n")
        started = time.monotonic()
        model = _trained(config, split, problem, folder, place, progress)
        measured = _measured(model, split, train_set=True)
        tested = _measured(model, split, train_set=False)
        assert tested.recalls is not None  # the network has a head
        environment = runs.environment(place, time.monotonic() - started)
        run = Run(folder, config, measured, tested.recalls, runs.read_history(folder), environment)
        runs.save_results(run)
    return run


def _trained(
    config: TrainConfig, split: Split, problem: UFM, folder: Path, device: torch.device, progress: Progress | None
) -> Classifier:
    inputs, labels = split.train_inputs.to(device), split.train_labels.to(device)
    weight_decay, feature_decay = config.penalties(split.counts)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(config.seed)
        model = mlp(inputs[0].numel(), config.hidden, config.feature_dim, len(split.names)).to(device)
        optimizer = _optimizer(config, model)
        first = _restore(folder, model, optimizer)
        total = config.epochs * _steps_per_epoch(config, len(inputs))
        due = _evaluation_steps(total)
        for step, batch in enumerate(_batches(config, len(inputs), first), start=first + 1):
            _set_learning_rate(optimizer, config, step - 1, total)
            factor = min(1.0, step / (config.warmup * total)) if config.warmup else 1.0
            features = model.body(inputs[batch])
            loss = penalised_loss(
                model.head(features),
                labels[batch],
                features,
                model.head.weight,
                factor * weight_decay,
                factor * feature_decay,
            )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if step in due:
                _require_finite(model, loss, step, config)
                entry = _evaluated(model, split, problem, step)
                runs.append_history(folder, entry)
                _checkpoint(folder, model, optimizer, step)
                if progress is not None:
                    progress(step, total, entry["objective"])
    return model


def _steps_per_epoch(config: TrainConfig, num_samples: int) -> int:
    return math.ceil(num_samples / (config.batch_size or num_samples))


def _evaluation_steps(total: int) -> set[int]:
    """Steps after which the network is measured and saved: denser at the start, and always the last."""
    return {max(1, round(total * (i / EVALUATIONS) ** 1.5)) for i in range(1, EVALUATIONS + 1)}


def _batches(config: TrainConfig, num_samples: int, first: int) -> Iterator[Tensor | slice]:
    """Yield the batches of steps first + 1, first + 2, …; the order depends on seed and epoch only, so runs resume."""
    steps = _steps_per_epoch(config, num_samples)
    for epoch in range(first // steps, config.epochs):
        if steps == 1:
            yield slice(None)
            continue
        order = torch.from_numpy(np.random.default_rng([config.seed, epoch]).permutation(num_samples))
        batches = torch.split(order, config.batch_size or num_samples)
        yield from batches[first % steps if epoch == first // steps else 0 :]


def _optimizer(config: TrainConfig, model: nn.Module) -> torch.optim.Optimizer:
    if config.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), lr=config.learning_rate, momentum=0.9)
    return torch.optim.Adam(model.parameters(), lr=config.learning_rate)


def _set_learning_rate(optimizer: torch.optim.Optimizer, config: TrainConfig, step: int, total: int) -> None:
    for group in optimizer.param_groups:
        group["lr"] = config.learning_rate * 0.5 * (1 + math.cos(math.pi * step / total))


def _measured(model: Classifier, split: Split, *, train_set: bool) -> Measurement:
    inputs, labels = (split.train_inputs, split.train_labels) if train_set else (split.test_inputs, split.test_labels)
    loader = list(zip(torch.split(inputs, EVALUATION_BATCH), torch.split(labels, EVALUATION_BATCH), strict=True))
    return measure(model, loader, model.head, names=split.names)


def _evaluated(model: Classifier, split: Split, problem: UFM, step: int) -> dict[str, Any]:
    measured = _measured(model, split, train_set=True)
    assert measured.confidences is not None  # the network has a head
    assert measured.losses is not None
    return {
        "step": step,
        "objective": measured.objective(problem),
        "cross_entropy": float(problem.loss_weights @ measured.losses),
        "nc1": measured.metrics()["nc1"],
        "confidences": measured.confidences.tolist(),
    }


def _require_finite(model: nn.Module, loss: Tensor, step: int, config: TrainConfig) -> None:
    if not all(bool(torch.isfinite(tensor).all()) for tensor in (loss, *model.parameters())):
        raise CollapseError(
            f"learning_rate={config.learning_rate:g}: training diverged before step {step}; give a smaller one"
        )


def _checkpoint(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": value for key, value in state.items() if isinstance(value, Tensor)}
    tensors["step"], tensors["rng"] = torch.tensor(step), torch.get_rng_state()
    runs.replace_tensors(folder / runs.CHECKPOINT, tensors)


def _restore(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Bring back the last checkpoint and cut the history to it; return its step, 0 if there is none."""
    path = folder / runs.CHECKPOINT
    if not path.exists():
        (folder / runs.HISTORY).unlink(missing_ok=True)
        return 0
    tensors = runs.read_tensors(path)
    step = int(tensors.pop("step"))
    torch.set_rng_state(tensors.pop("rng"))
    model.load_state_dict({name[6:]: tensor for name, tensor in tensors.items() if name.startswith("model.")})
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    history = runs.read_history(folder, up_to_step=step)
    runs.replace_text(folder / runs.HISTORY, "".join(json.dumps(entry) + "\n" for entry in history))
    return step


def _device(device: torch.device | str) -> torch.device:
    try:
        place = torch.device(device)
        torch.empty(1, device=place)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise CollapseError(f"device={str(device)!r}: {reason}; give cpu or a device of this machine") from None
    return place
