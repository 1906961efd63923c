"""Independent oracles of the numpy core: nothing of src but the UFM container, whose fields are only read.

Brute force knows neither margins nor frames: it minimises the objective of docs/theory.md over W and H ≥ 0.
"""

from typing import NamedTuple

import mpmath
import numpy as np
from numpy.testing import assert_allclose
from scipy.optimize import minimize

from _support import tolerances

DIGITS = 40


def loss_shares(problem):
    """ω_k n_k / N from the container's raw fields."""
    omega = np.ones(len(problem.counts)) if problem.class_weights is None else problem.class_weights
    return omega * problem.counts / problem.counts.sum()


def cross_entropy(logits):
    """Cross-entropy of row k for target k, and the softmax."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    total = np.exp(shifted).sum(axis=1, keepdims=True)
    return np.log(total[:, 0]) - np.diagonal(shifted), np.exp(shifted) / total


# (a) the objective as written, and the recipe that a network is trained with; both accept complex arrays


def sample_losses(weights, features, labels, bias=0.0):
    """Cross-entropy of each sample, (N,): features (N, d), labels (N,)."""
    logits = features @ weights.T + bias
    shifted = logits - logits.real.max(axis=1, keepdims=True)
    return np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(labels)), labels]


def sample_objective(problem, weights, features, labels, bias=0.0):
    """UFM+ as written: features (N, d) one row a sample, labels (N,)."""
    omega = np.ones(len(problem.counts)) if problem.class_weights is None else problem.class_weights
    lambda_h = np.broadcast_to(problem.lambda_h, len(problem.counts))
    bias_penalty = problem.bias if isinstance(problem.bias, float) else 0.0
    return (
        (omega[labels] * sample_losses(weights, features, labels, bias)).sum() / len(labels)
        + problem.lambda_w / 2 * (weights**2).sum()
        + (lambda_h[labels] * (features**2).sum(axis=1)).sum() / 2
        + bias_penalty / 2 * np.sum(np.square(bias))
    )


def feature_penalty(batch, features, reduction):
    """The penalty of one step without fd/2: over the batch, or over all samples."""
    return {
        "batch_sum": (batch**2).sum(),
        "batch_mean": (batch**2).sum(axis=1).mean(),
        "entry_mean": (batch**2).mean(),
        "full_sum": (features**2).sum(),
    }[reduction]


def batchnorm_penalty(features, branches):
    """‖γ‖² + ‖β‖² of m equal BatchNorm branches whose sum has the mean and deviation of the features."""
    beta = features.mean(axis=0) / branches
    gamma = np.sqrt(((features / branches - beta) ** 2).mean(axis=0))  # np.var takes moduli, which no complex step sees
    return branches * ((gamma**2).sum() + (beta**2).sum())


def recipe_objective(weights, features, labels, *, weight_decay, feature_decay=None, batch_size=None, **recipe):
    """What a recipe minimises: the mean over an epoch of its steps' objectives, over all cyclic orders of the data.

    Over these orders every sample stands at every position equally often, as it does over random ones.
    """
    total = len(labels)
    size = min(batch_size or total, total)
    steps = total // size if recipe.get("drop_last") else -(-total // size)
    class_weights = np.asarray(recipe.get("class_weights", np.ones(len(weights))))
    fixed = weight_decay / 2 * (weights**2).sum()
    if "batchnorm_branches" in recipe:
        fixed = fixed + weight_decay / 2 * batchnorm_penalty(features, recipe["batchnorm_branches"])
    values = []
    for shift in range(total):
        order = np.roll(np.arange(total), shift)
        for rows in (order[i * size : (i + 1) * size] for i in range(steps)):
            batch, w = features[rows], class_weights[labels[rows]]
            step = recipe.get("loss_factor", 1.0) * (w @ sample_losses(weights, batch, labels[rows])) / w.sum()
            if feature_decay is not None:
                reduction = recipe.get("reduction", "batch_sum")
                step = step + feature_decay / 2 * feature_penalty(batch, features, reduction)
            values.append(step)
    return fixed + np.mean(values)


def gradient(function, *arrays):
    """Gradient in all entries of the arrays, flat, by complex steps: as exact as the function itself."""
    point, tiny = np.concatenate([array.ravel() for array in arrays]).astype(complex), 1e-100
    ends = np.cumsum([array.size for array in arrays])[:-1]
    slopes = np.empty(point.size)
    for i in range(point.size):
        moved = point.copy()
        moved[i] += tiny * 1j
        parts = [part.reshape(array.shape) for part, array in zip(np.split(moved, ends), arrays, strict=True)]
        slopes[i] = function(*parts).imag / tiny
    return slopes


def assert_same_minimisers(problem, recipe, seed=0, dim=3):
    """The recipe's gradient in W and in every sample's feature is `loss_factor` times that of the problem."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(problem.counts)), problem.counts.astype(int)))
    point = rng.normal(size=(len(problem.counts), dim)), np.abs(rng.normal(size=(len(labels), dim)))
    wanted = gradient(lambda W, H: recipe_objective(W, H, labels, **recipe), *point)
    actual = gradient(lambda W, H: sample_objective(problem, W, H, labels), *point)
    assert_allclose(recipe.get("loss_factor", 1.0) * actual, wanted, rtol=tolerances.UNITS, atol=tolerances.EXACT)


