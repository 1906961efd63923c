"""What experiments share: train what is not trained yet, lay each run beside its prediction, judge by the bands.

An experiment is one file: its bands, its configurations, and a `judge` that turns rows into the lines of the evidence
table. Commands are run from the repository's root; data and networks of the experiments' own are named relative to it.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from collapsekit.pool import cluster
from collapsekit.prediction import Basis
from collapsekit.training import TrainConfig, collect, compare_run, load_run, sweep
from collapsekit.training._config import NAMED_DATA
from collapsekit.training.store import run_folder

RESULTS = Path(__file__).parents[1] / "results"
SCOPE = Path(__file__).parents[2] / "src" / "collapsekit" / "scope.json"
DEFAULTS = TrainConfig().to_dict()
HOLDS, CORRECTED, FAILS = "holds", "holds with correction", "fails"
NO_CLAIM = "no claim"
"""Of lines that are there to be compared with, and of answers that were refused."""
SMALL: dict[str, Any] = {"largest": 60, "ratio": 5.0, "hidden": (128,), "epochs": 1000}
"""Digits and an MLP for runs of seconds: 60 … 12 samples a class."""
COLUMNS = ("claim", "tested_on", "predicted", "measured", "verdict")

Row = dict[str, Any]
"""One run: what was set, what was found; see `row_of`."""
Line = dict[str, Any]
"""One line of the evidence table: claim, tested_on, predicted, measured, verdict; headline if the README shows it."""


@dataclass(frozen=True)
class Experiment:
    """A claim with its runs.

    Attributes
    ----------
    name : str
        Of the file and of its results.
    doc : str
        The file's docstring.
    configs : list of TrainConfig
        The runs.
    bands : dict
        What the verdict rests on, committed before the run.
    judge : callable
        ``judge(rows, bands)`` returns the lines of the evidence table.
    smoke, smoke_bands
        The same, small enough for seconds.
    extra : callable, optional
        ``extra(run)`` returns more entries for a run's row.
    prepare : callable, optional
        Writes the data that the runs need, if they are not there yet.
    """

    name: str
    doc: str
    configs: list[TrainConfig]
    bands: dict[str, Any]
    judge: Callable[[list[Row], dict[str, Any]], list[Line]]
    smoke: list[TrainConfig]
    smoke_bands: dict[str, Any]
    extra: Callable[[Any], Row] | None = None
    prepare: Callable[[], None] | None = None


def row_of(run, found: Row, extra=None) -> Row:
    """Return what the results keep of a run: findings of its row in `collect`, and what is known of each class."""
    row = {
        "config": changed(run.config),
        **{key: found[key] for key in FOUND},
        "collapsed": found["measured_collapsed"],
        "counts": run.measured.counts.astype(int).tolist(),
        "confidences": run.measured.confidences,
        "margins": run.measured.margins,
        "recalls": run.test_recalls,
    }
    if run.prediction is not None:
        row |= {key: found[key] for key in COMPARED}
        row |= {
            "predicted_confidences": run.prediction.confidences,
            "predicted_margins": run.prediction.margins,
            "headroom": run.prediction.headroom,
            "spuriously_collapsed": len(lost_against_the_prediction(run)),
        }
        if run.prediction.basis is Basis.CERTIFIED:  # no closed form
            row |= {
                "solved_confidences": run.prediction.confidences,
                "solved_margins": run.prediction.margins,
                "solved_gap": run.prediction.gap,
            }
    return {key: plain(value) for key, value in (row | (extra(run) if extra else {})).items()} | {
        "config": row["config"]
    }


FOUND = ("train_accuracy", "balanced_accuracy", "mean_cosine", "seconds", "outside")
COMPARED = (
    *("largest_deviation", "feature_norm_error", "classifier_norm_error", "largest_cosine", "objective_excess"),
    *("same_classes_collapsed", "reached", "predicted_collapsed", "times_threshold"),
)


def lost_against_the_prediction(run) -> list[int]:
    """Return the classes that are dead although the theory keeps them alive."""
    classes = enumerate(compare_run(run).classes)
    return [k for k, c in classes if c.status == "lost" and c.agreement == "against the prediction"]


def changed(config: TrainConfig) -> Row:
    """Return the values of a configuration that are not the defaults; `TrainConfig.from_dict` reads them."""
    kept = {"schema"} | ({"penalty_scale"} if config.data not in NAMED_DATA else set())  # whose default goes by data
    return {key: value for key, value in config.to_dict().items() if key in kept or value != DEFAULTS[key]}


def plain(value: Any) -> Any:
    """Return numbers and vectors as JSON can hold them, six digits each; what is not finite as None."""
    if isinstance(value, np.ndarray):
        return [plain(v) for v in value.tolist()]
    if isinstance(value, dict):
        return {key: plain(v) for key, v in value.items()}
    if isinstance(value, float | np.floating):
        return float(f"{value:.6g}") if np.isfinite(value) else None
    return value


def setting(row: Row, key: str) -> Any:
    """Return a value of a row's configuration."""
    return row["config"].get(key, DEFAULTS[key])


