"""The demo at smoke size, end to end: its report is parsed, its figures read back, its words escaped."""

import re
import warnings
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.artist import Artist
from numpy.testing import assert_allclose, assert_array_equal

from _support.tolerances import EXACT
from collapsekit import CollapseError
from collapsekit.cli import main
from collapsekit.metrics.measurement import MEANINGS
from collapsekit.report import _report as page
from collapsekit.report import figures, report
from collapsekit.training import TrainConfig, compare_run, load_run, run_scope, train

VOID = {"meta", "link", "br", "img", "hr", "input"}
NAMES = ("<b>bold</b>", "$x_1$", "{{ 7 }}", "na\u00efve", "\u732b", ' id="e"', "url(#f)", "-->", "&amp;", "j")


class Page(HTMLParser):
    """Tags with their attributes, in balance; the text of each; ids, and what refers to them or to elsewhere."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.words, self.ids, self.references = [], [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        for key, value in attrs:
            if key == "id":
                self.ids.append(value)
            elif key in ("src", "href", "xlink:href", "action", "data", "srcset"):
                self.references.append(value)
            elif not key.startswith("xmlns"):
                self.references += re.findall(r"url\((.*?)\)", value or "")
                assert "://" not in (value or "")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append((self.open[-1] if self.open else None, data))

    def count(self, tag):
        return sum(name == tag for name, _ in self.tags)

    def texts(self, tag=None):
        return [text for inside, text in self.words if tag in (None, inside)]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = TrainConfig(epochs=200, hidden=(16,), feature_dim=24, warmup=0.1, class_names=NAMES)
    return train(config, out=tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    config = TrainConfig(recipe="plain", epochs=20, hidden=(16,), feature_dim=24)
    return train(config, out=tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def text(run):
    return report(run).read_text(encoding="utf-8")


def test_the_page_has_every_part(run, text):
    content = Page(text)
    assert content.count("figure") == content.count("svg") == content.count("figcaption") == 10
    assert content.count("tr") == (2 + 10) + (1 + len(MEANINGS))
    words = " ".join(content.texts())
    comparison = compare_run(run)
    for part in (comparison.verdict, run_scope(run), "Recipe and units", "Versions", "torch", "nc1"):
        assert part in words
    assert f"{comparison.classes[0].measured_confidence:.4f}" in words


def test_the_page_is_balanced_and_its_ids_are_unique_and_found(text):
    content = Page(text)
    assert content.open == []
    assert len(content.ids) == len(set(content.ids)) > 100
    assert len(content.references) > 100
    elsewhere = [one for one in content.references if one.removeprefix("#") not in content.ids]
    assert {one.split(",")[0] for one in elsewhere} == {"data:image/png;base64"}  # the cells of the matrices


def test_the_page_needs_nothing_else(text):
    content = Page(text)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & {tag for tag, _ in content.tags}
    for style in content.texts("style"):
        assert "url(" not in style
        assert "@import" not in style


def test_the_page_can_be_read_aloud(text):
    content = Page(text)
    assert content.count("caption") == content.count("table") == 2
    heads = [attributes["scope"] for tag, attributes in content.tags if tag == "th"]
    columns, rows = 20 + 3, 10 + len(MEANINGS)
    assert (heads.count("col"), heads.count("row"), len(heads)) == (columns, rows, columns + rows)
    pictures = [attributes for tag, attributes in content.tags if tag == "svg"]
    assert {picture["role"] for picture in pictures} == {"img"}
    assert [picture["aria-label"] for picture in pictures] == content.texts("figcaption")


def test_figures_are_wellformed_and_reproducible(run, text):
    for picture in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        ElementTree.fromstring(picture)
    assert report(run, run.folder / "again.html").read_bytes() == (run.folder / "report.html").read_bytes()


def test_class_names_are_words_not_code(text):
    content = Page(text)
    assert "b" not in {tag for tag, _ in content.tags}
    rows = [text for text in content.texts("th") if text in NAMES]
    assert rows == list(NAMES)
    for name in NAMES:
        if len(name) <= 12:  # longer ones are cut in figures
            assert name in content.texts("text")


def test_only_the_warning_of_a_missing_glyph_is_silenced():
    def picture(warning):
        ax = figures.new_axes()
        ax.set_title("\u732b")
        ax.add_artist(Loud(warning))
        return page.svg("of a test", ax, "figure")

    assert "\u732b" in picture(None)
    with pytest.warns(UserWarning, match="something else"):
        picture("something else")


class Loud(Artist):
    """An artist that warns when it is drawn."""

    def __init__(self, warning):
        super().__init__()
        self.warning = warning

    def draw(self, renderer):
        if self.warning:
            warnings.warn(self.warning, UserWarning, stacklevel=1)


# Figures of the page, read back


@pytest.fixture
def shown():
    """Return the axes of a run's pictures, by the beginning of their captions."""

    def of(run):
        pictures = dict(page._pictures(run, compare_run(run)))

        def find(beginning):
            (ax,) = (ax for caption, ax in pictures.items() if caption.startswith(beginning))
            return ax

        return find

    return of


def points(ax, label):
    (line,) = (line for line in ax.lines if line.get_label() == label)
    return line.get_ydata()


