"""Faults, hostile input and starting the command: cases that went wrong once, each with siblings of its kind."""

import contextlib
import json
import os
import shutil
import socket
import stat
import zipfile

import matplotlib as mpl
import numpy as np
import pytest
import safetensors.torch
import torch
from numpy.testing import assert_array_equal

from collapsekit import UFM, CollapseError, CrossEntropy, Hinge, predict, solve, thresholds
from collapsekit.cli import main
from collapsekit.metrics import NeuralCollapse
from collapsekit.prediction import phase_diagram
from collapsekit.training import TrainConfig, train

NOT_REFUSED = pytest.fail.Exception
SMOKE = TrainConfig(epochs=2, hidden=(8,), feature_dim=12, largest=30)
PREDICT = ["predict", "500", "40", "10", "--lambda-w", "0.03", "--lambda-h", "0.001"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run; never changed."""
    return train(SMOKE, out=tmp_path_factory.mktemp("runs"))


@pytest.fixture
def run(trained, tmp_path):
    """A copy of its folder to be damaged."""
    return shutil.copytree(trained.folder, tmp_path / "runs" / trained.folder.name)


# D: what reaches a terminal

HOSTILE = {
    "escape": "\x1b[2J",
    "C1": "\x9b31m",
    "delete": "\x7f",
    "override": "\u202e",
    "isolate": "\u2066",
    "mark": "\u200f",
}


def assert_harmless(text):
    assert not [one for one in text if one != "\n" and (ord(one) < 32 or 127 <= ord(one) < 160)]
    assert not set(text) & {*map(chr, [*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x61C])}


@pytest.mark.parametrize("characters", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("flags", [[], PREDICT[4:]], ids=["thresholds", "prediction"])
def test_class_names_are_harmless(characters, flags, tmp_path, capsys):
    (tmp_path / "counts.csv").write_text(f"good,500\nb{characters}ad,10\n", encoding="utf-8")
    assert main(["predict", str(tmp_path / "counts.csv"), *flags]) == 0
    assert_harmless(capsys.readouterr().out)


@pytest.mark.parametrize("characters", [HOSTILE[key] for key in HOSTILE if key != "escape"])
def test_json_is_harmless(characters, tmp_path, capsys):
    (tmp_path / "counts.csv").write_text(f"good,500\nb{characters}ad,10\n", encoding="utf-8")
    assert main(["predict", str(tmp_path / "counts.csv"), *PREDICT[4:], "--json"]) == 0
    out = capsys.readouterr().out
    assert_harmless(out)
    assert len(json.loads(out)["labels"]) == 2


@pytest.mark.parametrize("kind", ["escape", "override"])
def test_folder_names_are_harmless(kind, run, tmp_path, capsys):
    folder = run.rename(tmp_path / f"r{HOSTILE[kind]}un")
    main(["report", str(folder)])
    main(["report", str(tmp_path / f"n{HOSTILE[kind]}one")])
    main(["collect", str(tmp_path)])
    assert_harmless("".join(capsys.readouterr()))


@pytest.mark.parametrize("characters", [HOSTILE["escape"], HOSTILE["C1"], HOSTILE["override"]])
def test_stored_failures_are_harmless(characters, run, capsys):
    (run / "env.json").unlink()
    (run / "failure.json").write_text(json.dumps({"reason": f"b{characters}ad"}))
    main(["collect", str(run.parent)])
    assert_harmless("".join(capsys.readouterr()))


# D: pages are written to regular files only, and keep their mode


@pytest.mark.parametrize("kind", ["fifo", "socket"])
def test_a_page_never_replaces_what_is_no_regular_file(kind, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    if kind == "fifo":
        os.mkfifo("page.html")
    else:
        with socket.socket(socket.AF_UNIX) as end:
            end.bind("page.html")
    before = os.stat("page.html")
    assert main([*PREDICT, "--html", "page.html"]) == 2
    assert os.stat("page.html").st_ino == before.st_ino
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("mode", [0o600, 0o640])
def test_a_page_keeps_the_mode_of_the_file_before(mode, tmp_path):
    page = tmp_path / "page.html"
    page.touch(mode)
    page.chmod(mode)
    assert main([*PREDICT, "--html", str(page)]) == 0
    assert stat.S_IMODE(page.stat().st_mode) == mode


@pytest.mark.parametrize("resume", [False, True])
def test_a_lock_that_is_a_link_truncates_nothing(resume, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    folder = tmp_path / "runs" / SMOKE.fingerprint
    folder.mkdir(parents=True)
    (folder / "lock").symlink_to(victim)
    with contextlib.suppress(CollapseError):
        train(SMOKE, out=tmp_path / "runs", resume=resume)
    assert victim.read_text() == "precious"


# D: archives that unpack to far more than they are


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA], ids=["bzip2", "lzma"])
def test_an_archive_that_numpy_would_not_write_is_refused(method, tmp_path, capsys):
    with zipfile.ZipFile(tmp_path / "f.npz", "w", method) as archive:
        for name, array in (("features", np.zeros((2**16, 64))), ("labels", np.arange(2**16) % 2)):
            with archive.open(f"{name}.npy", "w") as stream:
                np.lib.format.write_array(stream, array)
    assert (tmp_path / "f.npz").stat().st_size < 2**16
    assert main(["measure", str(tmp_path / "f.npz")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


# D: a user's matplotlibrc


def test_pages_are_the_same_twice(tmp_path):
    for name in ("one.html", "two.html"):
        assert main([*PREDICT, "--html", str(tmp_path / name)]) == 0
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()


@pytest.mark.parametrize(
    "settings",
    [{"text.usetex": True}, {"axes.facecolor": "black", "axes.labelcolor": "red", "font.size": 30}],
    ids=["usetex", "colours and sizes"],
)
def test_pages_do_not_depend_on_the_settings_of_matplotlib(settings, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")  # no LaTeX anywhere
    assert main([*PREDICT, "--html", str(tmp_path / "plain.html")]) == 0
    with mpl.rc_context(settings):
        assert main([*PREDICT, "--html", str(tmp_path / "styled.html")]) == 0
    assert (tmp_path / "styled.html").read_bytes() == (tmp_path / "plain.html").read_bytes()


# D: damaged runs


def edit(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def reshaped(run, name):
    arrays = safetensors.torch.load_file(run / "arrays.safetensors")
    safetensors.torch.save_file(arrays | {name: arrays[name][:3].clone()}, run / "arrays.safetensors")


DAMAGE = {
    "history without numbers": lambda run: (run / "history.jsonl").write_text('{"step": 1}\n'),
    "history of words": lambda run: (run / "history.jsonl").write_text(
        '{"step": 1, "objective": "a", "loss": [], "nc1": {}, "metrics": 3, "confidences": null}\n'
    ),
    "shape of confidences": lambda run: reshaped(run, "confidences"),
    "shape of recalls": lambda run: reshaped(run, "recalls"),
    "versions": lambda run: edit(run / "env.json", versions=None),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_run_is_one_line(damage, run, capsys):
    damage(run)
    assert main(["report", str(run)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


# D: numbers beyond float64 and int64 from the command line


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")
@pytest.mark.parametrize("flags", [[], ["--json"]], ids=["table", "json"])
@pytest.mark.parametrize(
    "words",
    [
        "9223372036854775808 10 --lambda-w 1 --lambda-h 1",
        "9007199254740993 10 --lambda-w 1 --lambda-h 1",
        "500 10 --lambda-w 1e308 --lambda-h 1",
        "1e19 10",
    ],
)
def test_what_no_number_holds_is_refused(words, flags, capsys):
    assert main(["predict", *words.split(), *flags]) == 2
    assert capsys.readouterr().err.count("\n") == 1


# D: settings of the caller


@pytest.mark.parametrize(
    "problem",
    [
        UFM([500, 300, 40, 10], 3e-2, 1e-3),
        UFM([500, 40, 10], 1e-3, 1e-4, bias="free"),
        UFM([50, 40, 10], 1e-2, 1e-3, loss=Hinge()),
        UFM([50, 40, 10], 1e-2, 1e-3, loss=CrossEntropy(offsets=[0.0, -1.0, -2.0])),
    ],
    ids=["plain", "free bias", "hinge", "adjusted"],
)
def test_the_solver_does_not_depend_on_numpys_error_state(problem):
    plain = solve(problem)
    with np.errstate(all="raise"):
        found = solve(problem)
        predict(UFM([500, 300, 40, 10], 3e-2, 1e-3))
    assert found.objective == plain.objective


@pytest.mark.parametrize("setting", ["no_grad", "inference_mode", "float64"])
def test_training_does_not_depend_on_the_settings_of_torch(setting, trained, tmp_path):
    try:
        if setting == "float64":
            torch.set_default_dtype(torch.float64)
            found = train(SMOKE, out=tmp_path)
        else:
            with getattr(torch, setting)():
                found = train(SMOKE, out=tmp_path)
    finally:
        torch.set_default_dtype(torch.float32)
    assert_array_equal(found.measured.weight, trained.measured.weight)


# D: misuse that was no CollapseError


@pytest.mark.parametrize("features", [None, "text", [[1.0, 2.0], [3.0]]], ids=["nothing", "a text", "a ragged list"])
def test_a_metric_refuses_what_is_no_tensor(features):
    with pytest.raises(CollapseError, match="features"):
        NeuralCollapse(2, 2).update(features, torch.tensor([0, 1]))


def test_a_metric_refuses_labels_that_are_none():
    with pytest.raises(CollapseError, match="labels"):
        NeuralCollapse(2, 2).update(torch.eye(2), None)


@pytest.mark.parametrize("given", [{"ratios": []}, {"products": []}, {"ratios": ["a"]}], ids=str)
def test_a_phase_diagram_of_nothing_is_refused(given):
    with pytest.raises(CollapseError, match=next(iter(given))):
        phase_diagram(10, 500, **({"ratios": [1, 10], "products": [1e-6]} | given))


@pytest.mark.parametrize("hold", [np.array([1.0, 2.0]), np.array(["recipe", "penalties"])])
def test_thresholds_refuse_to_hold_an_array(hold):
    with pytest.raises(CollapseError, match="hold"):
        thresholds(UFM([500, 10], 1e-3, 1e-3), hold=hold)
