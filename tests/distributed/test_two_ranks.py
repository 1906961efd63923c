"""Two real gloo processes give the result of one, whatever the split; never skipped."""

import json
import sys
import textwrap
from subprocess import PIPE, Popen

import pytest
from numpy.testing import assert_allclose

from tolerances import METRICS

RANK = textwrap.dedent("""
    import json, sys
    import torch
    import torch.distributed as dist
    from collapsekit.metrics import NeuralCollapse

    rank, world, store, cut = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (60,), generator=generator)
    features = torch.randn(60, 6, generator=generator) * 1e-3 + torch.eye(4, 6)[labels]
    weight = torch.randn(4, 6, generator=generator)
    metric = NeuralCollapse(4, 6)
    rows = slice(None) if world == 1 else (slice(0, cut) if rank == 0 else slice(cut, None))
    for x, y in zip(features[rows].split(7), labels[rows].split(7)):
        if len(y):
            metric.update(x, y, weight=weight)
    import warnings
    warnings.simplefilter("ignore")  # a rank without data has nothing to update with
    values = metric.compute()
    per_class = {key: value.tolist() for key, value in metric.compute_per_class().items()} if world == 1 else {}
    print(json.dumps([values, per_class]))
    if world > 1:
        dist.destroy_process_group()
""")


def run(world, store, cut=0):
    processes = [
        Popen([sys.executable, "-c", RANK, str(rank), str(world), str(store), str(cut)], stdout=PIPE, stderr=PIPE)
        for rank in range(world)
    ]
    results = [process.communicate(timeout=240) for process in processes]
    for process, (_, errors) in zip(processes, results, strict=True):
        assert process.returncode == 0, errors.decode()
    return [json.loads(out) for out, _ in results]


@pytest.mark.parametrize("cut", [30, 13, 60])
def test_two_ranks_equal_one_process(tmp_path, cut):
    (single,) = run(1, tmp_path / "unused")
    for values, _ in run(2, tmp_path / "store", cut):
        assert set(values) == set(single[0])
        for key, value in single[0].items():
            assert_allclose(values[key], value, rtol=METRICS, atol=METRICS, err_msg=key)
