"""sweep: the same runs whatever the executor, whatever is killed; see test_table.py for collect."""

import fcntl
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
from numpy.testing import assert_array_equal

from collapsekit import CollapseError
from collapsekit.cli import main
from collapsekit.pool import LocalPool
from collapsekit.training import TrainConfig, checkpoint, load_run, sweep, train
from collapsekit.training._sweep import configurations, part_of
from collapsekit.training.store import in_use, locked, read_history

TINY = {"epochs": 12, "hidden": (8,), "feature_dim": 12}
GRID = TINY | {"seed": range(2), "penalty_scale": [0.5, 1.5]}
SLOW = TrainConfig(epochs=1500, hidden=(8,), feature_dim=12)
FILES = {"config.json", "history.jsonl", "arrays.safetensors", "checkpoint.safetensors", "env.json", "lock"}
WAIT = 120


class Here(Executor):
    """Does each job at once, in this thread."""

    def submit(self, function, /, *args, **kwargs):
        future = Future()
        future.set_result(function(*args, **kwargs))
        return future


class Refuses(Executor):
    """For sweeps that must find everything done."""

    def submit(self, function, /, *args, **kwargs):
        raise AssertionError("nothing was left to do")


class Broken(Executor):
    def submit(self, function, /, *args, **kwargs):
        raise BrokenExecutor("gone")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The runs of the grid and the slow one, trained by `train` one after the other: what a sweep must equal."""
    out = tmp_path_factory.mktemp("alone")
    return {config: train(config, out=out).folder for config in [*configurations(GRID), SLOW]}


def assert_same_run(folder, expected):
    """All numbers equal to the last bit, and no file left over."""
    assert load_run(folder).history == load_run(expected).history
    found, wanted = (safetensors.torch.load_file(f / "arrays.safetensors") for f in (Path(folder), expected))
    assert set(found) == set(wanted)
    for key, tensor in wanted.items():
        assert_array_equal(found[key], tensor)
    assert {path.name for path in Path(folder).iterdir()} <= FILES


def assert_same_runs(outcomes, alone):
    for outcome in outcomes:
        assert outcome.finished, outcome.reason
        assert_same_run(outcome.folder, alone[outcome.config])


def test_a_grid_is_all_combinations_and_a_list_is_itself():
    grid = configurations({"seed": range(2), "hidden": [(4,), (8,)], "epochs": 3})
    assert [(c.seed, c.hidden, c.epochs) for c in grid] == [(0, (4,), 3), (0, (8,), 3), (1, (4,), 3), (1, (8,), 3)]
    assert configurations([*grid, grid[0]]) == grid
    assert configurations(iter(grid)) == grid


@pytest.mark.parametrize(
    ("configs", "fragment"),
    [
        ({"colour": [1]}, "colour"),
        ({"seed": []}, "none"),
        ([], "none"),
        ([3], "3 is no TrainConfig"),
        ([[3]], "is no TrainConfig"),
        (3, "configs=3: give a list of TrainConfig, or a grid"),
        (TrainConfig(), "give a list of TrainConfig, or a grid"),
        ({"hidden": [8, 8]}, r"hidden=\[8, 8\]: a list holds one value a run; give \[\[8, 8\]\]"),
        ({"class_names": ["a", "b"]}, "class_names=.*give "),
        ({"epochs": [0]}, "epochs=0"),
        ({"seed": range(10**9), "epochs": range(10**9)}, "combinations"),
    ],
)
def test_misuse_of_grids(configs, fragment):
    with pytest.raises(CollapseError, match=fragment):
        configurations(configs)


def test_parts_are_disjoint_and_make_up_the_whole():
    configs = configurations({"seed": range(7)})
    parts = [part_of(configs, (i, 3)) for i in (1, 2, 3)]
    assert sorted((config for part in parts for config in part), key=configs.index) == configs
    assert max(map(len, parts)) - min(map(len, parts)) == 1
    assert part_of(configs, (8, 9)) == []
    for part in ((0, 3), (4, 3), (1, 0), (1.5, 2), (1,), (1, 2, 3), "1/2", 3, (None, 2)):
        with pytest.raises(CollapseError, match=re.escape(f"part={part!r}: give (i, n) with 1 ≤ i ≤ n")):
            part_of(configs, part)


@pytest.mark.parametrize("executor", [Here, lambda: ThreadPoolExecutor(3)], ids=["here", "threads"])
def test_a_sweep_equals_runs_trained_alone(tmp_path, alone, executor):
    with executor() as pool:
        assert_same_runs(sweep(GRID, out=tmp_path, executor=pool), alone)


def test_parts_on_a_shared_folder_and_then_nothing_is_left(tmp_path, alone):
    for i in (1, 2, 3):
        outcomes = sweep(GRID, out=tmp_path, executor=Here(), part=(i, 3))
        assert [o.config for o in outcomes] == configurations(GRID)[i - 1 :: 3]
    seen = []
    outcomes = sweep(GRID, out=tmp_path, executor=Refuses(), progress=seen.append)
    assert_same_runs(outcomes, alone)
    assert [o.config for o in outcomes] == configurations(GRID)
    assert seen[-1].outcomes == tuple(outcomes)
    assert seen[-1].left == 0
    assert not seen[-1].running


def test_what_cannot_be_trained_is_an_outcome_with_its_reason(tmp_path):
    good = TrainConfig(**TINY)
    bad = [
        replace(good, data="nowhere"),
        replace(good, optimizer="sgd", learning_rate=1e9),
        replace(good, network="_support.deadly:breaks"),
    ]
    outcomes = sweep([*bad, good], out=tmp_path, executor=Here())
    assert [o.finished for o in outcomes] == [False, False, False, True]
    for outcome, fragment in zip(outcomes, ("data='nowhere'", "learning_rate=1e+09", "no such layer"), strict=False):
        assert fragment in outcome.reason
        assert "\n" not in outcome.reason
        assert json.loads((outcome.folder / "failure.json").read_text())["reason"] == outcome.reason


def test_what_failed_is_tried_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = TrainConfig(**TINY, data="late.csv", weight_decay=0.1, feature_decay=0.1)
    assert not sweep([config], executor=Here())[0].finished
    lines = ["x,y,label", *(f"{i % 7},{i % 5},{'ab'[i % 2]}" for i in range(40))]
    Path("late.csv").write_text("\n".join(lines) + "\n")
    outcome = sweep([config], executor=Here())[0]
    assert outcome.finished, outcome.reason
    assert not (outcome.folder / "failure.json").exists()


def test_a_broken_executor_ends_the_sweep_in_one_line_and_leaves_its_runs_as_they_are(tmp_path):
    with pytest.raises(CollapseError, match="executor: gone; repeat it with a new one"):
        sweep(TINY, out=tmp_path, executor=Broken())
    shut = ThreadPoolExecutor(1)
    shut.shutdown()
    with pytest.raises(CollapseError, match="executor: cannot schedule new futures after shutdown"):
        sweep(TINY, out=tmp_path, executor=shut)
    assert not list(tmp_path.iterdir())


class KilledWorker(Exception):
    """As Dask calls it."""


class LostOnDask(Here):
    """Has a client, as the executor of Dask has; its workers die, once a checkpoint each, before one survives."""

    def __init__(self, deaths):
        self.deaths, self._client = deaths, SimpleNamespace(status="running", scheduler=None)

    def submit(self, function, config, out, device, *, pure):
        assert not pure  # or Dask would give the failed task back
        if not self.deaths:
            return super().submit(function, config, out, device)
        self.deaths -= 1
        history, future = Path(out, config.fingerprint, "history.jsonl"), Future()
        history.parent.mkdir(exist_ok=True)
        with history.open("a") as handle:
            handle.write(json.dumps({"step": 9 - self.deaths}) + "\n")
        future.set_exception(KilledWorker("train_one"))
        return future


def test_a_run_that_gets_on_is_not_given_up_when_dask_gives_up_its_task(tmp_path):
    assert sweep(TINY, out=tmp_path, executor=LostOnDask(4))[0].finished


class LosesItsScheduler(Executor):
    """As the executor of Dask: jobs that never end, on a client that is closed."""

    def __init__(self):
        self._client = SimpleNamespace(status="running", scheduler=SimpleNamespace(address="tcp://there:1"))

    def submit(self, function, /, *args, **kwargs):
        self._client.status = "closed"
        return Future()


def test_a_lost_scheduler_ends_the_sweep_in_one_line(tmp_path):
    with pytest.raises(CollapseError, match="scheduler='tcp://there:1': connection lost; start it again"):
        sweep(TINY, out=tmp_path, executor=LosesItsScheduler())


class Preempted(Executor):
    """Loses every worker at its next checkpoint, five times."""

    def __init__(self):
        self.lost = 0

    def submit(self, function, config, out, device):
        future, history = Future(), Path(out, config.fingerprint, "history.jsonl")
        if self.lost == 5:
            future.set_result(function(config, out, device))
        else:
            self.lost += 1
            history.parent.mkdir(exist_ok=True)
            with history.open("a") as handle:
                handle.write(json.dumps({"step": self.lost}) + "\n")
            future.cancel()
            future.set_running_or_notify_cancel()
        return future


def test_a_run_that_gets_on_is_not_given_up_however_often_its_worker_is_lost(tmp_path):
    assert sweep(TINY, out=tmp_path, executor=Preempted())[0].finished


class Elsewhere(Executor):
    """Workers that see another folder."""

    def submit(self, function, config, out, device):
        future = Future()
        future.set_result(function(config, f"{out}-elsewhere", device))
        return future


def test_workers_that_do_not_see_the_folder_are_found_out(tmp_path):
    outcomes = sweep(TINY, out=tmp_path / "runs", executor=Elsewhere())
    assert "give a folder that the workers see too" in outcomes[0].reason


@pytest.mark.parametrize("what", ["a folder as lock", "a file as folder"])
def test_a_folder_of_no_use_fails_alone(tmp_path, what):
    odd, good = TrainConfig(**TINY), TrainConfig(**TINY, seed=1)
    if what == "a file as folder":
        (tmp_path / odd.fingerprint).touch()
    else:
        (tmp_path / odd.fingerprint / "lock").mkdir(parents=True)
    outcomes = sweep([odd, good], out=tmp_path, executor=Here())
    assert [outcome.finished for outcome in outcomes] == [False, True]
    assert str(tmp_path / odd.fingerprint) in outcomes[0].reason


class Raises(Executor):
    def submit(self, function, /, *args, **kwargs):
        future = Future()
        future.set_exception(KeyError("lost on the way"))
        return future


def test_a_folder_of_no_use_does_not_hide_why_a_worker_failed(tmp_path):
    (tmp_path / TrainConfig(**TINY).fingerprint).touch()
    assert sweep(TINY, out=tmp_path, executor=Raises())[0].reason == "KeyError: 'lost on the way'"


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def add_layer(path):
    tensors = safetensors.torch.load_file(path)
    safetensors.torch.save_file(tensors | {"model.other": torch.ones(2)}, path)


DAMAGES = {
    "half the arrays": lambda folder: halve(folder / "arrays.safetensors"),
    "no arrays": lambda folder: (folder / "arrays.safetensors").unlink(),
    "garbage as configuration": lambda folder: (folder / "config.json").write_text("garbage"),
    "nested garbage as configuration": lambda folder: (folder / "config.json").write_text("[" * 100_000),
    "the configuration of another run": lambda folder: (folder / "config.json").write_text(
        json.dumps(TrainConfig(seed=5).to_dict())
    ),
    "half the environment": lambda folder: halve(folder / "env.json"),
    "half the checkpoint": lambda folder: halve(folder / "checkpoint.safetensors"),
    "half the checkpoint of an unfinished run": lambda folder: (
        halve(folder / "checkpoint.safetensors"),
        (folder / "env.json").unlink(),
    ),
    "the checkpoint of another network": lambda folder: (
        add_layer(folder / "checkpoint.safetensors"),
        (folder / "env.json").unlink(),
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_run_is_trained_anew(tmp_path, alone, damage):
    config = configurations(GRID)[0]
    folder = Path(shutil.copytree(alone[config], tmp_path / config.fingerprint))
    DAMAGES[damage](folder)
    assert_same_runs(sweep([config], out=tmp_path, executor=Here()), alone)
    assert TrainConfig.from_dict(json.loads((folder / "config.json").read_text())) == config


def test_a_finished_run_is_not_read_for_other_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = ["x,y,label", *(f"{i % 7},{i % 5},{'ab'[i % 2]}" for i in range(40))]
    Path("own.csv").write_text("\n".join(lines) + "\n")
    configs = [TrainConfig(**TINY, seed=s, data="own.csv", weight_decay=0.1, feature_decay=0.1) for s in range(2)]
    assert all(outcome.finished for outcome in sweep(configs, executor=Here()))
    Path("own.csv").write_text("\n".join(lines[:-4]) + "\n")
    for outcome in sweep(configs, executor=Refuses()):
        with pytest.raises(CollapseError) as error:
            train(outcome.config, resume=True)
        assert outcome.reason.replace(f"{tmp_path}/", "") == str(error.value)
        assert "data='own.csv'" in outcome.reason
    Path("own.csv").unlink()  # perhaps only the workers see it
    assert all(outcome.finished for outcome in sweep(configs, executor=Refuses()))


def test_all_files_of_a_run_have_the_mode_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        folder = train(TrainConfig(**TINY), out=tmp_path).folder
    finally:
        os.umask(before)
    assert {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()} == dict.fromkeys(FILES, 0o640)


def test_folders_that_cannot_be_written_are_refused(tmp_path):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", "a\0b", "", None, 3):
        with pytest.raises(CollapseError, match="out="):
            sweep(TINY, out=out, executor=Refuses())


def test_a_killed_worker_costs_its_run_what_came_after_the_last_checkpoint(tmp_path, alone):
    configs = [SLOW, configurations(GRID)[0]]
    victims, steps = [], []

    def watch(standing):
        if SLOW in standing.running:
            steps.append(standing.running[SLOW])
            if not victims and steps[-1] > 20:  # there is a checkpoint
                victims.extend(multiprocessing.active_children())
                victims[0].kill()
                victims[0].join()
                steps[:] = [checkpointed(tmp_path / SLOW.fingerprint)]

    outcomes = sweep(configs, out=tmp_path, workers=1, progress=watch)
    assert len(victims) == 1
    assert 0 < steps[0] < SLOW.epochs
    assert steps == sorted(steps)  # never below the checkpoint
    assert_same_runs(outcomes, alone)
    assert not multiprocessing.active_children()


def checkpointed(folder):
    return int(safetensors.torch.load_file(folder / "checkpoint.safetensors")["step"])


@pytest.mark.heavy
def test_a_run_that_always_kills_its_worker_is_given_up_and_the_others_are_not(tmp_path, alone):
    deadly, steps = replace(SLOW, network="_support.deadly:kills"), []
    outcomes = sweep(
        [deadly, SLOW], out=tmp_path, progress=lambda standing: steps.append(standing.running.get(SLOW, 0))
    )
    assert outcomes[0].reason == "the worker died with exit code -9; is there memory enough? (3 times in a row)"
    assert_same_runs(outcomes[1:], alone)
    trained = [step for step in steps if step]
    assert trained == sorted(trained)


def fails():
    raise KeyError("x")


@pytest.mark.heavy
def test_the_pool_returns_what_jobs_raise_and_replaces_the_dead():
    with LocalPool(1) as pool:
        pid = pool.submit(os.getpid).result()
        with pytest.raises(KeyError, match="x"):
            pool.submit(fails).result()
        with pytest.raises(BrokenExecutor, match="exit code 3"):
            pool.submit(os._exit, 3).result()
        assert pool.submit(os.getpid).result() not in (pid, os.getpid())
    with pytest.raises(RuntimeError):
        pool.submit(os.getpid)


def test_a_run_of_another_process_is_waited_for_and_taken_over_when_that_dies(tmp_path, alone):
    config = configurations(GRID)[0]
    folder = tmp_path / config.fingerprint
    folder.mkdir()
    code = (
        "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, 2); print(1, flush=True); time.sleep(99)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, folder / "lock"], stdout=subprocess.PIPE)
    seen = []

    def watch(standing):
        seen.append(standing)
        if len(seen) == 3:
            holder.kill()

    with holder:
        holder.stdout.readline()
        outcomes = sweep([config], out=tmp_path, executor=Here(), progress=watch)
    assert [config in standing.running for standing in seen[:3]] == [True] * 3
    assert_same_runs(outcomes, alone)


@pytest.mark.heavy
def test_two_sweeps_of_one_folder_share_the_work_and_both_return_all_of_it(tmp_path, alone):
    found = {}

    def run(name):
        found[name] = sweep([*configurations(GRID), SLOW], out=tmp_path, workers=1)

    threads = [threading.Thread(target=run, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for outcomes in found.values():
        assert_same_runs(outcomes, alone)


COMMAND = [sys.executable, "-W", "error", "-m", "collapsekit.cli", "sweep", "--out", "runs", "--feature-dim", "12"]
COMMAND += ["--hidden", "8", "--epochs", "1500", "--seeds", "0:1"]


def started(folder):
    """A sweep in a process (and process group) of its own, once its run has a checkpoint; and its child processes."""
    process = subprocess.Popen(
        COMMAND,
        cwd=folder,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored, if the tests run in the background
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    run = folder / "runs" / SLOW.fingerprint
    until(lambda: (run / "checkpoint.safetensors").exists() and checkpointed(run) > 20)
    return process, children(process.pid)


def until(condition):
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def children(pid):
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(word) for word in listed.stdout.split()]


def gone(pid):
    """Whether a process has ended; one that nobody has reaped yet has ended too."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.heavy
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda how: how.name)
def test_a_killed_sweep_leaves_no_process_and_goes_on_where_it_was(tmp_path, alone, how, monkeypatch):
    process, workers = started(tmp_path)
    assert workers
    if how == signal.SIGINT:
        os.killpg(process.pid, how)  # Ctrl-C reaches the whole group
    else:
        process.send_signal(how)
    _, errors = process.communicate(timeout=WAIT)
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert "repeat the command" in errors
        assert "Traceback" not in errors
    until(lambda: all(map(gone, workers)))
    folder = tmp_path / "runs" / SLOW.fingerprint
    evaluated, kept, restored = [e["step"] for e in read_history(folder)], checkpointed(folder), []
    assert kept in evaluated[-2:]  # nothing lost beyond one interval
    restore = checkpoint.restore
    monkeypatch.setattr(checkpoint, "restore", lambda *where: restored.append(restore(*where)) or restored[-1])
    assert_same_runs(sweep([SLOW], out=tmp_path / "runs", executor=Here()), alone)
    assert restored == [kept]


