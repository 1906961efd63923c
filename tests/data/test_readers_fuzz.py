"""Damaged files of every format: valid data or a one-line CollapseError, nothing else, in bounded time and memory."""

import gzip
import os
import resource
import time

import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_readers import (
    COLOURS,
    DIGITS,
    PIXELS,
    ROWS,
    checked,
    idx,
    npy,
    parquet,
    write_cifar,
    write_images,
    write_zip,
)

from collapsekit import CollapseError
from collapsekit.data import read
from conftest import ALL

PER_FORMAT = 80 if ALL else 8
CPU_SECONDS, MEGABYTES = 20, 600
TABLE = b"x,label,z\n" + b"".join(b"%d.5,%s,-1e%d\n" % (k, b"ab"[k % 2 : k % 2 + 1], k) for k in range(6))
TEXT = "ä\tone two three\nb\tfour five\nä\tsix, seven <eight>\nb\tnine ten one\n".encode()


def png_folder(folder, suffix, **options):
    colours = COLOURS[:4, :, :9, :8].transpose(0, 2, 3, 1)
    write_images(folder, zip("aabb", colours, strict=True), suffix, **options)


def write_npz(folder, **arrays):
    write_zip(folder / "data.npz", {f"{key}.npy": npy(array) for key, array in arrays.items()})


def write_npy(folder):
    (folder / "data.npy").write_bytes(npy(ROWS.astype(np.float64)))
    (folder / "labels.npy").write_bytes(npy(DIGITS))


def write_idx_folder(folder, ending=""):
    for name, array in (("images-idx3", PIXELS), ("labels-idx1", DIGITS)):
        for part in ("train", "t10k"):
            content = idx(array)
            (folder / f"{part}-{name}-ubyte{ending}").write_bytes(gzip.compress(content) if ending else content)


def write_cifar_folder(folder):
    write_cifar(folder / "data_batch_1.bin", COLOURS, DIGITS)
    (folder / "batches.meta.txt").write_text("a\nb\nc\n")


