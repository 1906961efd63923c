"""Figures and self-contained HTML reports (needs the `report` extra)."""

from collapsekit.errors import CollapseError

try:
    import jinja2 as jinja2
    import matplotlib as matplotlib
except ModuleNotFoundError as missing:
    raise CollapseError(
        f"collapsekit.report: {missing.name} is not installed; run: pip install 'collapsekit[report]'"
    ) from None

from collapsekit.report._report import report as report
