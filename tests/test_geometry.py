"""Geometry: construction, derived quantities, and a distance that sees what it should and nothing else."""

import json
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from _support.strategies import examples
from _support.tolerances import EXACT
from collapsekit import UFM, CollapseError, Geometry, predict

NAN = float("nan")
PARTS = ("features", "classifier", "cross")
SEEDS = st.integers(0, 2**32 - 1)


def drawn(seed, dim=6):
    """Return weights and class features, (K, d) each, and counts."""
    rng = np.random.default_rng(seed)
    size = int(rng.integers(2, 8))
    weights, features = rng.normal(size=(2, size, dim)) * 10 ** rng.uniform(-3, 3, (2, 1, 1))
    return weights, features, rng.integers(1, 100, size)


def grams(weights, features, counts, **options):
    return Geometry(features @ features.T, weights @ weights.T, weights @ features.T, counts, **options)


def rotation(rng, dim):
    return np.linalg.qr(rng.normal(size=(dim, dim)))[0]


def assert_parts(distance, *, shape=None, scale=None, residual=None):
    for part in PARTS:
        for name, expected in (("shape", shape), ("scale", scale), ("residual", residual)):
            if expected is not None:
                actual = getattr(distance, name)[part]
                assert_allclose(actual, expected[part], rtol=0, atol=EXACT * (1 + abs(expected[part])), err_msg=part)


def everywhere(value):
    return dict.fromkeys(PARTS, value)


# Construction

EYE = np.eye(3)
MISUSE = [
    ({"gram_h": np.eye(2)}, "gram_h: shape (2, 2); expected (3, 3) for 3 counts"),
    ({"gram_w": np.ones((3, 2))}, "gram_w: shape (3, 2); expected (3, 3)"),
    ({"cross": np.ones(3)}, "cross: shape (3,); expected (3, 3)"),
    ({"cross": "eye"}, "cross='eye': give real numbers"),
    ({"gram_h": [[1, 2], [3]]}, "gram_h=[[1, 2], [3]]: give real numbers"),
    ({"gram_w": EYE * 1j}, "give real numbers"),
    ({"counts": 3}, "counts: shape (); give one count a class, for at least two classes"),
    ({"counts": [3]}, "counts: shape (1,); give one count a class"),
    ({"counts": [[1, 2, 3]]}, "counts: shape (1, 3)"),
    ({"counts": ["a", "b", "c"]}, "counts=['a', 'b', 'c']: give real numbers"),
    ({"counts": [1, -2, 3]}, "counts: class 1 has -2"),
    ({"counts": [1, 2, NAN]}, "counts: class 2 has nan"),
    ({"within": [0, 0]}, "within: shape (2,); expected (3,)"),
    ({"within": "none"}, "within='none': give real numbers"),
    ({"names": ["a", "b"]}, "names: 2 names for 3 classes"),
    ({"names": ["a", "b", "b"]}, "names: 'b' stands for two classes"),
]


@pytest.mark.parametrize(("changed", "fragment"), MISUSE, ids=str)
def test_misuse(changed, fragment):
    arguments = {"gram_h": EYE, "gram_w": EYE, "cross": EYE, "counts": [3, 2, 1]} | changed
    with pytest.raises(CollapseError) as caught:
        Geometry(**arguments)
    assert fragment in str(caught.value)
    assert "\n" not in str(caught.value)


def test_it_keeps_its_own_read_only_copies():
    gram = np.eye(2)
    geometry = Geometry(gram, gram, gram, [3, 1], within=[0.1, 0.2], names=["a", "b"])
    gram[0, 0] = 9
    assert_array_equal(geometry.gram_h, np.eye(2))
    for array in (geometry.gram_h, geometry.gram_w, geometry.cross, geometry.counts, geometry.within):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
    with pytest.raises(FrozenInstanceError):
        geometry.gram_h = gram
    assert (geometry.num_classes, geometry.names) == (2, ("a", "b"))
    assert_array_equal(Geometry(gram, gram, gram, [3, 1]).within, [0, 0])


def test_to_dict_is_json_and_rebuilds_the_geometry():
    geometry = grams(*drawn(0), names=[*"abcdefgh"][: len(drawn(0)[2])])
    content = json.loads(json.dumps(geometry.to_dict()))
    assert content.pop("schema") == 1
    assert Geometry(**content).to_dict() == geometry.to_dict()
    distance = json.loads(json.dumps(geometry.distance(geometry).to_dict()))
    assert distance == {"schema": 1} | dict.fromkeys(["shape", "scale", "residual"], everywhere(0.0))


@pytest.mark.parametrize("gram_h", [np.eye(3), np.zeros((3, 3)), np.ones((3, 3))])
def test_repr_is_one_line(gram_h):
    assert "\n" not in repr(Geometry(gram_h, np.eye(3), np.eye(3), [1, 1, 1]))


# Derived quantities


