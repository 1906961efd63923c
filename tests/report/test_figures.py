"""Figures read back: what is drawn is what was given, and nothing is named that was not."""

import io
import warnings
from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import to_hex
from numpy.testing import assert_allclose, assert_array_equal

from _support.tolerances import EXACT
from collapsekit import UFM, CrossEntropy, predict, thresholds
from collapsekit.diagnosis import compare
from collapsekit.metrics import measure_features
from collapsekit.report import figures

SIZES = [2, 5, 40]
STEPS = [1, 10, 100]


@pytest.fixture(autouse=True)
def _style():
    with mpl.rc_context(figures.STYLE):
        yield


def frame_of(size, **options):
    """A prediction in which some classes survive and some do not."""
    counts = np.linspace(100, 4, size).astype(int)
    names = [f"class {k}" for k in range(size)]
    product = 2 * thresholds(UFM(counts, 1.0, 1.0, **options)).minority_collapse
    return predict(UFM(counts, 10 * product**0.5, 0.1 * product**0.5, names=names, **options))


def comparison_of(frame):
    """Beside a measurement that differs from it everywhere."""
    weights, features = frame.weights_and_features()
    labels = np.repeat(np.arange(len(weights)), frame.problem.counts.astype(int))
    return compare(frame, measure_features(0.8 * features[labels] + 0.01, labels, weights, loss=frame.problem.loss))


def history_of(confidences):
    return [
        {"step": s, "objective": 2 + 1 / s, "loss": 1 / s, "nc1": 3 / s, "confidences": list(confidences * (1 - 1 / s))}
        for s in STEPS
    ]


def lines(ax):
    """Points by label; lines without one by their place."""
    return {line.get_label(): line.get_xydata() for line in ax.lines}


def legend(ax):
    return None if ax.get_legend() is None else [text.get_text() for text in ax.get_legend().get_texts()]


def annotations(ax):
    return {text.get_text(): text.xy for text in ax.texts if hasattr(text, "xy")}


def drawn(ax):
    """Really draw it, so that what fails in drawing fails here."""
    file = io.StringIO()
    ax.get_figure().savefig(file, format="svg")
    return file.getvalue()


# Confidence against headroom


@pytest.mark.parametrize("size", SIZES)
def test_collapse_line(size):
    frame = frame_of(size)
    comparison = comparison_of(frame)
    ax = figures.collapse_line(frame, comparison)
    measured = [c.measured_confidence for c in comparison.classes]
    assert np.abs(measured - frame.confidences).max() > 0.01
    assert_array_equal(lines(ax)["measured"], np.c_[frame.headroom, measured])
    x, y = lines(ax)["predicted"].T
    assert x.min() < frame.headroom.min() < 1 < frame.headroom.max() < x.max()
    assert_allclose(y, np.maximum(1 / size, 1 - (1 - 1 / size) / np.sqrt(x)), rtol=EXACT)
    assert legend(ax) == ["predicted", "measured"]
    named = annotations(ax)
    assert set(named) == ({c.label for c in comparison.classes} if size <= figures.MOST_LABELS else set())
    for c, headroom in zip(comparison.classes, frame.headroom, strict=True):
        assert named.get(c.label, (headroom, c.measured_confidence)) == (headroom, c.measured_confidence)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("headroom: class size / critical size", "training confidence")
    assert ">predicted<" in drawn(ax)


def test_collapse_line_where_each_class_has_a_line_of_its_own():
    frame = frame_of(4, loss=CrossEntropy(margins=(0.1, 0.2, 0.3, 0.4)))
    ax = figures.collapse_line(frame, comparison_of(frame))
    assert_array_equal(lines(ax)["predicted"], np.c_[frame.headroom, frame.confidences])
    assert legend(ax) == ["predicted", "measured"]


def test_collapse_line_with_a_class_of_unknown_confidence():
    frame = frame_of(5)
    comparison = comparison_of(frame)
    unknown = replace(comparison.classes[2], measured_confidence=float("nan"))
    changed = [*comparison.classes[:2], unknown, *comparison.classes[3:]]
    ax = figures.collapse_line(frame, replace(comparison, classes=changed))
    assert np.isnan(lines(ax)["measured"][2, 1])
    drawn(ax)


