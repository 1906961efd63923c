"""Figures and pages of the theory: what is drawn is what the closed form says; no collisions; no outside links."""

import re

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from numpy.testing import assert_allclose, assert_array_equal

from _support.tolerances import EXACT
from collapsekit import UFM, CollapseError, CrossEntropy, Focal, Hinge, long_tail, predict, thresholds
from collapsekit.cli import main
from collapsekit.prediction import phase_diagram
from collapsekit.recipe import BatchNorm, LastLayer
from collapsekit.report import figures, theory_figures, theory_page
from collapsekit.report.sheet import MOST_ROWS, Sheet, Table

COUNTS = long_tail(5000, 50, 10)
LIVING = BatchNorm(0.05).problem(COUNTS, LastLayer(branches=1))
DYING = BatchNorm(0.12).problem(COUNTS, LastLayer(branches=1))
ALL = {
    "predicted line": lambda problem: theory_figures.predicted_line(problem),
    "regimes": lambda problem: theory_figures.norm_regimes(problem),
    "map": lambda problem: theory_figures.confidence_map(problem, points=12),
    "families": lambda problem: theory_figures.loss_families(problem, theory_page.FAMILIES),
    "phase": lambda problem: theory_figures.phase(
        phase_diagram(10, 5000, ratios=[1, 10, 100], products=np.geomspace(1e-8, 1e-4, 9)), point=(1e-6, 10)
    ),
    "price of ReLU": lambda problem: theory_figures.price_of_relu(),
    "before and after": lambda problem: theory_figures.before_and_after(
        problem, predict(problem).confidences, {"less": predict(LIVING).confidences}
    ),
}


def drawn(line):
    return np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)


@pytest.mark.parametrize("problem", [LIVING, DYING], ids=["living", "dying"])
def test_the_line_passes_through_every_class_and_marks_where_classes_die(problem):
    ax = theory_figures.predicted_line(problem)
    sizes, confidences = drawn(ax.lines[0])
    assert_array_equal(sizes, np.sort(problem.counts))
    assert_array_equal(confidences, predict(problem).confidences[::-1])
    critical = thresholds(problem).critical_count[0]
    shade = ax.patches[0]
    assert_allclose(shade.get_x() + shade.get_width(), critical, rtol=EXACT)
    assert f"dies at {critical:.3g}" in [text.get_text() for text in ax.texts]


def test_no_common_threshold_is_drawn_where_there_is_none():
    weighted = UFM(COUNTS, 1e-2, 1e-5, class_weights=np.linspace(1, 2, 10))
    assert not theory_figures.predicted_line(weighted).patches


def test_rare_classes_have_the_longest_features_in_the_limit_and_none_at_their_threshold():
    first, *_, last = (drawn(line)[1] for line in theory_figures.norm_regimes(LIVING).lines)
    assert (np.diff(first) < 0).all()
    assert last[0] < last[1]
    assert_allclose(max(first.max(), last.max()), 1, rtol=EXACT)


def test_the_map_shows_the_confidence_of_every_class_and_where_it_dies():
    ax = theory_figures.confidence_map(LIVING, points=12)
    mesh, deaths = ax.collections[:2]
    values = np.asarray(mesh.get_array()).reshape(10, 12)
    assert_allclose(values[:, -1], 0.1, rtol=EXACT)
    assert (np.diff(values, axis=0) <= 1e-15).all()  # largest first
    at = [segment[0][0] for segment in deaths.get_segments()]
    assert_allclose(at, thresholds(LIVING).headroom, rtol=EXACT)


def test_families_are_scaled_margins_of_each_loss():
    ax = theory_figures.loss_families(LIVING, {"ce": CrossEntropy(), "focal": Focal(2.0), "hinge": Hinge()})
    for line, loss in zip(ax.lines, (CrossEntropy(), Focal(2.0), Hinge()), strict=True):
        margins = predict(UFM(COUNTS, LIVING.lambda_w, LIVING.lambda_h, loss=loss)).margins[::-1]
        assert_allclose(drawn(line)[1], margins / margins.max(), rtol=EXACT)


