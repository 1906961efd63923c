"""run_samples: what enters the head of a finished run's network, from its checkpoint and its data."""

from __future__ import annotations

import torch

from collapsekit.metrics import Features, features_of
from collapsekit.training import checkpoint, store
from collapsekit.training._split import load_split
from collapsekit.training._train import _Session
from collapsekit.training.evaluation import MEASURED_TOGETHER, recompute_batchnorm
from collapsekit.training.runs import Run


def run_samples(run: Run) -> tuple[Features, Features | None]:
    """Return the features of a run's training samples, and of its held-out samples if it has any.

    Raises
    ------
    CollapseError
        If its data or its checkpoint are no longer there, or are others.
    """
    split = load_split(run.config)
    checkpoint.require_same_data(run.folder, (split.checksum, split.training_checksum), run.config.data)
    session = _Session(run.config, split, torch.device("cpu"))
    tensors = store.read_tensors(run.folder / store.CHECKPOINT)
    state = {name[6:]: tensor for name, tensor in tensors.items() if name.startswith("model.")}
    session.model.load_state_dict(state)
    recompute_batchnorm(session.model, session.inputs)
    parts = [(split.train_inputs, split.train_labels), (split.test_inputs, split.test_labels)]
    found = [
        features_of(
            session.model,
            list(zip(torch.split(inputs, MEASURED_TOGETHER), torch.split(labels, MEASURED_TOGETHER), strict=True)),
            session.head,
        )
        for inputs, labels in parts
        if len(labels)
    ]
    return found[0], found[1] if len(found) > 1 else None
