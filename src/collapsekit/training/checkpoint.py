"""Save and restore a run in training: weights, optimiser, random state; history cut back to it."""

from __future__ import annotations

import json
from collections.abc import Container
from pathlib import Path

import torch
from torch import Tensor, nn

from collapsekit import files
from collapsekit.errors import CollapseError
from collapsekit.training import store
from collapsekit.validation import shorten

DATA = "data"


def save(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int, data: int) -> None:
    """Replace the checkpoint; `data` is the checksum of the split."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": value for key, value in state.items() if isinstance(value, Tensor)}
    tensors |= {"step": torch.tensor(step), "rng": torch.get_rng_state(), DATA: torch.tensor(data)}
    store.replace_tensors(folder / store.CHECKPOINT, tensors)


def require_same_data(folder: Path, data: Container[int], name: str) -> None:
    """A run goes on, or is given back, only for the data on which it began: a checkpoint holds one of `data`.

    Raises
    ------
    CollapseError
        If there is a checkpoint and it was made on other data.
    """
    path = folder / store.CHECKPOINT
    if not path.exists():
        return
    stored = store.read_tensors(path, keys=(DATA,)).get(DATA)
    if stored is None or stored.numel() != 1 or int(stored) not in data:
        raise CollapseError(
            f"data={shorten(name)}: is not what the run in {folder} was trained on; train again without resuming, or "
            "give another folder"
        )


def restore(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Bring back the checkpoint and cut the history to it; return its step, 0 if there is none.

    Raises
    ------
    CollapseError
        If the checkpoint is damaged or of another network.
    """
    path = folder / store.CHECKPOINT
    if not path.exists():
        files.discard(folder / store.HISTORY)
        return 0
    tensors = store.read_tensors(path)
    try:
        step = int(tensors.pop("step"))
        torch.set_rng_state(tensors.pop("rng"))
        model.load_state_dict({name[6:]: tensor for name, tensor in tensors.items() if name.startswith("model.")})
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".", 2)
                state.setdefault(int(index), {})[key] = tensor
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    except (KeyError, ValueError, RuntimeError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise store.Damaged(f"run: {path} is of another run ({reason}); train again without resuming") from None
    history = store.read_history(folder, up_to_step=step)
    files.replace(folder / store.HISTORY, "".join(json.dumps(entry) + "\n" for entry in history))
    return step