@settings(max_examples=examples(100))
@given(SEEDS)
def test_norms_cosines_margins_and_alignment_row_by_row(seed):
    weights, features, counts = drawn(seed)
    geometry, size = grams(weights, features, counts), len(counts)
    for k in range(size):
        w, h = weights[k], features[k]
        logits = weights @ h
        assert_allclose(geometry.feature_sqnorms[k], h @ h, rtol=EXACT)
        assert_allclose(geometry.classifier_sqnorms[k], w @ w, rtol=EXACT)
        scale = np.abs(logits).max()
        margin = logits[k] - np.delete(logits, k).mean()
        assert_allclose(geometry.margins[k] / scale, margin / scale, rtol=0, atol=EXACT)
        assert_allclose(geometry.alignment[k], w @ h / np.sqrt((w @ w) * (h @ h)), rtol=0, atol=EXACT)
        for m in range(size):
            cosine = features[m] @ h / np.sqrt((features[m] @ features[m]) * (h @ h))
            assert_allclose(geometry.feature_cosines[k, m], cosine, rtol=0, atol=EXACT)
            cosine = weights[m] @ w / np.sqrt((weights[m] @ weights[m]) * (w @ w))
            assert_allclose(geometry.classifier_cosines[k, m], cosine, rtol=0, atol=EXACT)


def test_cosines_of_a_zero_mean_are_nan_and_stay_in_range():
    features = np.array([[1e-5, 3e-5], [0, 0], [1e-5, 3e-5]])
    geometry = grams(np.ones((3, 2)), features, [1, 1, 1])
    assert_array_equal(np.isnan(geometry.feature_cosines), [[0, 1, 0], [1, 1, 1], [0, 1, 0]])
    assert_array_equal(np.isnan(geometry.alignment), [False, True, False])
    assert np.nanmax(geometry.feature_cosines) <= 1


# Distance


@settings(max_examples=examples(100))
@given(SEEDS)
def test_distance_to_itself_is_zero_and_exactly_so(seed):
    geometry = grams(*drawn(seed))
    distance = geometry.distance(geometry)
    assert dict(distance.shape) == dict(distance.scale) == dict(distance.residual) == everywhere(0)


@settings(max_examples=examples(100))
@given(SEEDS, SEEDS)
def test_a_rotation_of_feature_space_is_invisible(seed, other):
    weights, features, counts = drawn(seed)
    turn = rotation(np.random.default_rng(other), 6)
    distance = grams(weights @ turn, features @ turn, counts).distance(grams(weights, features, counts))
    assert_parts(distance, shape=everywhere(0), scale=everywhere(0), residual=everywhere(0))


@settings(max_examples=examples(100))
@given(SEEDS, st.floats(0.01, 100), st.floats(0.01, 100))
def test_scaling_moves_the_scale_and_not_the_shape(seed, by_w, by_h):
    weights, features, counts = drawn(seed)
    distance = grams(by_w * weights, by_h * features, counts).distance(grams(weights, features, counts))
    factors = {"features": by_h**2, "classifier": by_w**2, "cross": by_w * by_h}
    assert_parts(
        distance,
        shape=everywhere(0),
        scale={part: np.log(factor) for part, factor in factors.items()},
        residual={part: abs(factor - 1) for part, factor in factors.items()},
    )


@settings(max_examples=examples(100))
@given(SEEDS, SEEDS)
def test_distance_is_invariant_under_a_permutation_of_the_classes(seed, other):
    weights, features, counts = drawn(seed)
    rng = np.random.default_rng(other)
    near = features + 0.1 * np.abs(features).max() * rng.normal(size=features.shape)
    order = rng.permutation(len(counts))
    before = grams(weights, near, counts).distance(grams(weights, features, counts))
    after = grams(weights[order], near[order], counts[order]).distance(
        grams(weights[order], features[order], counts[order])
    )
    assert_parts(after, shape=before.shape, scale=before.scale, residual=before.residual)
    assert before.shape["features"] > 0


@settings(max_examples=examples(100))
@given(SEEDS, SEEDS)
def test_distance_equals_its_definition(seed, other):
    weights, features, counts = drawn(seed)
    noise = np.random.default_rng(other).normal(size=features.shape)
    a, b = grams(weights + noise, features - noise, counts), grams(weights, features, counts)
    distance = a.distance(b)
    for part, name in zip(PARTS, ("gram_h", "gram_w", "cross"), strict=True):
        mine, theirs = getattr(a, name), getattr(b, name)
        size, reference = np.sqrt((mine**2).sum()), np.sqrt((theirs**2).sum())
        shape = np.sqrt(((mine / size - theirs / reference) ** 2).sum())
        assert_allclose(distance.shape[part], shape, rtol=EXACT, atol=EXACT)
        assert_allclose(distance.scale[part], np.log(size / reference), rtol=EXACT, atol=EXACT)
        assert_allclose(distance.residual[part], np.sqrt(((mine - theirs) ** 2).sum()) / reference, rtol=EXACT)
        assert 0 <= distance.shape[part] <= 2


