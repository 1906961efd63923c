"""Random problems for the solver: all losses, biases, penalties per class or not, with and without ReLU."""

import numpy as np

from collapsekit import MSE, UFM, CrossEntropy, Focal, Hinge

KINDS = ("plain", "adjusted", "scaled", "smoothed", "margins", "weighted smoothing", "mse", "hinge")


def random_loss(rng, kind, counts):
    size = len(counts)
    shares = counts / counts.sum()
    return {
        "plain": lambda: CrossEntropy(temperature=float(np.exp(rng.normal(0, 0.5)))),
        "adjusted": lambda: CrossEntropy(offsets=rng.uniform(0.3, 1.5) * np.log(shares)),
        "scaled": lambda: CrossEntropy(
            scales=(counts / counts.max()) ** rng.uniform(0, 0.4), offsets=rng.normal(size=size)
        ),
        "smoothed": lambda: CrossEntropy(smoothing=rng.uniform(0.01, 0.3)),
        "margins": lambda: CrossEntropy(margins=rng.uniform(0, 1) * (counts / counts.min()) ** -0.25),
        "weighted smoothing": lambda: CrossEntropy(
            smoothing=rng.uniform(0.01, 0.3), smoothing_weights=np.exp(rng.normal(0, 0.7, size))
        ),
        "mse": MSE,
        "hinge": Hinge,
        "focal": lambda: Focal(2.0),
    }[kind]()


def random_problem(rng, kind=None, bias="any", relu=None, most=6, dim=None):
    """Return a UFM with some classes near or below their thresholds, and the name of its kind."""
    size = int(rng.integers(2, most + 1))
    counts = np.round(10 ** rng.uniform(0.7, 3, size)).astype(int)
    kind = kind or KINDS[rng.integers(len(KINDS))]
    alpha = counts / counts.sum()
    product = np.median(alpha**2 / counts) * 10 ** rng.uniform(-2.5, 0.3)
    ratio = 10 ** rng.uniform(-2, 2)
    lambda_h = np.sqrt(product / ratio)
    if bias == "any":
        bias = (None, "free", float(10 ** rng.uniform(-3, 0)))[rng.integers(3)]
    return UFM(
        counts,
        np.sqrt(product * ratio),
        lambda_h * np.exp(rng.normal(0, 0.5, size)) if rng.random() < 0.3 else lambda_h,
        loss=random_loss(rng, kind, counts),
        class_weights=np.exp(rng.normal(0, 0.5, size)) if rng.random() < 0.3 else None,
        bias=bias,
        relu=bool(rng.random() < 0.8) if relu is None else relu,
        dim=dim,
    )


def random_point(rng, problem, dim=3):
    """Return a feasible point anywhere: small or large, its bias anywhere."""
    size, scale = problem.num_classes, 10 ** rng.uniform(-2, 1)
    W, H = rng.normal(0, scale, (2, size, dim))
    b = None if problem.bias is None else rng.normal(0, scale, size)
    return W, np.abs(H) if problem.relu else H, b


def perturbed(rng, problem, solution, scale):
    """Return a feasible point near a solution, its bias anywhere near."""
    W = solution.weights + scale * np.abs(solution.weights).max() * rng.normal(size=solution.weights.shape)
    H = solution.features + scale * np.abs(solution.features).max() * rng.normal(size=solution.features.shape)
    b = None if problem.bias is None else solution.bias + 10 * scale * rng.normal(size=problem.num_classes)
    return W, np.maximum(H, 0) if problem.relu else H, b