# Against class size


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("predicted", [True, False])
def test_by_count(size, predicted):
    rng = np.random.default_rng(size)
    counts, theirs, ours = rng.permutation(np.arange(1.0, size + 1)), rng.uniform(size=size), rng.uniform(size=size)
    ours[0] = np.nan
    ax = figures.by_count(counts, theirs if predicted else None, ours, ylabel="of a test")
    assert_array_equal(lines(ax)["measured"], np.c_[counts, ours])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("training samples of the class", "of a test")
    if predicted:
        assert_array_equal(lines(ax)["predicted"], np.c_[counts, theirs])
        order = np.argsort(counts)
        assert_array_equal(ax.lines[0].get_xydata(), np.c_[counts, theirs][order])
    assert len(ax.lines) == (3 if predicted else 1)
    assert legend(ax) == (["predicted", "measured"] if predicted else None)
    drawn(ax)


# Matrices


@pytest.mark.parametrize("size", SIZES)
def test_gram(size):
    matrix = np.random.default_rng(0).normal(size=(size, size))
    matrix[0] = np.nan
    labels = [f"class {k}" for k in range(size)]
    ax = figures.gram(matrix, title="of a test", limit=2.5, labels=labels)
    (image,) = ax.images
    assert_array_equal(image.get_array().filled(np.nan), matrix)
    assert image.get_clim() == (-2.5, 2.5)
    assert ax.get_title() == "of a test"
    for ticks in (ax.get_xticklabels(), ax.get_yticklabels()):
        assert ([tick.get_text() for tick in ticks] == labels) is (size <= figures.MOST_LABELS)
    assert ("class" in drawn(ax)) is (size <= figures.MOST_LABELS)


def test_the_labels_of_a_matrix_stand_upright_where_they_are_long():
    for labels, angle in ((["a", "10"], 0), (["a", "long"], 90)):
        ax = figures.gram(np.eye(2), title="", limit=1, labels=labels)
        assert {tick.get_rotation() for tick in ax.get_xticklabels()} == {angle}
    assert "class" not in drawn(figures.gram(np.eye(2), title="", limit=1))


# Over the steps


def test_trajectories_of_scalars():
    history = history_of(np.array([0.5, 0.5]))
    steps = np.array(STEPS, dtype=float)
    (line,) = figures.objective_trajectory(history, 2.0).lines
    assert_allclose(line.get_xydata(), np.c_[steps, 1 / steps / 2], rtol=EXACT)
    (line,) = figures.loss_trajectory(history).lines
    assert_array_equal(line.get_xydata(), np.c_[steps, 1 / steps])
    (line,) = figures.nc1_trajectory(history).lines
    assert_array_equal(line.get_xydata(), np.c_[steps, 3 / steps])
    for ax in (figures.objective_trajectory(history, 2.0), figures.nc1_trajectory(history)):
        assert (ax.get_yscale(), ax.get_xlabel(), legend(ax)) == ("log", "training step", None)


def test_an_objective_at_the_optimum_is_drawn_at_the_floor_of_its_logarithmic_axis():
    history = [{"step": 1, "objective": 2.0}, {"step": 2, "objective": 1.9}]
    assert_array_equal(figures.objective_trajectory(history, 2.0).lines[0].get_ydata(), [1e-7, 1e-7])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("predicted", [True, False])
def test_confidence_trajectory(size, predicted):
    ours, theirs = np.linspace(0.9, 0.1, size), np.linspace(1.0, 0.0, size)
    history, labels = history_of(ours), [f"c{k}" for k in range(size)]
    ax = figures.confidence_trajectory(history, theirs if predicted else None, labels=labels)
    for k in range(size):
        assert_array_equal(ax.lines[k].get_xydata(), [[e["step"], e["confidences"][k]] for e in history])
    shades = [to_hex(line.get_color()) for line in ax.lines[:size]]
    assert shades == sorted(shades)
    assert len(ax.lines) == size + predicted
    if predicted:
        assert_array_equal(lines(ax)["predicted"], np.c_[np.full(size, STEPS[-1]), theirs])
    assert legend(ax) == (["predicted"] if predicted else None)
    heights = {label: xy[1] for label, xy in annotations(ax).items()}
    expected = theirs if predicted else np.array(history[-1]["confidences"])
    assert heights == (dict(zip(labels, expected, strict=True)) if size <= figures.MOST_LABELS else {})
    drawn(ax)