def test_pictures_show_the_prediction_and_the_measurement(run, shown):
    find, frame = shown(run), run.prediction
    means, weight = run.measured.moments.means.numpy(), run.measured.weight.numpy()
    sides = {
        "Confidence of each class on": (frame.confidences, run.measured.confidences),
        "Squared length of class means": (frame.feature_sqnorms, (means**2).sum(axis=1)),
        "Squared length of classifier rows": (frame.classifier_sqnorms, (weight**2).sum(axis=1)),
    }
    for beginning, (predicted, measured) in sides.items():
        assert_allclose(points(find(beginning), "measured"), measured, rtol=EXACT, err_msg=beginning)
        if beginning.startswith("Squared"):
            assert_array_equal(points(find(beginning), "predicted"), predicted)
        assert np.abs(predicted - measured).max() > 0.01
    grams = {
        "Inner products of class means, predicted": frame.geometry().gram_h,
        "Inner products of class means, measured": means @ means.T,
        "Inner products of classifier rows, predicted": frame.geometry().gram_w,
        "Inner products of classifier rows, measured": weight @ weight.T,
    }
    for beginning, matrix in grams.items():
        drawn = find(beginning).images[0]
        assert_allclose(drawn.get_array(), matrix, rtol=0, atol=EXACT * np.abs(matrix).max(), err_msg=beginning)
        assert drawn.get_clim()[1] >= np.abs(matrix).max()
        assert find(beginning).get_title().endswith(beginning.split(", ")[1])
    excess = [entry["objective"] / frame.objective - 1 for entry in run.history]
    assert_allclose(find("How far the training objective").lines[0].get_ydata(), excess, rtol=EXACT)
    assert_array_equal(find("NC1").lines[0].get_ydata(), [entry["nc1"] for entry in run.history])
    over = find("Confidence of each class over training")
    for k in range(10):
        assert_array_equal(over.lines[k].get_ydata(), [entry["confidences"][k] for entry in run.history])
    assert_array_equal(points(over, "predicted"), frame.confidences)


def test_without_a_prediction_the_pictures_show_the_measurement_alone(plain, shown):
    find, weight = shown(plain), plain.measured.weight.numpy()
    assert_array_equal(points(find("Confidence of each class on"), "measured"), plain.measured.confidences)
    assert_allclose(points(find("Squared length of classifier"), "measured"), (weight**2).sum(axis=1), rtol=EXACT)
    matrix = find("Inner products of classifier rows").images[0].get_array()
    assert_allclose(matrix, weight @ weight.T, rtol=0, atol=EXACT * np.abs(matrix).max())
    assert_array_equal(find("Training loss").lines[0].get_ydata(), [entry["loss"] for entry in plain.history])
    for beginning in ("Confidence of each class over", "Squared length of class means"):
        assert "predicted" not in [line.get_label() for line in find(beginning).lines]


def test_a_run_without_its_history_has_a_report(run, plain, capsys):
    for one in (run, plain):
        empty = report(replace(one, history=[]), one.folder / "empty.html").read_text(encoding="utf-8")
        assert compare_run(one).verdict in Page(empty).texts("p")
        assert Page(empty).count("figure") == Page(report(one).read_text(encoding="utf-8")).count("figure")
    (plain.folder / "history.jsonl").rename(plain.folder / "elsewhere")
    assert load_run(plain.folder).history == []
    assert main(["report", str(plain.folder)]) == 0
    assert capsys.readouterr().err == ""
    (plain.folder / "elsewhere").rename(plain.folder / "history.jsonl")


def test_a_page_has_words_where_there_is_no_number(tmp_path):
    """In a complete collapse what is relative to the prediction is relative to 0."""
    run = train(TrainConfig(penalty_scale=100, epochs=5, hidden=(8,), feature_dim=8), out=tmp_path)
    assert run.prediction.collapses.all()
    content = Page(report(run).read_text(encoding="utf-8"))
    assert not re.search(r"\b(inf|nan)\b", " ".join(content.texts()))
    assert any("no finite value: what it is relative to is 0" in text for text in content.texts("td"))


def test_the_page_says_what_every_metric_compares(run):
    assert set(run.measured.metrics(run.prediction)) == set(MEANINGS)


# The rest of the page


def test_print_phone_and_colour_blind_rules_exist(text):
    assert "@media print" in text
    assert 'name="viewport"' in text


def test_misuse(run, tmp_path):
    with pytest.raises(CollapseError, match="is a folder"):
        report(run, tmp_path)
    with pytest.raises(CollapseError, match="cannot be written"):
        report(run, tmp_path / "missing" / "page.html")


def test_comparison_statuses_follow_their_definitions(run):
    comparison = compare_run(run)
    per_class = run.measured.per_class()
    largest = per_class["feature_sqnorm"].max()
    for k, finding in enumerate(comparison.classes):
        small = per_class["feature_sqnorm"][k] <= 0.01 * largest or finding.measured_confidence <= 0.105
        assert (finding.status == "lost") == (small and per_class["recall"][k] == 0)
    deviations = [abs(c.measured_confidence - c.predicted_confidence) for c in comparison.classes]
    assert_allclose(comparison.largest_deviation, max(deviations))


@pytest.mark.heavy
def test_the_default_job_lands_on_the_prediction(tmp_path):
    run = train(TrainConfig(seed=7), out=tmp_path)
    comparison = compare_run(run)
    assert comparison.reached
    assert comparison.largest_deviation <= 5e-4
    assert comparison.feature_norm_error <= 0.01
    assert comparison.classifier_norm_error <= 0.01
    assert comparison.largest_cosine <= 0.01
    assert comparison.objective_excess <= 1e-4
    assert comparison.same_classes_collapsed
