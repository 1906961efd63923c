"""What docs/monitor.md shows for training frameworks runs, block after block."""

import math
import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "monitor.md").read_text(encoding="utf-8")
pytestmark = [
    pytest.mark.heavy,
    pytest.mark.filterwarnings("ignore::Warning:lightning"),
    pytest.mark.filterwarnings("ignore::Warning:transformers"),
    pytest.mark.filterwarnings("ignore::Warning:accelerate"),
    pytest.mark.filterwarnings("ignore:.*(LeafSpec|pin_memory|SWIG|swigvarlink).*:Warning"),
]


def run(section, folder, monkeypatch):
    """The names that are left when the section's blocks have run."""
    monkeypatch.chdir(folder)
    text = PAGE.split(f"\n## {section}\n")[1].split("\n## ")[0]
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 2
    names = {"__name__": "page"}
    for block in blocks:
        exec(block, names)
    return names


def test_lightning(tmp_path, monkeypatch):
    names = run("Lightning", tmp_path, monkeypatch)
    assert len(names["callback"].monitor.recalls) == 5
    assert math.isfinite(names["trainer"].callback_metrics["nc1"])


def test_hugging_face(tmp_path, monkeypatch):
    names = run("Hugging Face", tmp_path, monkeypatch)
    assert len(names["callback"].monitor.recalls) == 2
    assert math.isfinite(names["scalars"]["collapse/horizon"])
