"""certify_network: how far a trained network is from the global optimum, by its own objective and by its means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from collapsekit.metrics import Measurement
from collapsekit.metrics.measurement import as_array
from collapsekit.problem import UFM
from collapsekit.solver import Certificate, certify


@dataclass(frozen=True)
class NetworkCertificate:
    """A network beside a bound below which no features and no head can go.

    Attributes
    ----------
    means : Certificate
        Of its class means and its head: they flatter the network, whose samples scatter around them.
    objective : float
        Its own objective, over all its samples.
    """

    means: Certificate
    objective: float

    @property
    def gap(self) -> float:
        """``(objective − lower bound) / objective`` of the network itself."""
        return (self.objective - self.means.lower_bound) / abs(self.objective)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, with its schema version."""
        return {
            "schema": 1,
            "objective": self.objective,
            "gap": self.gap if np.isfinite(self.gap) else None,
            "means": self.means.to_dict(),
        }


def certify_network(measured: Measurement, problem: UFM) -> NetworkCertificate:
    """Bound how far a trained network is from the global optimum of the problem that its recipe defines.

    Parameters
    ----------
    measured : Measurement
        Of the training samples, with head and with the problem's loss.
    problem : UFM
        With the measured counts.

    Returns
    -------
    NetworkCertificate

    Raises
    ------
    CollapseError
        If there is no head, counts or losses differ, or the means are not feasible.

    References
    ----------
    Derived in docs/global_or_spurious.md.

    Examples
    --------
    >>> import numpy as np
    >>> from collapsekit import UFM, predict
    >>> from collapsekit.metrics import measure_features
    >>> problem = UFM([60, 30, 10], lambda_w=0.01, lambda_h=0.0002)
    >>> weights, features = predict(problem).weights_and_features()
    >>> labels = np.repeat([0, 1, 2], [60, 30, 10])
    >>> noise = np.abs(np.random.default_rng(0).normal(0, 0.1, (100, 3)))
    >>> found = certify_network(measure_features(features[labels] + noise, labels, weights), problem)
    >>> 0 < found.means.gap < found.gap
    True
    """
    own = measured.objective(problem)  # checks head, counts and loss
    assert measured.weight is not None
    bias = None if measured.bias is None else as_array(measured.bias)
    return NetworkCertificate(certify(problem, as_array(measured.weight), as_array(measured.moments.means), bias), own)
