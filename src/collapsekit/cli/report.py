"""`collapsekit report`: write the report of a finished run again."""

from __future__ import annotations

from pathlib import Path

from collapsekit.cli._console import print_json, print_note
from collapsekit.cli.train import as_dict
from collapsekit.report import report as write_report
from collapsekit.training import compare_run, load_run


def report(run: Path, /, *, out: Path | None = None, json: bool = False) -> None:
    """Write the report of a finished run again.

    Example: collapsekit report runs/7dbb3474beb2 --out report.html

    Parameters
    ----------
    run : Path
        Folder of a finished run, as printed by train.
    out : Path
        Where to write; by default report.html in the run's folder.
    json : bool
        Print one JSON object, as train does.
    """
    finished = load_run(run)
    page = write_report(finished, out)
    comparison = compare_run(finished)
    if json:
        print_json(as_dict(finished, comparison, page))
    else:
        print_note(comparison.verdict)
        if finished.unverifiable:
            print_note("This run is unverifiable: it was stored before runs had checksums.")
        print_note(f"report: {page}")
