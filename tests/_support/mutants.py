"""Twenty formulas broken on purpose, one after the other, in a copy of the tree: each must fail a test.

Run: python tests/_support/mutants.py [NUMBER ...]       (make mutants; some ten minutes)

Exit code 1 if a broken formula passes the tests beside it, or its line is not found exactly once: update it then.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
SRC = "src/collapsekit"


class Mutant(NamedTuple):
    """A file below SRC, a text that stands in it once, what replaces it, and the tests that must notice."""

    file: str
    right: str
    wrong: str
    tests: str


MUTANTS = [
    # theory
    Mutant(
        "theory/_thresholds.py",
        "critical_root = problem.loss.critical_price(size) * problem.loss_weights / per_root_product",
        "critical_root = problem.loss.critical_price(size) / per_root_product",
        "tests/theory",
    ),
    Mutant(
        "theory/_thresholds.py",
        "(slope + root) / (2 * square)",
        "(slope - root) / (2 * square)",
        "tests/theory",
    ),
    Mutant("theory/references.py", "loss=Hinge() if centred else MSE())", "loss=MSE())", "tests/theory"),
    Mutant(
        "theory/references.py",
        "return float(shared[0] / n.sum() ** 2)",
        "return float(shared[-1] / n.sum() ** 2)",
        "tests/theory",
    ),
    Mutant(
        "problem.py",
        "return float(loss + 0.5 * (penalties + self.bias_penalty * (b @ b)))",
        "return float(loss + 0.5 * penalties + self.bias_penalty * (b @ b))",
        "tests/test_problem.py tests/solver",
    ),
    # losses
    Mutant(
        "losses/cross_entropy.py",
        "odds = np.log(num_classes - 1) + self._margins - margins / self.temperature",
        "odds = np.log(num_classes - 1) + self._margins - margins",
        "tests/losses",
    ),
    Mutant(
        "losses/cross_entropy.py",
        "return cls(margins=largest * (n.min() / n) ** 0.25, **terms)",
        "return cls(margins=largest * (n.min() / n) ** 0.5, **terms)",
        "tests/losses src/collapsekit/losses",
    ),
    Mutant(
        "losses/sums.py",
        "bent = state * (moved - np.einsum",
        "bent = state * (moved + np.einsum",
        "tests/losses",
    ),
    Mutant(
        "losses/sums.py",
        "bent = np.diag(w @ state) - state.T @ (w[:, None] * state)",
        "bent = np.diag(w @ state)",
        "tests/losses tests/solver/test_certificate.py",
    ),
    # solver
    Mutant(
        "solver/_certify.py",
        "return (self.objective - self.lower_bound) / max(abs(self.objective), 1e-300)",
        "return abs(self.objective - self.lower_bound) / 10 / max(abs(self.objective), 1e-300)",
        "tests/solver",
    ),
    Mutant(
        "solver/_certify.py",
        "slope = gradient.sum(axis=0) + model.bias_penalty * b",
        "slope = gradient.sum(axis=0)",
        "tests/solver",
    ),
    Mutant(
        "solver/_certify.py",
        "scale = min(1.0, (1 - 4 * EPS) / max(polar, 1e-300))",
        "scale = 1.0",
        "tests/solver/test_certificate.py",
    ),
    # geometry and class counts
    Mutant(
        "profiles.py",
        "(np.arange(size) / (size - 1))",
        "(np.arange(size) / size)",
        "tests/test_profiles.py src/collapsekit/profiles.py",
    ),
    # metrics
    Mutant(
        "metrics/moments.py",
        "apart = Apart(self._means, classes, means, before * share)",
        "apart = Apart(self._means, classes, means, torch.where(before > 0, n, 0.0))",
        "tests/metrics/test_moments.py",
    ),
    Mutant(
        "metrics/functional.py",
        "return ratio if per_class else ratio * int(moments.seen.sum())",
        "return ratio",
        "tests/metrics/test_functional.py src/collapsekit/metrics/functional.py",
    ),
    Mutant(
        "metrics/functional.py",
        "variance = variance * moments.counts / (moments.counts - 1)",
        "variance = variance * (moments.counts - 1) / moments.counts",
        "tests/metrics/test_functional.py",
    ),
    Mutant(
        "metrics/pairs.py", "shift=1 / (len(points) - 1)", "shift=1 / len(points)", "tests/metrics/test_functional.py"
    ),
    # recipes and their units
    Mutant(
        "recipe/_kinds.py",
        "law = self.weight_decay / (last.branches * total)",
        "law = self.weight_decay / total",
        "tests/recipe tests/training/test_recipes.py",
    ),
    # effective penalties and statuses
    Mutant(
        "diagnosis/_effective.py",
        "ratio = float(measured.weight.square().sum()) / total",
        "ratio = total / float(measured.weight.square().sum())",
        "tests/diagnosis",
    ),
    Mutant("diagnosis/status.py", "SQUEEZED_SHARE = 0.9", "SQUEEZED_SHARE = 0.5", "tests/diagnosis"),
]


def killed(mutant: Mutant, tree: Path) -> str:
    """Break the formula in the copy, run its tests, mend it; return what became of it."""
    path = tree / SRC / mutant.file
    text = path.read_text(encoding="utf-8")
    if text.count(mutant.right) != 1:
        return f"NOT FOUND {text.count(mutant.right)} times, update tests/_support/mutants.py"
    path.write_text(text.replace(mutant.right, mutant.wrong), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *mutant.tests.split()]
    environment = os.environ | {"PYTHONPATH": str(tree / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    path.write_text(text, encoding="utf-8")
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    if done.returncode == 1 and failed:
        return f"killed by {failed[0].split()[1]}"
    return "SURVIVES" if done.returncode == 0 else f"NOT RUN, pytest ended with {done.returncode}: {done.stdout[-200:]}"


def main(chosen: list[str]) -> int:
    """Try the chosen mutants, all without numbers; return how many were not killed."""
    alive = 0
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        for name in ("src", "tests", "docs", "pyproject.toml", "README.md"):
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, tree / name)
        for number, mutant in enumerate(MUTANTS, 1):
            if chosen and str(number) not in chosen:
                continue
            found = killed(mutant, tree)
            alive += not found.startswith("killed")
            print(f"{number:2} {mutant.file}: {mutant.right[:50]} … {found}", flush=True)  # noqa: T201
    return alive


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]) > 0)
