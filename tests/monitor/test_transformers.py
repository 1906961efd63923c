"""The callback for Hugging Face's Trainer against passes counted by hand, in one process and in two.

This file is also the program of the processes: ``torchrun test_transformers.py FOLDER`` writes FOLDER/RANK.pt.
"""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch.nn import functional

from _support.passes import COUNTS, by_hand, nc1_by_hand
from _support.tolerances import EXACT, FLOAT32
from collapsekit import CollapseError

heavy = pytest.mark.heavy
pytestmark = [
    pytest.mark.filterwarnings("ignore::Warning:transformers"),
    pytest.mark.filterwarnings("ignore::Warning:accelerate"),
    pytest.mark.filterwarnings("ignore:.*pin_memory:Warning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor"),  # of torch.compile, which hides it itself
]
SMALL = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
SMALL |= {"max_position_embeddings": 16, "num_labels": len(COUNTS), "pad_token_id": 0}
LENGTH = 6


def made(hosts, kind):
    """A tiny model without downloads, its head, and its data."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    y = rng.permutation(np.repeat(np.arange(len(COUNTS)), COUNTS))
    ids = torch.tensor(rng.integers(1, 8, size=(len(y), LENGTH)) + 5 * y[:, None])
    y = torch.tensor(y)
    if kind == "score":
        model = hosts.LlamaForSequenceClassification(hosts.LlamaConfig(num_key_value_heads=2, **SMALL))
        ids[::3, -2:] = 0
    elif kind == "causal":
        model = hosts.LlamaForCausalLM(hosts.LlamaConfig(num_key_value_heads=2, **SMALL | {"vocab_size": len(COUNTS)}))
        ids = torch.tensor(rng.choice(len(COUNTS), size=(len(y), LENGTH), p=np.array(COUNTS) / sum(COUNTS)))
        y = ids.clone()
        y[::3, -2:] = -100
    elif kind == "tokens":
        model = hosts.BertForTokenClassification(hosts.BertConfig(**SMALL))
        y = (ids - 1) % len(COUNTS)
        y[::3, -2:] = -100
    else:
        model = hosts.BertForSequenceClassification(hosts.BertConfig(**SMALL))
    head = {"score": "score", "causal": "lm_head"}.get(kind, "classifier")
    if kind == "frozen":
        for name, parameter in model.named_parameters():
            parameter.requires_grad = name.startswith(head)
    data = [
        {
            "input_ids": row,
            "attention_mask": (row != 0).long() if kind != "causal" else torch.ones_like(row),
            "labels": y[i],
        }
        for i, row in enumerate(ids)
    ]
    return model, model.get_submodule(head), data


def recorded(model, head, kind):
    """Features, logits and labels of each training pass, by hooks of the test's own."""
    seen, last = [], []

    def hear(_, args, out):
        last[:] = [args[0].detach(), out.detach()]

    def keep(module, args, kwargs, out):
        if not module.training:
            return
        (h, z), y, ids = (
            last,
            kwargs["labels"] if kwargs.get("labels") is not None else module.given,
            kwargs["input_ids"],
        )
        if kind == "score":
            at = (ids != 0).sum(1) - 1
            h, z = (values[torch.arange(len(at)), at] for values in (h, z))
        if kind == "causal":
            h, z, y = h[:, :-1], z[:, :-1], y[:, 1:]
        kept = y.flatten() != -100
        rows = [values.flatten(0, -2)[kept].double().numpy() if values.ndim > 1 else None for values in (h, z)]
        seen.append([*rows, y.flatten()[kept].numpy()])

    head.register_forward_hook(hear)
    model.register_forward_hook(keep, with_kwargs=True)
    return seen


def options(folder, **given):
    usual = {"output_dir": str(folder), "use_cpu": True, "report_to": "none", "disable_tqdm": True, "seed": 1}
    usual |= {"num_train_epochs": 2, "per_device_train_batch_size": 16, "learning_rate": 1e-2, "weight_decay": 0.1}
    return usual | {"save_strategy": "no", "logging_strategy": "epoch", "lr_scheduler_type": "constant"} | given


def trainer(hosts, folder, model, data, callback=None, given=None, **args):
    run = hosts.Trainer(
        model=model,
        args=hosts.TrainingArguments(**options(folder, **args)),
        train_dataset=data,
        eval_dataset=data[:8],
        **given or {},
    )
    made = None
    if callback is not None:
        made = callback(run)
        run.add_callback(made)
    return run, made


@pytest.fixture(scope="module")
def hosts():
    return importlib.import_module("transformers")


@pytest.fixture(scope="module")
def callback(hosts):
    return importlib.import_module("collapsekit.monitor.transformers").CollapseCallback


