"""The benchmarks run, and their accuracies hold, on few classes; what they cost is for `make bench` to say."""

import os
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[2]


def test_benchmarks_run_on_a_thousand_classes():
    words = [sys.executable, "-m", "pytest", "benchmarks", "-q", "-p", "no:cacheprovider"]
    ran = subprocess.run(
        words,
        cwd=FOLDER,
        env=os.environ | {"COLLAPSEKIT_BENCH_CLASSES": "1000", "COLLAPSEKIT_BENCH_MEGABYTES": "1"},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout
    assert "27 passed" in ran.stdout
