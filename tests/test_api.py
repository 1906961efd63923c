"""The public surface is what the API page says, every name documented and with an example or a reference."""

import importlib
import inspect
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "api.md"
MODULES = re.findall(r"^## `([\w.]+)`", PAGE.read_text(encoding="utf-8"), re.MULTILINE)


def listed(module):
    section = PAGE.read_text(encoding="utf-8").split(f"## `{module}`")[1].split("\n## ")[0]
    return re.findall(r"^\| `(\w+)`", section, re.MULTILINE)


def public(module):
    """Redundant aliases (`import x as x`) in the module's one file of names; of a single file what it defines."""
    path = Path(inspect.getfile(importlib.import_module(module)))
    source = path.read_text(encoding="utf-8")
    if path.name != "__init__.py":
        return re.findall(r"^(?:def|class) ([A-Za-z]\w+)", source, re.MULTILINE)
    return re.findall(r"^from collapsekit\S* import (\w+) as \1$", source, re.MULTILINE)


@pytest.mark.parametrize("module", MODULES)
def test_the_page_lists_exactly_the_public_names(module):
    assert sorted(listed(module)) == sorted(public(module)) != []


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_is_documented(module):
    for name in listed(module):
        doc = inspect.getdoc(getattr(importlib.import_module(module), name))
        assert doc, name
        assert doc.splitlines()[0].endswith((".", "``.")), name
