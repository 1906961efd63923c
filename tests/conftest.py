"""One place for seeds, threads and the size of the properties.

`make test` runs a seeded tenth of every property; `make test-all` sets COLLAPSEKIT_TESTS=all and runs it whole.
"""

import os

import hypothesis
import matplotlib as mpl
import pytest
import torch

ALL = os.environ.get("COLLAPSEKIT_TESTS") == "all"

hypothesis.settings.register_profile(
    "collapsekit",
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.data_too_large],
)
hypothesis.settings.load_profile("collapsekit")
mpl.use("Agg")
torch.set_num_threads(1)


def pytest_collection_modifyitems(config, items):
    if not ALL:
        heavy = [item for item in items if item.get_closest_marker("heavy")]
        config.hook.pytest_deselected(items=heavy)
        items[:] = [item for item in items if not item.get_closest_marker("heavy")]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