def long_tailed(row: Row) -> str:
    """Data and imbalance of a row as the table says them."""
    data = {"fashion-mnist": "Fashion-MNIST"}.get(setting(row, "data"), setting(row, "data"))
    return f"{data} {setting(row, 'ratio'):g}:1"


def deviations(row: Row) -> np.ndarray:
    """|measured − predicted| confidence of each class of a run, (K,)."""
    return np.abs(np.array(row["confidences"]) - row["predicted_confidences"])


def critical(row: Row, within: float = 0.02) -> bool:
    """Whether a class lies within 2 % of its threshold, where the force on it vanishes."""
    return bool((np.abs(np.array(row["headroom"]) - 1) < within).any())


def spread(values, digits: int = 2) -> str:
    """Mean ± standard deviation (over runs or seeds) as the table shows them; of a single value, the value."""
    values = np.asarray(list(values), dtype=float)
    mean = short(values.mean(), digits)
    return f"{mean} ± {short(values.std(ddof=1), 1)}" if values.size > 1 else mean


def short(value: float, digits: int) -> str:
    """A number with so many digits, without an exponent where it is large."""
    return f"{value:.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"


def by_seed(rows: list[Row], value: Callable[[list[Row]], float]) -> list[float]:
    """Return a value of the rows of each seed, one a seed."""
    seeds = sorted({setting(row, "seed") for row in rows})
    return [value([row for row in rows if setting(row, "seed") == seed]) for seed in seeds]


def line(
    claim: str, tested_on: str, predicted: str, measured: str, verdict: str | bool, *, headline: bool = False
) -> Line:
    """Return a line of the table; a verdict of True or False is spelled out, a headline is shown in the README."""
    if isinstance(verdict, bool | np.bool_):
        verdict = HOLDS if verdict else FAILS
    found = dict(zip(COLUMNS, (claim, tested_on, predicted, measured, verdict), strict=True))
    return found | ({"headline": True} if headline else {})


def table(lines: list[Line]) -> str:
    """Return the lines as a table in Markdown."""
    head = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    return "\n".join(head + ["| " + " | ".join(entry[c] for c in COLUMNS) + " |" for entry in lines])


def run_all(configs, out, arguments):
    """Train what is not trained yet, here or where the scheduler says, and return (configuration, run, error) each."""
    printed = 0

    def tell(standing):
        nonlocal printed
        for outcome in standing.outcomes[printed:]:
            printed += 1
            print(f"{printed}/{printed + standing.left}", changed(outcome.config), outcome.reason or "", flush=True)

    with cluster(arguments.scheduler) as executor:
        outcomes = sweep(
            configs, out=out, executor=executor, workers=arguments.workers, part=arguments.part, progress=tell
        )
    return [(o.config, load_run(o.folder) if o.finished else None, o.reason) for o in outcomes]


def part(text: str) -> tuple[int, int]:
    """I/N as two numbers."""
    first, count = text.split("/")
    return int(first), int(count)


def find_networks() -> None:
    """Let workers import the experiments' networks, which configurations name from the repository's root."""
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH", "")]))


def finished(configs, out):
    """Yield the runs that are there already."""
    for config in configs:
        if (Path(out) / config.fingerprint / "env.json").exists():
            yield config, load_run(run_folder(out, config)), None


