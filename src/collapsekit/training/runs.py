"""A run and its folder: configuration, history, measurement, checkpoint; every file replaced atomically, no pickle."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import time
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version
from itertools import takewhile
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from collapsekit.errors import CollapseError
from collapsekit.metrics import ClassMoments, Measurement
from collapsekit.prediction import Prediction
from collapsekit.prediction._predict import predicted
from collapsekit.problem import UFM
from collapsekit.recipe import LastLayer, Recipe
from collapsekit.training._config import TrainConfig
from collapsekit.validation import Array, class_names, whole_number

CONFIG, HISTORY, ARRAYS, CHECKPOINT, ENVIRONMENT, FAILURE, LOCK = (
    "config.json",
    "history.jsonl",
    "arrays.safetensors",
    "checkpoint.safetensors",
    "env.json",
    "failure.json",
    "lock",
)
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
        """What the run minimised, also where only ``collapsekit.solve`` finds the optimum; None if there is nothing."""
        if self.config.refusal(self.last_layer, self.measured.counts) is not None:
            return None
        return self.config.problem(self.measured.counts, self.last_layer, self.measured.names)

    @cached_property
    def _expected(self) -> Prediction | str:
        """The predicted optimum, or why no theory predicts the run."""
        if self.problem is None:
            return self.config.refusal(self.last_layer, self.measured.counts) or ""
        return predicted(self.problem)

    @property
    def prediction(self) -> Prediction | None:
        """The predicted optimum; None where no theory predicts the run."""
        return None if isinstance(self._expected, str) else self._expected

    @property
    def outside(self) -> str | None:
        """Why no theory predicts this run, or None if it does."""
        return self._expected if isinstance(self._expected, str) else None

    @property
    def balanced_accuracy(self) -> float:
        """Mean of the held-out recalls; NaN without held-out samples."""
        known = self.test_recalls[np.isfinite(self.test_recalls)]
        return float(known.mean()) if known.size else float("nan")

    def __repr__(self) -> str:
        return f"Run({self.folder.name}: {self.config.recipe} on {self.config.data}, seed {self.config.seed})"


def run_folder(out: str | os.PathLike[str], config: TrainConfig) -> Path:
    """Return (and create) the folder of a run below `out`, named by the hash of its configuration."""
    folder = Path(out) / config.fingerprint
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"{folder}: {error.strerror}" if error.strerror else error
        raise CollapseError(f"out={str(out)!r}: {reason}; give a folder that can be written") from None
    return folder


class InUse(CollapseError):
    """Another process trains this run."""


class Damaged(CollapseError):
    """A file of this run cannot be used; training anew replaces it."""


PATIENCE = 0.2
"""Seconds after which a locked folder counts as in use: `in_use` holds the lock for a moment too."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder for one process; a second one is refused. The lock ends with the process, however that ends."""
    with _writing(folder / LOCK):
        handle = (folder / LOCK).open("w")
    with handle:
        _lock(handle.fileno(), folder, time.monotonic() + PATIENCE)
        yield


def _lock(handle: int, folder: Path, deadline: float) -> None:
    while True:
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise InUse(
                    f"out: {folder} is in use by another process; wait for it or change the configuration"
                ) from None
            time.sleep(PATIENCE / 20)
        except OSError as error:
            raise CollapseError(
                f"out: {folder} cannot be locked ({error.strerror}); give a folder on a file system with locks"
            ) from None


def in_use(folder: Path) -> bool:
    """Return whether a process trains the run now."""
    try:
        with (folder / LOCK).open() as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # there is no such folder yet
        return False
    return False


def tidy(folder: Path, *, keep: bool) -> None:
    """Remove what a killed process left half-written, and, unless it is to be kept, the run itself."""
    names = (ENVIRONMENT, ARRAYS, CHECKPOINT, HISTORY, FAILURE, CONFIG)
    for name in names:
        for temporary in folder.glob(f".{name}.*"):
            discard(temporary)
        if not keep:
            discard(folder / name)


def discard(path: Path) -> None:
    """Remove a file, if it is there."""
    with _writing(path):
        path.unlink(missing_ok=True)


