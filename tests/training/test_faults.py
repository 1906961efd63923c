"""Killed, interrupted, out of space, started twice: a clear error or a clean resume, never a corrupt run."""

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from _support import children
from collapsekit import CollapseError, files
from collapsekit.cli import main
from collapsekit.report import report
from collapsekit.training import TrainConfig, load_run, store, train

SMOKE = TrainConfig(hidden=(8,), feature_dim=12, epochs=3, largest=30)
SETTINGS = {
    "penalty, full batch": {},
    "penalty, mini-batch": {"batch_size": 50},
    "batchnorm, full batch": {"recipe": "batchnorm"},
    "batchnorm, mini-batch": {"recipe": "batchnorm", "batch_size": 50},
}
FILES = {"config.json", "history.jsonl", "arrays.safetensors", "checkpoint.safetensors", "env.json", "lock"}


@pytest.fixture(scope="module")
def never_stopped(tmp_path_factory):
    """The run of a configuration that nothing happened to; trained once."""
    folder = tmp_path_factory.mktemp("whole")
    return lambda config: train(config, out=folder, resume=True)


def page(run):
    """The report without the one number that tells how long it took."""
    return re.sub(r"\b[\d.]+ s\b", "", report(run, run.folder / "page.html").read_text())


def assert_equal_runs(first, second):
    """Weights, optimiser and random state, measurement and history, bit for bit."""
    assert second.config == first.config
    assert second.history == first.history
    for name in (store.CHECKPOINT, store.ARRAYS):
        one, other = (store.read_tensors(run.folder / name) for run in (first, second))
        assert one.keys() == other.keys()
        for key, tensor in one.items():
            assert tensor.dtype == other[key].dtype
            assert_array_equal(tensor, other[key], err_msg=key)


def assert_no_leftovers(folder):
    """Only whole files under their own names."""
    left = {path.name for path in folder.iterdir()} - {"report.html", "page.html"}
    assert left <= FILES
    assert all((folder / name).exists() for name in left)


def test_the_comparison_of_runs_rejects_others(tmp_path):
    first = train(SMOKE, out=tmp_path / "first")
    assert_equal_runs(first, train(SMOKE, out=tmp_path / "second"))
    with pytest.raises(AssertionError):
        assert_equal_runs(first, replace(first, history=first.history[:-1]))
    other = train(replace(SMOKE, seed=1), out=tmp_path)
    with pytest.raises(AssertionError):
        assert_equal_runs(first, replace(other, config=SMOKE, history=first.history))
    assert page(first) != page(other)


# killed


def check_kills(config, kills, tmp_path):
    """Kill processes that run and resume `config` at random moments; every run that ends equals one never killed."""
    began = time.monotonic()
    whole = train(config, out=tmp_path / "whole")
    longest = 0.2 + 0.2 * (time.monotonic() - began)
    rng = np.random.default_rng(0)
    killed = finished = 0
    while killed < kills:
        out = tmp_path / str(finished)
        process = children.start(children.resume, config, out, tmp_path / "told")
        process.join(rng.uniform(0, longest))
        process.kill()
        process.join()
        assert not (tmp_path / "told").exists(), (tmp_path / "told").read_text()
        if (out / config.fingerprint / store.ENVIRONMENT).exists():
            assert_equal_runs(whole, load_run(out / config.fingerprint))
            finished += 1
        else:
            killed += 1
    last = train(config, out=tmp_path / str(finished), resume=True)
    assert_equal_runs(whole, last)
    assert page(whole) == page(last)
    assert_no_leftovers(last.folder)


@pytest.mark.parametrize("values", SETTINGS.values(), ids=SETTINGS)
def test_killed_at_random_moments_and_resumed(values, tmp_path):
    check_kills(replace(SMOKE, epochs=60, **values), 4, tmp_path)


@pytest.mark.heavy
@pytest.mark.parametrize("values", SETTINGS.values(), ids=SETTINGS)
def test_killed_at_thirty_random_moments_and_resumed(values, tmp_path):
    epochs = 300 if "batch_size" in values else 1500
    check_kills(replace(SMOKE, epochs=epochs, **values), 30, tmp_path)