# (b) brute force


class Optimum(NamedTuple):
    objective: float
    weights: np.ndarray  # (K, d)
    features: np.ndarray  # (K, d)


class CrossEntropyOf:
    """Losses of logits (K, K), their slopes, and their Hessians (K, K, K), with smoothing, margins and temperature."""

    def __init__(self, loss, size):
        self.temperature, self.offsets = loss.temperature, np.zeros((size, size))
        if loss.margins is not None:
            np.fill_diagonal(self.offsets, -np.asarray(loss.margins))
        rates = np.reshape(loss.smoothing, (-1, 1))  # one, or one a row
        self.targets = (1 - rates) * np.eye(size) + rates / size

    def __call__(self, logits):
        shifted = logits / self.temperature + self.offsets
        shifted = shifted - shifted.max(axis=1, keepdims=True)
        total = np.exp(shifted).sum(axis=1, keepdims=True)
        P = np.exp(shifted) / total
        losses = np.log(total[:, 0]) - (self.targets * shifted).sum(axis=1)
        curvatures = np.stack([np.diag(p) - np.outer(p, p) for p in P]) / self.temperature**2
        return losses, (P - self.targets) / self.temperature, curvatures


class FocalOf:
    """(1 − p)^γ (−log p), differentiated through p."""

    def __init__(self, loss, size):
        self.gamma, self.temperature = loss.gamma, 1.0

    def __call__(self, logits):
        cross, P = cross_entropy(logits)
        g, size = self.gamma, len(logits)
        p, wrong = np.diagonal(P), (P * (1 - np.eye(size))).sum(axis=1)
        first = g * wrong ** (g - 1) * cross + wrong**g / p if g else 1 / p  # −dℓ/dp
        second = 1 / p**2  # d²ℓ/dp²
        if g:
            second = g * (g - 1) * wrong ** (g - 2) * cross + 2 * g * wrong ** (g - 1) / p + wrong**g / p**2
        slopes, curvatures = np.empty_like(P), np.empty((size, size, size))
        for k in range(size):
            up = p[k] * (np.eye(size)[k] - P[k])  # dp/dz
            bend = np.outer(up, np.eye(size)[k] - P[k]) - p[k] * (np.diag(P[k]) - np.outer(P[k], P[k]))  # d²p/dz²
            slopes[k] = -first[k] * up
            curvatures[k] = second[k] * np.outer(up, up) - first[k] * bend
        return wrong**g * cross, slopes, curvatures


