"""The Lightning callback against passes counted by hand, in one process and in two; whatever training_step does.

This file is also the program of the processes: ``python test_lightning.py FOLDER`` writes FOLDER/RANK.pt.
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

from _support.passes import COUNTS, Net, batches, by_hand, nc1_by_hand
from _support.tolerances import FLOAT32
from collapsekit import CollapseError
from collapsekit.metrics import NeuralCollapse

heavy = pytest.mark.heavy
pytestmark = [
    pytest.mark.filterwarnings("ignore::Warning:lightning"),
    pytest.mark.filterwarnings("ignore::Warning:pytorch_lightning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:Warning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor"),  # of torch.compile, which hides it itself
]
FOLDED = {"collapse/nc1", "collapse/nc1_error", "collapse/cdnv"}


class Loader:
    """Batches of an epoch, resumable in its middle, each rank with its own part of every batch."""

    def __init__(self, part=slice(None), shape=lambda x, y: (x, y)):
        self.epoch, self.done, self.part, self.shape, self.sampler = 0, 0, part, shape, self
        self.batch_sampler = None

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        for x, y in list(batches(self.epoch))[self.done :]:
            self.done += 1
            self.done %= len(self)
            yield self.shape(x[self.part], y[self.part])

    def __len__(self):
        return len(list(batches()))

    def state_dict(self):
        return {"done": self.done}

    def load_state_dict(self, state):
        self.done = state["done"]


def module(hosts, kind="itself", rate=0.1):
    """A LightningModule of one kind, which records its passes."""

    class Module(hosts.LightningModule):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = "manual" not in kind
            self.net = torch.compile(Net(), backend="eager") if "compiled" in kind else Net()
            if kind == "parts":
                self.body, self.head = self.net.body, self.net.head
                del self.net
            self.seen = []

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, index):
            x, y = batch.values() if isinstance(batch, dict) else batch[:2]
            if kind == "parts":
                h = self.body(x)
                z = self.head(h)
            else:
                if kind == "twice":
                    self.net(x + 1)
                z = self(x) if kind in ("itself", "manual") else self.net(x)
                h = getattr(self.net, "_orig_mod", self.net).features
            self.seen.append([v.detach().double().cpu().numpy().copy() for v in (h, z)] + [y.cpu().numpy().copy()])
            loss = functional.cross_entropy(z, y)
            if "manual" in kind:
                optimizer = self.optimizers()
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()
                return None
            return loss

        def validation_step(self, batch, index):
            if kind != "parts":
                self(batch[0])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=rate, momentum=0.9, weight_decay=1e-3)

    return Module()


def with_metric(hosts, logged):
    """A LightningModule with the accumulator as an attribute; `logged` is what it does with it when an epoch ends."""

    class Module(type(module(hosts))):
        def __init__(self):
            super().__init__()
            self.nc = NeuralCollapse(num_classes=4, dim=5)
            self.heads = []  # of each epoch's last step

        def training_step(self, batch, index):
            loss = super().training_step(batch, index)
            head = self.net.head.weight, self.net.head.bias
            self.nc.update(self.net.features, batch[1], *head, logits=self.net.logits)
            self.last = [one.detach().clone() for one in head]
            if logged == "metric":
                self.log("nc", self.nc, on_step=False, on_epoch=True)
            if logged == "metric, by step":
                self.log("nc", self.nc)
            if logged == "called":
                self.log_dict(self.nc(self.net.features, batch[1]))
            return loss

        def on_train_epoch_end(self):
            if logged == "computed":
                self.log_dict(self.nc.compute())
                self.heads.append(self.last)
                self.nc.reset()

    return Module()


def trainer(hosts, *callbacks, **options):
    given = {"max_epochs": 2, "accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False}
    given |= {"enable_progress_bar": False, "enable_model_summary": False, "callbacks": list(callbacks)}
    return hosts.Trainer(**given | options)


@pytest.fixture(scope="module")
def hosts():
    return importlib.import_module("lightning.pytorch")


@pytest.fixture(scope="module")
def callback(hosts):
    return importlib.import_module("collapsekit.monitor.lightning").CollapseCallback


def check(cb, logged, seen):
    """Measured and logged are the numbers of these passes."""
    expected = by_hand(seen)
    assert cb.monitor.measured.counts.tolist() == [(np.concatenate([s[2] for s in seen]) == k).sum() for k in range(4)]
    assert_allclose(cb.monitor.measured.confidences, expected["confidence"], rtol=FLOAT32)
    assert_allclose(cb.monitor.measured.losses, expected["loss"], rtol=FLOAT32)
    assert_allclose(cb.monitor.measured.recalls, expected["recall"], rtol=FLOAT32)
    assert_allclose(logged["collapse/worst_confidence"], expected["confidence"].min(), rtol=FLOAT32)
    assert_allclose(logged["collapse/nc1"], nc1_by_hand(seen), rtol=10 * FLOAT32)
    assert {key for key in logged if key.startswith("collapse/")} == cb.monitor.scalars.keys()


KINDS = {
    "itself": {},
    "a part": {},
    "parts": {"head": "head"},
    "manual": {},
    "twice": {},
    "compiled": {},
    "compiled, manual": {},
}
OPTIONS = {
    "plain": {"num_sanity_val_steps": 2, "val_check_interval": 2},
    "accumulated": {"accumulate_grad_batches": 2},
    "bfloat16": {"precision": "bf16-mixed"},
}


@heavy
@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in KINDS for name in OPTIONS if "compiled" not in kind or name == "plain"]
)
def test_numbers_are_those_of_the_passes_of_the_last_epoch(hosts, callback, kind, name):
    if kind == "manual" and name == "accumulated":
        name = "plain"  # Lightning refuses it
    torch.compiler.reset()
    cb, model = callback(every=1, **KINDS[kind]), module(hosts, kind)
    run = trainer(hosts, cb, **OPTIONS[name])
    run.fit(model, Loader(), Loader())
    check(cb, run.callback_metrics, model.seen[len(model.seen) // 2 :])
    steps = sum(-(-len(Loader()) // OPTIONS[name].get("accumulate_grad_batches", 1)) for _ in range(2))
    assert_allclose(run.callback_metrics["collapse/horizon"], 0.1 * 1e-3 * 10 * steps, rtol=FLOAT32)
    assert ("updates" in cb.monitor.reasons) == (kind == "twice")


@heavy
def test_the_other_package_of_the_same_trainer(callback):
    other = importlib.import_module("pytorch_lightning")
    cb, model = callback(every=1), module(other)
    run = trainer(other, cb)
    run.fit(model, Loader(), Loader())
    check(cb, run.callback_metrics, model.seen[len(model.seen) // 2 :])


@heavy
def test_weights_are_those_without_it(hosts, callback):
    plain, watched = module(hosts), module(hosts)
    trainer(hosts).fit(plain, Loader(), Loader())
    trainer(hosts, callback(every=1)).fit(watched, Loader(), Loader())
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), watched.parameters(), strict=True))
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in watched.modules())


@heavy
def test_callbacks_that_watch_a_number_of_it(hosts, callback, tmp_path):
    callbacks = importlib.import_module("lightning.pytorch.callbacks")
    stop = callbacks.EarlyStopping("collapse/worst_confidence", mode="max", check_on_train_epoch_end=True)
    best = callbacks.ModelCheckpoint(tmp_path, monitor="collapse/worst_confidence", mode="max", filename="best")
    cb = callback()
    trainer(hosts, stop, best, cb, enable_checkpointing=True, max_epochs=1).fit(module(hosts), Loader())
    assert stop.best_score == best.best_model_score == torch.tensor(cb.monitor.scalars["collapse/worst_confidence"])


@heavy
@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("stop", [7, 10, "end"])  # of 5 steps an epoch; 10: before the epoch's end is counted
def test_resuming_is_never_having_stopped(hosts, callback, tmp_path, every, stop):
    callbacks = importlib.import_module("lightning.pytorch.callbacks")
    options = {"filename": "{step}", "save_top_k": -1} | (
        {"every_n_epochs": 2, "save_on_train_epoch_end": True} if stop == "end" else {"every_n_train_steps": stop}
    )
    whole, table = callback(every=every, table=tmp_path / "whole.csv"), tmp_path / "part.csv"
    run = trainer(hosts, whole, callbacks.ModelCheckpoint(tmp_path, **options), max_epochs=4, enable_checkpointing=True)
    run.fit(module(hosts), Loader())
    part = callback(every=every, table=table)
    resumed = trainer(hosts, part, max_epochs=4)
    resumed.fit(module(hosts), Loader(), ckpt_path=tmp_path / f"step={10 if stop == 'end' else stop}.ckpt")
    assert part.monitor.scalars == whole.monitor.scalars
    assert resumed.callback_metrics == run.callback_metrics
    assert torch.equal(part.monitor.measured.moments.state, whole.monitor.measured.moments.state)
    assert part.monitor.recalls == whole.monitor.recalls
    lines = (tmp_path / "whole.csv").read_text().splitlines()
    assert table.read_text().splitlines()[1:] == lines[-(len(table.read_text().splitlines()) - 1) :]


@heavy
def test_two_callbacks_have_two_states(callback):
    assert callback().state_key != callback(head="net.head").state_key
    assert callback().state_dict() == {}


@heavy
def test_two_heads_are_logged_under_their_own_keys(hosts, callback):
    class Two(type(module(hosts))):
        def __init__(self):
            super().__init__()
            self.other = torch.nn.Linear(5, 4)

        def training_step(self, batch, index):
            loss = functional.cross_entropy(self(batch[0]), batch[1])
            return loss + functional.cross_entropy(self.other(self.net.features), batch[1])

    cbs = [callback(head="net.head"), callback(head="other")]
    run = trainer(hosts, *cbs)
    run.fit(Two(), Loader())
    for cb in cbs:
        for key, value in cb.monitor.scalars.items():
            assert_allclose(float(run.callback_metrics[key.replace("/", f"/{cb.head}/")]), value, rtol=FLOAT32)
    assert cbs[0].monitor.scalars != cbs[1].monitor.scalars


@heavy
def test_a_run_after_a_failed_one_and_after_a_validated_checkpoint(hosts, callback, tmp_path):
    cb, model = callback(every=1), module(hosts)
    with pytest.raises(IndexError, match="out of bounds"):  # of the loss, before the callback sees the labels
        trainer(hosts, cb).fit(model, Loader(shape=lambda x, y: (x, y + 4)))
    assert model.net.head._forward_hooks
    run = trainer(hosts, cb)
    run.fit(model, Loader())
    run.save_checkpoint(tmp_path / "whole.ckpt")
    trainer(hosts, cb).validate(model, Loader(), ckpt_path=tmp_path / "whole.ckpt", verbose=False)
    model = module(hosts)
    run = trainer(hosts, cb)
    run.fit(model, Loader())
    check(cb, run.callback_metrics, model.seen[5:])
    assert len(cb.monitor.recalls) == 2


SHAPES = {
    "tuple": (lambda x, y: (x, y), None),
    "labels": (lambda x, y: {"x": x, "labels": y}, None),
    "label": (lambda x, y: {"x": x, "label": y}, None),
    "y": (lambda x, y: {"x": x, "y": y}, None),
    "key": (lambda x, y: {"x": x, "kind": y}, "kind"),
    "place": (lambda x, y: (x, y, x.sum(1)), 1),
    "function": (lambda x, y: (x, y, x.sum(1)), lambda batch: batch[1]),
}


@heavy
@pytest.mark.parametrize("name", SHAPES)
def test_labels_are_found_in_the_batch(hosts, callback, name):
    shape, labels = SHAPES[name]
    cb, model = callback(every=1, labels=labels), module(hosts)
    run = trainer(hosts, cb, max_epochs=1)
    run.fit(model, Loader(shape=shape))
    check(cb, run.callback_metrics, model.seen)


@heavy
@pytest.mark.parametrize(
    ("shape", "labels", "words"),
    [
        (lambda x, y: {"x": x, "kind": y}, None, "batch: holds the keys 'x', 'kind', and which are the class numbers"),
        (lambda x, y: (x, y.float()), None, "batch: is a tuple of Tensor, Tensor, and which are the class numbers"),
        (lambda x, y: {"x": x, "y": y}, "kind", "labels='kind': the batch has none; it holds the keys 'x', 'y'"),
        (lambda x, y: (x, y), 2, "labels=2: the batch has none; it is a tuple of Tensor, Tensor"),
    ],
)
def test_labels_that_are_not_found(hosts, callback, shape, labels, words):
    class Model(type(module(hosts))):
        def training_step(self, batch, index):
            x = next(iter(batch.values())) if isinstance(batch, dict) else batch[0]
            return self(x).square().mean()

    with pytest.raises(CollapseError) as caught:
        trainer(hosts, callback(labels=labels)).fit(Model(), Loader(shape=shape))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@heavy
def test_a_head_that_has_to_be_named(hosts, callback):
    with pytest.raises(CollapseError, match=r"name the head, like Monitor\(model, head='head'"):
        trainer(hosts, callback()).fit(module(hosts, "parts"), Loader())
    with pytest.raises(CollapseError, match="head='fc': is no module of the model; name one of"):
        trainer(hosts, callback(head="fc")).fit(module(hosts), Loader())
    with pytest.raises(TypeError, match="evry"):
        callback(evry=2)
    for head in ("net.head", "head"):
        trainer(hosts, callback(head=head), max_epochs=1).fit(module(hosts), Loader())


def one_process(seen, head):
    """The values of all samples at once."""
    h, z, y = (torch.tensor(np.concatenate(parts)) for parts in zip(*seen, strict=True))
    metric = NeuralCollapse(num_classes=4, dim=5)
    metric.update(h.float(), y, *head, logits=z.float())
    return metric.compute()


@heavy
def test_the_accumulator_as_an_attribute_logs_the_value_of_all_samples(hosts):
    model = with_metric(hosts, "computed")
    run = trainer(hosts)
    run.fit(model, Loader())
    expected = one_process(model.seen[5:], model.heads[1])
    assert {key for key in expected if key in run.callback_metrics} == expected.keys()
    for key, value in expected.items():
        assert_allclose(run.callback_metrics[key], value, rtol=FLOAT32, atol=FLOAT32, err_msg=key)


@heavy
@pytest.mark.parametrize(("logged", "words"), [("metric", "must be a tensor"), ("called", "was called as a function")])
def test_the_accumulator_is_not_averaged_over_batches(hosts, logged, words):
    with pytest.raises(ValueError, match=words):
        trainer(hosts).fit(with_metric(hosts, logged), Loader())
    run = trainer(hosts)
    run.fit(with_metric(hosts, "metric, by step"), Loader())
    assert run.logged_metrics == {}


RESUMED = [(1, 5), (2, 7)]
"""How often rows are kept, and after how many steps (of five an epoch) a run is stopped."""


def rank_main(folder):
    """What each rank does; Lightning starts this program again for the second one."""
    torch.set_num_threads(1)
    hosts = importlib.import_module("lightning.pytorch")
    make = importlib.import_module("collapsekit.monitor.lightning").CollapseCallback
    callbacks = importlib.import_module("lightning.pytorch.callbacks")
    rank = int(os.environ.get("LOCAL_RANK", 0))
    part = [slice(0, 11), slice(11, None)][rank]

    def fit(model, *given, ckpt_path=None, **options):
        run = trainer(hosts, *given, devices=2, strategy="ddp", **options)
        run.fit(model, Loader(part), Loader(part), ckpt_path=ckpt_path)
        return {key: float(value) for key, value in run.callback_metrics.items()}

    found = {}
    for kind in ("itself", "a part", "parts", "twice"):
        cb, model = make(every=1, **KINDS[kind]), module(hosts, kind)
        logged = fit(model, cb)
        measured = cb.monitor.measured
        parts = {key: getattr(measured, key) for key in ("counts", "confidences", "recalls", "losses")}
        found[kind] = {"seen": model.seen[5:], "logged": logged, "scalars": cb.monitor.scalars, **parts}
    for every, stop in RESUMED:
        saving = callbacks.ModelCheckpoint(
            folder, filename=f"{{step}}-{every}", save_top_k=-1, every_n_train_steps=stop
        )
        whole, resumed = make(every=every), make(every=every)
        logged = fit(module(hosts), whole, saving, enable_checkpointing=True)
        again = fit(module(hosts), resumed, ckpt_path=Path(folder, f"step={stop}-{every}.ckpt"))
        found[f"resumed {every} {stop}"] = (logged, again, whole.monitor.recalls, resumed.monitor.recalls)
    model = with_metric(hosts, "computed")
    found["metric"] = {"logged": fit(model), "seen": model.seen[5:], "head": model.heads[1]}
    try:
        fit(module(hosts, "parts"), make())
    except CollapseError as error:
        found["unnamed"] = str(error)
    torch.save(found, Path(folder, f"{rank}.pt"))


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of two ranks has found."""
    folder = tmp_path_factory.mktemp("ranks")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", __file__, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


