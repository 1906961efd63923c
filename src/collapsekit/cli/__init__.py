"""The command `collapsekit`: thin commands over the library (needs the `cli` extra)."""

from __future__ import annotations

import os
import sys
import warnings
from importlib import import_module
from inspect import getdoc
from io import TextIOWrapper

SOME_FAILED, USER_ERROR, INTERRUPTED = 1, 2, 130

# Commands are named, not imported, so that `predict` never waits for torch.
COMMANDS = {
    "predict": "Say which classes a recipe will lose, with each class's threshold and headroom.",
    "advise": "Say what to change so that every class lives: decays, weights, target margins, counts.",
    "solve": "Solve numerically what has no closed form, and say how far from the global optimum the result is.",
    "landscape": "Say how often common optimisers and the certified solver reach the optimum from the same starts.",
    "train": "Train a network on imbalanced data and lay its last layer beside the predicted geometry.",
    "sweep": "Train every combination of values, over processes, a Dask cluster or an array of jobs; resumable.",
    "collect": "Show all runs below a folder in one table, also while they run.",
    "measure": "Measure stored last-layer features, class by class.",
    "report": "Write the report of a finished run again.",
    "diagnose": "Say which classes of a trained model are lost or weak, why, and what to do about it.",
    "adjust": "Repair the head of a trained network without retraining it, with the gain on validation samples.",
    "inspect": "Say which classes of a trained model can never or hardly be output, from its weights alone.",
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code: 0, what it returns, 2 for what the user can mend, 130 after Ctrl-C."""
    try:
        from cyclopts import App, CycloptsError, Parameter

        from collapsekit.cli._console import print_error
    except ModuleNotFoundError as missing:
        print(f"collapsekit: {missing.name} is not installed; run: pip install 'collapsekit[cli]'", file=sys.stderr)  # noqa: T201
        return USER_ERROR
    from collapsekit.errors import CollapseError

    for stream in (sys.stdout, sys.stderr):  # a file name may hold bytes that no terminal can show
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    app = App(
        name="collapsekit",
        help="Predict, measure and prevent minority collapse in neural network classifiers.",
        version=_version,
        default_parameter=Parameter(consume_multiple=True, negative=()),
        help_format="plaintext",
        suppress_keyboard_interrupt=False,
    )
    words = sys.argv[1:] if arguments is None else arguments
    listing = not words or words[0].startswith("-")  # a command's own help is its docstring, with its examples
    if words and words[0] in COMMANDS and {"--help", "-h"} & set(words):
        _unwrap_help(words[0])
    for name, summary in COMMANDS.items():
        app.command(f"collapsekit.cli.{name}:{name}", name=name, help=summary if listing else None)
    try:
        os.getcwd()  # else torch's libraries end the process in words of their own
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: print_error(str(message))
            code = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except CycloptsError as error:
        message = f"{error} Try --help."
    except CollapseError as error:
        message = str(error)
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except FileNotFoundError as error:
        where = "the working folder" if error.filename is None else error.filename
        message = f"{where}: there is no such file or folder; change to one that exists"
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left in its buffer is written at exit
        where = "stdout" if error.filename is None else error.filename
        message = f"{where}: {error.strerror or error}; free space, or work in another folder"
    except KeyboardInterrupt:
        print_error("stopped.")
        return INTERRUPTED
    print_error(message)
    return USER_ERROR


def _unwrap_help(name: str) -> None:
    """Join the lines of each paragraph of a command's docstring and of its flags: a terminal wraps them itself."""
    from collapsekit.cli import _inputs, _reading

    module = import_module(f"collapsekit.cli.{name}")
    flags = (_inputs.Counting, _inputs.Penalties, _inputs.Head, _reading.Reading)
    shared = (*flags, getattr(module, "TrainConfig", _inputs.Head))
    for documented in (getattr(module, name), *shared):
        documented.__doc__ = unwrapped(getdoc(documented) or "").replace("``", "")


def unwrapped(doc: str) -> str:
    """Return a docstring whose paragraphs, and whose descriptions of parameters, are one line each.

    Examples
    --------
    >>> print(unwrapped("Say what\\nis.\\n\\nParameters\\n---\\na : int\\n    One\\n    two.\\nb : int\\n    Three."))
    Say what is.
    <BLANKLINE>
    Parameters
    ---
    a : int
        One two.
    b : int
        Three.
    """
    lines, listed = list[str](), False
    for line in doc.splitlines():
        listed = listed or line.startswith("---")
        indent = len(line) - len(line.lstrip())
        before = lines[-1] if lines else ""
        same = bool(before) and bool(line) and indent == len(before) - len(before.lstrip())
        if same and (indent or not (listed or line in ("Parameters", "Attributes"))):
            lines[-1] += f" {line.strip()}"
        else:
            lines.append(line)
    return "\n".join(lines)


def _version() -> str:
    from collapsekit import __version__  # on demand: it reads the package's metadata

    return str(__version__)
