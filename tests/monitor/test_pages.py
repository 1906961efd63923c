"""What docs/monitor.md shows beside its doctests."""

import os
import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "monitor.md").read_text(encoding="utf-8")


@pytest.mark.heavy  # tensorboard is of the group of hosts
def test_the_block_for_tensorboard_writes_every_scalar(tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    block = re.search(r"## TensorBoard\n\n```python\n(.*?)```", PAGE, re.DOTALL)[1]
    monkeypatch.chdir(tmp_path)
    scalars = {"collapse/worst_recall": 0.25, "collapse/dying": 1.0}
    exec(block, {"scalars": scalars, "epoch": 3})
    (folder,) = {path.parent for path in tmp_path.rglob("events*")}
    events = EventAccumulator(os.fspath(folder))
    events.Reload()
    assert {key: [(one.step, one.value) for one in events.Scalars(key)] for key in events.Tags()["scalars"]} == {
        key: [(3, value)] for key, value in scalars.items()
    }


def test_the_page_names_every_key():
    from _support.passes import Plain, trained
    from collapsekit.monitor import Monitor

    net = Plain()
    monitor = Monitor(net, every=2)
    trained(net, monitor)
    keys = {key for key in {**monitor.scalars, **monitor.reasons} if key.startswith("collapse/")}
    assert keys == set(re.findall(r"`(collapse/\w+)`", PAGE))
