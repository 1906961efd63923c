"""Counts from words and files, and the rows of a head: every way of writing them, and what is asked about."""

import json

import numpy as np
import pytest
import safetensors.numpy
import torch
from numpy.testing import assert_array_equal
from PIL import Image

from collapsekit import CollapseError
from collapsekit.cli import main
from collapsekit.data import class_sizes, read, read_head
from collapsekit.data.labelled import assemble
from collapsekit.training import TrainConfig, load_split
from collapsekit.training._collect import write_table

ANIMALS = {"zebra": 50, "ant": 20, "mouse": 5}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Every test works in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def sizes_of(text, name="f.txt", **options):
    with open(name, "w", encoding="utf-8", newline="") as stream:
        stream.write(text)
    return class_sizes([name], **options)


@pytest.mark.parametrize(
    ("words", "counts"),
    [
        (["5000", "2997"], [5000, 2997]),
        (["5000,", "2997"], [5000, 2997]),
        (["5000;2997;10"], [5000, 2997, 10]),
        (["500,300,100"], [500, 300, 100]),
        (["[5,", "5,", "3]"], [5, 5, 3]),
        (['{"a": 5, "b": 3}'], {"a": 5, "b": 3}),
    ],
)
def test_words(words, counts):
    assert class_sizes(words) == counts


FILES = {
    "numbers": ("50\n20\n\n5\r\n", [50, 20, 5]),
    "one line": ("50 20 20\n", None),
    "uniq -c": ("     50 zebra\n     20 ant\n      5 mouse\n", ANIMALS),
    "printed by pandas": ("species\nzebra    50\nant      20\nmouse     5\nName: count, dtype: int64\n", ANIMALS),
    "counts first": ("count,species\n50,zebra\n20,ant\n5,mouse\n", ANIMALS),
    "another header": ("animal,seen\nzebra,50\nant,20\nmouse,5\n", ANIMALS),
    "more columns": ("id,species,count\n1,zebra,50\n2,ant,20\n3,mouse,5\n", {"1,zebra": 50, "2,ant": 20, "3,mouse": 5}),
    "semicolons": ("zebra;50\nant;20\nmouse;5\n", ANIMALS),
    "trailing commas": ("zebra,50,\nant,20,\nmouse,5,\n", ANIMALS),
    "commas in names": ("zebra, plains,50\nant,20\n", {"zebra,plains": 50, "ant": 20}),
    "blanks in names": ("plains zebra 50\nant 20\n", {"plains zebra": 50, "ant": 20}),
    "numbers as names": ("0,5000\n1,2997\n", {"0": 5000, "1": 2997}),
    "JSON names": ('{"zebra": 50, "ant": 20, "mouse": 5}', ANIMALS),
    "words": ("ant\nbee\nant\nred ant\n", {"ant": 2, "bee": 1, "red ant": 1}),
    "texts": ("ant\tone two\nbee\tthree\nant\tfour\n", {"ant": 2, "bee": 1}),
}


@pytest.mark.parametrize(("text", "counts"), FILES.values(), ids=FILES)
def test_files(text, counts):
    if counts is None:
        with pytest.raises(CollapseError, match="may be counts or labels"):
            sizes_of(text)
    else:
        assert sizes_of(text) == counts


ASKED = {
    "repeated numbers": ("1\n2\n2\n", "say --lines counts .* or --lines labels"),
    "thousands": ("zebra,1,200\nant,900\n", "without commas"),
    "thousands alone": ("5,000\n2,997\n", "without commas"),
    "uniq -c of numbers": ("  50 1\n  20 2\n  5 0\n", "which number .* write 'name count' or 'count name'"),
    "a typing error": ("50\n2o\n5\n", "line 2: '2o' is not a number"),
    "an error in a pair": ("zebra,50\nant,2o\n", "line 2: '2o' is not a number"),
    "twice": ("ant,5\nbee,3\nant,2\n", "'ant' stands for two classes"),
    "twice in JSON": ('{"ant": 5, "ant": 2}', "'ant' stands for two classes"),
    "broken JSON": ("[5, 3", "give a JSON list of counts or an object"),
    "nested JSON": ('{"ant": {"n": 5}}', "is not a number"),
    "prose": ("once upon\na time\n", "every label occurs once"),
    "missing": ("ant\nNULL\nant\n", "'NULL', which counts as missing; .*--keep-na"),
    "nothing": ("\n \n", "the file is empty"),
}


@pytest.mark.parametrize(("text", "fragment"), ASKED.values(), ids=ASKED)
def test_what_is_not_clear_is_refused(text, fragment):
    with pytest.raises(CollapseError, match=fragment) as caught:
        sizes_of(text)
    assert len(str(caught.value).splitlines()) == 1


def test_the_remedies_work_as_they_are_written():
    assert sizes_of("1\n2\n2\n", lines="counts") == [1, 2, 2]
    assert sizes_of("1\n2\n2\n", lines="labels") == {"2": 2, "1": 1}
    assert sizes_of("count name\n  50 1\n  20 2\n  5 0\n") == {"1": 50, "2": 20, "0": 5}
    assert sizes_of("ant\nNULL\nant\n", keep_na=True) == {"ant": 2, "NULL": 1}
    assert sizes_of("label|x\na|1\nb|2\na|3\n", "f.csv", label_column="label", delimiter="|") == {"a": 2, "b": 1}
    assert sizes_of("label\tx\na\t1\na\t3\n", "f.csv", delimiter="\\t") == {"a": 2}