class SquaredOf:
    def __init__(self, loss, size):
        self.temperature = 1.0

    def __call__(self, logits):
        size = len(logits)
        apart = logits - np.eye(size)
        return 0.5 * (apart**2).sum(axis=1), apart, np.broadcast_to(np.eye(size), (size, size, size))


LOSSES = {"CrossEntropy": CrossEntropyOf, "Focal": FocalOf, "MSE": SquaredOf}


class Balanced:
    """UFM+ in variables V, U of equal penalty κ/2: W = V (κ/λ_W)^½, h_k = u_k (κ/(λ_H,k n_k))^½; x = (V, U) flat."""

    def __init__(self, problem):
        self.size = len(problem.counts)
        lambda_h = np.broadcast_to(problem.lambda_h, self.size)
        self.shares = loss_shares(problem)
        self.kappa = np.sqrt(problem.lambda_w * np.exp(np.log(lambda_h).mean()))
        self.unit_w = np.sqrt(self.kappa / problem.lambda_w)
        self.unit_h = np.sqrt(self.kappa / (lambda_h * problem.counts))
        self.factor = self.unit_w * self.unit_h  # z_k = factor_k V u_k

        self.loss = LOSSES[type(problem.loss).__name__](problem.loss, self.size)

    def logits(self, U, V):
        return self.factor[:, None] * (U @ V.T)

    def split(self, x):
        return x.reshape(2, self.size, -1)

    def value(self, x):
        V, U = self.split(x)
        losses, slopes, _ = self.loss(self.logits(U, V))
        G = (self.shares * self.factor)[:, None] * slopes
        gradient = np.stack([G.T @ U + self.kappa * V, G @ V + self.kappa * U])
        return self.shares @ losses + self.kappa / 2 * (x @ x), gradient.ravel()

    def hessian(self, x):
        V, U = self.split(x)
        size, d = V.shape
        _, slopes, curvatures = self.loss(self.logits(U, V))
        G = (self.shares * self.factor)[:, None] * slopes
        H = np.zeros((2, size, d, 2, size, d))
        for k in range(size):
            S = self.shares[k] * self.factor[k] ** 2 * curvatures[k]
            H[0, :, :, 0] += np.einsum("ij,a,b->iajb", S, U[k], U[k])
            H[1, k, :, 1, k] += V.T @ S @ V
            mixed = np.einsum("ij,a,jb->iab", S, U[k], V) + np.einsum("i,ab->iab", G[k], np.eye(d))
            H[0, :, :, 1, k] += mixed
            H[1, k, :, 0] += mixed.transpose(2, 0, 1)
        return H.reshape(x.size, x.size) + self.kappa * np.eye(x.size)


