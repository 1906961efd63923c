"""Argument lists and files at random: an answer, or one line and exit 2; never a traceback, nothing half-written."""

import contextlib
import io
import os
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from _support.strategies import examples
from collapsekit.cli import main

OUTCOMES = {0, 2}
NUMBERS = st.sampled_from(
    ["0", "1", "2", "-1", "0.5", "1e-3", "1e308", "1e-320", "nan", "inf", "-inf", "1e999", "0x1", "١"]
)
WORDS = st.one_of(
    NUMBERS,
    st.text(max_size=8),
    st.sampled_from(
        [
            "data.csv",
            "data.npz",
            "data.txt",
            "counts",
            "labels",
            ";",
            ".",
            "..",
            "/dev/null",
            "--",
            "-",
            "\x00",
            "[red]x[/]",
        ]
    ),
)
FLAGS = {
    "predict": [
        "--lambda-w",
        "--lambda-h",
        "--weight-decay",
        "--feature-decay",
        "--batch-size",
        "--drop-last",
        "--feature-reduction",
        "--feature-dim",
        "--loss-factor",
        "--optimizer",
        "--batchnorm-branches",
        "--batchnorm-decay",
        "--class-weights",
        "--smoothing",
        "--long-tail",
        "--label-column",
        "--lines",
        "--delimiter",
        "--keep-na",
        "--json",
        "--nonsense",
    ],
    "measure": [
        "--head",
        "--label-column",
        "--class-names",
        "--lambda-w",
        "--lambda-h",
        "--weight-decay",
        "--smoothing",
        "--json",
    ],
    # without a data set that can be trained on: training is not what is at stake
    "train": [
        "--profile",
        "--ratio",
        "--largest",
        "--network",
        "--hidden",
        "--feature-dim",
        "--width",
        "--batchnorm",
        "--branches",
        "--recipe",
        "--penalty-scale",
        "--weight-decay",
        "--decay-on",
        "--warmup",
        "--optimizer",
        "--learning-rate",
        "--epochs",
        "--batch-size",
        "--class-weights",
        "--smoothing",
        "--ldam",
        "--seed",
        "--class-names",
        "--resume",
        "--device",
        "--json",
    ],
    "report": ["--out", "--json"],
    "collect": ["--out", "--json"],
}
FIRST = {"predict": [], "measure": ["data.npz"], "train": ["--data", "bad.csv"], "report": [], "collect": ["."]}


@st.composite
def argument_lists(draw):
    command = draw(st.sampled_from(sorted(FLAGS)))
    words = list(FIRST[command]) if draw(st.integers(0, 3)) else []
    if command == "train":
        words = FIRST["train"]
    if command == "predict" and draw(st.booleans()):
        words = ["5", "3", "1"]
    for flag in draw(st.lists(st.sampled_from(FLAGS[command]), max_size=4)):
        words = [*words, flag, *draw(st.lists(WORDS, max_size=2))]
    return [command, *words, *draw(st.lists(WORDS, max_size=2))]


def outcome(arguments, contents):
    """Exit code, stdout and stderr of a command in a folder with these files, and what it left there."""
    here = os.getcwd()
    out, err = io.StringIO(), io.StringIO()
    with tempfile.TemporaryDirectory() as folder:
        for name, content in contents.items():
            Path(folder, name).write_bytes(content)
        os.chdir(folder)
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = main(arguments)
        finally:
            os.chdir(here)
        left = [path for path in Path(folder).rglob("*") if path.is_file() and path.name not in contents]
    return code, out.getvalue(), err.getvalue(), left


def check(arguments, contents):
    code, out, err, left = outcome(arguments, contents)
    assert code in OUTCOMES, (arguments, code, err)
    if code == 2:
        assert out == "", arguments
        assert err.count("\n") == 1, (arguments, err)
        assert err.startswith("collapsekit: "), (arguments, err)
    assert "Traceback" not in err
    assert not left or arguments[0] == "train", (arguments, left)


def npz():
    buffer = io.BytesIO()
    rng = np.random.default_rng(0)
    np.savez(
        buffer, features=np.abs(rng.normal(size=(12, 4))), labels=np.arange(12) % 3, weight=rng.normal(size=(3, 4))
    )
    return buffer.getvalue()


FILES = {
    "data.npz": npz(),
    "data.csv": b"id,kind\n1,a\n2,b\n3,a\n",
    "data.txt": b"a\tone two\nb\tthree\n",
    "counts": b"60\n30\n10\n",
    "bad.csv": b"x,label\n1,a\n2,\n",
}


@settings(max_examples=examples(1000))
@given(argument_lists())
def test_any_argument_list_is_answered_or_refused_in_one_line(arguments):
    check(arguments, FILES)


@settings(max_examples=examples(500))
@given(
    st.sampled_from(["counts", "data.csv", "data.npz"]),
    st.one_of(st.binary(max_size=200), st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass"))),
    st.booleans(),
)
def test_any_file_is_answered_or_refused_in_one_line(name, content, by_column):
    flags = ["--label-column", "kind"] if by_column and name == "data.csv" else []
    command = "measure" if name == "data.npz" else "predict"
    check([command, name, *flags], {name: content})


@settings(max_examples=examples(500))
@given(st.integers(0, len(FILES["data.npz"]) - 1), st.integers(0, 255), st.booleans())
def test_a_damaged_file_of_features_is_measured_or_refused_in_one_line(place, byte, cut):
    content = bytearray(FILES["data.npz"])
    content[place] = byte
    check(["measure", "data.npz", "--json"], {"data.npz": bytes(content[:place] if cut else content)})
