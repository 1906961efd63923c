"""Runs and loops: cases that came out wrong once, or were refused, each with siblings of its kind."""

import json
import re
import shutil
import threading

import numpy as np
import pytest
import safetensors.torch
import torch
from numpy.testing import assert_array_equal
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from collapsekit import CollapseError
from collapsekit.cli import main
from collapsekit.metrics import measure
from collapsekit.training import TrainConfig, train

# A25: a run that was edited says so, whatever is asked of it


def store_data(path, shift=0.0):
    """Three classes and a held-out set."""
    rng = np.random.default_rng(0)
    y, yt = np.repeat([0, 1, 2], [30, 20, 10]), np.repeat([0, 1, 2], 5)
    X, Xt = (rng.normal(size=(len(labels), 4)) + 2 * np.eye(3, 4)[labels] for labels in (y, yt))
    np.savez(path, X=X, y=y, Xt=Xt + shift, yt=yt)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run on stored data; never changed."""
    folder = tmp_path_factory.mktemp("trained")
    store_data(folder / "data.npz")
    values = {"data": str(folder / "data.npz"), "epochs": 2, "hidden": (8,), "feature_dim": 8}
    return train(TrainConfig(**values, class_names=("ant", "bee", "cat")), out=folder / "runs")


@pytest.fixture
def run(trained, tmp_path):
    """A copy of its folder to be damaged."""
    return shutil.copytree(trained.folder, tmp_path / "runs" / trained.folder.name)


def edit(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def edit_arrays(run, change):
    arrays = safetensors.torch.load_file(run / "arrays.safetensors")
    change(arrays)
    safetensors.torch.save_file(arrays, run / "arrays.safetensors")


EDITS = {
    "decay": lambda run: edit(run / "config.json", penalty_scale=0.7),
    "NaN in confidences": lambda run: edit_arrays(run, lambda arrays: arrays["confidences"].fill_(torch.nan)),
    "NaN in moments": lambda run: edit_arrays(run, lambda arrays: arrays["moments"][3:].fill_(torch.nan)),
    "other recalls": lambda run: edit_arrays(run, lambda arrays: arrays["test_recalls"].fill_(1.0)),
    "schema": lambda run: edit(run / "env.json", schema=99),
    "names permuted": lambda run: edit(run / "env.json", names=["cat", "ant", "bee"]),
    "renamed": lambda run: run.rename(run.with_name("0123456789ab")),
}


@pytest.mark.filterwarnings("ignore:.*NaN.*", "ignore:.*encountered.*")
@pytest.mark.parametrize("change", EDITS.values(), ids=EDITS)
def test_no_report_is_written_of_an_edited_run(change, run, capsys):
    change(run)
    (folder,) = run.parent.iterdir()
    assert main(["report", str(folder)]) == 2
    assert re.search("changed|renamed", capsys.readouterr().err)


def test_a_report_is_written_of_a_run_as_it_is(run, capsys):
    assert main(["report", str(run)]) == 0


@pytest.mark.parametrize("change", ["held-out inputs", "names"])
def test_a_run_is_not_given_back_for_other_held_out_data_or_names(change, trained, run, tmp_path):
    if change == "names":
        edit(run / "env.json", names=["cat", "ant", "bee"])
    else:
        store_data(trained.config.data, shift=1.0)
    try:
        with pytest.raises(CollapseError, match=r"changed|trained on"):
            train(trained.config, out=run.parent, resume=True)
    finally:
        store_data(trained.config.data)


def test_an_edited_run_is_marked_in_the_table_of_runs(run, capsys):
    edit(run / "config.json", penalty_scale=0.7)
    code = main(["collect", str(run.parent)])
    assert "changed" in "".join(capsys.readouterr())
    assert code in (0, 1)


# A26: two threads

IN_THE_MIDDLE, OTHER_HAS_DRAWN = threading.Event(), threading.Event()


def paused(shape, num_classes):
    """A network whose first layer is drawn, and whose second one after another thread has drawn, if there is one."""
    first = nn.Linear(int(np.prod(shape)), 8)
    if IN_THE_MIDDLE.is_set():
        OTHER_HAS_DRAWN.set()
    IN_THE_MIDDLE.set()
    OTHER_HAS_DRAWN.wait(0.3)
    return nn.Sequential(nn.Flatten(), first, nn.ReLU(), nn.Linear(8, num_classes, bias=False))


def trained_in_thread(config, out, found):
    IN_THE_MIDDLE.clear()
    OTHER_HAS_DRAWN.clear()
    thread = threading.Thread(target=lambda: found.append(train(config, out=out).measured.weight))
    thread.start()
    return thread


@pytest.mark.parametrize("seeds", [(0, 1), (3, 3)])
def test_two_threads_train_as_one_after_the_other(seeds, tmp_path):
    config, other = (
        TrainConfig(network=f"{__name__}:paused", epochs=n, largest=20, seed=seed)
        for n, seed in zip((1, 2), seeds, strict=True)
    )
    alone, together = [], []
    trained_in_thread(config, tmp_path / "alone", alone).join()
    first = trained_in_thread(config, tmp_path / "together", together)
    assert IN_THE_MIDDLE.wait(10)
    train(other, out=tmp_path / "together")
    first.join()
    assert_array_equal(together[0], alone[0])


# A27: measuring between epochs changes nothing


class Noisy(TensorDataset):
    """Augments each sample at random."""

    def __getitem__(self, i):
        x, y = super().__getitem__(i)
        return x + 0.1 * torch.randn(x.shape), y


def loader_of(kind):
    labels = torch.arange(60) % 3
    inputs = torch.randn(60, 5, generator=torch.Generator().manual_seed(2)) + nn.functional.one_hot(labels, 5)
    data = (Noisy if kind == "augmented" else TensorDataset)(inputs, labels)
    generator = torch.Generator().manual_seed(3) if kind == "own generator" else None
    return DataLoader(data, batch_size=20, shuffle=kind != "augmented", generator=generator)


def trained_weights(kind, measuring):
    """The head after two epochs, the network being measured between them or not."""
    torch.manual_seed(0)
    loader = loader_of(kind)
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        for x, y in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        if measuring:
            measure(model, loader)
    return model[3].weight.detach()


@pytest.mark.parametrize("kind", ["shuffled", "own generator", "augmented"])
def test_measuring_between_epochs_changes_nothing(kind):
    assert_array_equal(trained_weights(kind, True), trained_weights(kind, False))


# B3: a recipe without a prediction is measured all the same


@pytest.mark.parametrize(
    "flags",
    [
        "--weight-decay 0.01 --feature-decay 0.001 --optimizer adamw",
        "--weight-decay 0.01 --batchnorm-branches 1 --optimizer adamw",
        "--weight-decay 0.01",
        "--weight-decay 0.01 --batchnorm-branches 1 --batchnorm-decay none",
    ],
)
def test_recipes_without_a_prediction_are_measured(flags, tmp_path, capsys):
    labels = np.repeat([0, 1, 2], [30, 20, 10])
    np.savez(tmp_path / "f.npz", features=np.eye(3)[labels], labels=labels, weight=4 * np.eye(3))
    code = main(["measure", str(tmp_path / "f.npz"), *flags.split()])
    out, err = capsys.readouterr()
    assert code == 0, err
    assert "no prediction" in out.lower()
    assert "train_accuracy 1" in out
