"""The numpy core is light: importing it loads nothing else; and it imports without anything else at hand."""

import subprocess
import sys

import pytest

HEAVY = (
    "torch",
    "torchmetrics",
    "scipy",
    "sklearn",
    "matplotlib",
    "jinja2",
    "rich",
    "cyclopts",
    "safetensors",
    "mpmath",
)
USE = """
import collapsekit
problem = collapsekit.UFM([5, 3], 0.1, 0.1)
frame = collapsekit.predict(problem)
collapsekit.thresholds(problem)
frame.geometry().distance(frame.geometry())
"""


def loaded(code):
    """The names of HEAVY that a fresh interpreter has loaded after the code."""
    code += f"\nimport sys; print(*sorted(set({HEAVY!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, capture_output=True, text=True)
    return done.stdout.split()


@pytest.mark.parametrize(
    "code", ["import collapsekit", "import collapsekit.theory", "import collapsekit.profiles", USE]
)
def test_the_core_loads_nothing_heavy(code):
    assert loaded(code) == []


def test_the_check_sees_what_is_loaded():
    assert loaded("import collapsekit, mpmath") == ["mpmath"]


def test_the_core_works_where_nothing_else_is_installed():
    blocked = f"import sys; sys.modules.update(dict.fromkeys({HEAVY!r}))\n" + USE
    subprocess.run([sys.executable, "-W", "error", "-c", blocked], check=True, capture_output=True)


def test_version_and_unknown_names():
    import collapsekit

    assert collapsekit.__version__.count(".") == 2
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = collapsekit.nothing
