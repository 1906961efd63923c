"""The largest decays by bisection against a scan of predictions."""

import numpy as np
import pytest

from collapsekit import UFM, CollapseError, predict
from collapsekit.prediction import largest_decays
from collapsekit.prediction._advise import scaled


@pytest.mark.parametrize("options", [{"bias": "free"}, {"bias": 0.01}, {"relu": False}], ids=str)
@pytest.mark.parametrize("decay", [0.1, 1.0])
def test_just_below_every_class_lives_and_just_above_one_is_lost(options, decay):
    problem = UFM([500, 300, 40, 10], 3e-2 * decay, 1e-3 * decay, **options)
    found = largest_decays(problem)
    assert not predict(scaled(problem, 0.999 * found.factor)).collapses.any()
    assert predict(scaled(problem, 1.001 * found.factor)).collapses[int(found.label)]
    assert found.product == pytest.approx(problem.lambda_w * problem.lambda_h * found.factor**2)


def test_a_class_that_is_named():
    problem = UFM({"ant": 500, "bee": 300, "cat": 40}, 3e-2, 1e-3, bias="free")
    assert largest_decays(problem, "bee").factor > largest_decays(problem, "cat").factor
    with pytest.raises(CollapseError, match="label='fly'"):
        largest_decays(problem, "fly")


def test_too_many_classes_say_so():
    with pytest.raises(CollapseError, match="2100 classes are too many"):
        largest_decays(UFM(np.arange(100, 2200), 1e-3, 1e-5, bias="free"))
