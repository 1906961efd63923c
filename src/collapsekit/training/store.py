"""What a run's folder holds and who may write it: names, lock, tensors, history, configuration."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Container, Iterator
from contextlib import ExitStack, contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from collapsekit import files
from collapsekit.errors import CollapseError
from collapsekit.training._config import TrainConfig

CONFIG, HISTORY, ARRAYS, CHECKPOINT, ENVIRONMENT, FAILURE, LOCK = (
    "config.json",
    "history.jsonl",
    "arrays.safetensors",
    "checkpoint.safetensors",
    "env.json",
    "failure.json",
    "lock",
)
FILES = (ENVIRONMENT, ARRAYS, CHECKPOINT, HISTORY, FAILURE, CONFIG)
"""What a run consists of."""


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
    with ExitStack() as stack:
        with files.writing(folder / LOCK):
            handle = stack.enter_context(files.opened(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW))
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
        with files.opened(folder / LOCK, os.O_RDONLY | os.O_NOFOLLOW) as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # there is no such folder yet
        return False
    return False


def tidy(folder: Path, *, keep: bool) -> None:
    """Remove what a killed process left half-written, and, unless it is to be kept, the run itself."""
    for name in FILES:
        for temporary in folder.glob(f".{name}.*"):
            files.discard(temporary)
        if not keep:
            files.discard(folder / name)


def replace_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a safetensors file; in memory first, because safetensors' own temporary files outlive a kill."""
    files.replace(path, save({key: tensor.contiguous().cpu() for key, tensor in tensors.items()}))


def read_tensors(path: Path, keys: Container[str] | None = None) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, or those with these names."""
    try:
        if path.exists() and not path.is_file():  # safetensors would wait for the other end of a pipe
            raise OSError("no regular file")
        with safe_open(path, framework="pt") as stored:
            return {key: stored.get_tensor(key) for key in stored.keys() if keys is None or key in keys}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise Damaged(f"run: {path} cannot be read ({error}); train again without resuming") from None


def read_history(folder: Path, up_to_step: float = np.inf) -> list[dict[str, Any]]:
    """Return the history up to a step; it ends before the first line that is torn."""
    path = folder / HISTORY
    try:
        lines = files.read(path).splitlines()
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


def read_json(path: Path) -> dict[str, Any]:
    """Return the object stored in a JSON file."""
    try:
        content = json.loads(files.read(path))
    except (OSError, ValueError, RecursionError) as error:
        raise Damaged(f"run: {path} cannot be read ({error}); train again without resuming") from None
    if not isinstance(content, dict):
        raise Damaged(f"run: {path} holds no object; train again without resuming")
    return content
