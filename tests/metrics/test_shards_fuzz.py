"""Shards of every format, damaged or odd: the numbers of what numpy reads from the same bytes, or one line."""

import warnings

import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
from test_shards import FORMS, WEIGHT, assert_equal

from collapsekit import CollapseError
from collapsekit.metrics import measure_features, measure_shards, shard_jobs

CLASSES, DIM = WEIGHT.shape
FLOATS = ["<f4", "<f8", ">f8", "<f2", "i1", "<i4", "u1", "bool", "c16", "U2"]
LABELS = ["<i8", "u1", ">i2", "<f8", "<u8", "bool", "U1", "c8"]
FEW, MANY = 300, 5000
ENDINGS = (".npz", ".npy", ".safetensors", ".parquet")


def arrays(rng):
    """Features and labels, most of them sound; what is wrong with them comes from the list."""
    size = int(rng.choice([0, 1, 7, 40], p=[0.1, 0.2, 0.2, 0.5]))
    x, y = 3 * rng.normal(size=(size, DIM)), rng.integers(0, CLASSES, size)
    odd = rng.choice(["", "label", "ignored", "nan", "width", "length"], p=[0.5, 0.1, 0.1, 0.1, 0.1, 0.1])
    if size and odd in ("label", "ignored"):
        y[rng.integers(size)] = rng.choice([-1, CLASSES, 127]) if odd == "label" else -100
    if size and odd == "nan":
        x[rng.integers(size), rng.integers(DIM)] = rng.choice([np.nan, np.inf])
    if odd == "width":
        x = x[:, : rng.integers(DIM)]
    if odd == "length":
        y = y[:-1]
    return x, y


def damaged(rng, content):
    """The bytes of a file cut, lengthened, or with one or many others."""
    kind = rng.choice(["cut", "longer", "bytes", "header", "empty", "zeros"])
    content = bytearray(content)
    if kind == "cut":
        return content[: rng.integers(len(content))]
    if kind == "longer":
        return content + bytes(rng.integers(1, 9))
    if kind == "empty":
        return b""
    reach = min(200, len(content)) if kind == "header" else len(content)
    for _ in range(int(rng.choice([1, 1, 3, 20]))):
        content[rng.integers(reach)] = 0 if kind == "zeros" else rng.integers(256)
    return content


def read(path):
    """What the formats' own packages read; they may fail in any way."""
    if path.suffix == ".npz":
        with np.load(path) as stored:
            found = {key: stored[key] for key in stored}
    elif path.suffix == ".safetensors":
        found = safetensors.numpy.load_file(path)
    elif path.suffix == ".npy":
        found = {"X": whole(path), "y": whole(path.with_name(f"{path.stem}_labels.npy"))}
    else:
        names = pq.read_schema(path).names
        key = next((key for key in ("features", "X") if key in names), None)
        label = next(key for key in ("labels", "label", "target") if key in names)
        columns = [key] if key else [name for name in names if name.startswith("x")]
        table = pq.read_table(path, columns=[*columns, label]).to_pydict()  # others may be damaged
        found = {"X": np.array(table[key]) if key else np.array([table[name] for name in columns]).T}
        found["y"] = np.array(table[label])
    keys = [next(key for key in pair if key in found) for pair in (("X", "features"), ("y", "labels"))]
    return [found[key] for key in keys]


def whole(path):
    """numpy lets bytes after the array pass."""
    with path.open("rb") as stream:
        array = np.load(stream)
        assert not stream.read(1)
    return array


def expected(folder):
    """The measurement of what is read, sample by sample."""
    rows, labels = [], []
    for path in sorted(folder.iterdir()):
        if path.suffix in ENDINGS and not path.stem.endswith("_labels"):
            x, y = read(path)
            if not x.size:
                continue
            kept = y.astype(np.float64) != -100
            rows += [row.astype(np.float64) for row in x[kept]]
            labels += [int(label) for label in y[kept]]
    return measure_features(np.array(rows), np.array(labels), WEIGHT)


def case(folder, seed):
    """One to three files, of which one may be damaged; whether nothing was done to them that must be refused."""
    rng = np.random.default_rng(seed)
    for i in range(rng.integers(1, 4)):
        x, y = arrays(rng)
        form = rng.choice(list(FORMS))
        first = rng.random() < 0.7
        x = x.astype("<f8" if first else rng.choice(FLOATS))
        y = y.astype("<i8" if first else rng.choice(LABELS))
        FORMS[form](folder / f"part{i}", x, y)
    if rng.random() < 0.5:
        path = rng.choice(sorted(folder.iterdir()))
        path.write_bytes(damaged(rng, path.read_bytes()))


def check(folder, seed):
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            case(folder, seed)
        except Exception:  # a package does not write such arrays
            return "unwritten"
    measured, told = attempt(folder)
    if measured is None:
        assert "\n" not in told
        assert "paths" in told or "shard='" in told, told
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            assert not plain(folder), (seed, told)
        return "refused"
    exact = expected(folder)
    below = np.array(measured.class_reasons) == "below resolution"
    spread, lengths = (exact.per_class()[key][below] for key in ("within", "feature_sqnorm"))
    assert (spread <= 0.01 * lengths).all()  # as float64, in which the oracle has all files, has no such limit
    assert_equal(measured, exact, 1e-6, without=("within", "cdnv", "nc1") if below.any() else ())
    return "measured"


def attempt(folder):
    try:
        return measure_shards(folder, WEIGHT), ""
    except CollapseError as error:
        return None, str(error)


def plain(folder):
    """Whether everything is read, of plain types, finite and in range: then a refusal is wrong."""
    try:
        for path in folder.iterdir():
            if path.suffix in ENDINGS and not path.stem.endswith("_labels"):
                x, y = read(path)
                if not (x.dtype == np.float64 and x.shape == (len(x), DIM) and y.dtype == np.int64 and len(x)):
                    return False
                if x.shape[:1] != y.shape or not (np.abs(x) < 1e9).all() or not ((y >= 0) & (y < CLASSES)).all():
                    return False
    except Exception:
        return False
    return True


@pytest.fixture
def few_rows(monkeypatch):
    monkeypatch.setattr(shard_jobs, "BLOCK_BYTES", 9 * 8 * (DIM + CLASSES))


def run(tmp_path, seeds):
    found = []
    for seed in seeds:
        folder = tmp_path / str(seed)
        folder.mkdir()
        found.append(check(folder, seed))
    assert found.count("measured") > len(seeds) / 10
    assert found.count("refused") > len(seeds) / 5
    assert found.count("unwritten") < len(seeds) / 5


def test_a_few_hundred_cases(tmp_path, few_rows):
    run(tmp_path, range(FEW))


@pytest.mark.heavy
def test_five_thousand_cases(tmp_path, few_rows):
    run(tmp_path, range(FEW, FEW + MANY))
