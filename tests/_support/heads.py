"""Softmax heads trained to a stationary point with coupled decay, on random features: convex, by L-BFGS."""

import numpy as np
from scipy.optimize import minimize
from scipy.special import logsumexp, softmax


def trained(counts, dim, decay, *, bias_decay=None, spread=1.0, relu=False, seed=0):
    """Weight, bias (None without a decay for it) and features of a head at the optimum, from a random start."""
    rng = np.random.default_rng(seed)
    counts = np.asarray(counts)
    size, total, labels = len(counts), counts.sum(), np.repeat(np.arange(len(counts)), counts)
    centres = 2 * rng.normal(size=(size, dim))
    centres = np.abs(centres) if relu else centres  # a class whose features are all 0 would sit at the dead point, too
    features = centres[labels] + spread * rng.normal(size=(total, dim))
    features = np.maximum(features, 0) if relu else features

    def objective(x):
        weight, bias = x[: size * dim].reshape(size, dim), x[size * dim :] if bias_decay else np.zeros(size)
        logits = features @ weight.T + bias
        error = softmax(logits, axis=1)
        error[np.arange(total), labels] -= 1
        value = (logsumexp(logits, axis=1) - logits[np.arange(total), labels]).mean() + decay / 2 * (weight**2).sum()
        slope = (error.T @ features / total + decay * weight).ravel()
        if not bias_decay:
            return value, slope
        value += bias_decay / 2 * (bias**2).sum()
        return value, np.concatenate([slope, error.mean(axis=0) + bias_decay * bias])

    start = rng.normal(size=size * dim + (size if bias_decay else 0))
    options = {"maxiter": 20_000, "maxfun": 40_000, "ftol": 1e-16, "gtol": 1e-10, "maxcor": 30}
    x = minimize(objective, start, jac=True, method="L-BFGS-B", options=options).x
    return x[: size * dim].reshape(size, dim), x[size * dim :] if bias_decay else None, features


def random_recipe(seed, *, empty):
    """Counts (with 2 or more classes without samples, or none), width, decays: what a head may be trained with."""
    rng = np.random.default_rng(seed)
    size, dim = int(rng.integers(4, 25)), int(rng.integers(2, 24))
    counts = np.maximum(1, (200 * 10 ** (-rng.uniform(0, 2) * np.arange(size) / size)).astype(int))
    if empty:
        counts[rng.choice(size, int(rng.integers(2, max(3, size // 2))), replace=False)] = 0
    decay = 10 ** rng.uniform(-4, -1.5)
    bias_decay = decay * 10 ** rng.uniform(-1, 1) if seed % 2 else None
    return {"counts": counts, "dim": dim, "decay": decay, "bias_decay": bias_decay, "relu": seed % 3 == 0, "seed": seed}
