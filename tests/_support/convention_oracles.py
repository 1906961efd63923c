"""Metrics of papers and scripts as they define them, in plain numpy with loops; nothing here comes from src/.

Every function takes features (N, d), labels (N,) and K, or rows (K, d) with NaN for classes without samples. Where a
metric has classes, they come second.
"""

from itertools import combinations, permutations

import numpy as np

from _support.metric_oracles import apart, class_table, cosines, etf_angles, norm_spread


def covariances(features, labels, num_classes):
    """Covariance of each class over n_k, (K, d, d); NaN without samples."""
    x, y = np.asarray(features, dtype=float), np.asarray(labels)
    result = np.full((num_classes, x.shape[1], x.shape[1]), np.nan)
    for k in set(y.tolist()):
        own = x[y == k] - x[y == k].mean(axis=0)
        result[k] = own.T @ own / len(own)
    return result


def known_classes(features, labels, num_classes, least=1):
    counts = np.bincount(labels, minlength=num_classes)
    return [k for k in range(num_classes) if counts[k] >= least and (counts > 1).any()]


def global_mean(features, labels, means, centre):
    return np.asarray(features, dtype=float).mean(axis=0) if centre == "samples" else np.nanmean(means, axis=0)


def about(features, labels, num_classes, centre="classes"):
    means = class_table(features, labels, num_classes).means.astype(float)
    return means if centre is None else means - global_mean(features, labels, means, centre)


def weights_of(counts, weighting):
    return counts / counts.sum() if weighting == "samples" else np.ones(len(counts)) / len(counts)


def at(values, places, num_classes):
    result = np.full(num_classes, np.nan)
    result[list(places)] = values
    return result