def descend(model, x):
    """Bounded L-BFGS, all precision it has."""
    half = x.size // 2
    bounds = [(None, None)] * half + [(0, None)] * half
    options = {"maxiter": 20_000, "maxfun": 40_000, "ftol": 0, "gtol": 1e-13, "maxcor": 30}
    return minimize(model.value, x, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x


def polish(model, x, patience=8):
    """Newton on the free variables, shifted by the gradient's norm: quadratic even where minimisers form a manifold.

    It ends when the gradient, down to rounding, has not fallen for some steps; on the manifold rounding would drift.
    """
    half, best, least, waited = x.size // 2, x, np.inf, 0
    while waited < patience and x.size:
        _, gradient = model.value(x)
        free = np.ones(x.size, dtype=bool)
        free[half:] = (x[half:] > 0) | (gradient[half:] < 0)
        size = np.linalg.norm(gradient[free])
        if size == 0:
            return x
        waited = 0 if size < 0.7 * least else waited + 1
        if size < least:
            best, least = x, size
        values, vectors = np.linalg.eigh(model.hessian(x)[np.ix_(free, free)])
        step = np.zeros(x.size)
        step[free] = -vectors @ ((vectors.T @ gradient[free]) / (np.abs(values) + size))
        x = x + step
        x[half:] = np.maximum(x[half:], 0)
    return best


def brute_force(problem, seed=0, starts=2, rounds=8):
    """The least value found over W and H ≥ 0, d ≥ 4K.

    From each start: descend; then add columns with a small random kick, along which every escape direction grows, until
    a kick no longer helps. The landscape has many spurious stationary points (docs/theory.md, section 5).
    """
    model, rng = Balanced(problem), np.random.default_rng(seed)
    best, size = None, model.size
    for _ in range(starts):
        x = descend(model, np.abs(rng.normal(0, 1, (2, size, 4 * size))).ravel())
        for _ in range(rounds):
            V, U = model.split(x)
            used = (V**2).sum(axis=0) + (U**2).sum(axis=0) > 1e-14
            kick = np.stack([rng.normal(0, 1e-2, (size, 2 * size)), np.abs(rng.normal(0, 1e-2, (size, 2 * size)))])
            trial = descend(model, np.concatenate([np.stack([V, U])[:, :, used], kick], axis=2).ravel())
            gain = model.value(x)[0] - model.value(trial)[0]
            x = trial if gain > 0 else x
            if gain < 1e-9 * model.value(x)[0]:
                break
        if best is None or model.value(x)[0] < model.value(best)[0]:
            best = x
    V, U = model.split(best)
    used = (V**2).sum(axis=0) + (U**2).sum(axis=0) > 1e-14
    best = polish(model, np.stack([V, U])[:, :, used].ravel())
    V, U = model.split(best)
    return Optimum(model.value(best)[0], model.unit_w * V, model.unit_h[:, None] * U)


def largest_error(actual, expected, floor=0.0):
    """Largest deviation relative to the largest entry, or to `floor` if that is larger; 0 if nothing deviates."""
    error, size = np.abs(actual - expected).max(), max(np.abs(expected).max(initial=0), floor)
    return error / size if error > 0 else 0.0


def off_threshold(headroom):
    """Whether no class is so near its threshold that the objective is too flat for descent in float64."""
    return np.abs(headroom - 1).min() > tolerances.BRUTE_BAND


def assert_is_optimum(frame, optimum=None):
    """Objective, margins, confidences, norms and Grams of a prediction against brute force."""
    found = brute_force(frame.problem) if optimum is None else optimum
    size, geometry, model = len(frame.margins), frame.geometry(), Balanced(frame.problem)
    logits = found.features @ found.weights.T
    margins = (size * np.diagonal(logits) - logits.sum(axis=1)) / (size - 1)
    pairs = {  # actual, expected, the natural unit
        "gram_h": (geometry.gram_h, found.features @ found.features.T, model.unit_h.max() ** 2),
        "gram_w": (geometry.gram_w, found.weights @ found.weights.T, model.unit_w**2),
        "cross": (geometry.cross, logits.T, 1),
        "margins": (frame.margins, margins, 1),
        "confidences": (frame.confidences, np.diagonal(cross_entropy(logits / model.loss.temperature)[1]), 1),
        "feature_sqnorms": (frame.feature_sqnorms, (found.features**2).sum(axis=1), model.unit_h.max() ** 2),
        "classifier_sqnorms": (frame.classifier_sqnorms, (found.weights**2).sum(axis=1), model.unit_w**2),
    }
    assert_allclose(frame.objective, found.objective, rtol=tolerances.BRUTE_OBJECTIVE)
    for name, (actual, expected, unit) in pairs.items():
        error = largest_error(actual, expected, tolerances.BRUTE_FLOOR * unit)
        assert_allclose(error, 0, atol=tolerances.BRUTE_GRAM, err_msg=name)
    assert_allclose(margins[frame.collapses], 0, atol=tolerances.BRUTE_GRAM * max(1, margins.max()))


# (c) extended precision


class Scalar(NamedTuple):
    margin: mpmath.mpf
    objective: mpmath.mpf
    closeness: mpmath.mpf  # |1 − q/q_crit|


def scalar_minimum(alpha, cost, num_classes):
    """Minimiser of α log(1 + (K−1) e^−s) + c s over s ≥ 0 to 40 digits, by bisection on the derivative."""
    with mpmath.workdps(DIGITS):
        others = mpmath.mpf(num_classes - 1)

        def slope(s):
            return cost - alpha * others / (others + mpmath.exp(s))

        low, high = mpmath.mpf(0), mpmath.mpf(1)
        while slope(high) < 0:
            high *= 2
        for _ in range(4 * DIGITS if slope(0) < 0 else 0):
            middle = (low + high) / 2
            low, high = (middle, high) if slope(middle) < 0 else (low, middle)
        objective = alpha * mpmath.log(1 + others * mpmath.exp(-low)) + cost * low
        return Scalar(low, objective, abs(1 - cost / alpha * num_classes / others))


def scalar_minima(problem):
    """One Scalar a class, from the exact float64 inputs."""
    size, result = len(problem.counts), []
    omega = np.ones(size) if problem.class_weights is None else problem.class_weights
    lambda_h = np.broadcast_to(problem.lambda_h, size)
    with mpmath.workdps(DIGITS):
        counts = [mpmath.mpf(n) for n in problem.counts.tolist()]
        for n, weight, penalty in zip(counts, omega.tolist(), lambda_h.tolist(), strict=True):
            product = mpmath.mpf(problem.lambda_w) * mpmath.mpf(penalty)
            cost = mpmath.sqrt(product * n * (size - 1) / size)
            result.append(scalar_minimum(mpmath.mpf(weight) * n / mpmath.fsum(counts), cost, size))
    return result


def assert_is_scalar_optimum(frame):
    """Margins and objective against extended precision; relative margins only off the threshold."""
    with mpmath.workdps(DIGITS):
        exact = scalar_minima(frame.problem)
        for margin, expected in zip(frame.margins.tolist(), exact, strict=True):
            relative = tolerances.EXACT if expected.closeness >= tolerances.THRESHOLD_BAND else 0
            allowed = max(tolerances.MARGIN, relative * expected.margin)
            assert abs(mpmath.mpf(margin) - expected.margin) <= allowed, (margin, expected)
        objective = float(mpmath.fsum(expected.objective for expected in exact))
    assert_allclose(frame.objective, objective, rtol=tolerances.EXACT)


# (d) a lower bound for the hinge, whose kinks defeat descent


def polar(Y):
    """max ‖Y v‖ over unit v ≥ 0, by all supports whose top eigenvector is positive (docs/theory.md, section 5)."""
    A, best = Y.T @ Y, 0.0
    size = len(A)
    for mask in range(1, 2**size):
        support = [i for i in range(size) if mask >> i & 1]
        values, vectors = np.linalg.eigh(A[np.ix_(support, support)])
        top = vectors[:, -1]
        top = top * np.sign(top[np.abs(top).argmax()])
        if (top >= -1e-10).all():
            best = max(best, values[-1])
    return np.sqrt(best)


def hinge_lower_bound(problem, duals):
    """Σ β_k, a bound on the objective for 0 ≤ β ≤ α if the gauge's polar at −G D^(−1/2) is at most κ."""
    size, counts = len(problem.counts), problem.counts
    assert (duals <= loss_shares(problem) * (1 + 1e-12)).all()
    G = duals[:, None] * ((1 - np.eye(size)) / (size - 1) - np.eye(size))
    lambda_h = np.broadcast_to(problem.lambda_h, size)
    Y = -G.T / np.sqrt(problem.lambda_w * lambda_h * counts)
    return duals.sum() / max(1.0, polar(Y))