def test_the_price_of_relu_is_the_ratio_of_two_thresholds():
    relu, free = (drawn(line) for line in theory_figures.price_of_relu().lines)
    sizes = relu[0].astype(int)
    assert_allclose(free[1] / relu[1], sizes / (sizes - 1), rtol=EXACT)
    for size, height in zip(sizes[::13], relu[1][::13], strict=True):
        limit = thresholds(UFM([20] * size, 1, 1)).minority_collapse * 20 * size
        assert_allclose(height, limit, rtol=EXACT)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("problem", [LIVING, DYING], ids=["living", "dying"])
def test_nothing_is_printed_over_other_words_or_cut_off(name, problem):
    with mpl.rc_context(figures.STYLE):
        ax = ALL[name](problem)
        canvas = FigureCanvasAgg(ax.figure)
        canvas.draw()
    words = [t for t in (*ax.texts, ax.xaxis.label, ax.yaxis.label, *ax.get_xticklabels()) if t.get_text()]
    if ax.get_legend():
        words += ax.get_legend().get_texts()
    low, high = ax.get_xlim()
    ticks = [t for t in ax.get_xticklabels() if not low <= t.get_position()[0] <= high]
    boxes = [t.get_window_extent(canvas.get_renderer()) for t in words if t not in ticks]
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:i]), words[i]
        assert box.x0 >= 0 <= box.y0
        assert box.x1 <= ax.figure.bbox.width + 1
        assert box.y1 <= ax.figure.bbox.height + 1


def sheet():
    table = Table(
        "Classes", "of <these>", ["class", "count", "status"], [[f"<c{k}>", str(k), "dies"] for k in range(10)]
    )
    return Sheet("a <title>", ["$one$ & <b>two</b>"], True, [table], ["scope"])


@pytest.mark.parametrize("kind", ["prediction", "advice"])
def test_pages_are_self_contained_and_escape_what_users_write(tmp_path, kind):
    named = UFM(dict(zip([f"<{k}>$x$" for k in range(10)], COUNTS, strict=True)), 1e-2, 1e-5)
    path = tmp_path / "page.html"
    if kind == "prediction":
        assert theory_page.prediction_page(named, sheet(), path) == path
    else:
        theory_page.advice_page(named, {"weights": predict(LIVING).confidences}, sheet(), path)
    text = path.read_text(encoding="utf-8")
    assert "<b>two" not in text
    assert "&lt;c3&gt;" in text
    assert text.count("<svg") == {"prediction": 5, "advice": 2}[kind]
    links = re.findall(r'(?:src|href)="([^"]{0,30})', text)
    assert all(link.startswith(("#", "data:image/png")) for link in links)
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    if kind == "advice":
        again = theory_page.advice_page(named, {"weights": predict(LIVING).confidences}, sheet(), tmp_path / "b.html")
        assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("loss", [CrossEntropy(0.1, np.linspace(0, 1, 10)), Hinge()], ids=["family", "hinge"])
def test_a_page_is_drawn_for_every_loss(tmp_path, loss):
    theory_page.prediction_page(UFM(COUNTS, 1e-2, 1e-5, loss=loss), sheet(), tmp_path / "page.html")


def test_a_page_of_many_classes_stays_small(tmp_path):
    path = tmp_path / "page.html"
    words = ["--long-tail", "1000000:10:5000", "--lambda-w", "1e-5", "--lambda-h", "1e-6", "--html", str(path)]
    assert main(["predict", *words]) == 0
    text = path.read_text(encoding="utf-8")
    assert "4000 classes between are left out" in text
    assert text.count('<th scope="row">') == MOST_ROWS
    assert len(text) < 3e6


def test_a_folder_is_no_page(tmp_path):
    with pytest.raises(CollapseError, match="is a folder"):
        theory_page.prediction_page(LIVING, sheet(), tmp_path)
