"""Does every experiment still run, and is its smoke band met? All their smoke runs go through one sweep.

Run: PYTHONPATH=experiments python -m _tools.smoke [NAME ...] [--workers 2] [--out FOLDER]

Minutes; nothing is written.

Exit code 1 if a run cannot be trained or a band is not met, with the names of the experiments at fault.
"""

import argparse
import importlib
import sys
import tempfile
from pathlib import Path

from _tools import harness


def experiments(names):
    """The experiments of these names; of every file that defines one, without names."""
    files = sorted(path.stem for path in Path(__file__).parents[1].glob("*.py"))
    modules = [importlib.import_module(name) for name in names or files]
    return [module.EXPERIMENT for module in modules if hasattr(module, "EXPERIMENT")]


def judged(experiment, runs, out):
    """Print the lines of an experiment at smoke size; return whether its bands are met."""
    own = [runs[config] for config in experiment.smoke]
    rows, failures, _ = harness.collected(own, experiment, out)
    lines = experiment.judge(list(rows.values()), experiment.smoke_bands)
    print(harness.table(lines), flush=True)
    return not failures and all(entry["verdict"] != harness.FAILS for entry in lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", help="keep the run folders here, and resume from them")
    arguments = parser.parse_args(namespace=argparse.Namespace(scheduler=None, part=None))
    chosen = experiments(arguments.names)
    harness.find_networks()
    for prepare in {experiment.prepare for experiment in chosen} - {None}:
        prepare()
    configs = [config for experiment in chosen for config in experiment.smoke]
    with tempfile.TemporaryDirectory() as scratch:
        out = arguments.out or scratch
        found = harness.run_all(configs, out, arguments)
        runs = {config: (config, run, error) for config, run, error in found}
        failing = [experiment.name for experiment in chosen if not judged(experiment, runs, out)]
    print(f"{len(chosen) - len(failing)} of {len(chosen)} experiments hold at smoke size")
    sys.exit(f"at fault: {', '.join(failing)}" if failing else 0)


if __name__ == "__main__":
    main()
