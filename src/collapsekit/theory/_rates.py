"""growth_rates: how fast a class gets going or dies out near its threshold, in an idealised training."""

from __future__ import annotations

import numpy as np

from collapsekit.problem import UFM
from collapsekit.theory._thresholds import thresholds
from collapsekit.validation import Array, frozen


def growth_rates(problem: UFM) -> Array:
    r"""Return at which rate the own coordinate of each class, while it is small, grows (> 0) or dies out (< 0).

    .. math:: r_k = \tfrac12\Bigl[-(\lambda_W + \lambda_{H,k})
              + \sqrt{(\lambda_W - \lambda_{H,k})^2 + 4 P_k}\Bigr]

    per unit of time, P_k its critical λ_W λ_H: 0 at the threshold, where a class takes for ever to die. This is
    gradient flow on W and on a free feature of every sample, at equal rates, for a class whose logits are equal so
    far. It is NOT the time of a network, whose layers set their own pace, nor of Adam.

    Parameters
    ----------
    problem : UFM
        As for :func:`collapsekit.thresholds`.

    Returns
    -------
    ndarray, shape (K,)
        In units of 1/(learning rate · steps).

    Raises
    ------
    CollapseError
        If the problem has no thresholds.

    References
    ----------
    Derived here (docs/theory.md, "Time").

    Examples
    --------
    >>> growth_rates(UFM([500, 300, 40, 10], lambda_w=3e-2, lambda_h=1e-3)).round(5)
    array([ 0.01151,  0.00734,  0.00037, -0.00065])
    """
    w, h = problem.lambda_w, np.asarray(problem.lambda_h)
    return frozen(0.5 * (np.sqrt((w - h) ** 2 + 4 * thresholds(problem).critical_product) - (w + h)))
