"""Proofs of unreachability against a linear program of another form, and against features that try to win."""

import threading
from fractions import Fraction

import numpy as np
import pytest
from scipy.optimize import linprog

from _support.heads import random_recipe, trained
from _support.strategies import examples
from collapsekit.heads import inspect_head
from collapsekit.heads.least_norm import least_norm
from collapsekit.heads.proofs import Head, Proof, decide_all, exact

CLEAR = 1e-6
"""Lead below which two linear programs may differ about a win: both solve to 1e-7."""
LOWER = {"relu": 0.0, "swish": -0.2785, "gelu": -0.1701, "hardswish": -0.3751, "mish": -0.3089}


def best_lead(weight, bias, row, lower):
    """The largest lead, at most 1, that an input of at least `lower` gives a class over every other one."""
    others = np.delete(np.arange(len(weight)), row)
    found = linprog(
        np.append(np.zeros(weight.shape[1]), -1),
        A_ub=np.column_stack([weight[others] - weight[row], np.ones(len(others))]),
        b_ub=bias[row] - bias[others],
        bounds=[(lower, None)] * weight.shape[1] + [(None, 1)],
    )
    return found.x[-1]


def random_head(seed):
    """A crowded head in few dimensions, where many classes can never win; float32 as files have it."""
    rng = np.random.default_rng(seed)
    size, dim = int(rng.integers(3, 14)), int(rng.integers(1, 5))
    return rng.normal(size=(size, dim)).astype(np.float32), rng.normal(size=size).astype(np.float32)


@pytest.mark.parametrize("seed", range(max(20, examples(400))))
def test_decisions_agree_with_the_largest_lead(seed):
    weight, bias = random_head(seed)
    name, lower = list(LOWER.items())[seed % len(LOWER)]
    found = inspect_head(weight, bias, activation=name, prove="all")
    for row, reachable in enumerate(found.reachable):
        lead = best_lead(weight.astype(float), bias.astype(float), row, lower)
        if lead > CLEAR:
            assert reachable is True
        elif lead < -CLEAR:
            assert reachable is False
    assert all(isinstance(proof, Proof) for proof in found.proofs.values())


@pytest.mark.parametrize("seed", range(5))
def test_no_feature_reaches_a_class_that_is_proved_unreachable(seed):
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(60, 6))
    weight[:20] *= 0.2
    bias = rng.normal(size=60)
    for name, lower in LOWER.items():
        proved = set(inspect_head(weight, bias, activation=name, prove="all").unreachable)
        assert proved
        assert all(best_lead(weight, bias, row, lower) < CLEAR for row in proved)  # optimised
        tries = examples(200_000) // 5  # 10^6 of all sorts in the full suite
        features = lower + np.abs(rng.normal(size=(tries, 6))) * 10 ** rng.uniform(-2, 3, size=(tries, 1))
        features *= np.where(rng.random(features.shape) < 0.3, 0, 1)
        features = np.maximum(features, lower)
        assert not proved & set((features @ weight.T + bias).argmax(axis=1).tolist())


def test_no_input_of_training_is_of_a_class_that_is_proved_unreachable():
    for seed in range(0, 30, 3):  # every third head is behind a ReLU
        weight, bias, features = trained(**random_recipe(seed, empty=True))
        bias = np.zeros(len(weight)) if bias is None else bias
        features = features[(features > 0).any(axis=1)]  # without a bias all classes tie at the input 0
        won = set((features @ weight.T + bias).argmax(axis=1).tolist())
        assert not won & set(inspect_head(weight, bias, activation="relu", prove="all").unreachable)


def test_a_proof_can_be_checked_by_hand():
    weight, bias = random_head(4)
    found = inspect_head(weight, bias, activation="swish", prove="all")
    assert found.proofs
    for row, proof in found.proofs.items():
        assert sum(proof.mixture.values()) == 1
        assert all(share > 0 and other != row for other, share in proof.mixture.items())
        exactly = [[Fraction(float(value)) for value in line] for line in np.column_stack([weight, bias])]
        shifted = [line[-1] + Fraction(-0.2785) * sum(line[:-1]) for line in exactly]
        for i in range(weight.shape[1]):
            assert sum(share * exactly[k][i] for k, share in proof.mixture.items()) >= exactly[row][i]
        assert sum(share * shifted[k] for k, share in proof.mixture.items()) > shifted[row]


def test_what_rounding_would_call_dominated_is_not_proved():
    weight = np.array([[1.0, 1.0], [1.0 + 2**-50, 1.0], [0.0, 5.0]])
    head = Head(weight, np.zeros(3), 0.0)
    assert exact(head, 1, [0], np.array([1.0])) is None  # smaller in the last bit
    assert exact(head, 0, [1], np.array([1.0])) is None  # equal in one coordinate and in the bias: a tie remains
    assert exact(Head(weight, np.array([0.0, 2**-60, 0]), 0.0), 0, [1], np.array([1.0])) is not None


def test_where_the_solver_fails_another_set_of_columns_is_tried(monkeypatch):
    weight, bias = random_head(4)
    expected = inspect_head(weight, bias, activation="swish", prove="all").reachable
    import collapsekit.heads.proofs as proofs

    plain, calls = proofs._program, []

    def failing(lead):
        calls.append(lead.shape)
        return None if len(calls) % 2 else plain(lead)

    monkeypatch.setattr(proofs, "_program", failing)
    found = decide_all(Head(weight, bias, -0.2785), range(len(weight)))
    assert all(isinstance(verdict, Proof) != expected[row] for row, verdict in found.items())
    assert found


@pytest.mark.parametrize("lower", [None, 0.0, -0.2785])
def test_the_shortest_input_wins_and_none_shorter_does(lower):
    for seed in range(20):
        weight, bias = random_head(seed)
        weight, bias = weight.astype(float), bias.astype(float)
        rng = np.random.default_rng(seed)
        tries = rng.normal(size=(20_000, weight.shape[1])) * rng.uniform(0, 6, size=(20_000, 1))
        tries = tries if lower is None else np.maximum(tries, lower)
        won, lengths = (tries @ weight.T + bias).argmax(axis=1), np.linalg.norm(tries, axis=1)
        for row in range(len(weight)):
            least = least_norm(weight, bias, row, lower)
            if (won == row).any():
                assert least <= lengths[won == row].min() + CLEAR
            if np.isfinite(least) and lower is not None:
                assert best_lead(weight, bias, row, lower) > -CLEAR


def test_any_number_of_threads_finds_the_same():
    rng = np.random.default_rng(3)
    head = Head(rng.normal(size=(150, 4)).astype(np.float32), rng.normal(size=150).astype(np.float32), 0.0)
    alone = decide_all(head, range(150))
    assert {type(verdict) for verdict in alone.values()} == {bool, Proof}
    for workers in (2, 8):
        found = decide_all(head, range(150), workers=workers)
        assert list(found.items()) == list(alone.items())


def test_an_interrupt_ends_all_threads_after_the_row_they_are_at():
    weight, bias = random_head(4)
    head, seen = Head(np.tile(weight, (30, 1)), np.tile(bias, 30), 0.0), []
    before = set(threading.enumerate())  # those of other tests of the process may live on

    def interrupt(done):
        seen.append(done)
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        decide_all(head, range(len(head.weight)), interrupt, workers=2)
    assert len(seen) <= 3 + 2 * 2  # the thread that was hit begins its next part, at most
    assert set(threading.enumerate()) <= before
