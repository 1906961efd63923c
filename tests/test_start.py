"""Starting the command: as a module, and beside packages that cannot be imported (B13, B14)."""

import os
import subprocess
import sys

import numpy as np
import pytest

PREDICT = ["predict", "500", "40", "10", "--lambda-w", "0.03", "--lambda-h", "0.001"]


def started(*words, path=""):
    """What another Python does with `python -m`, with a folder more on its path."""
    paths = os.pathsep.join([path, *sys.path]) if path else os.pathsep.join(sys.path)
    environment = os.environ | {"PYTHONPATH": paths}
    return subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, env=environment, check=False)


@pytest.mark.parametrize("words", [["--help"], PREDICT, ["--version"]], ids=["help", "predict", "version"])
def test_the_package_runs_as_a_module(words):
    found = started("collapsekit", *words)
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout == started("collapsekit.cli", *words).stdout


@pytest.mark.parametrize("error", ["RuntimeError('operator torchvision::nms does not exist')", "OSError('no _C.so')"])
def test_a_foreign_torchvision_is_named_in_one_line(error, tmp_path):
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(f"raise {error}\n")
    (tmp_path / "torchvision-0.20.0.dist-info").mkdir()
    (tmp_path / "torchvision-0.20.0.dist-info" / "METADATA").write_text("Name: torchvision\nVersion: 0.20.0\n")
    np.savez(tmp_path / "f.npz", features=np.eye(2), labels=[0, 1], weight=np.eye(2))
    found = started("collapsekit.cli", "measure", str(tmp_path / "f.npz"), path=str(tmp_path))
    assert found.stderr.count("\n") <= 1
    assert found.returncode == 0 or "torchvision" in found.stderr