@pytest.mark.heavy
def test_a_killed_dask_worker_costs_no_more_and_the_table_is_the_same(tmp_path, alone):
    distributed = pytest.importorskip("distributed")
    victims, steps = [], []

    def watch(standing):
        steps.append(standing.running.get(SLOW, 0))
        if not victims and steps[-1] > 20:  # there is a checkpoint
            victims.extend(client.run(os.getpid).values())
            for pid in victims:
                os.kill(pid, signal.SIGKILL)
            until(lambda: all(map(gone, victims)))
            steps[:] = [checkpointed(tmp_path / SLOW.fingerprint)]

    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        outcomes = sweep([SLOW, *configurations(GRID)], out=tmp_path, executor=client.get_executor(), progress=watch)
    assert len(victims) == 2
    assert 0 < steps[0] < SLOW.epochs
    trained = [step for step in steps if step]
    assert trained == sorted(trained)
    assert_same_runs(outcomes, alone)


@pytest.mark.heavy
def test_the_command_trains_on_a_scheduler_and_refuses_an_address_where_there_is_none(tmp_path, alone, monkeypatch):
    distributed = pytest.importorskip("distributed")
    monkeypatch.chdir(tmp_path)
    command = ["sweep", "--feature-dim", "12", "--hidden", "8", "--epochs", "12", "--penalty-scale", "0.5,1.5"]
    with distributed.LocalCluster(n_workers=1, threads_per_worker=4, dashboard_address=None) as cluster:
        assert main([*command, "--seeds", "0:2", "--scheduler", cluster.scheduler_address]) == 0
    for config in configurations(GRID):
        assert_same_run(tmp_path / "runs" / config.fingerprint, alone[config])
    assert main([*command, "--scheduler", cluster.scheduler_address]) == 2


