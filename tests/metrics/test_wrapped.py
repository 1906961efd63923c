"""Networks that are compiled, sealed, quantised or spread over processes: measured, or sent where they can be."""

import multiprocessing
import warnings

import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from collapsekit import CollapseError
from collapsekit.metrics import measure, measure_features

LABELS = torch.arange(61) % 4
INPUTS = torch.randn(61, 6, generator=torch.Generator().manual_seed(1)) + 2 * nn.functional.one_hot(LABELS, 6)
BATCHES = [(INPUTS[:30], LABELS[:30]), (INPUTS[30:], LABELS[30:])]


def network():
    """A network of four classes, its head the layer "2"."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 4))


def assert_measured(found, model):
    whole = measure(model, BATCHES)
    assert_array_equal(found.counts, whole.counts)
    assert_allclose(found.confidences, whole.confidences, rtol=1e-6)


@pytest.mark.parametrize("part", ["body", "head", "all, in place"])
@pytest.mark.parametrize("name", [None, "2", "module"])
def test_compiled_parts_are_seen_through(part, name):
    model = network()
    if part == "all, in place":
        model.compile(backend="eager")
    else:
        k = 0 if part == "body" else 2
        model[k] = torch.compile(model[k], backend="eager")
    with torch.no_grad():
        model(INPUTS[:30])
    assert_measured(measure(model, BATCHES, model[2] if name == "module" else name), network())


def scripted(model):
    return torch.jit.script(model)


def exported(model):
    return torch.export.export(model, (INPUTS[:30],)).module()


def quantised(model):
    return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("sealed", [scripted, exported, quantised])
@pytest.mark.parametrize("name", [None, "2"])
def test_sealed_networks_are_sent_where_they_can_be_measured(sealed, name):
    model = network().eval()
    with pytest.raises(CollapseError, match=r"(made from|unquantised).*measure_features"):
        measure(sealed(model), BATCHES, name)
    with torch.no_grad():
        features = model[:2](INPUTS)
    assert_measured(measure(model, BATCHES, name), model)
    assert_measured(measure_features(features, LABELS, model[2].weight, model[2].bias), model)


class Counting(nn.Module):
    """Counts its calls in a buffer, in place or not."""

    def __init__(self, in_place):
        super().__init__()
        self.in_place = in_place
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        if self.in_place:
            self.calls += 1
        else:
            self.calls = self.calls + 1
        return x


@pytest.mark.parametrize("in_place", [True, False])
def test_buffers_are_put_back(in_place):
    model = nn.Sequential(Counting(in_place), network())
    model(INPUTS)
    buffer = model[0].calls
    assert_measured(measure(model, BATCHES), network())
    assert model[0].calls is buffer
    assert buffer == 1


def spread(rank, place, answers):
    """What one of two processes finds: shards with repeated samples, a sharded network, loaders of unknown contents."""
    warnings.simplefilter("ignore")
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.distributed.init_process_group("gloo", init_method=place, rank=rank, world_size=2)
    data = TensorDataset(INPUTS, LABELS)
    loader = DataLoader(data, batch_size=7, sampler=DistributedSampler(data, shuffle=True))
    model = network()
    mesh = init_device_mesh("cpu", (2,))
    for part in (model[2], model):
        fully_shard(part, mesh=mesh)
    for one in (network(), model):
        found = measure(one, loader)
        answers.put((found.counts.tolist(), found.confidences.tolist(), found.metrics()))
    for unknown in (BATCHES, DataLoader(torch.utils.data.Subset(data, range(rank, 61, 2)), batch_size=7)):
        try:
            measure(network(), unknown)
        except CollapseError as error:
            answers.put(str(error))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_two_processes_find_the_whole_or_refuse(tmp_path):
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    place = f"file://{tmp_path / 'rendezvous'}"
    ranks = [context.Process(target=spread, args=(rank, place, answers), daemon=True) for rank in range(2)]
    for rank in ranks:
        rank.start()
    found = [answers.get(timeout=100) for _ in range(8)]
    for rank in ranks:
        rank.join(60)
    refused = [answer for answer in found if isinstance(answer, str)]
    assert len(refused) == 4
    assert all("sampler=torch.utils.data.DistributedSampler(dataset)" in answer for answer in refused)
    whole = measure(network(), BATCHES)
    for counts, confidences, metrics in (answer for answer in found if not isinstance(answer, str)):
        assert counts == whole.counts.tolist()
        assert_allclose(confidences, whole.confidences, rtol=1e-6)
        assert metrics == pytest.approx(whole.metrics(), rel=1e-6)
