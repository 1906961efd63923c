"""Random problems for the property tests."""

import os

import numpy as np
from hypothesis import strategies as st

from collapsekit import MSE, UFM, CrossEntropy, Focal, Hinge


def examples(full: int) -> int:
    """Return how many examples to draw: all of them in `make test-all`, a tenth in `make test`."""
    return full if os.environ.get("COLLAPSEKIT_TESTS") == "all" else max(1, full // 10)


@st.composite
def problems(draw, max_classes=8, max_ratio=1e3, weighted=True):
    """Draw a UFM with none, some or all classes collapsed, λ_W/λ_H from 1e-4 to 1e4."""
    size = draw(st.integers(2, max_classes))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    counts = np.maximum(1, np.round(10 ** rng.uniform(0, np.log10(max_ratio), size))).astype(int)
    weights = 10 ** rng.uniform(-0.5, 0.5, size) if weighted and draw(st.booleans()) else None
    omega = np.ones(size) if weights is None else weights
    critical = omega**2 * (size - 1) * counts / (size * float(counts.sum()) ** 2)  # λ_W λ_H at which each class dies
    scale = 10 ** draw(st.floats(-3, 0.5))
    product = scale * np.exp(rng.uniform(np.log(critical.min()), np.log(critical.max()) + 1e-9))
    ratio = 10 ** draw(st.floats(-4, 4))
    return UFM(counts, np.sqrt(product * ratio), np.sqrt(product / ratio), class_weights=weights)


@st.composite
def other_problems(draw, kind, max_classes=8):
    """Draw a UFM with another loss, weights and per-class λ_H or not, with none, some or all classes collapsed."""
    plain = draw(problems(max_classes=max_classes))
    loss = (
        Focal(draw(st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.7])))
        if kind == "focal"
        else {"mse": MSE, "hinge": Hinge}[kind]()
    )
    factor = float(loss.critical_price(plain.num_classes) / plain.loss.critical_price(plain.num_classes))
    spread = np.ones(plain.num_classes)
    if draw(st.booleans()):
        spread = np.exp(np.random.default_rng(draw(st.integers(0, 99))).normal(size=plain.num_classes))
    return UFM(
        plain.counts,
        plain.lambda_w * factor,
        plain.lambda_h * factor * spread if spread.any() and spread.std() else plain.lambda_h * factor,
        loss=loss,
        class_weights=plain.class_weights,
    )


@st.composite
def losses(draw, num_classes):
    """Draw a cross-entropy with smoothing, target margins and temperature, each present or not."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    smoothing = draw(st.sampled_from([0.0, 0.05, 0.3]))
    margins = None
    if draw(st.booleans()):
        margins = rng.normal(0, 2, num_classes)
        margins = np.abs(margins) if smoothing else margins  # with smoothing low margins have no closed form
    return CrossEntropy(smoothing, margins, 10 ** draw(st.floats(-1, 1)))
