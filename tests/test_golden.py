"""Today's numbers, sentences and exit codes, held in tests/golden; golden/make.py writes them again.

A new key may appear, none may vanish. Numbers agree up to a relative tolerance or the absolute one beside it, whichever
is wider: tight for closed forms, wide for what is trained.
"""

import json
import math
import re
from typing import NamedTuple

import pytest

from golden import make


class Tolerance(NamedTuple):
    relative: float
    absolute: float
    words: bool = False  # whether numbers inside sentences may differ, too (by 5 %: they are printed rounded)


CLOSED = Tolerance(1e-9, 0.0)
NEAR = Tolerance(1e-6, 1e-12)  # near a threshold the last bits of exp and log count
LEAST = Tolerance(1e-9, 1e-13)  # commands: confidences and margins at the scale of 1
SOLVED = Tolerance(1e-7, 1e-9)
MEASURED = Tolerance(1e-6, 1e-9, words=True)
TRAINED = Tolerance(1e-3, 1e-4, words=True)
OF_GROUP = {"solve": SOLVED, "measure": MEASURED, "train": TRAINED, "sweep": TRAINED, "landscape": TRAINED}
PARTS = 10
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")


def differences(new, old, tolerance, path=""):
    """Every place where `new` does not have what `old` has, in words."""
    if isinstance(old, dict) and isinstance(new, dict):
        lost = [f"{path}.{key}: is gone, was {shown(old[key])}" for key in old if key not in new]
        both = [key for key in old if key in new]
        return lost + [line for key in both for line in differences(new[key], old[key], tolerance, f"{path}.{key}")]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(new, old, strict=True))
        return [line for i, (a, b) in pairs for line in differences(a, b, tolerance, f"{path}[{i}]")]
    return [] if same(new, old, tolerance) else [f"{path}: is {shown(new)}, was {shown(old)}"]


def shown(value):
    text = repr(value)
    return text if len(text) <= 300 else f"{text[:300]}…"


def same(new, old, tolerance):
    if is_number(new) and is_number(old):
        return math.isclose(new, old, rel_tol=tolerance.relative, abs_tol=tolerance.absolute)
    if tolerance.words and isinstance(new, str) and isinstance(old, str):
        numbers = zip(NUMBER.findall(new), NUMBER.findall(old), strict=False)
        return NUMBER.sub("#", new) == NUMBER.sub("#", old) and all(
            math.isclose(float(a), float(b), rel_tol=0.05, abs_tol=tolerance.absolute) for a, b in numbers
        )
    return type(new) is type(old) and new == old


def is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool)


def check(found):
    """Fail with every difference, each under the name of its problem or command."""
    lines = [f"{name}\n  {line}" for name, differing in found.items() for line in differing]
    if lines:
        rest = f"\n… and {len(lines) - 30} more" if len(lines) > 30 else ""
        pytest.fail(f"{len(lines)} differences\n" + "\n".join(lines[:30]) + rest, pytrace=False)


@pytest.fixture(scope="module")
def problems():
    return json.loads(make.PROBLEMS.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def commands():
    return json.loads(make.COMMANDS.read_text(encoding="utf-8"))


def problem_differences(name, new, old):
    """As `differences`; of a problem at or near a threshold the prediction is compared less closely."""
    near = name.endswith((", at", ", near"))
    tolerances = {key: NEAR if near and key == "prediction" else CLOSED for key in old}
    return [line for key in old for line in differences(new.get(key), old[key], tolerances[key], f".{key}")]


@pytest.mark.parametrize("part", range(PARTS))
def test_problems_are_predicted_as_before(problems, part):
    given, old = make.drawn_problems(), problems["predicted"]
    assert list(given) == list(old)
    names = list(given)[part::PARTS]
    check({name: problem_differences(name, make.problem_record(given[name]), old[name]) for name in names})


@pytest.mark.parametrize("part", range(PARTS))
def test_problems_are_solved_as_before(problems, part):
    given, old = make.solved_problems(), problems["solved"]
    assert list(given) == list(old)
    check(
        {name: differences(make.solution_record(given[name]), old[name], SOLVED) for name in list(given)[part::PARTS]}
    )


@pytest.mark.parametrize("group", make.GROUPS)
def test_commands_answer_as_before(commands, tmp_path, group):
    old = {record["command"]: record for record in commands[group]}
    assert list(old) == make.GROUPS[group]
    new = {record["command"]: record for record in make.command_records(group, tmp_path)}
    check({line: differences(new[line], old[line], OF_GROUP.get(group, LEAST)) for line in old})
