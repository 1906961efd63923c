"""Two and four real gloo processes give the result of one, whatever the split; never skipped.

This file is also the program of each rank: ``python test_two_ranks.py RANK WORLD FOLDER`` writes FOLDER/RANK.json.
"""

import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from _support.samples import draw_samples
from _support.tolerances import MOMENTS_MERGED
from collapsekit import UFM
from collapsekit.metrics import NeuralCollapse

COUNTS = [20, 11, 6, 3, 0]
SAMPLES = draw_samples(COUNTS, 7, spread=1.0)
OPTIONS = {"problem": UFM([20, 11, 6, 3, 1], 1e-2, 1e-3)}
SPLITS = {  # where the samples of one rank end, for two ranks and for four
    "halves": {2: [20], 4: [10, 20, 30]},
    "uneven": {2: [7], 4: [3, 7, 30]},
    "nothing": {2: [40], 4: [0, 40, 40]},
    "empty batch": {2: [40], 4: [0, 25, 25]},
}


def batches(rows):
    """At most six samples at a time."""
    for start in range(0, len(rows), 6):
        yield SAMPLES.part(rows[start : start + 6]).tensors


def results(metric):
    per_class = {key: value.tolist() for key, value in metric.compute_per_class().items()}
    return {"compute": metric.compute(), "per_class": per_class}


def one_pass(rows, empty_batch):
    metric = NeuralCollapse(5, 7, **OPTIONS)
    for batch in batches(rows):
        metric.update(*batch)
    if empty_batch:
        metric.update(*SAMPLES.part(rows[:0]).tensors)
    found = results(metric)
    assert metric.moments.counts.sum() == len(rows)  # the local state has come back
    return found


def two_epochs(rows):
    """The centres of the second epoch are the means of the first, over all ranks."""
    metric = NeuralCollapse(5, 7)
    for batch in batches(rows):
        metric.update(*batch)
    metric.use_centres()
    metric.reset()
    for batch in batches(rows):
        metric.update(*batch)
    return results(metric)


def two_passes(rows):
    """The directions of the second pass are those between the class means of all ranks."""
    metric = NeuralCollapse(5, 7, within="projected")
    for _ in range(2):
        for batch in batches(rows):
            metric.update(*batch)
        if not metric.phase:
            metric.use_centres()
    return results(metric)


def rank_main(rank, world, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world, timeout=timedelta(seconds=100)
    )
    everything = np.arange(40)
    found = {
        name: one_pass(np.split(everything, cuts[world])[rank], name == "empty batch") for name, cuts in SPLITS.items()
    }
    found["two epochs"] = two_epochs(np.array_split(everything, world)[rank])
    found["two passes"] = two_passes(np.array_split(everything, world)[rank])
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.heavy)])
def ranks(tmp_path_factory, request):
    """What each of the ranks has found."""
    world = request.param
    folder = tmp_path_factory.mktemp("ranks")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(world), str(folder)], env=environment, stderr=subprocess.PIPE
        )
        for rank in range(world)
    ]
    errors = [process.communicate(timeout=300)[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [0] * world, "\n".join(errors)
    return [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(world)]


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    for key in expected:
        assert_allclose(actual[key], expected[key], rtol=MOMENTS_MERGED, atol=MOMENTS_MERGED, err_msg=key)


@pytest.mark.parametrize("part", ["compute", "per_class"])
@pytest.mark.parametrize("split", SPLITS)
def test_ranks_equal_one_process(ranks, split, part):
    single = one_pass(np.arange(40), empty_batch=False)
    for found in ranks:
        assert_same(found[split][part], single[part])


@pytest.mark.parametrize("part", ["compute", "per_class"])
def test_centres_are_those_of_all_ranks(ranks, part):
    single = two_epochs(np.arange(40))
    assert 0 < single["compute"]["ncc"] < 1
    for found in ranks:
        assert_same(found["two epochs"][part], single[part])


@pytest.mark.parametrize("part", ["compute", "per_class"])
def test_the_projected_scatter_is_that_of_all_ranks(ranks, part):
    single = two_passes(np.arange(40))
    assert single["compute"]["nc1"] == pytest.approx(one_pass(np.arange(40), empty_batch=False)["compute"]["nc1"])
    for found in ranks:
        assert_same(found["two passes"][part], single[part])


if __name__ == "__main__":
    rank_main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
