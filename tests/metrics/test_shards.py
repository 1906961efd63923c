"""Features in many files: the numbers of measure_features on all of them, in any split, from any executor."""

import io
import json
import os
import signal
import subprocess
import sys
import zipfile
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
import torch
from children import CONTEXT
from hypothesis import given, settings
from hypothesis import strategies as st

from collapsekit import CollapseError, CrossEntropy
from collapsekit.metrics import measure_features, measure_shards, shard_jobs
from collapsekit.pool import LocalPool
from conftest import ALL

RNG = np.random.default_rng(0)
CLASSES, DIM, SIZE = 4, 6, 90
MEANS = 2 * RNG.normal(size=(CLASSES, DIM))
LABELS = RNG.permutation(np.repeat(range(CLASSES), [50, 25, 14, 1]))
FEATURES = MEANS[LABELS] + RNG.normal(size=(SIZE, DIM))
WEIGHT, BIAS = MEANS + 0.3 * RNG.normal(size=MEANS.shape), RNG.normal(size=CLASSES)


def npy(array, version=None):
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, version, allow_pickle=True)
    return stream.getvalue()


def columns(x):
    return {f"x{k}": x[:, k] for k in range(x.shape[1])}


def fixed(x):
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(x).ravel()), x.shape[1])


def write_pair(path, x, y, version=None):
    path.with_suffix(".npy").write_bytes(npy(x, version))
    path.with_name(f"{path.name}_labels.npy").write_bytes(npy(y))


FORMS = {
    "npz": lambda path, x, y: np.savez(path, features=x, labels=y),
    "npz, X and y, compressed": lambda path, x, y: np.savez_compressed(path, X=x, y=y),
    "npz, columns first": lambda path, x, y: np.savez(path, X=np.asfortranarray(x), y=y),
    "npy": write_pair,
    "npy, columns first": lambda path, x, y: write_pair(path, np.asfortranarray(x), y),
    "npy, version 2": lambda path, x, y: write_pair(path, x, y, (2, 0)),
    "safetensors": lambda path, x, y: safetensors.numpy.save_file(
        {"features": np.ascontiguousarray(x), "labels": y}, path.with_suffix(".safetensors")
    ),
    "parquet of lists": lambda path, x, y: pq.write_table(
        pa.table({"features": pa.array(list(x), pa.list_(pa.from_numpy_dtype(x.dtype))), "label": y}),
        path.with_suffix(".parquet"),
        row_group_size=7,
    ),
    "parquet of lists of one length": lambda path, x, y: pq.write_table(
        pa.table({"id": [f"image {i}" for i in range(len(x))], "X": fixed(x), "labels": y}),
        path.with_suffix(".parquet"),
    ),
    "parquet of columns": lambda path, x, y: pq.write_table(
        pa.table(columns(x) | {"target": y}), path.with_suffix(".parquet")
    ),
}


def write(folder, cuts, forms, x=FEATURES, y=LABELS):
    folder.mkdir(exist_ok=True)
    for i, (start, stop) in enumerate(zip([0, *cuts], [*cuts, len(x)], strict=True)):
        FORMS[forms[i % len(forms)]](folder / f"part{i:02}", x[start:stop], y[start:stop])
    return folder


def assert_equal(measured, expected, rtol=1e-12, without=()):
    np.testing.assert_array_equal(measured.counts, expected.counts)
    for ours, theirs in (
        (measured.metrics(), expected.metrics()),
        (measured.per_class(), expected.per_class()),
        ({"S": measured.moments.scatter}, {"S": expected.moments.scatter}),
    ):
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            if key in without:
                continue
            np.testing.assert_allclose(ours[key], value, rtol=rtol, atol=rtol, err_msg=key)
    assert measured.nonnegative == expected.nonnegative


@pytest.fixture
def few_rows(monkeypatch):
    """Blocks of three rows, so that small files have several."""
    monkeypatch.setattr(shard_jobs, "BLOCK_BYTES", 3 * 8 * (DIM + CLASSES))


