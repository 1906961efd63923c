"""`collapsekit sweep`: a grid of training runs, over processes, a Dask cluster or an array of jobs."""

from __future__ import annotations

import json as json_format
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, get_args, get_type_hints

from cyclopts import Parameter
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from collapsekit.cli import SOME_FAILED
from collapsekit.cli._console import QUIET, print_json, print_note, stderr
from collapsekit.cli.collect import print_rows
from collapsekit.errors import CollapseError
from collapsekit.pool import cluster
from collapsekit.training import Outcome, Standing, TrainConfig
from collapsekit.training import sweep as run_sweep
from collapsekit.training._collect import collect, failed_row
from collapsekit.training._sweep import MOST_RUNS, configurations, part_of
from collapsekit.validation import shorten

TYPES = get_type_hints(TrainConfig)
MOST_SHOWN = 20  # running configurations
FORMS: dict[Any, str] = {
    "hidden": "join widths by x, e.g. 256x256",
    bool: "give true or false",
    int: "give whole numbers, or a range such as 0:5",
    float: "give numbers",
}


def sweep(
    configs: Path | None = None,
    /,
    *,
    out: str = "runs",
    workers: int = 2,
    scheduler: str | None = None,
    part: str | None = None,
    device: str = "cpu",
    json: bool = False,
    **grid: Annotated[str, Parameter(help="Any flag of train, with its values separated by commas.")],
) -> int:
    """Train every combination of values; finished runs are read, unfinished ones go on from their last checkpoint.

    Any flag of train takes several values, separated by commas; a range of whole numbers is 0:5 (without its end),
    the widths of hidden layers are joined by x. --seeds is --seed. Repeat the command to go on after a stop.
    --network module:function runs that function, and so whatever code its module holds: name only what you trust.

    Exit code: 0 if every run is finished, 1 if some failed, 2 if all did or the command cannot be carried out.

    Example: collapsekit sweep --data digits --penalty-scale 0.1,0.3,1.5 --seeds 0:5 --hidden 256x256

    Example: collapsekit sweep configs.json --part 1/4 --out /shared/runs

    Parameters
    ----------
    configs : Path
        JSON file instead of flags: a list of configurations, or one object with a list of values for each field.
    out : Path
        Folder of runs; each run has its own below it, named by the hash of its configuration.
    workers : int
        Processes of this machine, of one thread each.
    scheduler : str
        Address of a Dask scheduler, e.g. tcp://10.0.0.1:8786, to train there instead; its workers must see the folder.
    part : str
        I/N: only every N-th run, from the I-th on; one of N jobs that share the folder.
    device : str
        Where each run is trained, e.g. cpu or cuda.
    json : bool
        Print one JSON object on stdout; progress stays on stderr.
    """
    planned = part_of(configurations(_read(configs, grid)), None if part is None else _part(part))
    varied = [name for name in TYPES if len({getattr(config, name) for config in planned}) > 1]
    if not planned:
        return _print([], out, varied, json)
    try:
        with cluster(scheduler) as executor, _shown(planned, varied) as show:
            outcomes = run_sweep(planned, out=out, executor=executor, workers=workers, device=device, progress=show)
    except KeyboardInterrupt:
        stderr.print(Text(f"What is trained so far is kept in {out}; repeat the command to go on from there."))
        raise
    return _print(outcomes, out, varied, json)


def _print(outcomes: list[Outcome], out: str, varied: Sequence[str], json: bool) -> int:
    failed = [outcome for outcome in outcomes if not outcome.finished]
    if failed and len(failed) == len(outcomes):
        raise CollapseError(f"all {len(failed)} runs failed, the first one so: {failed[0].reason}")
    stored = {row["run"]: row for row in collect(out)} if outcomes else {}
    rows = [stored[o.folder.name] if o.finished else failed_row(o, stored.get(o.folder.name)) for o in outcomes]
    if json:
        print_json({"schema": 1, "out": out, "runs": rows})
    elif not rows:
        print_note("Nothing to do in this part.")
    else:
        print_rows(rows, varied)
        for outcome in outcomes:
            if outcome.anew is not None:
                print_note(f"{outcome.folder.name} trained anew: {outcome.anew}")
        what = f", {len(failed)} failed; all of {out}: collapsekit collect {out}" if failed else "."
        print_note(f"{len(outcomes) - len(failed)} of {len(outcomes)} runs finished{what}")
    return SOME_FAILED if failed else 0