@pytest.mark.parametrize("name", ["gram_h", "gram_w", "cross"])
def test_a_wrong_entry_is_seen_where_it_stands(name):
    right = grams(*drawn(3))
    content = right.to_dict()
    content.pop("schema")
    wrong = np.array(content[name])
    wrong[0, 1] += 1e-6 * np.abs(wrong).max()
    distance = Geometry(**content | {name: wrong}).distance(right)
    part = PARTS[["gram_h", "gram_w", "cross"].index(name)]
    assert [p for p in PARTS if distance.shape[p] > 1e-8] == [part]
    assert [p for p in PARTS if distance.residual[p] > 1e-8] == [part]


def test_the_wrong_class_dead_is_seen_in_the_shape():
    one = predict(UFM([500, 300, 40, 10], 3e-2, 1e-3)).geometry()
    other = predict(UFM([10, 300, 40, 500], 3e-2, 1e-3)).geometry()
    assert min(one.distance(other).shape.values()) > 0.1


def test_zero_matrices():
    zero, unit = np.zeros((2, 2)), np.eye(2)
    dead, alive = Geometry(zero, zero, zero, [1, 1]), Geometry(unit, unit, unit, [1, 1])
    assert_parts(dead.distance(dead), shape=everywhere(0), scale=everywhere(0), residual=everywhere(0))
    assert_allclose(list(dead.distance(alive).shape.values()), 1, rtol=EXACT)
    assert dict(dead.distance(alive).scale) == everywhere(-np.inf)
    assert dict(alive.distance(dead).scale) == everywhere(np.inf)
    assert dict(alive.distance(dead).residual) == everywhere(np.inf)


def test_other_numbers_of_classes_are_refused():
    with pytest.raises(CollapseError, match="other: 3 classes against 2; compare geometries of the same classes"):
        Geometry(*[np.eye(2)] * 3, [1, 1]).distance(Geometry(*[np.eye(3)] * 3, [1, 1, 1]))


def test_names_in_another_order_are_refused():
    here, there = (Geometry(*[np.eye(2)] * 3, [1, 1], names=names) for names in (["a", "b"], ["b", "a"]))
    with pytest.raises(
        CollapseError, match="other: class 0 is 'b' against 'a'; give both the same classes in one order"
    ):
        here.distance(there)
    assert_parts(here.distance(here), residual=everywhere(0))
    nameless = Geometry(*[np.eye(2)] * 3, [1, 1])
    for one, other in ((here, nameless), (nameless, here)):
        assert_parts(one.distance(other), residual=everywhere(0))


def test_other_things_than_geometries_are_refused():
    with pytest.raises(CollapseError, match="other="):
        Geometry(*[np.eye(2)] * 3, [1, 1]).distance(np.eye(2))


# Classes without samples


def with_unseen(weights, features, counts, k):
    means, seen = features.copy(), counts.copy()
    means[k], seen[k] = NAN, 0
    return grams(weights, means, seen)


@settings(max_examples=examples(100))
@given(SEEDS, SEEDS)
def test_a_class_without_samples_is_left_out(seed, other):
    weights, features, counts = drawn(seed)
    k = other % len(counts)
    seen, rest = with_unseen(weights, features, counts, k), np.arange(len(counts)) != k
    assert_array_equal(np.isnan(seen.margins), ~rest)
    assert_array_equal(np.isnan(seen.alignment), ~rest)
    assert_array_equal(np.isnan(seen.feature_cosines), ~(rest[:, None] & rest))
    assert np.isfinite(seen.classifier_cosines).all()
    assert "nan" not in repr(seen)
    whole = grams(weights, features, counts)
    for distance in (seen.distance(whole), whole.distance(seen), seen.distance(seen)):
        assert_parts(distance, shape=everywhere(0), scale=everywhere(0), residual=everywhere(0))
    nearly = features.copy()
    nearly[rest] *= 1.5
    moved = with_unseen(weights, nearly, counts, k).distance(whole)
    assert_parts(moved, scale={"features": np.log(1.5**2), "classifier": 0, "cross": np.log(1.5)})


@pytest.mark.parametrize("name", ["gram_h", "gram_w", "cross"])
@pytest.mark.parametrize("entry", [np.inf, -np.inf, 1e151, -1e308])
def test_infinite_entries_are_refused(name, entry):
    matrices = {key: np.eye(2) for key in ("gram_h", "gram_w", "cross")} | {name: np.array([[1, entry], [0, 1]])}
    with pytest.raises(CollapseError, match=f"{name}: holds infinite"):
        Geometry(**matrices, counts=[1, 1])


@pytest.mark.parametrize("count", [2**53, 2.0**70, 2**70, -1, 0.5, np.nan, np.inf])
def test_counts_out_of_range_are_refused(count):
    with pytest.raises(CollapseError, match=r"counts: class 0 has .* whole numbers below 2\*\*53"):
        Geometry(np.eye(2), np.eye(2), np.eye(2), counts=[count, 1])