@pytest.mark.parametrize("form", FORMS)
def test_every_format_gives_the_numbers_of_all_samples_together(tmp_path, few_rows, form):
    write(tmp_path, [20, 21, 21, 70], [form])
    measured = measure_shards(tmp_path, (WEIGHT, BIAS))
    assert_equal(measured, measure_features(FEATURES, LABELS, WEIGHT, BIAS))


@settings(max_examples=100 if ALL else 10)
@given(
    cuts=st.lists(st.integers(0, SIZE), max_size=6).map(sorted),
    forms=st.lists(st.sampled_from(list(FORMS)), min_size=1, max_size=4),
    rows=st.integers(1, 40),
)
def test_any_split_over_files_and_blocks_gives_the_same_numbers(tmp_path_factory, cuts, forms, rows):
    folder = write(tmp_path_factory.mktemp("shards"), cuts, forms)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_jobs, "BLOCK_BYTES", rows * 8 * (DIM + CLASSES))
        measured = measure_shards(folder, (WEIGHT, BIAS))
    assert_equal(measured, measure_features(FEATURES, LABELS, WEIGHT, BIAS))


@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f8", "i1", "u2", "i8", "bool", "longdouble"])
@pytest.mark.parametrize("form", ["npz", "npy, columns first"])
def test_other_types_of_numbers(tmp_path, few_rows, dtype, form):
    x = (4 * FEATURES).astype(dtype)
    write(tmp_path, [40], [form], x)
    exact = x.astype(np.float32 if x.itemsize <= 2 else np.float64)
    assert_equal(measure_shards(tmp_path, WEIGHT), measure_features(exact, LABELS, WEIGHT), 1e-6)


@pytest.mark.parametrize("dtype", ["uint8", ">i2", "uint64", "float32"])
def test_other_types_of_labels(tmp_path, few_rows, dtype):
    write(tmp_path, [40], ["npz"], y=LABELS.astype(dtype))
    assert_equal(measure_shards(tmp_path, WEIGHT), measure_features(FEATURES, LABELS, WEIGHT))


def test_bfloat16(tmp_path, few_rows):
    x = torch.from_numpy(FEATURES).bfloat16()
    from safetensors.torch import save_file

    save_file({"X": x, "y": torch.from_numpy(LABELS)}, tmp_path / "one.safetensors")
    expected = measure_features(x.double(), LABELS, WEIGHT)
    assert_equal(measure_shards(tmp_path, WEIGHT), expected, 1e-6)
    np.savez(tmp_path / "one.npz", X=x.view(torch.uint16).numpy().view("V2"), y=LABELS)
    assert_equal(measure_shards(tmp_path / "one.npz", WEIGHT), expected, 1e-6)


def test_files_of_different_precision_join(tmp_path):
    x = FEATURES.astype(np.float32)
    FORMS["npz"](tmp_path / "a", x[:30], LABELS[:30])
    FORMS["npy"](tmp_path / "b", x[30:].astype(np.float64), LABELS[30:].astype(np.int16))
    assert_equal(measure_shards(tmp_path, WEIGHT), measure_features(x.astype(np.float64), LABELS, WEIGHT), 1e-6)


def test_tokens_and_labels_that_do_not_count(tmp_path, few_rows):
    x, y = FEATURES.reshape(30, 3, DIM).copy(), LABELS.reshape(30, 3).copy()
    y[3:5, 1] = -100
    x[3, 1] = np.nan  # nobody looks there
    write(tmp_path, [11], ["npz", "npy, columns first"], x, y)
    kept = y.ravel() >= 0
    expected = measure_features(x.reshape(-1, DIM)[kept], y.ravel()[kept], WEIGHT)
    assert_equal(measure_shards(tmp_path, WEIGHT), expected)
    y[y == -100] = 7
    write(tmp_path, [11], ["npz", "npy, columns first"], x, y)
    assert_equal(measure_shards(tmp_path, WEIGHT, ignore_index=7), expected)


