"""Are the labels of the suite true? What a network does, counted without the package, and a check for each cause.

A check returns the classes that are affected and the numbers that show it, or throws the network out. None of them
knows `diagnose`.
"""

from dataclasses import replace

import numpy as np
import torch

from _tools import suite_data
from _tools.suite_training import DROP, POINTS, Run
from collapsekit import predict, recipe
from collapsekit.losses import MSE, CrossEntropy
from collapsekit.recipe import LastLayer

LEAST_LEAD = 0.01
"""A hit leads by more than this share of the median lead: the package's definition, computed here once more."""
MORE = 3
"""Times as many steps where the rate is a tenth: with the cosine enough for every network that was tried."""
HALF, SURE, FAR_BELOW = 0.5, 0.9, 0.25
"""Recalls (or confidences): of a class that is alive, of one that is well learnt, of one that does not generalise."""


def outcome(features, labels, W, b=None):
    """Recall and confidence of each class, float64: (K,), (K,)."""
    z = features.astype(np.float64) @ W.T.astype(np.float64) + (0.0 if b is None else b.astype(np.float64))
    own = z[np.arange(len(z)), labels]
    others = z.copy()
    others[np.arange(len(z)), labels] = -np.inf
    lead = own - others.max(axis=1)
    hits = lead > LEAST_LEAD * np.median(np.abs(np.diff(np.sort(z, axis=1)[:, -2:], axis=1)))
    p = np.exp(own - z.max(axis=1)) / np.exp(z - z.max(axis=1, keepdims=True)).sum(axis=1)
    return per_class(hits, labels, len(W)), per_class(p, labels, len(W))


def per_class(values, labels, classes):
    sums, counts = (np.bincount(labels, weights=w, minlength=classes) for w in (values, None))
    return sums / counts


def words(features, labels, W, b, *, confidence_decides=True):
    """The status of each class by the definitions in docs, from `outcome` and the class means."""
    recalls, confidences = outcome(features, labels, W, b)
    means = np.stack([features[labels == k].astype(np.float64).mean(0) for k in range(len(W))])
    own = (means**2).sum(1) > 0.01 * (means**2).sum(1).max()
    if confidence_decides:
        own &= confidences > 1 / len(W) + 0.005
    weak = (recalls < HALF) | (confidence_decides & (confidences < HALF))
    gone = np.where(own, "never predicted", "lost")
    return np.where(recalls == 0, gone, np.where(weak, "weak", "alive")).tolist()


def recipe_of(made):
    """The recipe (class and keywords) that the network was trained by, and its last layer's keywords."""
    last = {"dim": made.dim, "biased": made.bias, "branches": int(made.norm == "batch")}
    if made.product is not None:
        lw, lh = made.penalties
        return ("Penalty", {"weight_decay": lw, "feature_decay": lh, "reduction": "full_sum"}), last
    if made.law:
        return ("BatchNorm", {"weight_decay": made.decay}), last
    return ("Plain", {"weight_decay": made.decay}) if made.decay else None, last


def problem_of(made):
    (name, values), last = recipe_of(made)
    loss = MSE() if made.loss == "mse" else CrossEntropy()
    return getattr(recipe, name)(**values).problem(made.counts, LastLayer(**last), loss=loss)


def optimizer_of(made):
    keys = {"name": made.optimizer, "learning_rate": made.rate, "steps": made.steps, "schedule": made.schedule}
    if made.schedule == "step":
        keys |= {"milestones": [int(DROP[0] * made.steps)], "factor": DROP[1]}
    return keys | ({"momentum": made.momentum} if made.momentum else {})


class ThrownOut(Exception):
    """The network is not what it was made to be."""


def require(condition, why):
    if not condition:
        raise ThrownOut(why)


def recalls_of(run):
    return outcome(run.features(run.X), run.y.numpy(), *run.head())[0]


def held_out_recalls(run):
    return outcome(run.features(run.Xt), run.yt.numpy(), *run.head())[0]


def trained(made):
    return Run(made).go(made.steps)


def healthy(run, made):
    """Training recall and confidence and held-out recall of every class above one half."""
    W, b = run.head()
    b = spoiled_bias(made, b)
    recalls, confidences = outcome(run.features(run.X), run.y.numpy(), W, b)
    kept = outcome(run.features(run.Xt), run.yt.numpy(), W, b)[0]
    require(recalls.min() > HALF, f"recall {recalls.min():.2f}")
    require(confidences.min() > HALF or made.loss == "mse", f"confidence {confidences.min():.2f}")
    require(kept.min() > HALF, f"held-out recall {kept.min():.2f}")
    return [], {"least_recall": recalls.min(), "least_held_out": kept.min()}