def check_kills_while_writing(kills, tmp_path):
    """Kill processes that write a checkpoint or a report over and over; the next writer leaves nothing of theirs."""
    run = train(SMOKE, out=tmp_path)
    report(run)
    rng = np.random.default_rng(0)
    left_over = 0
    for written, name in ((children.checkpoints, store.CHECKPOINT), (children.pages, "report.html")):
        for _ in range(kills // 2):
            process = children.start(written, run.folder, tmp_path / "begun")
            wait_for(tmp_path / "begun", process)
            time.sleep(rng.uniform(0, 0.1))
            process.kill()
            process.join()
            (tmp_path / "begun").unlink(missing_ok=True)
            left_over += not {path.name for path in run.folder.iterdir()} <= FILES | {"report.html"}
        files.replace(run.folder / name, (run.folder / name).read_bytes())
        assert_no_leftovers(run.folder)
    return left_over


def test_killed_inside_writes(tmp_path):
    check_kills_while_writing(6, tmp_path)


@pytest.mark.heavy
def test_killed_inside_writes_sixty_times(tmp_path):
    assert check_kills_while_writing(60, tmp_path) > 5  # or the kills never hit a write


# no space, no permission


class Fault:
    """Fails the n-th time that Python opens, replaces, removes or makes something below a folder."""

    EVENTS = ("open", "os.rename", "os.remove", "os.mkdir")

    def __init__(self):
        self.folder, self.left, self.number = None, 0, 0
        sys.addaudithook(self)  # for good, but idle without a folder

    def __call__(self, event, arguments):
        if self.folder is None or event not in self.EVENTS:
            return
        if not any(str(self.folder) in os.fspath(a) for a in arguments[:2] if isinstance(a, str | os.PathLike)):
            return
        self.left -= 1
        if self.left == 0:
            self.folder = None
            raise OSError(self.number, os.strerror(self.number))

    def at(self, folder, place, number=errno.ENOSPC):
        self.folder, self.left, self.number = folder, place, number

    @property
    def reached(self):
        fired, self.folder = self.folder is None, None
        return fired


FAULT = Fault()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES], ids=["full", "forbidden"])
@pytest.mark.parametrize("resuming", [False, True], ids=["fresh", "resumed"])
def test_a_failure_at_every_touch_of_the_folder(number, resuming, tmp_path, never_stopped):
    whole = never_stopped(SMOKE)
    place = failures = 0
    while place := place + 1:
        out = tmp_path / f"out{place}"
        if resuming:
            prepare_unfinished(SMOKE, out)
        FAULT.at(out, place, number)
        said = None
        try:
            train(SMOKE, out=out, resume=resuming)
        except CollapseError as error:
            said = str(error)
        if not FAULT.reached:
            break
        assert said is None or (os.strerror(number) in said and "\n" not in said)
        failures += said is not None
        assert_equal_runs(whole, train(SMOKE, out=out, resume=True))
        assert_no_leftovers(out / SMOKE.fingerprint)
    assert failures > 20


def prepare_unfinished(config, out):
    """A run that was stopped after its second evaluation, as a kill leaves it: a torn line, a half-written file."""

    def stop(step, total, objective):
        if step == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        train(config, out=out, progress=stop)
    folder = out / config.fingerprint
    with (folder / store.HISTORY).open("a") as handle:
        handle.write('{"step": 3, "objec')
    (folder / f".{store.CHECKPOINT}.1").write_bytes(b"half")


def test_a_report_that_cannot_be_written_is_one_line(tmp_path, capsys):
    words = ["train", "--epochs", "2", "--hidden", "8", "--feature-dim", "12", "--out", str(tmp_path)]
    assert main(words) == 0
    (run,) = tmp_path.iterdir()
    whole = (run / "report.html").read_bytes()
    capsys.readouterr()
    for place in (1, 2, 3):
        FAULT.at(run / ".report.html", place)
        assert main(["report", str(run)]) == 2
        assert FAULT.reached
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        assert "report.html cannot be written (No space left on device)" in err
        assert (run / "report.html").read_bytes() == whole
        assert_no_leftovers(run)