def main(experiment: Experiment) -> list[Row]:
    """Run an experiment from the command line and write results/NAME.json; returns its rows.

    The runs go through `collapsekit.training.sweep`: with --out they go on where an earlier call, killed or not,
    left them; --scheduler trains them on a Dask cluster, and --part I/N trains every N-th of them, one of N jobs that
    share --out (nothing is judged then; --finished does that once all parts are trained). Both need the data and
    networks of the experiments where the workers are: start them at the repository's root.
    """
    parser = argparse.ArgumentParser(description=experiment.doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--scheduler", help="address of a Dask scheduler to train with, instead of local processes")
    parser.add_argument("--part", type=part, help="I/N: train every N-th run from the I-th on; judge nothing")
    parser.add_argument("--out", help="keep the run folders here, and resume from them")
    parser.add_argument("--smoke", action="store_true", help="a few small runs, nothing written; exit 1 on a failure")
    parser.add_argument("--finished", action="store_true", help="train nothing, judge what is in --out or stored")
    parser.add_argument("--reuse", action="store_true", help="keep the stored rows of runs that are not in --out")
    arguments = parser.parse_args()
    if (arguments.part or arguments.scheduler) and not arguments.out:
        parser.error("--part and --scheduler need --out, a folder that all of them see")
    find_networks()
    configs, bands = experiment.configs, experiment.bands
    if arguments.smoke:
        configs, bands = experiment.smoke, experiment.smoke_bands
    if experiment.prepare is not None:
        experiment.prepare()
    with tempfile.TemporaryDirectory() as scratch:
        out = arguments.out or scratch
        kept = stored_rows(experiment, configs, out) if arguments.reuse or arguments.finished else {}
        missing = [config for config in configs if config not in kept]
        runs = finished(missing, out) if arguments.finished else run_all(missing, out, arguments) if missing else []
        if arguments.part:
            print("the part is trained; the same command with --finished instead of --part judges all of them")
            return []
        rows, failures, environment = collected(runs, experiment, out)
    rows |= kept
    ordered = [rows[config] for config in configs if config in rows]
    lines = experiment.judge(ordered, bands)
    print(table(lines))
    if arguments.smoke:
        sys.exit(any(entry["verdict"] == FAILS for entry in lines) or bool(failures))
    write(experiment, ordered, lines, failures, environment)
    return ordered


def stored_rows(experiment: Experiment, configs, out) -> dict[TrainConfig, Row]:
    """Return the stored rows of planned runs that have no finished run folder."""
    done = {config for config, _, _ in finished(configs, out)}
    rows = {TrainConfig.from_dict(row["config"]): row for row in stored(experiment.name)}
    return {config: row for config, row in rows.items() if config in configs and config not in done}


def collected(runs, experiment: Experiment, out):
    """Return rows by configuration, failures, and the environment of one of the runs."""
    rows, failures, environment = {}, [], results(experiment.name).get("environment")
    runs = list(runs)
    found = {row["run"]: row for row in collect(out)} if any(run for _, run, _ in runs) else {}
    for config, run, error in runs:
        if run is None:
            failures.append({"config": changed(config), "error": error})
            print("failed:", error, flush=True)
            continue
        row = rows[config] = row_of(run, found[config.fingerprint], experiment.extra)
        environment = {key: value for key, value in run.environment.items() if key != "seconds"}
        shown = (changed(config), row.get("largest_deviation"), f"{row['seconds']} s")
        print(f"{len(rows)}/{len(runs)}", *shown, flush=True)
    return rows, failures, environment


def write(experiment: Experiment, rows, lines, failures, environment) -> None:
    """Write the results: small, one run a line."""
    RESULTS.mkdir(exist_ok=True)
    seconds = sum(row["seconds"] for row in rows)
    content = {
        "schema": 2,
        "name": experiment.name,
        "planned_runs": len(experiment.configs),
        "run_minutes": round(seconds / 60, 1),
        "environment": environment,
        "bands": experiment.bands,
        "table": lines,
        "failures": failures,
        "superseded": superseded(experiment),
    }
    body = json.dumps(content, indent=1, ensure_ascii=False)[:-2]
    runs = ",\n  ".join(json.dumps(row, ensure_ascii=False) for row in rows)
    unfinished = RESULTS / f"{experiment.name}.unfinished"
    unfinished.write_text(f'{body},\n "runs": [\n  {runs}\n ]\n}}\n', encoding="utf-8")
    unfinished.replace(RESULTS / f"{experiment.name}.json")


def superseded(experiment: Experiment) -> list[Row]:
    """Return, in short, the stored runs that are planned no more: what earlier settings gave is not forgotten."""
    before = results(experiment.name)
    gone = [row for row in before.get("runs", []) if TrainConfig.from_dict(row["config"]) not in experiment.configs]
    kept = ("config", "largest_deviation", "same_classes_collapsed")
    return before.get("superseded", []) + [{key: row.get(key) for key in kept} for row in gone]


def stored(name: str) -> list[Row]:
    """Return the rows of results/NAME.json, none if there is no such file."""
    return results(name).get("runs", [])


def results(name: str) -> Row:
    """Return results/NAME.json, empty if there is no such file."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