def test_names_at_one_height_are_joined_and_counted():
    ends = np.array([0.5, 0.51, 0.5, 0.9, np.nan])
    history = [{"step": 1, "confidences": ends.tolist()}]
    ax = figures.confidence_trajectory(history, None, labels=["a", "b", "c", "d", "e"])
    assert set(annotations(ax)) == {"a, c, b", "d"}
    ax = figures.confidence_trajectory(history, None, labels=[f"a rather long name {k}" for k in range(5)])
    assert set(annotations(ax)) == {"a rath…ame 0 +2", "a rath…ame 3"}
    drawn(ax)


def test_values_that_are_not_there_leave_gaps():
    history = [{"step": s, "nc1": nc1, "confidences": [0.5, None]} for s, nc1 in ((1, None), (2, 0.5))]
    assert_array_equal(figures.nc1_trajectory(history).lines[0].get_ydata().astype(float), [np.nan, 0.5])
    ax = figures.confidence_trajectory(history, None, labels=["a", "b"])
    assert_array_equal(ax.lines[1].get_ydata(), [np.nan, np.nan])
    assert set(annotations(ax)) == {"a"}
    drawn(ax)


@pytest.mark.parametrize("values", [[0.0, 0.0], [None, None], []], ids=str)
def test_an_axis_without_anything_above_0_is_linear(values):
    """NC1 of a data set whose classes are one text each, the loss of a network in short precision."""
    history = [{"step": k, "nc1": value, "loss": value} for k, value in enumerate(values, 1)]
    for ax in (figures.nc1_trajectory(history), figures.loss_trajectory(history)):
        assert ax.get_yscale() == "linear"
        drawn(ax)


@pytest.mark.parametrize(
    "draw",
    [
        lambda: figures.objective_trajectory([], 1.0),
        lambda: figures.loss_trajectory([]),
        lambda: figures.nc1_trajectory([]),
        lambda: figures.confidence_trajectory([], None, labels=["a", "b"]),
        lambda: figures.confidence_trajectory([], np.array([0.9, 0.5]), labels=["a", "b"]),
    ],
    ids=["objective", "loss", "nc1", "confidence", "confidence-predicted"],
)
def test_without_a_history_nothing_is_drawn(draw):
    ax = draw()
    assert sum(line.get_xdata().size for line in ax.lines) == 0
    assert annotations(ax) == {}
    assert legend(ax) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn(ax)


# All of them


def test_figures_draw_on_the_axes_that_they_are_given():
    frame, matrix = frame_of(3), np.eye(3)
    history, labels = history_of(frame.confidences), [*"abc"]
    for draw in (
        lambda ax: figures.collapse_line(frame, comparison_of(frame), ax=ax),
        lambda ax: figures.by_count(frame.problem.counts, None, frame.margins, ylabel="", ax=ax),
        lambda ax: figures.gram(matrix, title="", limit=1, ax=ax),
        lambda ax: figures.objective_trajectory(history, 2.0, ax=ax),
        lambda ax: figures.loss_trajectory(history, ax=ax),
        lambda ax: figures.nc1_trajectory(history, ax=ax),
        lambda ax: figures.confidence_trajectory(history, None, labels=labels, ax=ax),
    ):
        ax = figures.new_axes()
        assert draw(ax) is ax


def test_names_are_drawn_as_they_stand():
    labels = ["$x_1$", "<b>", r"\frac"]
    text = drawn(figures.gram(np.eye(3), title="", limit=1, labels=labels))
    assert text.count("$x_1$") == 2
    assert text.count("&lt;b&gt;") == 2
    history = [{"step": 1, "confidences": [0.1, 0.5, 0.9]}]
    assert r">\frac<" in drawn(figures.confidence_trajectory(history, None, labels=labels))
