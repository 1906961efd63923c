"""Two and four real gloo processes give the numbers of one, whatever the split; never skipped.

This file is also the program of each rank: ``python test_ranks.py RANK WORLD FOLDER`` writes FOLDER/RANK.json.
"""

import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from numpy.testing import assert_allclose
from torch.nn.parallel import DistributedDataParallel

from _support.passes import Plain, batches, nc1_by_hand
from _support.tolerances import FLOAT32, MOMENTS_MERGED
from collapsekit import CollapseError
from collapsekit.monitor import Monitor

STEPS = list(batches(size=5))  # 16 of them
SPLITS = {
    "even": lambda world: [range(rank, 16, world) for rank in range(world)],
    "uneven": lambda world: [range(13), range(13, 16), range(0), range(0)][:world],
    "nothing at first": lambda world: [*[range(0)] * (world - 1), range(16)],
}
"""The steps of each rank."""
EVERY = [1, 3, None]


def numbers(model, steps, every, epochs=2):
    """What the second epoch says: the first one has to leave nothing behind."""
    monitor = Monitor(model, every=every)
    for _ in range(epochs):
        for step in steps:
            x, y = STEPS[step]
            model(x)
            monitor.update(y)
        scalars = monitor.epoch()
    return {"scalars": scalars, "reasons": monitor.reasons, "recalls": monitor.recalls, "dying": monitor.dying}


def nothing(model):
    """What is said where no process has counted anything."""
    try:
        Monitor(model).epoch()
    except CollapseError as error:
        return str(error)
    return None


def rank_main(rank, world, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world, timeout=timedelta(seconds=100)
    )
    model = DistributedDataParallel(Plain())
    found = {
        f"{split}, {every}": numbers(model if every == 1 else model.module, SPLITS[split](world)[rank], every)
        for split in SPLITS
        for every in EVERY
        if not (every == 1 and split != "even")  # DistributedDataParallel itself waits for the passes of all
    }
    found |= {
        f"{split}, 1": numbers(model.module, SPLITS[split](world)[rank], 1) for split in SPLITS if split != "even"
    }
    found["nothing"] = nothing(model.module)
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.heavy)])
def ranks(request, tmp_path_factory):
    """What each of the ranks has found."""
    folder, world = tmp_path_factory.mktemp("ranks"), request.param
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, __file__]
    processes = [
        subprocess.Popen([*command, str(rank), str(world), str(folder)], env=environment, stderr=subprocess.PIPE)
        for rank in range(world)
    ]
    errors = [process.communicate(timeout=300)[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [0] * world, "\n".join(errors)
    return [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(world)]


@pytest.mark.parametrize("every", EVERY)
@pytest.mark.parametrize("split", SPLITS)
def test_ranks_equal_one_process(ranks, split, every):
    single = numbers(Plain(), range(len(STEPS)), every)
    for rank in ranks:
        found = rank[f"{split}, {every}"]
        assert found["scalars"].keys() == single["scalars"].keys()
        assert found["reasons"] == single["reasons"]
        for key, value in single["scalars"].items():
            if not (every == 3 and "nc1" in key):  # there each rank keeps other steps
                assert_allclose(found["scalars"][key], value, rtol=MOMENTS_MERGED, err_msg=key)
        assert_allclose(found["recalls"], single["recalls"], rtol=MOMENTS_MERGED)
        assert found == ranks[0][f"{split}, {every}"]


@pytest.mark.parametrize("split", SPLITS)
def test_kept_steps_are_those_of_all_ranks(ranks, split):
    net = Plain()
    seen = []
    for x, y in STEPS:
        h = net.body(x).detach()
        seen.append([h.double().numpy(), net.head(h).detach().double().numpy(), y.numpy()])
    kept = [step for part in SPLITS[split](len(ranks)) for step in part[::3]]
    assert_allclose(ranks[0][f"{split}, 3"]["scalars"]["collapse/nc1"], nc1_by_hand(seen, kept), rtol=FLOAT32)


def test_all_ranks_say_that_nothing_was_counted(ranks):
    assert all(rank["nothing"].startswith("epoch: nothing was counted") for rank in ranks)


if __name__ == "__main__":
    rank_main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
