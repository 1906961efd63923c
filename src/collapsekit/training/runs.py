"""A run and its folder: configuration, history, measurement, checkpoint; no pickle."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from collapsekit import files
from collapsekit.errors import CollapseError
from collapsekit.metrics import ClassMoments, Measurement
from collapsekit.prediction import Prediction, predict
from collapsekit.problem import UFM
from collapsekit.recipe import LastLayer, Recipe
from collapsekit.training._config import TrainConfig
from collapsekit.training.store import (
    ARRAYS,
    CONFIG,
    ENVIRONMENT,
    FAILURE,
    HISTORY,
    Damaged,
    locked,
    read_history,
    read_json,
    read_tensors,
    replace_tensors,
    run_folder,
)
from collapsekit.validation import Array, class_names, shorten, whole_number

SCHEMA = 2
"""Of the environment: 2 has checksums, 1 had none."""
SAID = {"versions", "machine", "device", "threads", "seconds"}
"""What a report says of the environment."""
PER_CLASS = ("confidences", "losses", "recalls", "centre_agreement")


@dataclass(frozen=True, eq=False, repr=False)
class Run:
    """A finished training run.

    Attributes
    ----------
    folder : Path
        Where it is stored.
    config : TrainConfig
        What decided it.
    last_layer : LastLayer
        What its last layer has to do with the theory.
    measured : Measurement
        The network on its training samples.
    test_recalls : ndarray, shape (K,)
        Recall of each class on the held-out samples.
    history : list of dict
        One entry an evaluation: ``step``, ``objective`` (None where no theory predicts the run), ``loss``, ``nc1``,
        ``metrics`` (all scalars, against the prediction if there is one), ``confidences``.
    environment : dict
        Versions, device, threads, seconds.
    """

    folder: Path
    config: TrainConfig
    last_layer: LastLayer
    measured: Measurement
    test_recalls: Array
    history: list[dict[str, Any]]
    environment: dict[str, Any]

    @property
    def recipe(self) -> Recipe:
        """What was penalised."""
        return self.config.recipe_of(self.measured.counts, self.last_layer)

    @cached_property
    def problem(self) -> UFM | None:
        """What the run minimised; None if it minimised no problem of features and head."""
        if self.outside is not None:
            return None
        return self.config.problem(self.measured.counts, self.last_layer, self.measured.names)

    @cached_property
    def prediction(self) -> Prediction | None:
        """The predicted optimum, in closed form or certified; None where no theory predicts the run."""
        return None if self.problem is None else predict(self.problem)

    @property
    def outside(self) -> str | None:
        """Why no theory predicts this run, or None if it does."""
        return self.config.refusal(self.last_layer, self.measured.counts)

    @property
    def horizon(self) -> float:
        """Over how many e-folds the decay acted (NaN where that is not known): see ``Optimizer.horizon``."""
        return self.config.horizon(self.measured.counts, self.last_layer)

    @property
    def unverifiable(self) -> bool:
        """Whether the run was stored before runs had checksums, so that nothing says if it was changed since."""
        return bool(self.environment["schema"] == 1)

    @property
    def balanced_accuracy(self) -> float:
        """Mean of the held-out recalls; NaN without held-out samples."""
        known = self.test_recalls[np.isfinite(self.test_recalls)]
        return float(known.mean()) if known.size else float("nan")

    def __repr__(self) -> str:
        return f"Run({self.folder.name}: {self.config.recipe} on {self.config.data}, seed {self.config.seed})"


def save_results(run: Run) -> None:
    """Write what `load_run` needs; the environment comes last and marks the run as finished."""
    measured = run.measured
    arrays = {name: getattr(measured, name) for name in ("weight", "bias", *PER_CLASS)}
    arrays |= {"moments": measured.moments.state, "test_recalls": run.test_recalls}
    arrays["shape"] = [measured.moments.num_classes, measured.moments.dim]
    tensors = {name: torch.as_tensor(values) for name, values in arrays.items() if values is not None}
    replace_tensors(run.folder / ARRAYS, tensors)
    names = None if measured.names is None else list(measured.names)
    content = run.environment | {"names": names, "last_layer": asdict(run.last_layer)}
    with files.writing(run.folder):
        content["checksums"] = _checksums(run.folder, content)
    files.replace(run.folder / ENVIRONMENT, json.dumps(content, indent=2) + "\n")


def save_failure(out: str | os.PathLike[str], config: TrainConfig, reason: str) -> None:
    """Note in a run's folder why it could not be finished."""
    folder = run_folder(out, config)
    with locked(folder):
        files.replace(folder / CONFIG, json.dumps(config.to_dict(), indent=2) + "\n")
        files.replace(folder / FAILURE, json.dumps({"reason": reason}) + "\n")