@pytest.mark.parametrize("form", ["npz", "parquet of lists", "safetensors", "npy"])
def test_without_a_head_classes_and_width_are_those_of_the_files(tmp_path, form):
    write(tmp_path, [40, 40], [form])
    measured = measure_shards(tmp_path)
    assert_equal(measured, measure_features(FEATURES, LABELS))
    assert measured.centre_agreement is None
    assert_equal(measure_shards(tmp_path, num_classes=6), measure_features(FEATURES, LABELS, num_classes=6))


def test_one_pass_leaves_nearest_centres_out_and_nothing_else(tmp_path):
    told = []
    write(tmp_path, [40], ["npz"])
    measured = measure_shards(tmp_path, WEIGHT, centres=False, progress=lambda *far: told.append(far))
    both = measure_shards(tmp_path, WEIGHT)
    assert measured.centre_agreement is None
    assert both.centre_agreement is not None
    assert {k: v for k, v in both.metrics().items() if k != "ncc"} == measured.metrics()
    assert told[-1] == (2, 2)
    assert told == sorted(told)


def digits(measured):
    """All numbers of a measurement, to the last digit; what is not known equals what is not known."""
    return json.dumps(measured.to_dict())


def test_every_form_of_a_head(tmp_path):
    write(tmp_path / "shards", [40], ["npz"])
    linear = torch.nn.Linear(DIM, CLASSES).double()
    with torch.no_grad():
        linear.weight[:], linear.bias[:] = torch.from_numpy(WEIGHT), torch.from_numpy(BIAS)
    np.savez(tmp_path / "head.npz", **{"fc.weight": WEIGHT, "fc.bias": BIAS})
    expected = digits(measure_shards(tmp_path / "shards", (WEIGHT, BIAS)))
    for head in (linear, tmp_path / "head.npz", f"{tmp_path}/head.npz:fc", (torch.from_numpy(WEIGHT), BIAS)):
        assert digits(measure_shards(tmp_path / "shards", head)) == expected
    y = np.minimum(LABELS, 1)
    write(tmp_path / "two", [40], ["npz"], y=y)
    assert_equal(measure_shards(tmp_path / "two", WEIGHT[:1]), measure_features(FEATURES, y, WEIGHT[:1]))


def test_a_loss_may_depend_on_the_counts(tmp_path):
    write(tmp_path, [40], ["npz"])

    def adjusted(counts):
        return CrossEntropy.logit_adjusted(counts, 1.0)

    expected = measure_features(FEATURES, LABELS, WEIGHT, loss=adjusted(np.bincount(LABELS)))
    for centres in (True, False):
        measured = measure_shards(tmp_path, WEIGHT, loss=adjusted, centres=centres)
        np.testing.assert_allclose(measured.losses, expected.losses, rtol=1e-12)
        assert measured.loss == expected.loss


def test_words_are_found_among_the_names(tmp_path):
    names = ["d", "a", "b", "c"]
    words = np.array(names)[LABELS]
    write(tmp_path, [40], ["npz", "npy"], y=words)
    pq.write_table(
        pa.table({"X": list(FEATURES), "label": pa.array(words.tolist()).dictionary_encode()}), tmp_path / "z.parquet"
    )
    measured = measure_shards(tmp_path, WEIGHT, names=names)
    twice = np.concatenate([FEATURES, FEATURES]), np.concatenate([LABELS, LABELS])
    assert_equal(measured, measure_features(*twice, WEIGHT))
    assert measured.names == tuple(names)
    with pytest.raises(CollapseError, match=r"shard='.*part00.npz': labels: are words; give names"):
        measure_shards(tmp_path, WEIGHT)
    with pytest.raises(CollapseError, match=r"part0.\.npz': labels: sample \d+ has 'c', which is not among the names"):
        measure_shards(tmp_path, WEIGHT, names=["a", "b", "d", "e"])


