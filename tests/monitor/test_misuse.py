"""Mistakes with the monitor: one line that names the argument, its value and a remedy, and the remedy works."""

import re

import numpy as np
import pytest
import torch
from torch import nn

from _support.passes import COUNTS, Net, Plain, batches
from collapsekit import CollapseError
from collapsekit.monitor import Monitor

X, Y = next(batches())


def refused(call, words):
    with pytest.raises(CollapseError, match=re.escape(words)) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def works(monitor, model):
    """The monitor counts a pass."""
    model(X)
    monitor.update(Y)
    return monitor.epoch()


def test_update_without_a_pass():
    model = Plain()
    monitor = Monitor(model)
    assert "call model(inputs) before it" in refused(lambda: monitor.update(Y), "update: no")
    works(monitor, model)
    refused(lambda: monitor.update(Y), "update: no")
    works(monitor, model)


def test_update_after_a_pass_in_evaluation_mode():
    model = Plain().eval()
    monitor = Monitor(model)
    model(X)
    refused(lambda: monitor.update(Y), "the forward pass was in evaluation mode; call model.train()")
    works(monitor, model.train())


def test_parts_of_a_model_without_a_named_head():
    model = Plain()
    monitor = Monitor(model)
    model.head(model.body(X))
    told = refused(
        lambda: monitor.update(Y), "only parts of the model were called; name the head, like Monitor(model, "
    )
    monitor = Monitor(model, head=re.search("head='(.*)'", told)[1])
    model.head(model.body(X))
    monitor.update(Y)
    monitor.epoch()


def test_a_head_that_is_not_there():
    told = refused(lambda: Monitor(Plain(), "fc"), "head='fc': is no module of the model; name one of ")
    assert "'head'" in told
    model = Plain()
    works(Monitor(model, "head"), model)


def test_a_layer_that_does_not_make_the_output():
    model = Plain()
    Monitor(model, "body.0")
    told = refused(lambda: model(X), "head='body.0': its W h + b, (16, 16), is not the model's output; name the layer")
    assert "makes it" in told


def test_a_head_that_is_never_called():
    model = Plain()
    model.unused = nn.Linear(5, 4)
    monitor = Monitor(model, "unused")
    model(X)
    refused(
        lambda: monitor.update(Y), "no hook was called by 'unused' in the forward pass; name a layer that is called"
    )


def test_a_head_that_is_called_twice():
    class Twice(Plain):
        def forward(self, x):
            super().forward(x + 1)
            return super().forward(x)

    model = Twice()
    monitor = Monitor(model)
    model(X)
    refused(lambda: monitor.update(Y), "head='head': was called 2 times in one forward pass; expected once")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda y: y[:-1], "labels: shape (15,) for 16 features"),
        (lambda y: nn.functional.one_hot(y, 4), "one-hot rows; give class numbers, labels.argmax(dim=1)"),
        (lambda y: y[:, None], "give labels.squeeze(1)"),
        (lambda y: y + 1, "labels: 4 is no class; the head has classes 0 to 3"),
        (lambda y: y.float(), "labels: dtype torch.float32; give class numbers, integers"),
        (lambda y: [str(one) for one in y.tolist()], "labels="),
    ],
)
def test_labels_that_do_not_fit_leave_everything_as_it_was(change, words):
    model = Plain()
    monitor, expected = Monitor(model), works(Monitor(model), model)
    model(X)
    labels = Y.clone()
    labels[0] = 3
    refused(lambda: monitor.update(change(labels)), words)
    assert works(monitor, model) == expected


@pytest.mark.parametrize("what", ["counts", "names"])
def test_another_number_of_classes(what):
    model = Plain()
    given = {"counts": [5, 4, 3], "names": ["a", "b", "c"]}[what]
    monitor = Monitor(model, **{what: given})
    model(X)
    refused(lambda: monitor.update(Y), f"{what}: 3 for a head of 4 classes; give one a class")
    works(
        Monitor(model, **{what: {"counts": COUNTS, "names": "abcd"}[what][:4] if what == "counts" else list("abcd")}),
        model,
    )


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"every": 0}, "every=0: must be a whole number of at least 1; give a number of steps, or None"),
        ({"recipe": "sgd"}, "recipe='sgd': give a Penalty, BatchNorm or Plain"),
        ({"optimizer": 0.1}, "optimizer=0.1: give a torch.optim.Optimizer"),
        ({"names": ["a", "a"]}, "names: 'a' stands for two classes"),
        ({"names": 3}, "names=3: give a list of names, one a class"),
        ({"loss": "focal"}, "loss='focal': give CrossEntropy"),
        ({"ignore_index": "none"}, "ignore_index='none': give a whole number, e.g. -100"),
        ({"table": "classes.txt"}, "table='classes.txt': give a name that ends in .csv or .jsonl"),
        ({"table": 3}, "table=3: give a name that ends in .csv or .jsonl"),
    ],
)
def test_arguments_that_do_not_fit(keys, words):
    refused(lambda: Monitor(Plain(), **keys), words)