def trace_ratio(features, labels, num_classes, *, within="samples", centre="samples", unbiased=False):
    known = known_classes(features, labels, num_classes, 2 if unbiased else 1)
    if len(known) < 2:
        return np.nan, np.full(num_classes, np.nan)
    table = class_table(features, labels, num_classes)
    n, means = table.counts[known], table.means[known].astype(float)
    v = table.within[known].astype(float)
    middle = weights_of(n, centre) @ means
    between = np.mean([(mean - middle) @ (mean - middle) for mean in means])
    if unbiased:
        v = v * n / (n - 1)
        # the expectation of the same statistic of noise alone, class by class: μ_k − Σ b_m μ_m
        b = weights_of(n, centre)
        for k in range(len(n)):
            of_means = np.eye(len(n))[k] - b
            between -= of_means**2 @ (v / n) / len(n)
    denominator = max(between, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return weights_of(n, within) @ v / denominator, at(v / denominator, known, num_classes)


def nc1_by_class(features, labels, num_classes, *, within="samples", centre="samples", per_class=True):
    known = known_classes(features, labels, num_classes)
    if len(known) < 2:
        return np.nan, np.full(num_classes, np.nan)
    n = class_table(features, labels, num_classes).counts[known]
    rows = about(features, labels, num_classes, centre)[known]
    inverse = np.linalg.pinv(rows.T @ rows / len(rows), rcond=1e-10, hermitian=True)
    spread = covariances(features, labels, num_classes)[known]
    shares = np.array([np.trace(own @ inverse) for own in spread]) / (len(known) if per_class else 1)
    pooled = sum(weight * own for weight, own in zip(weights_of(n, within), spread, strict=True))
    return np.trace(pooled @ inverse) / (len(known) if per_class else 1), at(shares, known, num_classes)


def over_pairs(known, num_classes, value_of):
    partners = {k: [value_of(k, m) for m in known if m != k] for k in known}
    per_class = at([np.mean(values) for values in partners.values()], known, num_classes)
    return np.mean(per_class[known]), per_class


def cdnv_corrected(features, labels, num_classes):
    known = known_classes(features, labels, num_classes, 2)
    if len(known) < 2:
        return np.nan, np.full(num_classes, np.nan)
    x, y = np.asarray(features, dtype=float), np.asarray(labels)
    samples = {k: x[y == k] for k in known}

    def value_of(k, m):
        """The squared distance of means as the mean over pairs of DIFFERENT samples, which has no bias by itself."""
        a, b = samples[k], samples[m]
        spread = [
            sum(((u - v) ** 2).sum() for u, v in permutations(c, 2)) / (len(c) * (len(c) - 1)) / 2 for c in (a, b)
        ]
        squared = np.mean([((u - v) ** 2).sum() for u in a for v in b]) - spread[0] - spread[1]
        return sum(spread) / (2 * squared) if squared > 0 else np.inf

    return over_pairs(known, num_classes, value_of)


def cdnv_directional(features, labels, num_classes, *, pooled=False):
    known = known_classes(features, labels, num_classes)
    if len(known) < 2:
        return np.nan, np.full(num_classes, np.nan)
    table = class_table(features, labels, num_classes)
    means, spread = table.means.astype(float), covariances(features, labels, num_classes)
    if pooled:
        spread = np.broadcast_to(table.scatter.astype(float) / len(labels), spread.shape)

    def value_of(k, m):
        line = means[k] - means[m]
        u = line / np.linalg.norm(line)
        return (u @ spread[k] @ u + u @ spread[m] @ u) / (2 * line @ line)

    return over_pairs(known, num_classes, value_of)


def finite(rows):
    rows = np.asarray(rows, dtype=float)
    known = np.flatnonzero(np.isfinite(rows).all(axis=1))
    return rows[known], known


def equinorm(rows):
    found, known = finite(rows)
    norms = np.linalg.norm(found, axis=1)
    return norm_spread(found), at(abs(norms / norms.mean() - 1), known, len(rows))


def equiangularity(rows):
    found, known = finite(rows)
    angles = cosines(found)
    table = np.full((len(found), len(found)), np.nan)
    for (i, j), angle in zip(combinations(range(len(found)), 2), angles, strict=True):
        table[i, j] = table[j, i] = angle - np.mean(angles)
    return np.std(angles), at(np.sqrt(np.nanmean(table**2, axis=1)), known, len(rows))


def simplex(size):
    return (np.eye(size) - np.ones((size, size)) / size) / np.sqrt(size - 1)


def structure_error(weight, means):
    _, known = finite(np.hstack([weight, means]))
    products = np.asarray(weight)[known] @ np.asarray(means)[known].T
    difference = products / np.linalg.norm(products) - simplex(len(known))
    return np.linalg.norm(difference), at(np.linalg.norm(difference, axis=1), known, len(weight))


def duality_direct(weight, means, *, squared=False):
    found, known = finite(means)
    own = np.asarray(weight)[known]
    rows = np.linalg.norm(own / np.linalg.norm(own) - found / np.linalg.norm(found), axis=1)
    value = apart(own, found)
    return (value**2, at(rows**2, known, len(weight))) if squared else (value, at(rows, known, len(weight)))


def duality_generalised(features, labels, weight):
    num_classes = len(weight)
    table = class_table(features, labels, num_classes)
    scaled = np.sqrt(table.counts)[:, None] * np.nan_to_num(table.means.astype(float))
    return duality_direct(weight, np.stack([num_classes * own - sum(scaled) for own in scaled]))


def alignment(weight, means, *, normalised=True):
    values = [
        w @ m / (np.sqrt((w @ w) * (m @ m)) if normalised else 1)
        for w, m in zip(weight, np.asarray(means), strict=True)
    ]
    return np.nanmean(values), np.array(values)


def bias_residual(weight, bias, middle):
    left = np.asarray(weight) @ middle + bias
    return np.sqrt(left @ left), abs(left)


POTENTIALS = {
    "distance": lambda distance, t: distance,
    "log": lambda distance, t: np.log(1 / distance),
    "riesz": lambda distance, t: 1 / distance**t,
    "gaussian": lambda distance, t: np.exp(-t * distance**2),
}


def energies(rows, potential, exponent):
    found, known = finite(rows)
    unit = [row / np.sqrt(row @ row) for row in found]
    table = np.full((len(unit), len(unit)), np.nan)
    with np.errstate(divide="ignore"):
        for i, j in permutations(range(len(unit)), 2):
            table[i, j] = POTENTIALS[potential](np.sqrt(((unit[i] - unit[j]) ** 2).sum()), exponent)
    return table, known


def uniformity(rows, *, potential="log", exponent=2.0):
    table, known = energies(rows, potential, exponent)
    value, per_class = np.nanmean(table), np.nanmean(table, axis=1)
    if potential == "gaussian":
        value, per_class = np.log(value), np.log(per_class)
    return value, at(per_class, known, len(rows))


def uniformity_variance(rows, *, potential="log", exponent=2.0):
    table, _ = energies(rows, potential, exponent)
    return np.nan if np.isinf(table).any() else np.nanvar(table)


def spectrum(features, middle=0.0):
    x = np.asarray(features, dtype=float) - middle
    values = np.linalg.svd(x, compute_uv=False)
    return np.concatenate([values, np.zeros(max(0, x.shape[1] - len(values)))])


def effective_rank(values):
    shares = values / values.sum()
    return np.exp(-sum(share * np.log(share) for share in shares if share > 0))


def stable_rank(values):
    return (values**2).sum() / max(values) ** 2


def nc5(means, outside):
    mean = np.atleast_2d(outside).mean(axis=0)
    values = [abs(row @ mean) / np.sqrt((row @ row) * (mean @ mean)) for row in np.asarray(means)]
    return np.nanmean(values), np.array(values)


def neco(features, others, dim, middle=0.0):
    directions = np.linalg.svd(np.asarray(features, dtype=float) - middle)[2][:dim]
    x = np.asarray(others, dtype=float) - middle
    return np.linalg.norm(x @ directions.T, axis=1) / np.linalg.norm(x, axis=1)


def votes(features, labels, weight, bias, means):
    """For each sample, whether its nearest mean is the class of its largest logit."""
    hits = []
    for x in np.asarray(features, dtype=float):
        nearest = np.nanargmin([((x - mean) ** 2).sum() for mean in means])
        hits.append(nearest == np.argmax(np.asarray(weight) @ x + bias))
    return np.array(hits)


# what published code prints


def library_numbers(features, labels, weight, outside_mean):
    """The eleven numbers of the README of rhubarbwu/neural-collapse, by its definitions.

    As there a class without samples has a mean and a variance of 0, and the bias of the head takes no part.
    """
    num_classes = len(weight)
    table = class_table(features, labels, num_classes)
    means = np.nan_to_num(table.means.astype(float))
    centred = means - means.mean(axis=0)
    within, between = table.scatter.astype(float) / len(labels), centred.T @ centred / num_classes
    values, vectors = np.linalg.eigh(between)
    kept = np.argsort(values)[::-1][: num_classes - 1]
    truncated = (vectors[:, kept] / values[kept]) @ vectors[:, kept].T
    pairs = list(combinations(range(num_classes), 2))
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    distances = np.array([np.linalg.norm(unit[k] - unit[m]) for k, m in pairs])
    lengths = np.linalg.norm(means, axis=1)
    variances = np.nan_to_num(table.within.astype(float))
    hits = votes(features, labels, weight, 0.0, means)
    return {
        "nc1_pinv": np.trace(np.linalg.pinv(between, rcond=1e-10) @ within) / num_classes,
        "nc1_svd": np.trace(within @ truncated) / num_classes,
        "nc1_quot": np.trace(within) / np.trace(between),
        "nc1_cdnv": np.mean([(variances[k] + variances[m]) / 2 / ((means[k] - means[m]) ** 2).sum() for k, m in pairs]),
        "nc2_etf_err": structure_error(centred, centred)[0],
        "nc2g_dist": np.var(distances),
        "nc2g_log": np.var(np.log(1 / distances)),
        "nc3_dual_err": structure_error(weight, centred)[0],
        "nc3u_uni_dual": np.var((weight * centred).sum(axis=1), ddof=1),
        "nc4_agree": hits.mean(),
        "nc5_ood_dev": np.mean(abs(means @ outside_mean) / np.maximum(lengths * np.linalg.norm(outside_mean), 1e-8)),
    }


def script_numbers(features, labels, weight, bias):
    """The four numbers of validate_NC.py of tding1/Neural-Collapse, by its definitions."""
    num_classes = len(weight)
    table = class_table(features, labels, num_classes)
    means, middle = table.means.astype(float), np.asarray(features, dtype=float).mean(axis=0)
    centred = means - middle
    between = sum(np.outer(row, row) for row in centred) / num_classes
    within = table.scatter.astype(float) / len(labels)
    return {
        "collapse_metric": np.trace(within @ np.linalg.pinv(between, rcond=1e-10)) / num_classes,
        "ETF_metric": structure_error(weight, weight)[0],
        "WH_relation_metric": structure_error(weight, centred)[0],
        "Wh_b_relation_metric": np.linalg.norm(weight @ middle + bias),
    }


def papyan_numbers(features, labels, weight):
    """The figures 2 to 6 of Papyan et al. 2020 that are scalars, about the mean of all samples."""
    centred = about(features, labels, len(weight), "samples")
    return {
        "equinorm, means": norm_spread(centred),
        "equinorm, classifier": norm_spread(weight),
        "equiangular, means": np.std(cosines(centred)),
        "equiangular, classifier": np.std(cosines(weight)),
        "maximal angle, means": etf_angles(centred),
        "maximal angle, classifier": etf_angles(weight),
        "self-duality": apart(weight, centred) ** 2,
    }


def published_five(features, labels, weight, margins):
    """NC1, NC2-H, NC2-W, NC2-WWᵀ, NC3 of Dang et al. 2024, section 5, from the margins M_k of the theorem."""
    num_classes = len(weight)
    table = class_table(features, labels, num_classes)
    means, n = table.means.astype(float), table.counts
    norms = margins / np.sqrt(n)  # ‖h_k‖² up to a factor
    b = np.sqrt(n) * margins
    grams = np.zeros((num_classes, num_classes))
    for k in range(num_classes):
        for m in range(num_classes):
            rest = sum(b[i] for i in range(num_classes) if i not in (k, m))
            grams[k, m] = (num_classes - 1) ** 2 * b[k] + rest if k == m else rest - (num_classes - 1) * (b[k] + b[m])
    total = sum(np.sqrt(n[k]) * means[k] for k in range(num_classes))
    expected = np.stack([num_classes * np.sqrt(n[k]) * means[k] - total for k in range(num_classes)])
    logits = (np.eye(num_classes) - 1 / num_classes) * margins  # columns M_l (e_l − 1/K)
    return {
        "nc1": script_numbers(features, labels, weight, 0.0)["collapse_metric"],
        "nc2_h": apart(means @ means.T, np.diag(norms)),
        "nc2_w": apart(weight, expected),
        "nc2_wwt": apart(weight @ weight.T, grams),
        "nc3_wh": apart(weight @ means.T, logits),
    }