def regularisation(run, made):
    """The optimum of the recipe loses these classes (collapsed, or below one half), and the network is at it.

    Where the recipe has no theory: the network of a hundredth of the decay keeps all classes, and training it further
    at the full decay loses the same ones, so that neither start nor path is to blame.
    """
    recalls, confidences = outcome(run.features(run.X), run.y.numpy(), *run.head())
    if made.product is None and not made.law:
        twin = trained(replace(made, decay=made.decay / 100))
        require(recalls_of(twin).min() > HALF, "weak decay loses a class, too")
        again = recalls_of(twin.go(made.twin, made))
        affected = np.flatnonzero(recalls == 0)
        require(affected.size, "no class is lost")
        require((again[affected] == 0).all(), "from the network that had the classes, they are kept")
        return affected, {"recall_of_the_twin": again[affected].max()}
    found = predict(problem_of(made), time_limit=60)
    off = np.abs(found.confidences - confidences).max() if made.loss == "ce" else 0.0
    require(found.collapses.any(), "the optimum keeps every class")
    require(((recalls == 0) == found.collapses).all(), f"lost {np.flatnonzero(recalls == 0)}, not as the optimum")
    require(off <= 0.05, f"a confidence is {off:.2f} off the optimum")
    weak = made.loss == "ce" and found.confidences < HALF
    return np.flatnonzero(found.collapses | weak), {"off_the_optimum": off, "basis": found.basis.value}


def optimiser(run, made):
    """The optimum keeps every class; as many steps again leave these lost and gain less than 1 %.

    Where the recipe has no theory: see `steps_at_fault`.
    """
    if made.late:
        return last_steps_at_fault(run, made)
    if made.product is None and not made.law:
        return steps_at_fault(run, made)
    lost, before = recalls_of(run) == 0, run.history["loss"][-1]
    found = predict(problem_of(made), time_limit=60)
    require(lost.any(), "no class is lost")
    require(found.confidences.min() > HALF, f"the optimum leaves {found.confidences.min():.2f}")
    run.go(made.steps, replace(made, early=None, warmup=False))
    again, after = recalls_of(run) == 0, run.history["loss"][-1]
    require((again == lost).all(), f"more steps change the lost classes: {np.flatnonzero(lost != again)}")
    require(abs(before - after) <= 0.01 * before, f"more steps change the objective: {before:.4g}, {after:.4g}")
    return np.flatnonzero(lost), {"excess": before / found.objective - 1, "change": after / before - 1}


def steps_at_fault(run, made):
    """The same training without its bad first steps, or with a tenth of the rate and more steps, keeps all classes.

    As many steps again at the full rate mend nothing: classes are lost and the loss is not a tenth smaller.
    """
    lost, before = recalls_of(run) == 0, run.history["loss"][-1]
    gentle = {"early": None} if made.early else {"rate": made.rate / 10, "steps": MORE * made.steps}
    twin = recalls_of(trained(replace(made, **gentle)))
    require(lost.any(), "no class is lost")
    require(twin.min() > HALF, f"smaller steps leave a recall of {twin.min():.2f}")
    again = recalls_of(run.go(made.steps, replace(made, early=None, warmup=False))) == 0
    after = run.history["loss"][-1]
    require(again.any(), "more steps bring the classes back")
    require(after >= 0.9 * before, f"more steps change the objective: {before:.4g}, {after:.4g}")
    return np.flatnonzero(lost), {"least_recall_of_the_twin": twin.min(), "change": after / before - 1}


def last_steps_at_fault(run, made):
    """The same training without its last steps keeps all classes; as many steps again at their rate bring none back.

    Classes are lost at half of the records of those steps or more, since where the loss jumps one moment says little.
    """
    lost = recalls_of(run) == 0
    twin = recalls_of(trained(replace(made, late=None)))
    require(lost.any(), "no class is lost")
    require(twin.min() > HALF, f"without the last steps a recall is {twin.min():.2f}")
    run.go(made.steps, replace(made, late=(made.steps, made.late[1]), early=None, warmup=False))
    share = np.mean([0 in recalls for recalls in run.history["recalls"][-POINTS:]])
    require(share >= HALF, f"further on classes are lost {share:.0%} of the time")
    return np.flatnonzero(lost), {"least_recall_of_the_twin": twin.min(), "share_of_time": share}


def unfinished(run, made):
    """More steps of the same training bring every class above one half."""
    below = recalls_of(run) < HALF
    require((recalls_of(run) == 0).any(), "no class is without a hit")
    after = recalls_of(run.go(made.twin * made.steps, replace(made, schedule="constant", cut=1.0)))
    require(after.min() > HALF, f"{made.twin} times the steps leave a recall of {after.min():.2f}")
    return np.flatnonzero(below), {"least_recall_after": after.min()}


