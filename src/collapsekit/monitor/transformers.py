"""A callback that watches every class while a Trainer of Hugging Face trains (needs `transformers`, `accelerate`)."""

from __future__ import annotations

import inspect
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from collapsekit import files
from collapsekit.errors import CollapseError
from collapsekit.monitor._monitor import Monitor, gathered
from collapsekit.validation import shorten

try:
    from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
    from transformers.utils import logging
except ModuleNotFoundError as missing:
    raise CollapseError(
        f"collapsekit.monitor.transformers: {missing.name} is not installed; run: pip install transformers accelerate"
    ) from None

logger = logging.get_logger(__name__)


class CollapseCallback(TrainerCallback):
    """Log how every class fares at the end of each training epoch: a :class:`~collapsekit.monitor.Monitor`.

    ``trainer.add_callback(CollapseCallback(trainer))``: the Trainer hands its callbacks neither outputs nor a way to
    log, so that the model is hooked and ``trainer.log`` is called, which reaches the console, the log history and what
    ``report_to`` names. Labels are those with which the Trainer calls the model; of causal language models they are
    shifted by one, as their loss does. The numbers are those of the training passes, over all processes; evaluation
    does not count. Each process keeps what it has counted in the folder of a checkpoint.

    Parameters
    ----------
    trainer : transformers.Trainer
        The one that the callback is added to.
    head : str or torch.nn.Module, optional
        The layer that makes the logits; left out: found in the first training pass.
    **options
        As :class:`~collapsekit.monitor.Monitor` takes them; `optimizer` left out: the Trainer's.

    Attributes
    ----------
    monitor : Monitor or None
        Of the current or last ``train``, with its findings.

    Raises
    ------
    CollapseError
        If `trainer` is none; in the first training step: if labels do not reach the model, or the head is not found.

    References
    ----------
    docs/monitor.md, "Hugging Face": the whole script, and what each key means.
    """

    def __init__(self, trainer: Trainer, head: str | nn.Module | None = None, **options: Any) -> None:
        if not isinstance(trainer, Trainer):
            raise CollapseError(
                f"trainer={shorten(trainer)}: give the Trainer itself: trainer.add_callback(CollapseCallback(trainer))"
            )
        if any(isinstance(one, CollapseCallback) for one in trainer.callback_handler.callbacks):
            raise CollapseError(
                "trainer: has a CollapseCallback, and a second one would write over its numbers and its state; keep "
                "one, or remove the first: trainer.remove_callback(CollapseCallback)"
            )
        inspect.signature(Monitor).bind(None, head, **options)  # a misspelt option is an error now, not in train
        self.trainer, self.head, self.options = trainer, head, options
        self.monitor: Monitor | None = None
        self._labels: Tensor | None = None
        self._handle: Any = None

    def update(self, labels: Tensor) -> None:
        """Hand over the labels of a training pass where the Trainer does not call the model with them.

        Parameters
        ----------
        labels : Tensor, shape (n,) or that of the positions
            Class numbers; in evaluation passes nothing happens.
        """
        if self.monitor is not None and self.monitor.tap.root.training:
            self._labels = labels

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        optimizer: Any = None,
        **_: Any,
    ) -> None:
        """Begin to listen, or go on from the checkpoint that the Trainer goes on from."""
        if args.n_gpu > 1:
            raise CollapseError(
                f"trainer: DataParallel on {args.n_gpu} devices calls copies of the model in threads; start one "
                f"process a device, torchrun --nproc-per-node={args.n_gpu}, or set CUDA_VISIBLE_DEVICES to one of them"
            )
        assert model is not None
        self._close()
        self.monitor = Monitor(model, self.head, **{"optimizer": optimizer} | self.options)
        self._handle = self.monitor.tap.root.register_forward_pre_hook(self._listen, with_kwargs=True)
        if state.global_step:
            self._resume(self.monitor, checkpoint_files(args, state))
            unfinished = gathered(self.monitor.state_dict()["stream"] is not None)
            if any(unfinished) and state.epoch == int(state.epoch):  # saved after the last step, before the epoch's end
                self.trainer.log(self.monitor.epoch())

    def on_substep_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Count a pass whose gradients wait for the next ones."""
        self._count()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Count the pass of a step, while the weights are those that made it."""
        self._count()

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """Log the numbers of the epoch."""
        assert self.monitor is not None
        also = control.should_log
        self.trainer.log(self.monitor.epoch())
        control.should_log = also  # logging takes the Trainer's own wish to log back
        return control

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Keep what this process has counted beside its random state."""
        if self.monitor is not None and not args.save_only_model and not state.is_hyper_param_search:
            written = io.BytesIO()
            torch.save(self.monitor.state_dict(), written)
            files.replace(checkpoint_files(args, state)[-1], written.getvalue())

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Take the hooks away."""
        self._close()

    def _listen(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        names = self.trainer.label_names
        if module.training and len(names) == 1 and kwargs.get(names[0]) is not None:
            self._labels = kwargs[names[0]]

    def _count(self) -> None:
        assert self.monitor is not None
        labels, self._labels = self._labels, None
        waits = self.monitor.tap.waiting is not None
        if labels is not None and (waits or not self.monitor.updates):
            if shifts_labels(self.monitor.tap.root):
                labels = nn.functional.pad(labels[:, 1:], (0, 1), value=self.monitor.ignore_index)
            self.monitor.update(labels)
        elif waits:
            raise CollapseError(
                f"labels: the model was not called with {' or '.join(self.trainer.label_names) or 'labels'}; give "
                "Trainer(compute_loss_func=...), without label_smoothing_factor, and in that function call "
                "callback.update(labels) of callback = CollapseCallback(trainer)"
            )

    def _resume(self, monitor: Monitor, paths: Sequence[Path]) -> None:
        path = next((path for path in paths if path.is_file()), None)
        if path is None:
            logger.warning(f"There is no {paths[-1]}: what was counted before it is not known.")
        else:
            monitor.load_state_dict(torch.load(io.BytesIO(files.read(path)), map_location="cpu", weights_only=True))

    def _close(self) -> None:
        if self.monitor is not None:
            self.monitor.close()
            self._handle.remove()


def checkpoint_files(args: TrainingArguments, state: TrainerState) -> list[Path]:
    """Return where this process's state may be in a checkpoint, and last where it is written."""
    folders = [Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"]
    if isinstance(args.resume_from_checkpoint, str):
        folders.insert(0, Path(args.resume_from_checkpoint))
    return [folder / f"collapse_{args.process_index}.pt" for folder in folders]


def shifts_labels(model: nn.Module) -> bool:
    """Return whether the logits at a position are for the label of the next one, by the Trainer's own rule."""
    inner = getattr(getattr(model, "base_model", None), "model", model) if hasattr(model, "peft_config") else model
    return type(inner).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