@pytest.mark.parametrize("model", [3, nn.DataParallel(Plain()), nn.Sequential(nn.ReLU())])
def test_models_that_cannot_be_watched(model):
    words = {int: "model=3: give a torch.nn.Module", nn.DataParallel: "use DistributedDataParallel"}
    refused(lambda: Monitor(model), words.get(type(model), "has no linear layer"))


def test_an_epoch_without_samples():
    model = Plain()
    monitor = Monitor(model)
    refused(monitor.epoch, "epoch: nothing was counted since the last one; call monitor.update(labels)")
    works(monitor, model)
    refused(monitor.epoch, "epoch: nothing was counted")


def test_states_of_another_kind():
    model = Plain()
    monitor = Monitor(model, every=2)
    model(X)
    monitor.update(Y)
    for strange in ({}, {"version": 1}):
        refused(lambda strange=strange: monitor.load_state_dict(strange), "state: is none of this monitor's")
    other = Monitor(model, every=3)
    refused(lambda: other.load_state_dict(monitor.state_dict()), "every=3: the state was taken with every=2")
    Monitor(model, every=2).load_state_dict(monitor.state_dict())


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # of torch.compile, which hides it itself
def test_a_compiled_model_that_was_called_before_is_named():
    torch.compiler.reset()
    model = Net()
    compiled = torch.compile(model, backend="eager")
    compiled(X)
    monitor = Monitor(compiled)
    compiled(X)
    refused(lambda: monitor.update(Y), "torch.compiler.reset() if the model was compiled and called before")
    torch.compiler.reset()
    works(monitor, compiled)


def test_a_class_without_samples_is_known_as_unseen():
    model = Plain()
    monitor = Monitor(model)
    model(X)
    monitor.update(np.zeros(len(X), dtype=int))
    scalars = monitor.epoch()
    assert not any("nc1" in key for key in scalars)
    assert monitor.reasons["collapse/nc1"].startswith("fewer than two classes")
    assert scalars["collapse/weak"] + scalars["collapse/never_predicted"] <= 1


def test_every_number_of_an_epoch_without_samples_is_absent_with_its_reason():
    model = Plain()
    monitor = Monitor(model)
    known = works(monitor, model).keys() | monitor.reasons.keys()
    model(X)
    monitor.update(torch.full_like(Y, -100))
    assert monitor.epoch() == {"collapse/not_finite": 0.0}
    assert monitor.reasons.keys() | monitor.scalars.keys() == known
    assert "ignore_index" in monitor.reasons["collapse/worst_recall"]
    model(torch.full_like(X, torch.nan))
    monitor.update(Y)
    monitor.epoch()
    assert monitor.reasons.keys() | monitor.scalars.keys() == known
    assert "diverged" in monitor.reasons["collapse/worst_recall"]


def test_a_first_batch_without_samples():
    model = Plain()
    monitor, expected = Monitor(model, every=1), works(Monitor(model, every=1), model)
    model(X[:0])
    monitor.update(Y[:0])
    assert works(monitor, model) == expected


@pytest.mark.parametrize("kind", [torch.uint8, torch.int16, torch.uint16, torch.uint32])
def test_labels_of_few_bits_are_the_same_numbers(kind):
    """As an 8-bit number 156 equals −100, which is to be ignored."""
    model = torch.nn.Linear(3, 200)
    monitor = Monitor(model)
    model(torch.randn(3, 3))
    monitor.update(torch.tensor([156, 199, 0]).to(kind))
    monitor.epoch()
    assert monitor.measured.counts[[156, 199, 0]].tolist() == [1, 1, 1]
