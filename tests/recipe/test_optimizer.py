"""Horizons against torch's own optimisers and schedulers, under decay alone; and the mean row of a head in training."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from _support.tolerances import EXACT, HORIZON
from collapsekit import CollapseError
from collapsekit.recipe import Optimizer, horizon_sentence

STEPS, RATE, DECAY = 4000, 1e-3, 1e-2
BUILT = {
    "sgd": lambda w: torch.optim.SGD([w], lr=RATE, weight_decay=DECAY),
    "momentum": lambda w: torch.optim.SGD([w], lr=RATE, weight_decay=DECAY, momentum=0.9),
    "dampened": lambda w: torch.optim.SGD([w], lr=RATE, weight_decay=DECAY, momentum=0.5, dampening=0.3),
    "nesterov": lambda w: torch.optim.SGD([w], lr=RATE, weight_decay=DECAY, momentum=0.9, nesterov=True),
    "adamw": lambda w: torch.optim.AdamW([w], lr=RATE, weight_decay=DECAY),
}
OURS = {
    "sgd": {"name": "sgd"},
    "momentum": {"name": "sgd", "momentum": 0.9},
    "dampened": {"name": "sgd", "momentum": 0.5, "dampening": 0.3},
    "nesterov": {"name": "SGD", "momentum": 0.9, "nesterov": True},
    "adamw": {"name": "AdamW"},
}
scheduler = torch.optim.lr_scheduler
SCHEDULES = {
    "constant": (lambda o: scheduler.ConstantLR(o, 1.0), {}),
    "cosine": (lambda o: scheduler.CosineAnnealingLR(o, STEPS), {"schedule": "cosine"}),
    "cosine with a floor": (
        lambda o: scheduler.CosineAnnealingLR(o, STEPS, eta_min=0.1 * RATE),
        {"schedule": "cosine", "floor": 0.1},
    ),
    "linear": (lambda o: scheduler.LinearLR(o, 1.0, 0.0, STEPS), {"schedule": "linear"}),
    "step": (
        lambda o: scheduler.MultiStepLR(o, [1000, 3000], 0.2),
        {"schedule": "step", "milestones": (1000, 3000), "factor": 0.2},
    ),
    "warm-up and cosine": (
        lambda o: scheduler.SequentialLR(
            o, [scheduler.LinearLR(o, 1 / 800, 1.0, 799), scheduler.CosineAnnealingLR(o, STEPS - 800)], [800]
        ),
        {"schedule": "cosine", "warmup": 800},
    ),
}


def trained(kind, schedule):
    """A weight under decay alone after all steps, and the learning rates it met."""
    weight = torch.ones(1, dtype=torch.float64, requires_grad=True)
    optimizer = BUILT[kind](weight)
    plan, rates = SCHEDULES[schedule][0](optimizer), []
    for _ in range(STEPS):
        weight.grad = torch.zeros_like(weight)
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        plan.step()
    return weight.item(), rates


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("kind", BUILT)
@pytest.mark.filterwarnings("ignore:The epoch parameter in")  # torch's own SequentialLR
def test_under_decay_alone_a_weight_shrinks_over_the_horizon(kind, schedule):
    ours = Optimizer(learning_rate=RATE, steps=STEPS, **OURS[kind], **SCHEDULES[schedule][1])
    left, rates = trained(kind, schedule)
    assert_allclose(ours.rates, rates, rtol=1e-9, atol=RATE * EXACT)
    assert_allclose(ours.horizon(DECAY), -np.log(left), rtol=HORIZON)


def test_a_decay_of_each_step():
    optimizer = Optimizer("adamw", 0.1, steps=4)
    assert_allclose(optimizer.horizon([0, 1, 2, 3]), 0.6)
    with pytest.raises(CollapseError, match=r"weight_decay: shape \(3,\); give one number, or one for each of 4 steps"):
        optimizer.horizon([1, 2, 3])


def test_sgd_keeps_the_mean_row_of_a_head_but_for_the_decay():
    """A default start has ‖Wᵀ1‖ near sqrt(K/3); at E = 1 what is left of it is exp(−1)."""
    torch.manual_seed(0)
    head, rng = torch.nn.Linear(64, 30, bias=False, dtype=torch.float64), np.random.default_rng(0)
    features, labels = torch.from_numpy(rng.normal(size=(600, 64))), torch.from_numpy(rng.integers(0, 30, 600))
    optimizer = torch.optim.SGD(head.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    start = head.weight.sum(dim=0).norm().item()
    assert_allclose(start, np.sqrt(30 / 3), rtol=0.2)
    for _ in range(200):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(head(features), labels).backward()
        optimizer.step()
    efolds = Optimizer("sgd", 0.05, steps=200, momentum=0.9).horizon(0.01)
    assert_allclose(head.weight.sum(dim=0).norm().item() / start, np.exp(-efolds), rtol=0.05)


def test_without_momentum_dampening_does_nothing():
    assert_allclose(Optimizer("sgd", 0.1, steps=10, dampening=0.5).horizon(0.1), 0.1)


def test_coupled_adam_has_no_horizon_and_says_so():
    assert np.isnan(Optimizer("adam", steps=10).horizon(0.1))
    assert "there is no horizon" in horizon_sentence(float("nan"))


@pytest.mark.parametrize(
    ("efolds", "fragment"),
    [
        (0.0, "no class can be lost to it"),
        (0.05, "0.05 e-folds: no class can be lost to it; what you see at the end is unfinished training"),
        (1.0, "37% of the start is left"),
        (30.0, "does not prove that training has converged"),
    ],
)
def test_what_a_horizon_means(efolds, fragment):
    assert fragment in horizon_sentence(efolds)


@pytest.mark.parametrize(
    ("values", "fragment"),
    [
        ({"schedule": "poly"}, "schedule='poly': give one of constant, cosine, linear, step"),
        ({"steps": 0}, "steps=0"),
        ({"warmup": -1}, "warmup=-1"),
        ({"milestones": (5, -2)}, "milestones=-2"),
        ({"factor": 2.0}, "factor=2.0: give a number from 0 to 1"),
        ({"momentum": 1.0}, "momentum=1.0: give a number from 0 to below 1"),
        ({"nesterov": True}, "nesterov=True: it needs momentum above 0"),
        ({"name": "adamw", "momentum": 0.9}, "momentum=0.9: only sgd has one"),
        ({"name": "adamw", "dampening": 0.5}, "dampening=0.5: only sgd has one"),
        ({"schedule": "step"}, "milestones=(): only the schedule 'step' has any"),
        ({"milestones": (3,)}, "milestones=(3,): only the schedule 'step' has any"),
        ({"steps": 10, "warmup": 11}, "warmup=11: longer than the 10 steps"),
        ({"steps": 10**12}, "no training takes more than"),
        ({"learning_rate": 0}, "learning_rate=0"),
    ],
    ids=str,
)
def test_misuse_of_an_optimizer(values, fragment):
    with pytest.raises(CollapseError) as caught:
        Optimizer(**values)
    assert fragment in str(caught.value)


def test_a_horizon_needs_steps_and_a_decay():
    with pytest.raises(CollapseError, match="steps=None: a horizon needs"):
        Optimizer().horizon(0.1)
    with pytest.raises(CollapseError, match="weight_decay=-1: give a number of at least 0"):
        Optimizer(steps=3).horizon(-1)