def test_names_that_the_files_bring_must_agree(tmp_path):
    for i, names in enumerate((list("abcd"), list("abcd"), list("bacd"))):
        np.savez(tmp_path / f"{i}.npz", X=FEATURES, y=LABELS, names=np.array(names))
    assert measure_shards(tmp_path / "[01].npz", WEIGHT).names == tuple("abcd")
    assert measure_shards(tmp_path / "[01].npz").names == tuple("abcd")
    for head in (WEIGHT, None):
        with pytest.raises(CollapseError, match=r"2.npz': names: \('b', 'a', 'c', 'd'\) differ from \('a', 'b'"):
            measure_shards(tmp_path, head)
    with pytest.raises(CollapseError, match="differ"):
        measure_shards(tmp_path / "2.npz", WEIGHT, names=list("abcd"))


# which files


def test_a_file_that_is_met_twice_counts_once(tmp_path):
    write(tmp_path, [40], ["npz", "npy"])
    (tmp_path / "link.npz").symlink_to("part00.npz")
    (tmp_path / ".hidden.npz").write_bytes(b"of a file system")
    (tmp_path / "notes.txt").write_text("left alone")
    paths = [tmp_path, tmp_path / "*.npz", tmp_path / "part00.npz", *tmp_path.glob("*.npy")]
    assert_equal(measure_shards(paths, WEIGHT), measure_features(FEATURES, LABELS, WEIGHT))


def test_patterns_reach_sub_folders_and_folders_do_not(tmp_path):
    write(tmp_path / "a", [40], ["npz"])
    expected = measure_features(FEATURES, LABELS, WEIGHT)
    assert_equal(measure_shards(f"{tmp_path}/**/*.npz", WEIGHT), expected)
    assert_equal(measure_shards(f"{tmp_path}/*", WEIGHT), expected)
    with pytest.raises(CollapseError, match="no shards in the folder; give"):
        measure_shards(tmp_path, WEIGHT)


@pytest.mark.parametrize(
    ("features", "labels"),
    [
        ("features.npy", "labels.npy"),
        ("anything.npy", "labels.npy"),
        ("X.npy", "y.npy"),
        ("train_features_00.npy", "train_labels_00.npy"),
        ("embeddings-3.npy", "labels-3.npy"),
        ("part.npy", "part_labels.npy"),
    ],
)
def test_labels_lie_beside_features(tmp_path, features, labels):
    np.save(tmp_path / features, FEATURES)
    np.save(tmp_path / labels, LABELS)
    for paths in (tmp_path, tmp_path / features, [tmp_path / labels, tmp_path / features]):
        assert_equal(measure_shards(paths, WEIGHT), measure_features(FEATURES, LABELS, WEIGHT))


def test_labels_of_one_file_label_no_other(tmp_path):
    for name in ("a.npy", "b.npy"):
        np.save(tmp_path / name, FEATURES)
    np.save(tmp_path / "labels.npy", LABELS)
    with pytest.raises(CollapseError, match=r"labels.npy would label a.npy, too; give each shard its own, such as b_l"):
        measure_shards(tmp_path, WEIGHT)
    np.save(tmp_path / "b_labels.npy", LABELS)
    np.save(tmp_path / "c_labels.npy", LABELS)
    with pytest.raises(CollapseError, match=r"c_labels.npy': is called like labels, and no features are given"):
        measure_shards(tmp_path, WEIGHT)


def test_the_head_is_no_shard_unless_it_holds_features(tmp_path):
    write(tmp_path, [40], ["npz"])
    expected = measure_features(FEATURES, LABELS, WEIGHT)
    np.savez(tmp_path / "head.npz", weight=WEIGHT)
    assert_equal(measure_shards(tmp_path, tmp_path / "head.npz"), expected)
    with pytest.raises(CollapseError, match=r"head.npz': holds a head and no features; give it as head"):
        measure_shards(tmp_path, WEIGHT)
    (tmp_path / "head.npz").unlink()
    np.savez(tmp_path / "part00.npz", weight=WEIGHT, X=FEATURES[:40], y=LABELS[:40])
    assert_equal(measure_shards(tmp_path, tmp_path / "part00.npz"), expected)


# executors


