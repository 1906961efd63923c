"""`collapsekit measure` on features in many files."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from collapsekit.cli import main

RNG = np.random.default_rng(0)
MEANS = 3 * RNG.normal(size=(4, 6))
LABELS = RNG.integers(0, 4, 120)
FEATURES = MEANS[LABELS] + RNG.normal(size=(120, 6))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shards").mkdir()
    for i, rows in enumerate(np.array_split(np.arange(120), 3)):
        np.savez(f"shards/part{i}.npz", features=FEATURES[rows], labels=LABELS[rows])
    np.savez("head.npz", weight=MEANS, bias=np.zeros(4))
    np.savez("all.npz", features=FEATURES, labels=LABELS)
    return tmp_path


def command(*words):
    return ["measure", *words, "--head", "head.npz"]


def test_many_files_give_the_page_of_one(folder, capsys):
    assert main(command("all.npz")) == 0
    one = capsys.readouterr().out
    for paths in (["shards"], ["shards/part0.npz", "shards/part1.npz", "shards/part2.npz"], ["shards/*.npz"]):
        assert main(command(*paths)) == 0
        assert capsys.readouterr().out == one


def test_json_and_without_a_head(folder, capsys):
    for options in (["--head", "head.npz", "--weight-decay", "0.1", "--batchnorm-branches", "1"], []):
        found = []
        for paths in ("all.npz", "shards"):
            assert main(["measure", paths, *options, "--json"]) == 0
            found.append(json.loads(capsys.readouterr().out))
        one, many = found
        assert one.keys() == many.keys()
        assert one["counts"] == many["counts"]
        assert many["measurement"]["metrics"] == pytest.approx(one["measurement"]["metrics"], rel=1e-5)  # float32
        assert main(["measure", "shards", *options]) == 0
        assert "\n3  " in capsys.readouterr().out


def test_a_loss_that_depends_on_counts_gets_those_of_all_files(folder, capsys):
    found = []
    for paths in ("all.npz", "shards"):
        assert main([*command(paths), "--logit-adjustment", "1", "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out)["measurement"]["per_class"]["loss"])
    assert found[1] == pytest.approx(found[0], rel=1e-5)


def test_labels_under_another_name(folder, capsys):
    np.savez("other.npz", features=FEATURES, fine=LABELS, labels=0 * LABELS)
    assert main([*command("other.npz"), "--labels", "fine", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["counts"] == np.bincount(LABELS).tolist()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing/*.npz"], "paths='nothing/*.npz': the pattern matches no file; give .npz"),
        (["shards", "nothing.npz"], "paths='nothing.npz': 'nothing.npz': No such file or directory; give .npz"),
        (["shards", "--labels", "fine"], "shard='shards/part0.npz': labels='fine': not among its arrays 'features'"),
        (["shards", "--label-column", "fine"], "--label-column='fine': is for one table; of several files give --lab"),
        (["shards", "--class-names", "a", "b"], "names: 2 names for 4 classes"),
        (["shards", "bad.npz"], "shard='bad.npz': features: sample 7 holds nan; drop the sample, or give it the label"),
        (["shards", "cut.npz"], "shard='cut.npz': 'cut.npz' is no .npz archive; give an intact file"),
        (["shards", "--scheduler", "here"], "scheduler='here': "),
    ],
)
def test_what_the_user_can_mend_is_one_line(folder, capsys, words, message):
    bad = FEATURES.copy()
    bad[7] = np.nan
    np.savez("bad.npz", X=bad, y=LABELS)
    (folder / "cut.npz").write_bytes((folder / "all.npz").read_bytes()[:-30])
    assert main(command(*words)) == 2
    error = capsys.readouterr().err
    assert error.startswith("collapsekit: ")
    assert message in error
    assert error.count("\n") == 1


def test_an_interrupt_ends_in_one_line(folder):
    size = 2**22
    np.lib.format.open_memmap("X.npy", "w+", np.float32, (size, 6)).flush()  # zeros in a hole
    np.save("y.npy", np.arange(size) % 4)
    process = subprocess.Popen(
        [sys.executable, "-m", "collapsekit", "measure", "X.npy", "shards", "--head", "head.npz"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while not opened(process.pid, "X.npy"):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=60)
    assert (process.returncode, out, errors) == (130, "", "collapsekit: stopped.\n")


def opened(pid, name):
    try:
        handles = os.listdir(f"/proc/{pid}/fd")
        return any(os.readlink(f"/proc/{pid}/fd/{handle}").endswith(name) for handle in handles)
    except OSError:
        return False


@pytest.mark.heavy
def test_on_a_scheduler(folder, capsys):
    distributed = pytest.importorskip("distributed")
    options = {"threads_per_worker": 1, "dashboard_address": None}
    assert main([*command("shards"), "--json"]) == 0
    here = capsys.readouterr().out
    with distributed.LocalCluster(n_workers=1, **options) as cluster:
        assert main([*command("shards"), "--json", "--scheduler", cluster.scheduler_address]) == 0
        assert capsys.readouterr().out == here
    assert main([*command("shards"), "--scheduler", cluster.scheduler_address]) == 2
    with distributed.LocalCluster(n_workers=0, **options) as cluster:
        assert main([*command("shards"), "--scheduler", cluster.scheduler_address]) == 2
    assert "has no workers; start one: dask worker tcp://" in capsys.readouterr().err


def test_what_to_do_about_labels_works_as_it_is_said(folder, capsys):
    words = np.array(["ant", "bee", "cat", "dog"])
    np.savez("words.npz", features=FEATURES, labels=words[LABELS])
    assert main(command("words.npz", "shards")) == 2
    assert "give names (--class-names)" in capsys.readouterr().err
    assert main(command("words.npz", "shards", "--class-names", *words)) == 0
    table = {"features": list(map(list, FEATURES)), "fine_label": words[LABELS]}
    pq.write_table(pa.table(table), "one.parquet")
    pq.write_table(pa.table(table), "two.parquet")
    capsys.readouterr()
    assert main(command("one.parquet", "two.parquet")) == 2
    assert "'features, fine_label' as labels" in capsys.readouterr().err
    assert main(command("one.parquet", "two.parquet", "--labels", "none")) == 2
    assert "labels='none': not among its columns" in capsys.readouterr().err
    named = ("--labels", "fine_label", "--class-names", *words)
    assert main(command("one.parquet", "two.parquet", *named)) == 0
