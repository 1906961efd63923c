"""The command `collapsekit`: thin commands over the library (needs the `cli` extra)."""

from __future__ import annotations

import sys

USER_ERROR, INTERRUPTED = 2, 130


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 2 for what the user can mend, 130 after Ctrl-C."""
    try:
        from cyclopts import App, CycloptsError, Parameter

        from collapsekit.cli.console import print_error
    except ModuleNotFoundError as missing:
        print(f"collapsekit: {missing.name} is not installed; run: pip install 'collapsekit[cli]'", file=sys.stderr)  # noqa: T201
        return USER_ERROR
    from collapsekit import __version__
    from collapsekit.errors import CollapseError

    app = App(
        name="collapsekit",
        help="Predict, measure and prevent minority collapse in neural network classifiers.",
        version=__version__,
        default_parameter=Parameter(consume_multiple=True, negative=()),
        help_format="plaintext",
        suppress_keyboard_interrupt=False,
    )
    # Commands are named, not imported, so that `predict` never waits for torch.
    app.command("collapsekit.cli.predict:predict", name="predict")
    app.command("collapsekit.cli.advise:advise", name="advise")
    app.command("collapsekit.cli.solve:solve", name="solve")
    app.command("collapsekit.cli.solve:landscape", name="landscape")
    app.command("collapsekit.cli.train:train", name="train")
    app.command("collapsekit.cli.measure:measure", name="measure")
    app.command("collapsekit.cli.report:report", name="report")
    try:
        app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        print_error(f"{error} Try --help.")
        return USER_ERROR
    except CollapseError as error:
        print_error(str(error))
        return USER_ERROR
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except KeyboardInterrupt:
        print_error("stopped.")
        return INTERRUPTED
    return 0