@heavy
@pytest.mark.parametrize("kind", ["itself", "a part", "parts", "twice"])
def test_two_processes_with_unequal_parts_log_the_numbers_of_all_samples(ranks, kind):
    seen = ranks[0][kind]["seen"] + ranks[1][kind]["seen"]
    assert {len(step[2]) for step in ranks[0][kind]["seen"]} != {len(step[2]) for step in ranks[1][kind]["seen"]}
    expected = by_hand(seen)
    for rank in ranks:
        found = rank[kind]
        assert found["counts"].tolist() == list(COUNTS)
        for key, name in (("confidence", "confidences"), ("recall", "recalls"), ("loss", "losses")):
            assert_allclose(found[name], expected[key], rtol=FLOAT32)
        assert_allclose(found["logged"]["collapse/nc1"], nc1_by_hand(seen), rtol=10 * FLOAT32)
        assert found["logged"] == ranks[0][kind]["logged"]
        assert_allclose([found["logged"][key] for key in found["scalars"]], [*found["scalars"].values()], rtol=FLOAT32)


@heavy
@pytest.mark.parametrize(("every", "stop"), RESUMED)
def test_two_processes_resume_as_if_they_had_never_stopped(ranks, every, stop):
    for rank in ranks:
        logged, again, recalls, recalled = rank[f"resumed {every} {stop}"]
        assert logged == again
        assert recalls == recalled


@heavy
def test_the_accumulator_as_an_attribute_on_two_processes(ranks):
    expected = one_process(ranks[0]["metric"]["seen"] + ranks[1]["metric"]["seen"], ranks[0]["metric"]["head"])
    for rank in ranks:
        for key, value in expected.items():
            assert_allclose(rank["metric"]["logged"][key], value, rtol=FLOAT32, atol=FLOAT32, err_msg=key)


@heavy
def test_a_head_that_has_to_be_named_on_two_processes(ranks):
    assert all("name the head, like Monitor(model, head='head')" in rank["unnamed"] for rank in ranks)


if __name__ == "__main__":
    rank_main(sys.argv[1])
