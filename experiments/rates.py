"""How fast does a class get going or die out near its threshold, in descent on (W, H) and in networks?

Run: python experiments/rates.py [--workers 2] [--out FOLDER] [--reuse]       (about 2 core-minutes)
Writes experiments/results/rates.json.

`growth_rates` says at which rate the own coordinate of a class, while it is small, grows or dies out in gradient flow
on the head W and a free feature of every sample. Digits, long tail 60 … 6, explicit penalties at 0.5 and 2 times the
threshold of the rarest class (where the rarest have headrooms below 1), λ_W = λ_H and λ_W = 30 λ_H, three seeds.
- Descent on (W, H) of each problem, all N features free and clipped at 0, a coordinate a class, features of random
  size about 1e-6 and W = 0, steps of 0.05 over the sum of all rates: the slope of log(mean feature) of each class,
  after ten of the time constants in which its other mode dies away and up to a margin of 0.01. As written before the
  runs it is within 10 % of the rate; classes within 2 % of their threshold, where it is 0, are left out.
- The network, an MLP 128-256 under SGD (momentum 0.9, learning rate 0.2 along a cosine, 1,000 steps) with these
  penalties from the first step on: the time, in units of 1/rate, at which each class that the theory keeps has half of
  its confidence above chance. Without a band: networks set their own pace.
"""

import numpy as np

from _tools import harness
from _tools.harness import NO_CLAIM, line, setting
from collapsekit.theory import growth_rates
from collapsekit.training import TrainConfig

SCALES, RATIOS, SEEDS, MOMENTUM = (0.5, 2.0), (1.0, 30.0), 3, 0.9
CRITICAL = 0.02
STEP, SETTLED, SMALL_MARGIN, START = 0.05, 10.0, 0.01, 1e-6
BASE = {"largest": 60, "hidden": (128,), "feature_dim": 256, "epochs": 1000, "optimizer": "sgd", "learning_rate": 0.2}
CONFIGS = [
    TrainConfig(penalty_scale=scale, penalty_ratio=ratio, warmup=0.0, seed=seed, **BASE)
    for scale in SCALES
    for ratio in RATIOS
    for seed in range(SEEDS)
]
BANDS = {"rate in descent on (W, H), relative": 0.1}
SMOKE = [TrainConfig(**BASE | {"epochs": 200}, penalty_scale=2.0, penalty_ratio=1.0, warmup=0.0)]
SMOKE_BANDS = BANDS


def measured_rates(run):
    """The rates of theory and descent, and the network's times in units of 1/rate."""
    rates = growth_rates(run.problem)
    return {
        "rates": rates,
        "descent_rates": descent(run.problem, np.random.default_rng(run.config.seed)),
        "half_times": rates * half_times(run),
    }


def descent(problem, rng):
    """The measured rate of each class, (K,): NaN if it outgrows its linear regime before the other mode is gone."""
    counts, size = problem.counts.astype(int), problem.num_classes
    labels, samples = np.repeat(np.arange(size), counts), counts.sum()
    product = (1 - 1 / size) * counts / samples**2
    gaps = np.sqrt((problem.lambda_w - problem.lambda_h) ** 2 + 4 * product)
    step = STEP / (problem.lambda_w + problem.lambda_h + gaps.max())
    W, H, targets = np.zeros((size, size)), np.zeros((samples, size)), np.eye(size)[labels]
    H[np.arange(samples), labels] = START * rng.uniform(0.5, 1.5, samples)
    logs, margins = [], []
    for _ in range(int(2 * SETTLED / (step * gaps.min()))):
        logits = H @ W.T
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        slopes = (shares / shares.sum(axis=1, keepdims=True) - targets) / samples
        W, H = W - step * (slopes.T @ H + problem.lambda_w * W), H - step * (slopes @ W + problem.lambda_h * H)
        np.maximum(H, 0.0, out=H)
        features = np.bincount(labels, H[np.arange(samples), labels], size) / counts
        logs.append(np.log(features))
        margins.append(features * (np.diagonal(W) - W.mean(axis=0)) * size / (size - 1))
    times, logs, margins = step * np.arange(1, len(logs) + 1), np.array(logs), np.array(margins)
    kept = (times[:, None] > SETTLED / gaps) & (margins < SMALL_MARGIN)
    return np.array([slope(times[own], log[own]) for own, log in zip(kept.T, logs.T, strict=True)])


def slope(times, values):
    """Of the line through them; NaN for fewer than ten."""
    return np.polyfit(times, values, 1)[0] if times.size >= 10 else np.nan


def half_times(run):
    """Learning rate times steps, momentum counted, at which each class first has half its confidence above chance."""
    config, chance = run.config, 1 / len(run.measured.counts)
    progress = np.arange(config.epochs) / config.epochs
    elapsed = np.cumsum(config.learning_rate * 0.5 * (1 + np.cos(np.pi * progress))) / (1 - MOMENTUM)
    steps = np.array([entry["step"] for entry in run.history])
    gained = np.array([entry["confidences"] for entry in run.history]) - chance
    there = gained >= 0.5 * (run.prediction.confidences - chance)
    first = elapsed[steps[there.argmax(axis=0)] - 1]
    return np.where(there.any(axis=0) & ~run.prediction.collapses, first, np.nan)


def judge(rows, bands):
    return [judge_descent(rows, bands), judge_networks(rows)]


def known(row, key):
    """A vector of a row, None as NaN."""
    return np.array([np.nan if value is None else value for value in row[key]], dtype=float)


def judge_descent(rows, bands):
    band = bands["rate in descent on (W, H), relative"]
    off, left_out, unknown = [], 0, 0
    for row in rows:
        near = np.abs(known(row, "headroom") - 1) < CRITICAL
        errors = np.abs(known(row, "descent_rates") / known(row, "rates") - 1)[~near]
        left_out, unknown = left_out + near.sum(), unknown + np.isnan(errors).sum()
        off += errors[np.isfinite(errors)].tolist()
    rest = f"; {unknown} outgrew their linear regime too soon" if unknown else ""
    rest += f"; {left_out} within 2 % of their threshold left out" if left_out else ""
    return line(
        "a class near equal logits grows or dies out at the rate of `growth_rates`: descent on (W, H)",
        f"free features × {len({(setting(r, 'penalty_scale'), setting(r, 'penalty_ratio')) for r in rows})} problems "
        f"× {len({setting(r, 'seed') for r in rows})} seeds, {len(off)} classes",
        f"within {band:.0%}",
        f"off by {np.median(off):.2%} in the median, {max(off):.2%} at most{rest}",
        max(off) <= band and len(off) > unknown,
    )


def judge_networks(rows):
    times = np.concatenate([known(row, "half_times") for row in rows])
    kept = times[np.isfinite(times) & (times > 0)]
    low, middle, high = np.percentile(kept, [10, 50, 90]) if kept.size else [np.nan] * 3
    return line(
        "the same in networks, whose layers set their own pace",
        f"MLP × digits, SGD × {len(rows)} runs, {kept.size} classes that get going",
        "none",
        f"half of the confidence after {middle:.2g} of the theory's time constants (10th to 90th percentile "
        f"{low:.2g} … {high:.2g})",
        NO_CLAIM,
    )


EXPERIMENT = harness.Experiment("rates", __doc__, CONFIGS, BANDS, judge, SMOKE, SMOKE_BANDS, extra=measured_rates)

if __name__ == "__main__":
    harness.main(EXPERIMENT)
