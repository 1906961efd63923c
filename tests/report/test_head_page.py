"""The page of `collapsekit inspect`: names and no empty parts, the dead group marked, nothing from outside."""

import re

import numpy as np
import pytest
from numpy.testing import assert_allclose

from _support.heads import trained
from _support.tolerances import FLOAT32
from collapsekit import CollapseError
from collapsekit.heads import inspect_head
from collapsekit.report import head_page
from collapsekit.report.sheet import MOST_ROWS

NAMES = ["ant", "bee <b>", "cat $x^2$", "dog", "elk", "fox"]
COUNTS = np.array([40, 0, 12, 25, 0, 6])


@pytest.fixture(scope="module")
def head():
    return trained(COUNTS, 4, 1e-2, bias_decay=1e-2, relu=True)[:2]


def table(text):
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", text)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows]


def test_the_page_names_the_classes_at_risk_first_and_has_no_empty_column(tmp_path, head):
    found = inspect_head(*head, names=NAMES, activation="relu", prove="all")
    text = head_page.head_page(found, head[0], "fc", tmp_path / "page.html").read_text(encoding="utf-8")
    headers, *rows = table(text)
    assert {rows[0][0], rows[1][0]} == {"bee &lt;b&gt;", "elk"}
    assert len(rows) == 6
    assert headers[0] == "class"
    assert "shortest input" not in headers  # nothing is known of it
    assert all(any(row[i] for row in rows) for i in range(len(headers)))
    assert "<b>" not in text
    assert len(re.findall("<svg ", text)) == 2
    assert not re.findall(r"(?:src|href)=\"(?:http|//)", text)


def test_a_head_without_a_dead_point_has_no_empty_parts(tmp_path):
    weight = np.random.default_rng(0).normal(size=(2500, 20)).astype(np.float32)
    text = head_page.head_page(inspect_head(weight), weight, "", tmp_path / "page.html").read_text(encoding="utf-8")
    headers, *rows = table(text)
    assert headers == ["class", "row", "norm"]
    assert len(rows) == MOST_ROWS
    assert "1500 classes with less risk are left out" in text
    assert "Head &#39;weight&#39;, 2500 classes × 20 inputs" in text
    assert "advise" not in text


def test_what_is_drawn_is_what_was_found(head):
    found = inspect_head(*head, names=NAMES)
    ax = head_page.in_order(found.distance, True, found.coinciding)
    rows, dead = ax.lines
    assert_allclose(dead.get_ydata(), np.sort(found.distance[[1, 4]]))
    assert_allclose(rows.get_ydata(), np.sort(found.distance[[0, 2, 3, 5]]))
    labels = [text.get_text() for text in head_page.row_map(found, head[0]).texts]
    assert labels == ["bee <b>, elk", "ant", "cat $x^2$", "dog", "fox"]


@pytest.mark.parametrize("shape", [(50, 7), (9, 20), (8, 1)])
def test_the_map_shows_the_two_directions_of_the_largest_spread(shape):
    weight = np.random.default_rng(1).normal(size=shape) * np.linspace(1, 3, shape[1])
    left, values, _ = np.linalg.svd(weight - weight.mean(axis=0), full_matrices=False)
    wanted = (left * values)[:, :2]
    found = head_page.principal(weight)[:, : wanted.shape[1]]
    assert_allclose(np.abs(found), np.abs(wanted), atol=FLOAT32)


def test_a_folder_is_no_page(tmp_path, head):
    with pytest.raises(CollapseError, match="is a folder; give a file name"):
        head_page.head_page(inspect_head(*head), head[0], "fc", tmp_path)