def check(cb, logged, seen):
    expected = by_hand(seen)
    labels = np.concatenate([step[2] for step in seen])
    assert cb.monitor.measured.counts.tolist() == np.bincount(labels, minlength=len(COUNTS)).tolist()
    assert_allclose(cb.monitor.measured.confidences, expected["confidence"], rtol=10 * FLOAT32)
    assert_allclose(cb.monitor.measured.recalls, expected["recall"], rtol=FLOAT32)
    assert_allclose(cb.monitor.measured.losses, expected["loss"], rtol=10 * FLOAT32)
    assert_allclose(logged["collapse/nc1"], nc1_by_hand(seen), rtol=100 * FLOAT32)
    assert cb.monitor.scalars.items() <= logged.items()


KINDS = ["classifier", "frozen", "tokens", "causal", "score"]
SETTINGS = {
    "plain": {"eval_strategy": "steps", "eval_steps": 2, "eval_on_start": True},
    "accumulated": {"gradient_accumulation_steps": 2},
    "bfloat16": {"bf16": True},
    "checkpointing": {"gradient_checkpointing": True},
    "compiled": {"torch_compile": True, "torch_compile_backend": "eager"},
}


@heavy
@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, name) for kind in KINDS for name in SETTINGS if kind == "classifier" or name in ("plain", "bfloat16")],
)
def test_numbers_are_those_of_the_passes_of_the_last_epoch(hosts, callback, tmp_path, kind, name):
    torch.compiler.reset()
    model, head, data = made(hosts, kind)
    run, cb = trainer(hosts, tmp_path, model, data, lambda run: callback(run, every=1), **SETTINGS[name])
    seen = recorded(model, head, kind)
    run.train()
    logs = [one for one in run.state.log_history if "collapse/nc1" in one]
    assert [one["epoch"] for one in logs] == [1, 2]
    assert sum("loss" in one for one in run.state.log_history) == 2  # the Trainer's own logs are still there
    check(cb, logs[-1], seen[len(seen) // 2 :])
    steps = run.state.global_step
    if kind != "causal":
        assert_allclose(logs[-1]["collapse/horizon"], steps * 1e-2 * 0.1, rtol=EXACT)


@heavy
def test_weights_are_those_without_it(hosts, callback, tmp_path):
    states = []
    for given in (None, lambda run: callback(run, every=1)):
        model, _, data = made(hosts, "classifier")
        trainer(hosts, tmp_path, model, data, given)[0].train()
        states.append(list(model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


@heavy
def test_tensorboard_gets_them(hosts, callback, tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    accumulator = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    model, _, data = made(hosts, "classifier")
    run, cb = trainer(hosts, tmp_path, model, data, callback, report_to=["tensorboard"])
    run.train()
    board = accumulator.EventAccumulator(str(tmp_path / "board")).Reload()
    logged = {key: board.Scalars(f"train/{key}")[-1].value for key in cb.monitor.scalars}
    assert_allclose([*logged.values()], [*cb.monitor.scalars.values()], rtol=FLOAT32)


@heavy
@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("stop", [7, 10, "epoch"])  # of 5 steps an epoch; 10: before the epoch's end is counted
def test_resuming_is_never_having_stopped(hosts, callback, tmp_path, every, stop):
    saving = {"save_strategy": "epoch"} if stop == "epoch" else {"save_strategy": "steps", "save_steps": stop}
    model, _, data = made(hosts, "classifier")
    whole = trainer(hosts, tmp_path, model, data, lambda run: callback(run, every=every), num_train_epochs=4, **saving)
    whole[0].train()
    model, _, data = made(hosts, "classifier")
    part = trainer(hosts, tmp_path, model, data, lambda run: callback(run, every=every), num_train_epochs=4)
    part[0].train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{10 if stop == 'epoch' else stop}"))
    logs = [[one for one in run.state.log_history if "collapse/nc0" in one] for run, _ in (whole, part)]
    assert logs[0] == logs[1]
    assert len(logs[0]) == 4
    assert whole[1].monitor.recalls == part[1].monitor.recalls
    assert torch.equal(whole[1].monitor.measured.moments.state, part[1].monitor.measured.moments.state)


@heavy
def test_a_checkpoint_of_a_run_without_it(hosts, callback, tmp_path):
    model, _, data = made(hosts, "classifier")
    run, _ = trainer(hosts, tmp_path, model, data, save_strategy="steps", save_steps=5)
    run.train()
    run, cb = trainer(hosts, tmp_path, model, data, callback)
    run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert len(cb.monitor.recalls) == 1


@heavy
@pytest.mark.parametrize("how", ["smoothing", "own loss"])
def test_labels_that_do_not_reach_the_model(hosts, callback, tmp_path, how):
    def loss(outputs, labels, num_items_in_batch=None):
        return functional.cross_entropy(outputs.logits, labels)

    wrong = {"label_smoothing_factor": 0.1} if how == "smoothing" else {"given": {"compute_loss_func": loss}}
    model, _, data = made(hosts, "classifier")
    with pytest.raises(CollapseError, match=r"call callback\.update\(labels\)") as caught:
        trainer(hosts, tmp_path, model, data, callback, **wrong)[0].train()
    assert "\n" not in str(caught.value)

    def smoothed(outputs, labels, num_items_in_batch=None):
        cb.update(labels)
        return functional.cross_entropy(outputs.logits, labels, label_smoothing=0.1)

    model, _, data = made(hosts, "classifier")
    run, cb = trainer(
        hosts,
        tmp_path,
        model,
        data,
        lambda run: callback(run, every=1),
        given={"compute_loss_func": smoothed},
        eval_strategy="epoch",
    )
    run.train()
    assert cb.monitor.measured.counts.tolist() == list(COUNTS)


@heavy
def test_arguments_that_do_not_fit(hosts, callback, tmp_path):
    with pytest.raises(CollapseError, match="trainer=None: give the Trainer itself"):
        callback(None)
    model, _, data = made(hosts, "classifier")
    run, _ = trainer(hosts, tmp_path, model, data)
    with pytest.raises(TypeError, match="evry"):
        callback(run, evry=2)
    run.add_callback(callback(run))
    with pytest.raises(CollapseError, match="has a CollapseCallback, and a second one would write over"):
        callback(run, every=2)
    run.remove_callback(callback)  # as the error advises
    run.add_callback(callback(run, every=2))
    run.args._n_gpu = 2
    with pytest.raises(CollapseError, match=r"DataParallel on 2 devices .* start one process a device"):
        run.train()
    run, _ = trainer(hosts, tmp_path, model, data)
    run.add_callback(callback(run, "fc"))
    with pytest.raises(CollapseError, match="head='fc': is no module of the model; name one of"):
        run.train()


def rank_main(folder):
    """What each rank does."""
    torch.set_num_threads(1)
    hosts = importlib.import_module("transformers")
    make = importlib.import_module("collapsekit.monitor.transformers").CollapseCallback
    found = {}
    for kind in ("classifier", "tokens"):
        model, head, data = made(hosts, kind)
        run, cb = trainer(hosts, folder, model, data, lambda run: make(run, every=1), ddp_backend="gloo")
        seen = recorded(model, head, kind)
        run.train()
        measured = cb.monitor.measured
        parts = {key: getattr(measured, key) for key in ("counts", "confidences", "recalls", "losses")}
        found[kind] = {"seen": seen[len(seen) // 2 :], "scalars": cb.monitor.scalars, **parts}
    for stop in (3, 4):
        runs = []
        for resume in (None, str(Path(folder, f"checkpoint-{stop}"))):
            model, _, data = made(hosts, "classifier")
            run, cb = trainer(
                hosts,
                folder,
                model,
                data,
                lambda run: make(run, every=2),
                ddp_backend="gloo",
                save_strategy="steps",
                save_steps=stop,
            )
            run.train(resume_from_checkpoint=resume)
            runs.append((cb.monitor.scalars, cb.monitor.recalls))
        found[f"resumed {stop}"] = runs
    torch.save(found, Path(folder, f"{os.environ['RANK']}.pt"))


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of two ranks has found."""
    folder = tmp_path_factory.mktemp("ranks")
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
    }
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launch, __file__, str(folder)], env=environment, capture_output=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


@heavy
@pytest.mark.parametrize("kind", ["classifier", "tokens"])
def test_two_processes_log_the_numbers_of_all_samples(ranks, kind):
    seen = ranks[0][kind]["seen"] + ranks[1][kind]["seen"]
    expected = by_hand(seen)
    labels = np.concatenate([step[2] for step in seen])
    for rank in ranks:
        found = rank[kind]
        assert found["counts"].tolist() == np.bincount(labels, minlength=len(COUNTS)).tolist()
        for key, name in (("confidence", "confidences"), ("recall", "recalls"), ("loss", "losses")):
            assert_allclose(found[name], expected[key], rtol=10 * FLOAT32)
        assert_allclose(found["scalars"]["collapse/nc1"], nc1_by_hand(seen), rtol=100 * FLOAT32)
        assert found["scalars"] == ranks[0][kind]["scalars"]


@heavy
@pytest.mark.parametrize("stop", [3, 4])  # of 3 steps an epoch
def test_two_processes_resume_as_if_they_had_never_stopped(ranks, stop):
    for rank in ranks:
        whole, resumed = rank[f"resumed {stop}"]
        assert whole == resumed


if __name__ == "__main__":
    rank_main(sys.argv[1])