@pytest.mark.parametrize("written", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", [store.CHECKPOINT, store.ARRAYS])
def test_a_file_of_tensors_that_ends_early_is_never_seen(name, written, tmp_path, monkeypatch, never_stopped):
    whole = never_stopped(SMOKE)
    sync = os.fsync

    def fail(handle):
        path = Path(f"/proc/self/fd/{handle}").readlink()
        if path.name.startswith(f".{name}."):
            os.truncate(path, int(written * path.stat().st_size))
            raise OSError(errno.ENOSPC, "No space left")
        sync(handle)

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(CollapseError, match=f"{name} cannot be written .*No space left.*; free space"):
        train(SMOKE, out=tmp_path)
    assert_no_leftovers(tmp_path / SMOKE.fingerprint)
    assert not (tmp_path / SMOKE.fingerprint / name).exists()
    monkeypatch.setattr(os, "fsync", sync)
    assert_equal_runs(whole, train(SMOKE, out=tmp_path, resume=True))


@pytest.mark.parametrize(
    ("limit", "name"),
    [(300, store.CONFIG), (2_000, store.CHECKPOINT), (16_000, store.HISTORY), (100_000, "report.html")],
)
def test_a_limit_of_the_kernel_on_the_size_of_files(limit, name, tmp_path, never_stopped):
    """The write itself fails, in Python and in the code that writes tensors, with part of it on the disk."""
    config = replace(SMOKE, epochs=60)
    process = children.start(children.resume, config, tmp_path / "short", tmp_path / "told", limit)
    process.join()
    told = (tmp_path / "told").read_text()
    line = rf"CollapseError: out: \S*/{name} cannot be written \(.*File too large.*\); free space or give .*\n"
    assert re.fullmatch(line, told)
    assert_no_leftovers(tmp_path / "short" / config.fingerprint)
    assert_equal_runs(never_stopped(config), train(config, out=tmp_path / "short", resume=True))


# damaged files

DAMAGES = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "cut by one": lambda content: content[:-1],
    "zeros": lambda content: bytes(len(content)),
    "no length": lambda content: b"\xff" * 8 + content[8:],
    "json": lambda content: b"{}",
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("name", [store.CHECKPOINT, store.ARRAYS, store.CONFIG, store.ENVIRONMENT])
def test_damaged_files_are_an_error_with_the_remedy(name, damage, tmp_path, never_stopped):
    whole = never_stopped(SMOKE)
    path = tmp_path / SMOKE.fingerprint / name
    shutil.copytree(whole.folder, path.parent)
    path.write_bytes(damage(path.read_bytes().rstrip()))
    if name == store.CHECKPOINT:  # read by an unfinished run
        (path.parent / store.ENVIRONMENT).unlink()
    with pytest.raises(CollapseError, match="train again without resuming") as caught:
        train(SMOKE, out=tmp_path, resume=True)
    assert "\n" not in str(caught.value)
    assert_equal_runs(whole, train(SMOKE, out=tmp_path))


@pytest.mark.parametrize(
    "line", [b'{"step": 3', b"12", b"[]", b"{}", b'{"step": "x"}', b"\xff\xfe", b"", b"null", b"\x00" * 50, b"NaN"]
)
def test_a_torn_line_of_the_history_is_dropped(line, tmp_path, never_stopped):
    whole = never_stopped(SMOKE)
    prepare_unfinished(SMOKE, tmp_path)
    path = tmp_path / SMOKE.fingerprint / store.HISTORY
    path.write_bytes(path.read_bytes().rpartition(b"\n")[0] + b"\n" + line)
    assert_equal_runs(whole, train(SMOKE, out=tmp_path, resume=True))


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    whole = train(SMOKE, out=tmp_path)
    for key, value in (
        ("model.head.weight", torch.zeros(2, 2)),
        ("step", torch.zeros(3)),
        ("rng", torch.zeros(3)),
        ("data", torch.zeros(3)),
    ):
        tensors = store.read_tensors(whole.folder / store.CHECKPOINT)
        for changed in (tensors | {key: value}, {k: v for k, v in tensors.items() if k != key}):
            prepare_unfinished(SMOKE, tmp_path / "other")
            store.replace_tensors(tmp_path / "other" / SMOKE.fingerprint / store.CHECKPOINT, changed)
            with pytest.raises(CollapseError, match=r"(of another run .*|was trained on); train again"):
                train(SMOKE, out=tmp_path / "other", resume=True)


def test_a_run_does_not_go_on_with_other_data(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(60, 4)).astype("f4"), np.repeat([0, 1], [40, 20])
    np.savez("own.npz", X=X, y=y)
    config = replace(SMOKE, data="own.npz", largest=None)
    for finished in (False, True):
        whole = train(config, out="out", resume=True)
        if not finished:
            (whole.folder / store.ENVIRONMENT).unlink()
        for other in ({"X": X + 1e-6, "y": y}, {"X": X, "y": 1 - y}, {"X": X[1:], "y": y[1:]}):
            np.savez("own.npz", **other)
            with pytest.raises(CollapseError, match=r"data='own.npz': is not what the run in \S+ was"):
                train(config, out="out", resume=True)
        np.savez("own.npz", X=X, y=y)
        assert_equal_runs(whole, train(config, out="out", resume=True))
    np.savez("own.npz", X=X + 1, y=y)
    assert train(config, out="out").history != whole.history  # without resuming: a new run


# two runs, Ctrl-C


def wait_for(path, process):
    for _ in range(1200):
        if path.exists():
            return
        assert process.poll() is None if hasattr(process, "poll") else process.is_alive()
        time.sleep(0.05)
    raise AssertionError(f"{path} did not appear")


def test_a_second_run_on_the_same_folder_is_refused(tmp_path, capsys):
    config = replace(SMOKE, epochs=200_000)
    process = children.start(children.resume, config, tmp_path, tmp_path / "told")
    folder = tmp_path / config.fingerprint
    wait_for(folder / store.CHECKPOINT, process)
    for resuming in (False, True):
        with pytest.raises(CollapseError, match="in use by another process; wait for it"):
            train(config, out=tmp_path, resume=resuming)
    words = ["--hidden", "8", "--feature-dim", "12", "--epochs", "200000", "--largest", "30", "--out", str(tmp_path)]
    assert main(["train", *words]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert process.is_alive()
    process.kill()
    process.join()
    with store.locked(folder):  # the kernel has let go of it
        assert store.read_history(folder)


PIPES = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}


def heed_sigint():
    """What a shell has started in the background ignores Ctrl-C, and so would its children: these tests too."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_leaves_a_run_that_can_be_resumed(tmp_path):
    words = ["train", "--hidden", "8", "--feature-dim", "12", "--largest", "30", "--epochs", "200000", "--out", "here"]
    command = [sys.executable, "-m", "collapsekit.cli", *words]
    with subprocess.Popen(command, cwd=tmp_path, preexec_fn=heed_sigint, **PIPES) as process:
        config = replace(SMOKE, epochs=200_000)  # it cannot end before the signal comes
        folder = tmp_path / "here" / config.fingerprint
        wait_for(folder / store.CHECKPOINT, process)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == ""
    assert "can be resumed: repeat the command with --resume" in err
    assert "Traceback" not in err
    with pytest.raises(CollapseError, match="unfinished run; finish it with train --resume"):
        load_run(folder)
    assert_no_leftovers(folder)
    before = store.read_history(folder)
    reached = []

    def stop(step, total, objective):
        reached.append(step)
        raise InterruptedError

    with pytest.raises(InterruptedError):
        train(config, out=tmp_path / "here", resume=True, progress=stop)
    after = store.read_history(folder)
    assert after[:-1] == before[: len(after) - 1]
    assert reached == [after[-1]["step"]]
    assert len(after) > 1


def test_a_folder_below_a_file_or_without_permission(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    words = ["train", "--epochs", "1", "--hidden", "8", "--out"]
    for out in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nothing")):
        assert main([*words, str(out)]) == 2
        err = capsys.readouterr().err
        assert re.match(r"collapsekit: out='.*': .*; give a folder that can be written\n$", err)