@contextmanager
def _shown(planned: Sequence[TrainConfig], varied: Sequence[str]) -> Iterator[Any]:
    """Yield what shows a standing on stderr: a live table on a terminal, else a line for each run that ends."""
    printed, spoken = 0, time.monotonic()

    def lines(standing: Standing) -> None:
        nonlocal printed, spoken
        if time.monotonic() > spoken + QUIET:
            spoken = time.monotonic()
            stderr.print(Text(_title(standing)), soft_wrap=True)
        if any(outcome.finished for outcome in standing.outcomes):  # if none is, the error says it
            for outcome in standing.outcomes[printed:]:
                printed += 1
                values = ", ".join(f"{name.replace('_', ' ')} {getattr(outcome.config, name)}" for name in varied)
                what = f"{outcome.folder.name} {values}: {outcome.reason or 'finished'}"
                stderr.print(Text(" ".join(f"{printed}/{len(planned)} {what}".split())), soft_wrap=True)

    live = Live(console=stderr, auto_refresh=False, transient=True) if stderr.is_terminal else None
    with live or nullcontext():
        yield lines if live is None else lambda standing: live.update(_standing(standing, varied), refresh=True)


def _title(standing: Standing) -> str:
    failed = sum(not outcome.finished for outcome in standing.outcomes)
    return (
        f"{len(standing.outcomes) - failed} done, {failed} failed, {len(standing.running)} running, "
        f"{standing.left - len(standing.running)} left"
    )


def _standing(standing: Standing, varied: Sequence[str]) -> Group:
    table = Table(box=None, pad_edge=False)
    for name in ("run", *varied, "step"):
        table.add_column(name.replace("_", " "), justify="right" if name == "step" else "left")
    for config, step in list(standing.running.items())[:MOST_SHOWN]:
        steps = f"{step}/{config.epochs}" if config.batch_size is None else str(step)
        table.add_row(config.fingerprint, *(Text(str(getattr(config, name))) for name in varied), steps)
    return Group(Text(_title(standing), style="bold"), table)


def _part(text: str) -> tuple[int, int]:
    numbers = re.fullmatch(r"(\d+)/(\d+)", text)
    first, count = map(int, numbers.groups()) if numbers else (0, 0)
    if not 1 <= first <= count:
        raise CollapseError(f"--part={text!r}: give I/N with 1 ≤ I ≤ N, e.g. 1/4 for the first of four jobs")
    return first, count


def _read(path: Path | None, flags: Mapping[str, str]) -> Any:
    """The configurations or the grid that a file or flags describe."""
    if (path is None) == (not flags):
        raise CollapseError("configs: give a JSON file, or flags of train such as --seeds 0:5, and not both")
    if path is None:
        return grid_of(flags)
    place, found = f"configs={str(path)!r}", list[TrainConfig]()
    try:
        content = json_format.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise CollapseError(f"{place}: cannot be read ({reason}); give a JSON file") from None
    entries = content if isinstance(content, list) else [content]
    if not all(isinstance(values, dict) for values in entries):
        raise CollapseError(f"{place}: holds {shorten(content)}; give a list of configurations, or a grid")
    try:
        if isinstance(content, dict):
            return configurations(content)
        for number, values in enumerate(entries, start=1):
            place = f"configs={str(path)!r}, entry {number}"
            unknown = set(values) - set(TYPES) - {"schema"}
            if unknown:
                raise CollapseError(f"TrainConfig has no {sorted(unknown)}; give names of its fields")
            found.append(TrainConfig.from_dict({"schema": TrainConfig().to_dict()["schema"]} | values))
    except CollapseError as error:
        raise CollapseError(f"{place}: {str(error).removeprefix('configs: ')}") from None
    return found


def grid_of(flags: Mapping[str, str]) -> dict[str, list[Any]]:
    """Return the grid that flags describe: ``{"seeds": "0:2", "ldam": "none,0.5"}`` and the like."""
    grid: dict[str, list[Any]] = {}
    for flag, text in flags.items():
        name = "seed" if flag == "seeds" else flag.replace("-", "_")
        if name not in TYPES:
            raise CollapseError(f"--{flag.replace('_', '-')}: is no flag of train; see collapsekit train --help")
        if name == "class_names":
            raise CollapseError("--class-names: not with sweep; give a JSON file of configurations")
        if name in grid:
            raise CollapseError("--seed, --seeds: are the same; give one of them")
        grid[name] = [value for word in text.split(",") for value in _values(name, word.strip())]
    return grid


def _values(name: str, word: str) -> list[Any]:
    """What a word stands for: one value, or the whole numbers of a range."""
    kinds = {TYPES[name], *get_args(TYPES[name])}
    kind: Any = next((kind for kind in (bool, int, float) if kind in kinds), str)
    try:
        if name == "hidden":
            return [tuple(int(width) for width in word.split("x"))]
        if int in kinds and ":" in word:
            return list(range(*(int(end) for end in word.split(":")))[: MOST_RUNS + 1])
        if NoneType in kinds and word == "none":
            return [None]
        return [{"true": True, "false": False}[word.lower()] if kind is bool else kind(word)]
    except (KeyError, ValueError, TypeError):
        flag = f"--{name.replace('_', '-')}={shorten(word)}"
        form = FORMS["hidden" if name == "hidden" else kind]
        raise CollapseError(f"{flag}: cannot be read; {form}") from None
