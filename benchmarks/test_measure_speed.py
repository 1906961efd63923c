"""What measuring stored features costs against the products that cannot be avoided, and against a plain baseline.

Run: make bench, or this file with a size, N d K: ``python benchmarks/test_measure_speed.py 60000 512 10``. Processor
time of one thread, float32 features in memory, everything in one process and one run.

The limit are the float32 products alone, in blocks of rows that stay in the cache: scatter (N d d), logits and
distances to centres (N d K each), and two of K × K × d: the Gram matrices of means and head. The baseline is what the
best known library does, in dense float32: a pass for means; a pass of batches for scatter, logits (accuracy,
confidence, loss) and nearest centres; then each K × K metric on its own (distances for CDNV, cosines, angles of means
and of the head), in strips of rows. It has no state, no float64 and no checks. Peak memory is that of our own call,
over the inputs; allowed are 3 (K d + d²) float64 numbers and a block of rows.
"""

import json
import os
import resource
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from torch.nn import functional as nnf

from collapsekit.metrics import NeuralCollapse, measure_features

SIZES = [(60_000, 512, 10), (50_000, 512, 100), (200_000, 768, 1000), (60_000, 256, 20_000), (300_000, 256, 20_000)]
CLAIMS = {10: 1.5, 100: 1.5, 1000: 1.5, 20_000: 2.0}
SMALLEST = os.environ.get("COLLAPSEKIT_BENCH_CLASSES") is not None  # a smoke test: a tenth of the smallest size
BATCH, STRIP = 4096, 2**22