def load_run(folder: str | os.PathLike[str]) -> Run:
    """Return a finished run from its folder.

    Parameters
    ----------
    folder : path
        As printed by ``collapsekit train``.

    Returns
    -------
    Run

    Raises
    ------
    CollapseError
        If there is no finished run, or a file cannot be read.
    """
    path = Path(folder)
    if not (path / ENVIRONMENT).exists():
        raise CollapseError(f"run={str(folder)!r}: {_what_is_there(path)}")
    environment, arrays = read_json(path / ENVIRONMENT), read_tensors(path / ARRAYS)
    try:
        config = TrainConfig.from_dict(read_json(path / CONFIG))
        _require_unchanged(path, config, environment)
        num_classes, dim = arrays["shape"].tolist()
        names = class_names(environment.pop("names"), num_classes)
        last_layer = LastLayer(**environment.pop("last_layer"))
        whole_number(f"run={str(folder)!r}: dim", last_layer.dim, 1, "train again without resuming")
        _require_shapes(arrays, num_classes, dim)
        moments = ClassMoments.from_state(arrays["moments"], num_classes, dim)
        measured = Measurement(
            moments,
            arrays.get("weight"),
            arrays.get("bias"),
            **cast(dict[str, Any], {name: arrays[name].numpy() for name in PER_CLASS if name in arrays}),
            names=names,
            loss=config.loss(moments.counts.numpy()),
        )
        history = read_history(path)
        _require_numbers(history, num_classes)
        return Run(path, config, last_layer, measured, arrays["test_recalls"].numpy(), history, environment)
    except CollapseError as error:
        raise Damaged(str(error)) from None
    except (KeyError, TypeError, ValueError, RuntimeError, OSError) as error:
        raise Damaged(f"run={str(folder)!r}: damaged ({error}); train again without resuming") from None


def require_own_name(folder: Path, config: TrainConfig) -> None:
    """Refuse a folder that has not the name of its configuration."""
    if folder.resolve().name != config.fingerprint:
        raise Damaged(
            f"run={str(folder)!r}: this run was changed ({CONFIG}) or renamed (from {config.fingerprint}); train again "
            "without resuming, or give it back its name"
        )


def _require_unchanged(path: Path, config: TrainConfig, environment: dict[str, Any]) -> None:
    """Refuse a run that is not as `save_results` left it; one of schema 1 has no checksums that could tell."""
    require_own_name(path, config)
    if environment.get("schema") not in (1, SCHEMA):
        raise Damaged(
            f"run={str(path)!r}: this run was changed, or written by another version of collapsekit "
            f"({ENVIRONMENT} has schema {shorten(environment.get('schema'))}); train again without resuming"
        )
    if not isinstance(environment.get("versions"), dict) or not environment.keys() >= SAID:
        raise Damaged(f"run={str(path)!r}: {ENVIRONMENT} is damaged; train again without resuming")
    if environment["schema"] == SCHEMA:
        stored = environment.pop("checksums", None)
        found = _checksums(path, environment)
        changed = [name for name in found if not isinstance(stored, dict) or stored.get(name) != found[name]]
        if changed:
            raise Damaged(
                f"run={str(path)!r}: this run was changed ({', '.join(changed)}); train again without resuming"
            )


def _checksums(folder: Path, environment: dict[str, Any]) -> dict[str, str]:
    """SHA-256 of all that a finished run is read from; it is read without its history too."""
    parts = {name: files.read(folder / name) for name in (CONFIG, HISTORY, ARRAYS) if (folder / name).exists()}
    parts[ENVIRONMENT] = json.dumps(environment, sort_keys=True).encode()
    return {name: hashlib.sha256(part).hexdigest() for name, part in parts.items()}


def _require_numbers(history: list[dict[str, Any]], num_classes: int) -> None:
    """Raise KeyError, TypeError or ValueError if an entry is not what an evaluation stores."""
    for entry in history:
        np.array([entry["objective"], entry["loss"], entry["nc1"], *dict(entry["metrics"]).values()], dtype=float)
        if np.array(entry["confidences"], dtype=float).shape != (num_classes,):
            raise ValueError(f"{HISTORY} has other classes in step {entry['step']}")


def _require_shapes(arrays: dict[str, Tensor], num_classes: int, dim: int) -> None:
    """What runs without checksums can hold: arrays of other shapes, and numbers that training never stores."""
    shapes = dict.fromkeys((*PER_CLASS, "test_recalls", "bias"), (num_classes,)) | {"weight": (num_classes, dim)}
    for name, tensor in arrays.items():
        if tuple(tensor.shape) != shapes.get(name, tensor.shape):
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {shapes[name]}")
        if name in ("moments", "weight", "bias") and not tensor.isfinite().all():
            raise ValueError(f"{name} are not finite")


def finished_run(folder: Path, config: TrainConfig) -> Run:
    """Return the finished run of this configuration."""
    run = load_run(folder)
    if run.config != config:
        raise Damaged(f"run: {folder / CONFIG} is of another run; train again without resuming")
    return run


def _what_is_there(path: Path) -> str:
    if (path / CONFIG).exists():
        return "holds an unfinished run; finish it with train --resume"
    below = sorted(path.glob(f"*/{ENVIRONMENT}"))
    if below:
        return f"holds no run; it holds folders of runs: give one of them, e.g. {str(below[0].parent)!r}"
    return "holds no run; give the folder that train has printed"


def environment(device: torch.device, seconds: float) -> dict[str, Any]:
    """Return what is needed to judge whether a figure can be expected to repeat."""
    packages = ("collapsekit", "numpy", "scikit-learn", "torch", "torchmetrics")
    return {
        "schema": SCHEMA,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
        "machine": platform.machine(),
        "device": str(device),
        "threads": torch.get_num_threads(),
        "seconds": round(seconds, 1),
    }