def test_everything_that_holds_labels_is_counted(folder):
    counts = {"b": 2, "a": 1}
    labels = np.array(list("bab"))
    np.savez("f.npz", X=np.eye(3), y=labels)
    np.save("y.npy", labels)
    (folder / "f.csv").write_text("text,label\nsome words,b\nother,a\nmore,b\n")
    for name in "bab":
        (folder / "images" / name).mkdir(parents=True, exist_ok=True)
        Image.new("L", (2, 2)).save(folder / "images" / name / f"{len([*(folder / 'images' / name).iterdir()])}.png")
    (folder / "list.txt").write_text("images/b/0.png b\nimages/a/0.png a\nimages/b/1.png b\n")
    for source in ("f.npz", "y.npy", "f.csv", "images", "list.txt"):
        assert class_sizes([source]) == counts, source
    assert len(class_sizes(["digits"])) == 10


def test_many_classes_are_counted_by_predict(capsys):
    with open("many.csv", "w") as stream:
        stream.writelines(f"class {k},{10**6 - k}\n" for k in range(10**5))
    assert main(["predict", "many.csv", "--lambda-w", "0.001", "--lambda-h", "1e-9", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["labels"]) == 10**5


# rows of a head


def test_names_are_found_among_the_rows_and_never_replaced():
    words = assemble(np.eye(3), ["b", "a", "b"], "features")
    assert_array_equal(words.rows(2, ("b", "a"))[0], [1, 0])
    assert_array_equal(words.rows(3, ("b", "c", "a"))[0], [2, 0])
    with pytest.raises(CollapseError, match="the label 'a' is not among them"):
        words.rows(2, ("x", "y"))
    with pytest.raises(CollapseError, match=r"head: 3 rows for 2 classes; .*--class-names"):
        words.rows(3)
    numbers = assemble(np.eye(3), np.array([2, 0, 2]), "features")
    assert numbers.rows(2, ("x", "y"))[1] == ("x", "y")
    assert_array_equal(numbers.rows(3, ("x", "y", "z"))[0], [0, 2])


def test_words_that_are_numbers_are_sorted_as_numbers():
    data = assemble(np.eye(11), np.arange(11)[::-1].astype(str), "features")
    assert data.names == tuple(map(str, range(11)))


def test_class_names_of_a_training_run_never_rename():
    with open("f.csv", "w") as stream:
        stream.write("x,label\n" + "".join(f"{k},{'ab'[k % 3 > 0]}\n" for k in range(30)))
    given = {"data": "f.csv", "profile": "as-is"}
    with pytest.warns(UserWarning, match="counts the rows"):
        split = load_split(TrainConfig(class_names=("b", "a"), **given))
    assert [*split.counts] == [16, 8]
    with pytest.warns(UserWarning, match="counts the rows"), pytest.raises(CollapseError, match="not among them"):
        load_split(TrainConfig(class_names=("c", "d"), **given))


# heads of whole networks, types of other libraries


def test_heads_in_a_checkpoint():
    tensors = {"body.weight": np.eye(3), "fc.weight": 2 * np.eye(2, 3), "fc.bias": np.ones(2)}
    safetensors.numpy.save_file(tensors, "ck.safetensors")
    weight, bias = read_head("ck.safetensors")
    assert_array_equal(weight, 2 * np.eye(2, 3))
    assert_array_equal(bias, [1, 1])
    weight, bias = read_head("ck.safetensors:body")
    assert (weight.shape, bias) == ((3, 3), None)
    with pytest.raises(CollapseError, match=r"no 'none\.weight' among its arrays"):
        read_head("ck.safetensors:none")
    torch.save({"state_dict": {"a.weight": torch.eye(2), "b.weight": torch.eye(3)}}, "ck.pt")
    with pytest.raises(CollapseError, match=r"several layers: 'a', 'b'; .* FILE:LAYER"):
        read_head("ck.pt")
    assert read_head("ck.pt:b")[0].shape == (3, 3)


@pytest.mark.parametrize("form", ["npz", "pt"])
def test_bfloat16_and_the_other_byte_order(form):
    values = torch.tensor([[1.5, -2], [0.25, 3e8]], dtype=torch.bfloat16)
    if form == "npz":
        bits = values.view(torch.int16).numpy().view("V2")  # as ml_dtypes' arrays are stored
        np.savez("f.npz", X=bits, y=np.array([0, 1], ">i8"))
    else:
        torch.save({"X": values, "y": torch.tensor([0, 1])}, "f.pt")
    assert_array_equal(read(f"f.{form}").inputs, values.float().numpy())


def test_written_tables_hold_no_formulas():
    write_table([{"name": "=1+1", "other": "@x", "number": -1.5, "plain": "a"}], "t.csv")
    with open("t.csv") as stream:
        assert stream.read() == "name,other,number,plain\n'=1+1,'@x,-1.5,a\n"