class Backwards(Executor):
    """Does what was given last first, whenever somebody waits for a result."""

    _max_workers = 3

    def __init__(self):
        self.calls, self.order = [], []

    def submit(self, function, *args):
        future = Future()
        self.calls.append((future, function, args))
        if len(self.calls) == 2 * self._max_workers or args[0].name == "part09.npz":
            for other, called, given_to in reversed(self.calls):
                other.set_result(called(*given_to))
                self.order.append(given_to[0].name)
            self.calls.clear()
        return future


def test_who_is_done_first_does_not_matter_to_the_last_bit(tmp_path):
    write(tmp_path, range(9, 82, 9), ["npz"])
    pool = Backwards()
    assert digits(measure_shards(tmp_path, WEIGHT, pool)) == digits(measure_shards(tmp_path, WEIGHT))
    assert pool.order != sorted(pool.order)


@pytest.mark.parametrize("context", [CONTEXT, pytest.param(get_context("spawn"), marks=pytest.mark.heavy)])
def test_processes_give_the_same_to_the_last_bit(tmp_path, monkeypatch, context):
    write(tmp_path / "shards", [40, 60], ["npz", "npy", "parquet of lists"])
    with ProcessPoolExecutor(1, context) as pool:
        pool.submit(shard_jobs.silent, 0.0).result()  # it starts, in another folder
        monkeypatch.chdir(tmp_path)
        here = measure_shards("shards", (WEIGHT, BIAS))
        assert digits(measure_shards("shards", (WEIGHT, BIAS), pool)) == digits(here)
        np.savez("shards/part05.npz", X=FEATURES + np.nan, y=LABELS)
        with pytest.raises(CollapseError, match=r"part05.npz': features: sample 0 holds nan; drop the sample"):
            measure_shards("shards", (WEIGHT, BIAS), pool)


@pytest.mark.heavy
def test_a_killed_worker_costs_its_file_only(tmp_path):
    write(tmp_path, range(9, 82, 9), ["npz"])
    killed = []

    def kill(done, total):
        if done in (1, 12):
            killed.extend(worker.process.pid for worker in pool._alive)
            for pid in killed[-1:]:
                os.kill(pid, signal.SIGKILL)

    with LocalPool(1) as pool:
        measured = measure_shards(tmp_path, WEIGHT, pool, progress=kill)
    assert len(killed) == 2
    assert digits(measured) == digits(measure_shards(tmp_path, WEIGHT))


class Deadly(Executor):
    """All of whose workers die."""

    def submit(self, function, *args):
        future = Future()
        future.set_exception(BrokenError())
        return future


class BrokenError(Exception):
    """Dask's own."""


BrokenError.__name__ = "KilledWorker"


def test_a_file_that_kills_three_workers_is_named(tmp_path):
    write(tmp_path, [40], ["npz"])
    with pytest.raises(CollapseError, match=r"part00.npz': 3 workers died of it; is there memory enough"):
        measure_shards(tmp_path, WEIGHT, Deadly())


def test_a_broken_pool_ends_in_one_line(tmp_path):
    write(tmp_path, [40], ["npz"])
    with ProcessPoolExecutor(1, CONTEXT) as pool:
        pool.submit(os.kill, pool.submit(os.getpid).result(), signal.SIGKILL).exception()
        with pytest.raises(CollapseError, match=r"executor: .*; repeat it with a new one"):
            measure_shards(tmp_path, WEIGHT, pool)
    with pytest.raises(CollapseError, match="executor='here': give a concurrent"):
        measure_shards(tmp_path, WEIGHT, "here")


@pytest.mark.heavy
def test_on_dask_a_killed_worker_a_lost_cluster_and_none(tmp_path):
    distributed = pytest.importorskip("distributed")
    write(tmp_path, range(9, 82, 9), ["npz"])
    here = digits(measure_shards(tmp_path, WEIGHT))
    options = {"threads_per_worker": 1, "dashboard_address": None}
    killed = []

    def kill(done, total):
        if done == 2:
            killed.extend(client.run(os.getpid).values())
            os.kill(killed[0], signal.SIGKILL)

    with distributed.LocalCluster(n_workers=2, **options) as cluster, distributed.Client(cluster) as client:
        assert digits(measure_shards(tmp_path, WEIGHT, client.get_executor())) == here
        assert digits(measure_shards(tmp_path, WEIGHT, client, progress=kill)) == here
        assert len(killed) == 2
    with (
        distributed.LocalCluster(n_workers=0, **options) as cluster,
        distributed.Client(cluster) as client,
        pytest.raises(CollapseError, match="has no workers; start one: dask worker tcp://"),
    ):
        measure_shards(tmp_path, WEIGHT, client)


