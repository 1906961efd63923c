"""Independent answers to the problem: brute force and extended precision; nothing here uses the closed form."""

import mpmath
import numpy as np
from numpy.testing import assert_allclose
from scipy.optimize import minimize

from tolerances import BRUTE_GRAM, BRUTE_OBJECTIVE


def omega(problem):
    return np.ones(problem.num_classes) if problem.class_weights is None else problem.class_weights


def brute_force(problem, *, starts=3, dim=64):
    """Minimise over W and H ≥ 0 in balanced variables (V = t W, U_k = √n_k h_k / t); return objective, W, H.

    The width leaves room: at d near K most starts end in spurious points, where minority classes are wrongly dead.
    """
    size = problem.num_classes
    alpha = omega(problem) * problem.counts / problem.counts.sum()
    kappa = np.sqrt(problem.lambda_w * problem.lambda_h)
    root = np.sqrt(problem.counts)

    def value(packed):
        V, U = packed.reshape(2, size, dim)
        logits = (U / root[:, None]) @ V.T
        top = logits.max(axis=1, keepdims=True)
        exps = np.exp(logits - top)
        loss = alpha @ (np.log(exps.sum(axis=1)) + top[:, 0] - np.diagonal(logits))
        error = alpha[:, None] * (exps / exps.sum(axis=1, keepdims=True) - np.eye(size)) / root[:, None]
        gradient = np.stack([error.T @ U + kappa * V, error @ V + kappa * U])
        return loss + 0.5 * kappa * (np.square(V).sum() + np.square(U).sum()), gradient.ravel()

    bounds = [(None, None)] * (size * dim) + [(0, None)] * (size * dim)
    options = {"maxiter": 20_000, "maxfun": 40_000, "ftol": 0, "gtol": 1e-13, "maxcor": 50}
    best = None
    for start in range(starts):
        rng = np.random.default_rng(start)
        x = np.abs(rng.normal(0, 0.5, (2, size, dim)))
        for _ in range(5):
            found = minimize(value, x.ravel(), jac=True, method="L-BFGS-B", bounds=bounds, options=options)
            x = found.x.reshape(2, size, dim).copy()
            # A kick in unused coordinates grows along an escape direction, or dies where there is none.
            unused = np.square(x).sum(axis=(0, 1)) < 1e-10
            x[:, :, unused] = np.abs(rng.normal(0, 1e-2, (2, size, unused.sum())))
            x[0, :, unused] *= rng.choice([-1, 1], (unused.sum(), size))
        if best is None or found.fun < best.fun:
            best = found
    V, U = best.x.reshape(2, size, dim)
    ratio = (problem.lambda_h / problem.lambda_w) ** 0.25
    return best.fun, V * ratio, U / root[:, None] / ratio


def assert_agrees(frame, objective, weights, features):
    """Objective and Gram matrices of a prediction against a numerical optimum."""
    assert_allclose(frame.objective, objective, rtol=BRUTE_OBJECTIVE)
    geometry = frame.geometry()
    pairs = {"gram_h": features @ features.T, "gram_w": weights @ weights.T, "cross": weights @ features.T}
    # A fully collapsed optimum is a flat zero: there the natural unit, not the matrix, is the scale.
    ratio = frame.problem.lambda_w / (frame.problem.lambda_h * frame.problem.counts.sum())
    units = {"gram_h": np.sqrt(ratio), "gram_w": 1 / np.sqrt(ratio), "cross": 1.0}
    for name, expected in pairs.items():
        scale = max(np.abs(expected).max(), units[name])
        assert_allclose(getattr(geometry, name) / scale, expected / scale, atol=BRUTE_GRAM, err_msg=name)


def scalar_minimum(alpha, cost, num_classes):
    """Minimise α log(1 + (K−1) e^(−s)) + c s over s ≥ 0 to 40 digits, by bisection on the derivative."""
    with mpmath.workdps(40):
        alpha, cost = mpmath.mpf(float(alpha)), mpmath.mpf(float(cost))

        def slope(s):
            tail = (num_classes - 1) * mpmath.exp(-s)
            return cost - alpha * tail / (1 + tail)

        low, high = mpmath.mpf(0), mpmath.mpf(1)
        if slope(low) >= 0:
            return mpmath.mpf(0)
        while slope(high) < 0:
            high *= 2
        for _ in range(160):
            middle = (low + high) / 2
            low, high = (middle, high) if slope(middle) < 0 else (low, middle)
        return low
