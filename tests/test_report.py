"""The demo at smoke size, end to end: its report is opened, its figures counted, its words escaped."""

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from numpy.testing import assert_allclose

from collapsekit import CollapseError
from collapsekit.diagnosis import compare_run, run_scope
from collapsekit.report import report
from collapsekit.training import TrainConfig, train


class Page(HTMLParser):
    """Counts tags, keeps text, and knows every address that a browser would load."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words, self.loads = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loads += [value for key, value in attrs if key in ("src", "href") and not (value or "").startswith("#")]

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    names = ("<b>bold</b>", "$x_1$", "{{ 7 }}", "na\u00efve", "e", "f", "g", "h", "i", "j")
    config = TrainConfig(epochs=200, hidden=(16,), feature_dim=24, warmup=0.1, class_names=names)
    return train(config, out=tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def text(run):
    return report(run).read_text(encoding="utf-8")


def test_the_page_has_every_part(run, text):
    page = Page(text)
    assert page.tags.count("figure") == 10
    assert page.tags.count("svg") == 10
    assert page.tags.count("tr") == 2 + 10
    words = " ".join(page.words)
    comparison = compare_run(run)
    for part in (comparison.verdict, run_scope(run), "Recipe and units", "Versions", "torch", "nc1"):
        assert part in words
    assert f"{comparison.classes[0].measured_confidence:.4f}" in words


def test_the_page_needs_nothing_else(text):
    assert Page(text).loads == []
    assert "<script" not in text
    assert "@import" not in text


def test_figures_are_wellformed_and_reproducible(run, text):
    pictures = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    for picture in pictures:
        ElementTree.fromstring(picture)
    again = report(run, run.folder / "again.html").read_text(encoding="utf-8")
    assert again == text


def test_class_names_are_words_not_code(text):
    page = Page(text)
    assert "<b>bold</b>" in " ".join(page.words)
    assert "b" not in page.tags
    assert "{{ 7 }}" in " ".join(page.words)
    assert "$x_1$" in " ".join(page.words)


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
        gone = per_class["feature_sqnorm"][k] <= 0.01 * largest and abs(finding.measured_confidence - 0.1) <= 0.005
        assert ("collapsed" in finding.status and "alive" not in finding.status) == gone
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