@pytest.mark.heavy
def test_a_scheduler_that_dies_meanwhile_ends_in_one_line(tmp_path):
    distributed = pytest.importorskip("distributed")
    write(tmp_path / "shards", range(9, 82, 9), ["npz"])
    file = tmp_path / "scheduler.json"
    commands = {"scheduler": ["--port", "0", "--no-dashboard"], "worker": ["--nthreads", "1", "--no-dashboard"]}
    path = {"PYTHONPATH": os.pathsep.join(sys.path)}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "dask", part, "--scheduler-file", str(file), *words],
            env=os.environ | path,
            stderr=subprocess.DEVNULL,
        )
        for part, words in commands.items()
    ]

    def kill(done, total):
        if done == 2:
            started[0].kill()
            started[0].wait()

    try:
        with distributed.Client(scheduler_file=str(file), timeout="60s") as client:
            client.wait_for_workers(1, timeout=60)
            with pytest.raises(CollapseError, match=r"scheduler='tcp://.*': connection lost; start it again"):
                measure_shards(tmp_path / "shards", WEIGHT, client, progress=kill)
    finally:
        for process in started:
            process.kill()
            process.wait()


# what is refused


def refused(folder, head=(WEIGHT, BIAS), **options):
    with pytest.raises(CollapseError) as caught:
        measure_shards(folder, head, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def changed(array, where, value):
    array = array.copy()
    array[where] = value
    return array


WIDE = np.concatenate([FEATURES, FEATURES], axis=1)
BAD_ARRAYS = {
    "another width": (WIDE, LABELS, "features: width 12; expected 6"),
    "a label too large": (FEATURES, changed(LABELS, 60, 4), "labels: sample 60 has 4; expected 0 to 3"),
    "a negative label": (FEATURES, changed(LABELS, 61, -1), "labels: sample 61 has -1; expected 0 to 3"),
    "a label of uint64": (FEATURES, changed(LABELS.astype("u8"), 1, 2**63), "labels: sample 1 has 9223372036854775808"),
    "a broken label": (FEATURES, changed(LABELS * 1.0, 62, 0.5), "labels: sample 62 has 0.5; give whole numbers"),
    "no label": (FEATURES, changed(LABELS * 1.0, 62, np.nan), "labels: sample 62 has nan; give whole numbers"),
    "NaN": (changed(FEATURES, (63, 2), np.nan), LABELS, "features: sample 63 holds nan; drop the sample"),
    "infinity": (changed(FEATURES, (63, 2), -np.inf), LABELS, "features: sample 63 holds -inf"),
    "words for features": (np.full(FEATURES.shape, "a"), LABELS, "features: dtype '<U1'; give real numbers"),
    "complex": (FEATURES * 1j, LABELS, "features: dtype 'complex128'; give real numbers"),
    "objects": (FEATURES.astype(object), LABELS, "it is not a plain array"),
    "a vector": (FEATURES[:, 0], LABELS, "features: shape (90,); give one row a sample, (N, d)"),
    "no width": (FEATURES[:, :0], LABELS, "features: shape (90, 0); give one row a sample"),
    "a label too few": (FEATURES, LABELS[1:], "labels: shape (89,) for features of shape (90, 6); expected (90,)"),
    "one-hot": (FEATURES, np.eye(4)[LABELS], "labels: shape (90, 4) for features of shape (90, 6); expected (90,)"),
    "labels of bool": (FEATURES, LABELS > 0, "labels: dtype 'bool'; give whole numbers"),
    "complex labels": (FEATURES, LABELS * 1j, "labels: dtype 'complex128'; give whole numbers"),
    "huge": (changed(FEATURES, 5, 1e200), LABELS, "features: squares overflow float64"),
}


@pytest.mark.parametrize("form", ["npz", "npy, columns first"])
@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_a_bad_shard_is_named_with_its_sample(tmp_path, few_rows, case, form):
    x, y, message = BAD_ARRAYS[case]
    write(tmp_path, [40], ["npz"])
    FORMS[form](tmp_path / "part02", x, y)
    found = refused(tmp_path)
    assert f"part02.{form[:3]}': " in found
    assert message in found


BAD_TABLES = {
    "lists of different lengths": ({"X": [[1.0, 2.0], [1.0]], "y": [0, 1]}, "different lengths"),
    "an empty list": ({"X": [[1.0] * 6, []], "y": [0, 1]}, "different lengths"),
    "an empty cell": ({"X": [[1.0] * 6, None], "y": [0, 1]}, "column 'X', row 1 is empty"),
    "an empty value": ({"X": [[1.0] * 6, [1.0] * 5 + [None]], "y": [0, 1]}, "column 'X', row 1 holds an empty value"),
    "no label": ({"X": [[1.0] * 6] * 2, "y": [0, None]}, "row 1 has no label in column 'y'"),
    "text": ({"a": ["x", "y"], "b": [1.0, 2.0], "y": [0, 1]}, "column 'a' holds 'string', no numbers"),
    "lists of lists": ({"X": [[[1.0]], [[2.0]]], "y": [0, 1]}, "no numbers"),
    "no column of labels": ({"X": [[1.0] * 6]}, "no column label, class"),
    "labels alone": ({"y": [0, 1]}, "'y' is the only column"),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_a_bad_table_is_named(tmp_path, case):
    table, message = BAD_TABLES[case]
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    found = refused(tmp_path)
    assert "a.parquet': " in found
    assert message in found


def test_other_refusals(tmp_path):
    np.savez(tmp_path / "a.npz", X=FEATURES, y=LABELS, other=LABELS)
    assert "a.npz': labels='lab': not among its arrays 'X', 'other', 'y'" in refused(tmp_path, labels="lab")
    measure_shards(tmp_path, WEIGHT, labels="other")
    assert "paths='nowhere': 'nowhere': No such file" in refused("nowhere")
    assert "the pattern matches no file" in refused(tmp_path / "*.npy")
    assert "paths=[]: no shards" in refused([])
    (tmp_path / "x.csv").write_text("a,label\n1,0\n")
    assert "x.csv': no shard, by its ending; give .npz" in refused([tmp_path, tmp_path / "x.csv"])
    os.mkfifo(tmp_path / "pipe.npz")
    assert "pipe.npz': neither a file nor a folder" in refused([tmp_path / "pipe.npz"])
    assert "head: shape (4,)" in refused(tmp_path, BIAS)
    assert "bias: shape (3,); expected (4,)" in refused(tmp_path, (WEIGHT, BIAS[1:]))
    assert "not finite; the head has diverged" in refused(tmp_path, WEIGHT + np.nan)
    assert "weight: shape (4, 6); expected (5, 6)" in refused(tmp_path, WEIGHT, num_classes=5)
    assert "names: 3 names for 4 classes" in refused(tmp_path, names=list("abc"))
    assert "loss='focal': give CrossEntropy()" in refused(tmp_path, loss="focal")
    np.savez(tmp_path / "b.npz", X=WIDE, y=LABELS)
    assert "b.npz': features: width 12; " in refused(tmp_path, None)


@pytest.mark.parametrize("shape", [(0, DIM), (0, 3, DIM), (0,)])
def test_files_without_rows_count_as_nothing(tmp_path, shape):
    np.savez(tmp_path / "a.npz", X=np.zeros(shape), y=np.zeros(shape[:-1] or shape, int))
    for head in (WEIGHT, None):
        assert "no samples" in refused(tmp_path, head)
    np.savez(tmp_path / "b.npz", X=FEATURES, y=LABELS)
    assert_equal(measure_shards(tmp_path, WEIGHT), measure_features(FEATURES, LABELS, WEIGHT))
    assert_equal(measure_shards(tmp_path), measure_features(FEATURES, LABELS))


def test_what_changes_while_it_is_read_is_refused(tmp_path):
    write(tmp_path, [40], ["npz"])

    def between(done, total):
        if done == 2:
            np.savez(tmp_path / "part00.npz", X=FEATURES, y=LABELS)

    assert "changed while they were measured" in refused(tmp_path, progress=between)
    write(tmp_path, [40], ["npy"])

    def meanwhile(done, total):
        if 0 < done < 1:
            os.utime(tmp_path / "part00.npy", (0, 0))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_jobs, "BLOCK_BYTES", 3 * 8 * (DIM + CLASSES))
        found = refused([tmp_path / "part00.npy", tmp_path / "part01.npy"], progress=meanwhile)
    assert "part00.npy': changed while it was read" in found


# memory

PROBE = """
import resource, sys
import numpy as np, pyarrow.parquet, safetensors
from collapsekit.metrics import measure_shards, shard_jobs
shard_jobs.BLOCK_BYTES = 2**22
small, large, K, d = *sys.argv[1:3], *map(int, sys.argv[3:])
W = np.random.default_rng(0).normal(size=(K, d))
def peak(folder):
    measure_shards(folder, W)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak(small)
print(before, peak(large))
"""
MEGABYTES = 96


@pytest.mark.parametrize(
    "form", ["npz", *(pytest.param(form, marks=pytest.mark.heavy) for form in ("npy", "safetensors", "parquet"))]
)
def test_memory_does_not_grow_with_the_file(tmp_path, form):
    """A file of 96 MB after one of 12 MB: what is added to the peak is a fraction of it."""
    for name, size in (("small", MEGABYTES // 8), ("large", MEGABYTES)):
        (tmp_path / name).mkdir()
        sparse(tmp_path / name, form, size * 2**20 // 1024)
    command = [sys.executable, "-c", PROBE, tmp_path / "small", tmp_path / "large", "10", "256"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True, env=os.environ)
    small, large = map(float, done.stdout.split())
    assert large - small < MEGABYTES / 4


def sparse(folder, form, rows, dim=256):
    """Zeros in float32, in holes of the file where the format allows."""
    if form == "npy":
        np.lib.format.open_memmap(folder / "X.npy", "w+", np.float32, (rows, dim)).flush()
        np.save(folder / "y.npy", np.arange(rows) % 10)
    elif form == "npz":
        with zipfile.ZipFile(folder / "a.npz", "w") as archive:
            with archive.open("X.npy", "w", force_zip64=True) as stream:
                header = {"descr": "<f4", "fortran_order": False, "shape": (rows, dim)}
                np.lib.format.write_array_header_1_0(stream, header)
                for _ in range(rows // 4096):
                    stream.write(bytes(4096 * dim * 4))
            archive.writestr("y.npy", npy(np.arange(rows) % 10))
    elif form == "safetensors":
        ends = 4 * rows * dim, 4 * rows * dim + 8 * rows
        header = {
            "X": {"dtype": "F32", "shape": [rows, dim], "data_offsets": [0, ends[0]]},
            "y": {"dtype": "I64", "shape": [rows], "data_offsets": ends},
        }
        text = json.dumps(header).encode()
        with (folder / "a.safetensors").open("wb") as stream:
            stream.write(len(text).to_bytes(8, "little") + text)
            stream.seek(ends[0], 1)
            stream.write((np.arange(rows) % 10).tobytes())
    else:
        table = pa.table({"X": fixed(np.zeros((rows, dim), np.float32)), "y": np.arange(rows) % 10})
        pq.write_table(table, folder / "a.parquet", row_group_size=rows, use_dictionary=False, compression="none")


def test_a_scatter_that_shards_do_not_keep_is_refused(tmp_path):
    folder = write(tmp_path / "shards", [50], ["npz"])
    with pytest.raises(CollapseError, match=r"within='projected': .* give 'full', or 'trace'"):
        measure_shards(folder, within="projected")
    assert "nc1" in measure_shards(folder, within="full").metrics()
