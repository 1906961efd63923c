"""inspect_head: empty classes are found exactly, healthy heads are left alone, bounds hold, mistakes cost one line."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from _support.heads import random_recipe, trained
from _support.strategies import examples
from _support.tolerances import DUAL_ROUNDING, EXACT
from collapsekit import CollapseError
from collapsekit.heads import inspect_head


@pytest.mark.parametrize("seed", range(max(20, examples(200))))
def test_empty_classes_are_exactly_the_group_that_coincides(seed):
    recipe = random_recipe(seed, empty=True)
    weight, bias, _ = trained(**recipe)
    found = inspect_head(weight, bias, prove="none")
    assert np.flatnonzero(found.coinciding).tolist() == np.flatnonzero(recipe["counts"] == 0).tolist()
    # beside the empty ones a class of a sample or two may lie near enough
    assert found.verdict[0].startswith(f"{found.flagged.size} classes at or near the dead point")
    assert set(np.flatnonzero(found.coinciding)) <= set(found.flagged.tolist())


@pytest.mark.parametrize("seed", range(1000, 1000 + max(12, examples(100))))
def test_a_head_that_saw_every_class_has_no_dead_point(seed):
    recipe = random_recipe(seed, empty=False)
    weight, bias, _ = trained(**recipe)
    found = inspect_head(weight, bias, activation="relu" if recipe["relu"] else None)
    assert found.groups == ()
    assert found.to_dict()["dead_point"] is None
    assert not found.flagged.size
    assert not found.unreachable


@pytest.mark.parametrize(("size", "dim"), [(1000, 2), (300, 1), (2000, 8), (500, 300)])
def test_rows_at_random_have_no_dead_point_however_crowded(size, dim):
    for seed in range(5):
        weight = np.random.default_rng(seed).normal(size=(size, dim))
        assert inspect_head(weight).groups == ()


def test_a_long_tail_of_rows_and_a_pair_of_like_classes_are_no_dead_point():
    rng = np.random.default_rng(0)
    tail = rng.normal(size=(100, 30)) * (100.0 ** (-np.arange(100) / 100))[:, None]
    assert inspect_head(tail).groups == ()
    pair = rng.normal(size=(10, 20))
    pair[1] = pair[0] + 0.1 * rng.normal(size=20)
    assert inspect_head(pair).groups == ()


def test_a_majority_of_dead_rows_and_a_head_of_equal_rows_are_found():
    rng = np.random.default_rng(0)
    most = rng.normal(size=(20, 30))
    most[:16] = most[0] + 1e-8 * rng.normal(size=(16, 30))
    assert np.flatnonzero(inspect_head(most).coinciding).tolist() == list(range(16))
    found = inspect_head(np.ones((5, 3)))
    assert found.coinciding.all()
    assert_allclose(found.distance, 0, atol=EXACT)


def test_dead_rows_are_found_among_many_more_than_all_pairs_are_looked_at():
    weight = np.random.default_rng(0).normal(size=(30_000, 16)).astype(np.float32)
    weight[[5, 29_000]] = weight[77]
    assert np.flatnonzero(inspect_head(weight, prove="none").coinciding).tolist() == [5, 77, 29_000]


def test_distance_is_not_measured_by_a_dead_point_of_no_length():
    weight = np.vstack([np.eye(4), np.full((2, 4), 1e-9)])
    found = inspect_head(weight)
    assert np.isnan(found.distance).all()
    assert [one["distance"] for one in found.to_dict()["classes"]] == [None] * 6
    assert found.coinciding.tolist() == [False] * 4 + [True] * 2
    assert "too short to measure distances by" in " ".join(found.verdict)


@pytest.mark.parametrize("bias_decay", [None, 1.0])
def test_shares_are_bounded_from_below_and_rows_add_up_to_zero(bias_decay):
    for seed in range(6):
        counts, decay = np.array([0, 0, 1, 3, 10, 40, 90]), 10.0 ** -(1 + seed % 3)
        weight, bias, features = trained(counts, 5, decay, bias_decay=bias_decay and decay, seed=seed)
        labels = np.repeat(np.arange(7), counts)
        longest = max(np.linalg.norm(features[labels == k].mean(axis=0)) for k in set(labels))
        words = {"weight_decay": decay, "feature_norm": longest}
        found = inspect_head(weight, bias, bias_decays=bias is not None, **words)
        if bias is not None:
            silent = inspect_head(weight, bias, **words)
            assert np.isnan(silent.share_at_least).all()
            assert "bounded only if it decays" in " ".join(silent.verdict)
            assert "Bounds on shares hold if the bias decays" in " ".join(found.verdict)
        assert (
            found.share_at_least <= counts / counts.sum() + 1e-6
        ).all()  # L-BFGS ends with a gradient of 1e-10 / decay
        assert found.share_at_least[-1] > 0
        assert found.nc0 < 1e-6
        assert "as at a stationary point with coupled decay" in " ".join(found.verdict)


def test_a_head_of_zeros_is_said_to_be_one():
    found = inspect_head(np.zeros((4, 3)), np.ones(4))
    assert found.verdict == [
        "All rows are 0: the input makes no difference to any class. The head was never trained, or was lost."
    ]


def test_counts_tell_the_never_seen_from_the_regularised_away():
    counts = np.array([0, 0, 5, 9, 40])
    weight, bias, _ = trained(counts, 4, 1e-2)
    found = inspect_head(weight, bias, counts=counts, names=["a", "b", "c", "d", "e"])
    assert "By the counts 2 of these 2 classes had no samples, 0 had some." in found.verdict
    assert found.table()[0]["label"] in ("a", "b")


def test_keys_of_the_dictionary():
    content = inspect_head(np.eye(3), np.ones(3)).to_dict()
    assert {"classes", "dead_point", "nc0", "bias_sum", "verdict"} <= set(content)
    assert list(content["classes"][0]) == [
        "label",
        "row",
        "distance",
        "norm",
        "coinciding",
        "reachable",
        "least_norm",
        "share_at_least",
    ]
    assert content["bias_sum"] == 3
    assert_allclose(content["nc0"], np.sqrt(3), rtol=DUAL_ROUNDING)


def test_a_named_activation_is_an_if_and_an_equal_row_needs_none():
    weight = np.vstack([3 * np.eye(3), np.full((2, 3), -1.0)])
    assert ", if the head's inputs come from a relu (inputs ≥ 0)" in inspect_head(weight, activation="relu").verdict[0]
    silent = inspect_head(weight)
    assert silent.reachable == (None,) * 5
    assert "say the activation" in silent.verdict[-1]
    biased = inspect_head(weight, [0, 0, 0, 2.0, 1.0])
    assert biased.reachable == (None, None, None, None, False)
    assert biased.winners(biased.groups[0]) == [3]
    assert biased.verdict[0] == "1 of 5 classes can never be output, whatever the input: '4'."


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"weight": [1.0, 2.0]}, "weight: shape (2,)"),
        ({"weight": [[1.0, 2.0]]}, "at least two classes"),
        ({"weight": [["a"], ["b"]]}, "weight="),
        ({"weight": [[1.0], [np.nan]]}, "weight: row 1 is not finite"),
        ({"weight": [[1.0], [1e200]]}, "above 1e+100"),
        ({"bias": [1.0]}, "bias: shape (1,)"),
        ({"bias": [1.0, np.inf, 0]}, "bias: class 1"),
        ({"names": ["a", "b"]}, "names: 2 names for 3 classes"),
        ({"counts": [1, -1, 0]}, "counts: class 1"),
        ({"counts": [1, 1]}, "counts: shape (2,)"),
        ({"activation": "silu"}, "activation='silu'"),
        ({"prove": "some"}, "prove='some'"),
        ({"weight_decay": 0.1}, "feature_norm=None"),
        ({"feature_norm": 0.1}, "weight_decay=None"),
        ({"weight_decay": 0, "feature_norm": 1}, "weight_decay=0"),
    ],
)
def test_a_mistake_costs_one_line(arguments, words):
    with pytest.raises(CollapseError) as caught:
        inspect_head(**({"weight": np.eye(3)} | arguments))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_share_is_bounded_where_the_sum_of_the_rows_excludes_a_stationary_point():
    counts = np.array([0, 0, 5, 9, 40])
    weight, bias, _ = trained(counts, 4, 1e-2)
    words = {"weight_decay": 1e-2, "feature_norm": 10}
    assert np.isfinite(inspect_head(weight, bias, **words).share_at_least).all()
    moved = inspect_head(weight + 10, bias, **words)  # every margin is the same
    assert np.isnan(moved.share_at_least).all()
    assert "% of what independent rows would give: no stationary point" in " ".join(moved.verdict)
    assert "e+" not in " ".join(moved.verdict)