def replace_text(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old one or the new one, never a part."""
    _replace(path, lambda temporary: _write(temporary, text))


def replace_bytes(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old one or the new one, never a part."""
    _replace(path, lambda temporary: temporary.write_bytes(content))


def replace_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a safetensors file so that a reader sees the old one or the new one, never a part."""
    _replace(path, lambda temporary: save_file({k: t.contiguous().cpu() for k, t in tensors.items()}, temporary))


def read_tensors(path: Path, keys: Container[str] | None = None) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, or those with these names."""
    try:
        with safe_open(path, framework="pt") as stored:
            return {key: stored.get_tensor(key) for key in stored.keys() if keys is None or key in keys}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise Damaged(f"run: {path} cannot be read ({error}); train again without resuming") from None


def append_history(folder: Path, entry: dict[str, Any]) -> None:
    """Add one line to the history."""
    path = folder / HISTORY
    with _writing(path), path.open("a", encoding="utf-8") as handle:
        handle.write(json.dumps(entry) + "\n")


def read_history(folder: Path, up_to_step: float = np.inf) -> list[dict[str, Any]]:
    """Return the history up to a step; it ends before the first line that is torn."""
    path = folder / HISTORY
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:  # not begun, or begun again this moment
        return []
    except OSError as error:
        raise Damaged(f"run: {path} cannot be read ({error.strerror}); train again without resuming") from None
    return [entry for entry in takewhile(bool, map(_entry, lines)) if entry["step"] <= up_to_step]


def last_step(folder: Path) -> int:
    """Return the last step in the history of a run, 0 if there is none."""
    history = read_history(folder)
    return int(history[-1]["step"]) if history else 0


def _entry(line: bytes) -> dict[str, Any]:
    """One line of the history; empty if it is torn or anything else."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return entry if isinstance(entry, dict) and isinstance(entry.get("step"), int) else {}


def save_results(run: Run) -> None:
    """Write what `load_run` needs; the environment comes last and marks the run as finished."""
    measured = run.measured
    tensors = {"moments": measured.moments.state, "test_recalls": torch.from_numpy(run.test_recalls)}
    tensors["shape"] = torch.tensor([measured.moments.num_classes, measured.moments.dim])
    for name in PER_CLASS:
        values = getattr(measured, name)
        if values is not None:
            tensors[name] = torch.from_numpy(values)
    if measured.weight is not None:
        tensors["weight"] = measured.weight
    if measured.bias is not None:
        tensors["bias"] = measured.bias
    replace_tensors(run.folder / ARRAYS, tensors)
    names = None if measured.names is None else list(measured.names)
    content = run.environment | {"names": names, "last_layer": asdict(run.last_layer)}
    replace_text(run.folder / ENVIRONMENT, json.dumps(content, indent=2) + "\n")


def save_failure(out: str | os.PathLike[str], config: TrainConfig, reason: str) -> None:
    """Note in a run's folder why it could not be finished."""
    folder = run_folder(out, config)
    with locked(folder):
        replace_text(folder / CONFIG, json.dumps(config.to_dict(), indent=2) + "\n")
        replace_text(folder / FAILURE, json.dumps({"reason": reason}) + "\n")


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
    environment = read_json(path / ENVIRONMENT)
    arrays = read_tensors(path / ARRAYS)
    try:
        config = TrainConfig.from_dict(read_json(path / CONFIG))
        num_classes, dim = arrays["shape"].tolist()
        names = class_names(environment.pop("names"), num_classes)
        last_layer = LastLayer(**environment.pop("last_layer"))
        whole_number(f"run={str(folder)!r}: dim", last_layer.dim, 1, "train again without resuming")
        moments = ClassMoments.from_state(arrays["moments"], num_classes, dim)
        measured = Measurement(
            moments,
            arrays.get("weight"),
            arrays.get("bias"),
            **cast(dict[str, Any], {name: arrays[name].numpy() for name in PER_CLASS if name in arrays}),
            names=names,
            loss=config.loss(moments.counts.numpy()),
        )
        test_recalls = arrays["test_recalls"].numpy()
        return Run(path, config, last_layer, measured, test_recalls, read_history(path), environment)
    except CollapseError as error:
        raise Damaged(str(error)) from None
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise Damaged(f"run={str(folder)!r}: damaged ({error}); train again without resuming") from None


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


def read_json(path: Path) -> dict[str, Any]:
    """Return the object stored in a JSON file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise Damaged(f"run: {path} cannot be read ({error}); train again without resuming") from None
    if not isinstance(content, dict):
        raise Damaged(f"run: {path} holds no object; train again without resuming")
    return content


def environment(device: torch.device, seconds: float) -> dict[str, Any]:
    """Return what is needed to judge whether a figure can be expected to repeat."""
    packages = ("collapsekit", "numpy", "scikit-learn", "torch", "torchmetrics")
    return {
        "schema": 1,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
        "machine": platform.machine(),
        "device": str(device),
        "threads": torch.get_num_threads(),
        "seconds": round(seconds, 1),
    }


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with _writing(path):
        try:
            temporary.touch()
            mode = temporary.stat().st_mode  # by the umask, which safetensors passes over
            write(temporary)
            temporary.chmod(mode)
            with temporary.open("rb") as handle:
                os.fsync(handle.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """A full disk, a missing permission, ...: one line that names the file."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise CollapseError(f"out: {path} cannot be written ({reason}); free space or give another folder") from None


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", errors="backslashreplace")  # a path may hold bytes outside UTF-8