def data(run, made):
    """The same training on samples as they should be keeps the class; on these it is lost, weak or not general."""
    if made.change == "overlap":
        return overlap(run, made)
    few = made.change == "few"
    clean = replace(made, change="", counts=tuple(made.twin if few and n < made.twin else n for n in made.counts))
    twin, affected = trained(clean), np.array([own for own, _ in made.pairs])
    if few:
        mine, its = held_out_recalls(run)[affected], held_out_recalls(twin)[affected]
        require(recalls_of(run).min() > HALF, "training recall is below one half")
        require(mine.max() < FAR_BELOW, f"held-out recall {mine.max():.2f}")
        require(its.min() > HALF, f"held-out recall {its.min():.2f} with {made.twin} samples")
    else:
        mine, its = recalls_of(run)[affected], recalls_of(twin)
        require(mine.max() < HALF, f"recall {mine.max():.2f}")
        require(its.min() > HALF, f"recall {its.min():.2f} on clean data")
        require(its[affected].min() >= SURE, f"recall {its[affected].min():.2f} of the class itself on clean data")
    return affected, {"recall": mine.max(), "clean": its.min()}


def overlap(run, made):
    """The best rule there is, Bayes' with the shares of the data, has a held-out recall below a quarter, too."""
    best = suite_data.bayes_recalls(made.data, made.counts, run.Xt.numpy(), run.yt.numpy())
    recalls = recalls_of(run)
    affected = np.array([own for own, _ in made.pairs])
    others = np.setdiff1d(np.arange(len(recalls)), affected)
    require(best[affected].max() < FAR_BELOW, f"Bayes' rule has a recall of {best[affected].max():.2f}")
    require(recalls[affected].max() < HALF, f"recall {recalls[affected].max():.2f}")
    require(recalls[others].min() >= SURE, f"recall {recalls[others].min():.2f} of another class")
    return affected, {"recall": recalls[affected].max(), "bayes": best[affected].max()}


def fitted_bias(features, labels, W):
    """The bias that fits these features best, by cross-entropy, with the weights as they are; (K,)."""
    logits = torch.as_tensor(features @ W.T).double()
    b = torch.zeros(len(W), dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([b], max_iter=500, line_search_fn="strong_wolfe")

    def loss():
        solver.zero_grad()
        value = torch.nn.functional.cross_entropy(logits + b, torch.as_tensor(labels))
        value.backward()
        return value

    solver.step(loss)
    return b.detach().numpy()


def bias(run, made):
    """With the bias that was trained, or, where it was frozen, that fits, every class has a recall above 0.9.

    A frozen bias that the weights make up for with more steps does not count.
    """
    W, b = run.head()
    if made.change == "frozen":
        before = outcome(run.features(run.X), run.y.numpy(), W, fitted_bias(run.features(run.X), run.y.numpy(), W))[0]
    else:
        before = outcome(run.features(run.X), run.y.numpy(), W, b)[0]
    after = outcome(run.features(run.X), run.y.numpy(), W, spoiled_bias(made, b))[0]
    require(before.min() > SURE, f"recall {before.min():.2f} with the bias that was trained")
    require((after == 0).any(), "the bias hides no class")
    if made.change == "frozen":
        again = recalls_of(run.go(made.steps))
        require((again == 0).any(), "the weights make up for the bias")
    return np.flatnonzero(after < HALF), {"recall_before": before.min()}


def width(run, made):
    """Neither more steps nor another start bring the classes back, a wider feature layer does."""
    before = recalls_of(run)
    require((before == 0).any(), "no class is lost")
    wide = recalls_of(trained(replace(made, **{"rank" if made.rank else "dim": made.twin})))
    require(wide.min() > HALF, f"recall {wide.min():.2f} at width {made.twin}")
    for start in (1, 2):
        other = recalls_of(trained(replace(made, seed=made.seed + 5000 * start)))
        require((other == 0).any(), "another start keeps every class")
    after = recalls_of(run.go(made.steps))
    require((after[before == 0] == 0).any(), "more steps bring the classes back")
    return np.flatnonzero(before < HALF), {"wide": wide.min()}


CHECKS = {None: healthy} | {
    check.__name__: check for check in (regularisation, optimiser, unfinished, data, bias, width)
}


def spoiled_bias(made, b):
    """The bias after what was done to it; `strength` counts adjustments of the size log n_k/N, or logits."""
    prior = np.log(np.array(made.counts) / sum(made.counts))
    changes = {
        "wrong sign": lambda: made.strength * (prior - prior.max()),  # adds log-priors where they are to be subtracted
        "adjusted twice": lambda: -made.strength * (prior - prior.min()),
        "prior of other data": lambda: made.strength * (prior[::-1] - prior),
        "shifted": lambda: -made.strength * np.isin(np.arange(len(b)), [own for own, _ in made.pairs]),
        "in other units": lambda: (made.strength - 1) * b,
        "rolled": lambda: made.strength * np.roll(b, 1) - b,  # of the neighbouring class, and in other units
    }
    return (b + changes[made.change]()).astype(np.float32) if made.change in changes else b
