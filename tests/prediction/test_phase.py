"""Phase diagram: every cell against the closed form, its borders, its refusals."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from _support.tolerances import EXACT
from collapsekit import UFM, CollapseError, CrossEntropy, Focal, long_tail, predict, step
from collapsekit.prediction import phase_diagram

RATIOS, PRODUCTS = [1, 7, 100], np.geomspace(1e-8, 1e-3, 7)


@pytest.mark.parametrize("loss", [CrossEntropy(), CrossEntropy(smoothing=0.1, temperature=2.0), Focal(2.0)], ids=str)
@pytest.mark.parametrize(("profile", "counts"), [("long-tail", long_tail), ("step", step)])
def test_every_cell_counts_the_survivors_of_the_closed_form(profile, counts, loss):
    diagram = phase_diagram(6, 2000, ratios=RATIOS, products=PRODUCTS, profile=profile, loss=loss)
    for i, ratio in enumerate(RATIOS):
        sizes = counts(2000, round(2000 / ratio), 6)
        for j, product in enumerate(PRODUCTS):
            frame = predict(UFM(sizes, np.sqrt(product), np.sqrt(product), loss=loss))
            assert diagram.survivors[i, j] == (~frame.collapses).sum()


def test_borders_are_the_first_and_the_last_death():
    diagram = phase_diagram(10, 5000, ratios=RATIOS, products=PRODUCTS)
    for i, ratio in enumerate(RATIOS):
        counts = long_tail(5000, round(5000 / ratio), 10)
        deaths = counts[[-1, 0]] * 9 / 10 / counts.sum() ** 2
        assert_allclose([diagram.first_death[i], diagram.last_death[i]], deaths, rtol=EXACT)
    assert_array_equal(diagram.survivors[0] % 10, 0)  # balanced classes die together
    assert diagram.to_dict()["schema"] == 1
    assert np.shape(diagram.to_dict()["survivors"]) == (3, 7)


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        ({"ratios": [0.5]}, "ratios: 0.5 is below 1"),
        ({"ratios": [-1]}, "class 0 has -1|ratios"),
        ({"products": [0]}, "products"),
        ({"ratios": []}, r"ratios=\[\]: give at least one number"),
        ({"products": []}, r"products=\[\]: give at least one number"),
        ({"ratios": ["wide"]}, "ratios=.*give real numbers"),
        ({"products": [[1e-6]]}, "products: shape"),
        ({"ratios": [1e200]}, "ratios: class 0 has 1e"),
        ({"profile": ["step"]}, "profile="),
        ({"profile": "flat"}, "profile='flat'"),
        ({"num_classes": 1}, "num_classes=1"),
        ({"largest": 0}, "largest=0"),
    ],
    ids=str,
)
def test_misuse(options, fragment):
    given = {"num_classes": 5, "largest": 100, "ratios": [10], "products": [1e-6]} | options
    with pytest.raises(CollapseError, match=fragment):
        phase_diagram(given.pop("num_classes"), given.pop("largest"), **given)


def test_with_a_bias_every_cell_is_what_is_predicted_there():
    diagram = phase_diagram(4, 500, ratios=[1, 50], products=[1e-6, 3e-5, 1e-2], bias="free")
    for row, ratio in enumerate((1, 50)):
        for column, product in enumerate((1e-6, 3e-5, 1e-2)):
            counts, root = long_tail(500, round(500 / ratio), 4), product**0.5
            lost = predict(UFM(counts, root, root, bias="free")).collapses.sum()
            assert diagram.survivors[row, column] == 4 - lost
    assert diagram.survivors[1].tolist() == [4, 3, 0]
    assert diagram.first_death[1] == 3e-5
    assert diagram.last_death[1] == 1e-2