def cloud(samples, dim, classes, seed=0):
    """Clouds with half of their squared length within classes, long-tailed counts of at least one, and a head."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(classes, dim, generator=generator) + 1
    shares = torch.logspace(0, -1, classes)
    labels = torch.multinomial(shares, samples, replacement=True, generator=generator)
    labels[:classes] = torch.arange(classes)
    features = torch.randn(samples, dim, generator=generator)
    for rows in range(0, samples, BATCH):
        features[rows : rows + BATCH] += means[labels[rows : rows + BATCH]]
    weight = (means - 1) / dim**0.5 + 0.1 * torch.randn(classes, dim, generator=generator)
    return features, labels, weight


def strips(classes):
    height = max(1, STRIP // classes)
    return [slice(start, start + height) for start in range(0, classes, height)]


def limit(features, weight, *, centres=True):
    """Seconds of the products alone, by name."""
    samples, (classes, dim) = len(features), weight.shape
    heights = {"scatter": BATCH, "logits": max(64, STRIP // classes), "distances": max(64, STRIP // classes)}
    seconds = {}
    for name, height in heights.items():
        if name == "distances" and not centres:
            continue
        begun = time.process_time()
        out = torch.empty(dim, dim) if name == "scatter" else torch.empty(min(height, samples), classes)
        for x in features.split(height):
            if name == "scatter":
                torch.mm(x.T, x, out=out)
            else:
                torch.mm(x, weight.T, out=out[: len(x)])
        seconds[name] = time.process_time() - begun
    begun = time.process_time()
    for _ in range(2):
        for rows in strips(classes):
            weight[rows] @ weight.T
    seconds["K x K"] = time.process_time() - begun
    return seconds


def baseline(features, labels, weight, *, centres=True):
    """A dense two-pass measurement in float32, as written in any notebook; returns its numbers."""
    samples, (classes, dim) = len(features), weight.shape
    counts = torch.bincount(labels, minlength=classes).float()
    means = torch.zeros(classes, dim)
    for x, y in zip(features.split(BATCH), labels.split(BATCH), strict=True):
        means.index_add_(0, y, x)
    means /= counts[:, None]
    scatter, spread = torch.zeros(dim, dim), torch.zeros(classes)
    sums = torch.zeros(4, classes)  # confidence, loss, right, agreeing
    height = min(BATCH, max(64, STRIP // classes))
    sqnorms = means.square().sum(dim=1)
    for x, y in zip(features.split(BATCH), labels.split(BATCH), strict=True):
        residuals = x - means[y]
        scatter += residuals.T @ residuals
        spread.index_add_(0, y, residuals.square().sum(dim=1))
        for h, k in zip(x.split(height), y.split(height), strict=True):
            logits = h @ weight.T
            losses = nnf.cross_entropy(logits, k, reduction="none")
            named = logits.argmax(dim=1)
            nearest = (sqnorms - 2 * h @ means.T).argmin(dim=1) if centres else named
            sums.index_add_(1, k, torch.stack([(-losses).exp(), losses, named == k, nearest == named]))
    variance, middle = spread / counts, means.mean(dim=0)
    between = (means - middle).T @ (means - middle) / classes
    result = {"nc1": float(torch.trace(scatter / samples @ torch.linalg.pinv(between)) / classes)}
    total = 0.0
    for rows in strips(classes):
        squares = torch.cdist(means[rows], means).square()
        pairs = (variance[rows, None] + variance) / (2 * squares)
        pairs[torch.arange(len(pairs)), torch.arange(classes)[rows]] = 0
        total += float(pairs.sum())
    result["cdnv"] = total / (classes * (classes - 1))
    shift = 1 / (classes - 1)
    for name, matrix, add in (
        ("cosine", means, 0.0),
        ("etf_h", means - middle, shift),
        ("etf_w", weight - weight.mean(dim=0), shift),
    ):
        unit, total = nnf.normalize(matrix), 0.0
        for rows in strips(classes):
            angles = (unit[rows] @ unit.T + add).abs()
            angles[torch.arange(len(angles)), torch.arange(classes)[rows]] = 0
            total += float(angles.sum())
        result[name] = total / (classes * (classes - 1))
    centred = means - middle
    result["duality"] = float((weight / weight.norm() - centred / centred.norm()).norm())
    return result | {"train_accuracy": float(sums[2].sum() / samples), "ncc": float(sums[3].sum() / samples)}


def ours(features, labels, weight, *, centres=True):
    if centres:
        measured = measure_features(features, labels, weight)
    else:
        metric = NeuralCollapse(*weight.shape)
        metric.update(features, labels, weight)
        measured = metric.measurement()
    return measured.metrics(), measured.per_class()


def status_bytes(name):
    with open("/proc/self/status", encoding="ascii") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def run(samples, dim, classes):
    """Everything at one size, in this process."""
    torch.set_num_threads(1)
    warm = cloud(2 * 4096, dim, 64)
    ours(*warm), baseline(*warm)
    features, labels, weight = cloud(samples, dim, classes)
    before = status_bytes("VmRSS")
    with open("/proc/self/clear_refs", "w", encoding="ascii") as peak:
        peak.write("5")
    found = {}
    begun = time.process_time()
    metrics, _ = ours(features, labels, weight)
    found["seconds"] = time.process_time() - begun
    found["peak MiB"] = (status_bytes("VmHWM") - before) / 2**20
    row_block = 4 * max(64, 2**22 // max(classes, dim)) * max(classes, dim)
    found["allowed MiB"] = (24 * (classes * dim + dim**2) + row_block) / 2**20
    begun = time.process_time()
    ours(features, labels, weight, centres=False)
    found["seconds without centres"] = time.process_time() - begun
    parts = limit(features, weight)
    found["limit"], found["limit by part"] = sum(parts.values()), parts
    begun = time.process_time()
    plain = baseline(features, labels, weight)
    found["baseline"] = time.process_time() - begun
    found["ratio to limit"] = found["seconds"] / found["limit"]
    found["baseline over ours"] = found["baseline"] / found["seconds"]
    found["baseline over ours without centres"] = found["baseline"] / found["seconds without centres"]
    found["nc1"], found["nc1 of the baseline"] = metrics["nc1"], plain["nc1"]
    return found


@pytest.mark.parametrize("size", [(6_000, 512, 10)] if SMALLEST else SIZES, ids=str)
def test_seconds_of_a_measurement(benchmark, size):
    def once():
        program = [sys.executable, __file__, *map(str, size)]
        output = subprocess.run(
            program, check=True, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        return json.loads(output.stdout)

    found = benchmark.pedantic(once, rounds=1)
    benchmark.extra_info |= found | {"claimed ratio": CLAIMS[size[2]]}
    assert np.isclose(found["nc1"], found["nc1 of the baseline"], rtol=1e-2)


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print(json.dumps(run(*map(int, sys.argv[1:4])), indent=1))
