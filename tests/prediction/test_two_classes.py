"""Two classes and a free bias have a closed form: what the search finds is held against it."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from _support.tolerances import TWO_CLASSES
from collapsekit import UFM, predict


def closed(problem):
    """Confidences: the class of the larger λ_H n sits at the origin, the other has error q."""
    n, alpha = problem.counts, problem.loss_weights
    burden = np.broadcast_to(problem.lambda_h, 2) * n
    i, j = (0, 1) if burden[0] > burden[1] else (1, 0)
    q = np.sqrt(problem.lambda_w * burden[j] / 2) / alpha[j]
    confidences = np.empty(2)
    if q >= alpha[i] / alpha.sum():
        confidences[[i, j]] = alpha[[i, j]] / alpha.sum()
    else:
        confidences[[i, j]] = 1 - alpha[j] / alpha[i] * q, 1 - q
    return confidences


@pytest.mark.parametrize("seed", range(40))
def test_the_search_finds_the_closed_form_of_two_classes(seed):
    rng = np.random.default_rng(seed)
    n = np.round(10 ** rng.uniform(0.5, 3.5, 2)) + np.array([0, 1])
    weights = np.exp(rng.normal(0, 0.5, 2)) if seed % 2 else None
    alpha = n / n.sum() * (1 if weights is None else weights)
    root = float(np.sqrt(2 * (alpha**2 / n).min()) * 10 ** rng.uniform(-2, 0.3))
    lambda_h = root * np.exp(rng.normal(0, 0.3, 2)) if seed % 3 == 0 else root
    problem = UFM(n, root, lambda_h, class_weights=weights, bias="free")
    assert_allclose(predict(problem).confidences, closed(problem), rtol=TWO_CLASSES)
