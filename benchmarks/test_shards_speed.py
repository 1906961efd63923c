"""What reading a shard block by block costs beside `numpy.load` of the same numbers, and beside measuring them.

Run: make bench. Files lie in the page cache; processor time is measured.
"""

import os
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy

from collapsekit.data.shards import blocks, opened
from collapsekit.metrics import measure_shards

MEGABYTES = int(os.environ.get("COLLAPSEKIT_BENCH_MEGABYTES", 256))  # fewer: tests/benchmarks
CLASSES, DIM = 100, 256
ROWS = MEGABYTES * 2**20 // (4 * DIM)
RNG = np.random.default_rng(0)
FEATURES, LABELS = RNG.standard_normal((ROWS, DIM), dtype=np.float32), RNG.integers(0, CLASSES, ROWS)
BLOCK = 5891
"""Rows in a block of 16 MiB at this width and these classes."""


def parquet(path):
    column = pa.FixedSizeListArray.from_arrays(pa.array(FEATURES.ravel()), DIM)
    pq.write_table(pa.table({"features": column, "labels": LABELS}), path, row_group_size=2**16)


def npy(path, order="C"):
    np.save(path, np.asarray(FEATURES, order=order))
    np.save(path.with_name(f"{path.stem}_labels.npy"), LABELS)


WRITERS = {
    "npy": npy,
    "npy, columns first": lambda path: npy(path, "F"),
    "npz": lambda path: np.savez(path, features=FEATURES, labels=LABELS),
    "npz, compressed": lambda path: np.savez_compressed(path, features=FEATURES, labels=LABELS),
    "safetensors": lambda path: safetensors.numpy.save_file({"features": FEATURES, "labels": LABELS}, path),
    "parquet": parquet,
}


def seconds(call, rounds=3):
    best = np.inf
    for _ in range(rounds):
        start = time.process_time()
        call()
        best = min(best, time.process_time() - start)
    return best


def read(path):
    with opened(path) as shard:
        return sum(len(x) for _, x, _ in blocks(shard, path.name, BLOCK, None))


@pytest.mark.parametrize("form", WRITERS)
def test_reading(benchmark, tmp_path, form):
    path = tmp_path / f"a.{form.split(',')[0]}"
    WRITERS[form](path)
    np.save(tmp_path / "plain.npy", FEATURES)
    assert benchmark.pedantic(read, (path,), rounds=3) == ROWS
    plain = seconds(lambda: np.load(tmp_path / "plain.npy"))
    benchmark.extra_info |= {"MB/s": MEGABYTES / seconds(lambda: read(path)), "MB/s of numpy.load": MEGABYTES / plain}


def test_measuring(benchmark, tmp_path):
    npy(tmp_path / "a.npy")
    head = RNG.normal(size=(CLASSES, DIM))
    benchmark.pedantic(measure_shards, (tmp_path, head), rounds=1)
    benchmark.extra_info["MB/s"] = MEGABYTES / seconds(lambda: measure_shards(tmp_path, head), 1)