# format: what `read` is given below the folder, and who writes the folder
FORMATS = {
    "idx": ("", write_idx_folder),
    "idx.gz": ("", lambda folder: write_idx_folder(folder, ".gz")),
    "cifar": ("", write_cifar_folder),
    **{form: ("", lambda folder, form=form: png_folder(folder, form)) for form in (".png", ".jpg", ".gif", ".webp")},
    ".bmp": ("", lambda folder: png_folder(folder, ".bmp")),
    ".pgm": ("", lambda folder: write_images(folder, zip("ab", PIXELS[:2], strict=True), ".pgm")),
    "npz": ("data.npz", lambda f: write_npz(f, X=ROWS, y=DIGITS, Xt=ROWS, yt=DIGITS, names=np.array(["a", "b", "c"]))),
    "npy": ("data.npy", write_npy),
    "safetensors": (
        "data.safetensors",
        lambda folder: safetensors.numpy.save_file({"X": ROWS, "y": DIGITS}, folder / "data.safetensors"),
    ),
    "pt": (
        "data.pt",
        lambda folder: torch.save({"X": torch.from_numpy(ROWS), "y": torch.from_numpy(DIGITS)}, folder / "data.pt"),
    ),
    "csv": ("data.csv", lambda folder: (folder / "data.csv").write_bytes(TABLE)),
    "tsv": ("data.tsv", lambda folder: (folder / "data.tsv").write_bytes(TABLE.replace(b",", b"\t"))),
    "parquet": (
        "data.parquet",
        lambda folder: parquet(folder / "data.parquet", x=ROWS[:, 0], y=["a", "b", "c"] * 2, z=ROWS[:, 1]),
    ),
    "txt": ("data.txt", lambda folder: (folder / "data.txt").write_bytes(TEXT)),
}
WORDS = [b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x80\x04\x95", b"\n", b"\t", b"nan", b'"']


@st.composite
def damage(draw):
    """A function from intact to damaged bytes; places are shares of the length, so that they suit every file."""
    kind = draw(st.sampled_from(["random", "cut", "flip", "flip", "word", "word", "repeat", "drop"]))
    if kind == "random":
        content = draw(st.binary(max_size=200))
        return lambda whole: content
    early = draw(st.booleans())  # headers are early
    places = [draw(st.integers(0, 2**16 - 1)) for _ in range(draw(st.integers(1, 4)))]
    bit, word, length = draw(st.integers(0, 7)), draw(st.sampled_from(WORDS)), draw(st.integers(1, 40))

    def apply(whole):
        content = bytearray(whole)
        for place in places:
            at = place * max(min(len(content), 64 if early else len(content)), 1) >> 16
            if kind == "cut":
                del content[at:]
            elif kind == "flip" and content:
                content[at] ^= 1 << bit
            elif kind == "word":
                content[at : at + len(word)] = word
            elif kind == "repeat":
                content[at:at] = content[at : at + length]
            elif kind == "drop":
                del content[at : at + length]
        return bytes(content)

    return apply


def survives(data):
    """`read` gives valid data or one line; returns whether it gave data."""
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    try:
        checked(read(data))
        outcome = True
    except CollapseError as error:
        message = str(error)
        assert message.startswith("data=")
        assert message.isprintable()
        assert len(message) < 700
        outcome = False
    assert time.process_time() - started < CPU_SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEGABYTES * 1024
    return outcome


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    """The folder of each format and the bytes of its files."""
    found = {}
    for form, (_, write) in FORMATS.items():
        folder = tmp_path_factory.mktemp("intact")
        write(folder)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        found[form] = folder, {path: path.read_bytes() for path in files}
    return found


@pytest.mark.parametrize("form", FORMATS)
def test_damaged_files(intact, form):
    folder, files = intact[form]
    target = os.path.join(folder, FORMATS[form][0])
    assert survives(target)

    @settings(max_examples=PER_FORMAT)
    @given(which=st.integers(0, len(files) - 1), change=damage())
    def property(which, change):
        path = list(files)[which]
        path.write_bytes(change(files[path]))
        try:
            survives(target)
        finally:
            path.write_bytes(files[path])

    property()


PLAIN = st.sampled_from(["1", "-2.5", "7e3"])
ODD = st.sampled_from(["", " ", "nan", "1e999", "a", '"a"', '"', "1_0", "\0", "０", "-1"]) | st.text(max_size=8)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".txt"])
def test_tables_and_texts_of_odd_cells(tmp_path_factory, suffix):
    path = tmp_path_factory.mktemp("cells") / f"data{suffix}"
    joint = "," if suffix == ".csv" else "\t"
    label = st.sampled_from(["a", "<b>", "0", "1", '"c"'])
    plain = st.tuples(label, PLAIN, PLAIN).map(list)
    line = (plain | plain | plain | st.lists(ODD | PLAIN, min_size=1, max_size=3)).map(joint.join)
    start = st.sampled_from(["label,x,z\n"] * 3 + ["x,label\n", ""]).map(lambda text: text.replace(",", joint))
    words = suffix == ".txt"  # numbers of one digit are no terms

    @settings(max_examples=PER_FORMAT)
    @given(start, st.lists(line, max_size=6), st.sampled_from(["\n", "\r\n", "\r"]))
    def property(start, lines, newline):
        text = (start * (not words)) + newline.join(lines) + " term" * words
        path.write_bytes(text.encode("utf-8", errors="replace"))
        survives(str(path))

    property()


def test_any_string_as_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = st.text(max_size=30) | st.text("./\\~ab\0\n", max_size=12)

    @settings(max_examples=PER_FORMAT)
    @given(name, st.sampled_from(["", ".npz", ".pt", ".csv", ".safetensors", "/x.npy"]))
    def property(name, suffix):
        survives(name + suffix)

    property()