def test_the_lock_is_free_once_it_was_asked_for(tmp_path):
    """`in_use` must not keep others out."""
    assert not in_use(tmp_path)
    with locked(tmp_path):
        assert in_use(tmp_path)
    assert not in_use(tmp_path)
    with (tmp_path / "lock").open() as handle:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.heavy
def test_a_scheduler_without_workers_is_refused_within_seconds(tmp_path, monkeypatch, capsys):
    distributed = pytest.importorskip("distributed")
    monkeypatch.chdir(tmp_path)
    with distributed.LocalCluster(n_workers=0, dashboard_address=None) as cluster:
        assert main(["sweep", "--epochs", "2", "--seeds", "0:1", "--scheduler", cluster.scheduler_address]) == 2
    assert "has no workers; start one: dask worker tcp://" in capsys.readouterr().err


@pytest.mark.parametrize("odd", ["a link", "a pipe", "a folder"])
def test_a_lock_that_is_no_file_is_refused_and_nothing_waits_for_it(tmp_path, odd):
    lock = tmp_path / "lock"
    {"a link": lambda: lock.symlink_to("victim"), "a pipe": lambda: os.mkfifo(lock), "a folder": lock.mkdir}[odd]()
    assert not in_use(tmp_path)
    with pytest.raises(CollapseError, match=r"lock cannot be written \("), locked(tmp_path):
        pass
    assert not (tmp_path / "victim").exists()
