"""Files as users have them: orders of names, odd characters, indices, missing labels, lists, delimiters."""

import csv
import json
import warnings

import numpy as np
import pytest
from PIL import Image

from collapsekit import CollapseError
from collapsekit.cli import main
from collapsekit.training import TrainConfig, load_split

NAMES, COUNTS = ("zebra", "ant", "mouse"), (50, 20, 5)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Every test works in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def printed(capsys, *words):
    """What a command prints with --json."""
    code = main([*words, "--json"])
    out, err = capsys.readouterr()
    assert code == 0, err
    return json.loads(out)


def counted(capsys, *words):
    """The counts by class that `predict` reads."""
    found = printed(capsys, "predict", *words)
    return dict(zip(found["labels"], found["counts"], strict=True))


def split_of(data):
    """The training data of a table or a folder, as they are; what is warned about is another test's matter."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_split(TrainConfig(data=data, profile="as-is"))


def refused(capsys, *words):
    """The error of a command that must refuse; empty if it does not."""
    code = main([*words])
    err = capsys.readouterr().err
    return err if code == 2 else ""


# A17: names say the order of the head's rows


def animals(path, shuffled):
    """Features at the head's own rows, labels that are strings; in the order of the rows or mixed."""
    y = np.repeat([0, 1, 2], COUNTS)
    y = np.random.default_rng(0).permutation(y) if shuffled else y
    np.savez(path, features=4 * np.eye(3)[y], labels=np.array(NAMES)[y], weight=np.eye(3))


@pytest.mark.parametrize("shuffled", [False, True])
def test_class_names_say_the_order_of_the_rows(shuffled, capsys):
    animals("o.npz", shuffled)
    found = printed(capsys, "measure", "o.npz", "--class-names", *NAMES)
    assert dict(zip(found["measurement"]["names"], found["counts"], strict=True)) == dict(
        zip(NAMES, COUNTS, strict=True)
    )
    assert found["measurement"]["metrics"]["train_accuracy"] == 1


def test_string_labels_without_names_say_the_order_that_is_assumed(capsys):
    animals("o.npz", shuffled=False)
    assert main(["measure", "o.npz"]) == 0
    assert "order" in "".join(capsys.readouterr())


# A18: the rows of a CSV are those of the csv module


@pytest.mark.parametrize("character", ["\u2028", "\u0085", "\f", "\u2029", "\x1c", "\v"])
@pytest.mark.parametrize("columns", ["label,text", "text,label"])
def test_a_character_within_a_text_ends_no_row(character, columns, capsys):
    text = f"one{character}two"
    rows = [columns.split(","), *[["a", text]] * 3, *[["b", text]] * 2]
    with open("f.csv", "w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([rows[0], *(row[:: 1 if columns.startswith("label") else -1] for row in rows[1:])])
    assert counted(capsys, "f.csv", "--label-column", "label") == {"a": 3, "b": 2}


# A19: labels or counts?


@pytest.mark.parametrize("lines", ["1 2 2 3 3 3", "10 10 11 11 11", "7 7 7 7 2 2"])
def test_numbers_that_may_be_labels_or_counts_are_asked_about(lines, folder, capsys):
    (folder / "labels.txt").write_text("\n".join(lines.split()) + "\n")
    said = refused(capsys, "predict", "labels.txt")
    assert "label" in said.replace("labels.txt", "")
    assert "count" in said


# A20: an index is no feature


def noise(size=120):
    """Two columns of noise and labels in order."""
    import pandas as pd

    values = np.random.default_rng(0).normal(size=(size, 2))
    return pd.DataFrame({"a": values[:, 0], "b": values[:, 1], "label": np.sort(np.arange(size) % 3)})


@pytest.mark.parametrize("name", ["", "Unnamed: 0", "__index_level_0__"])
def test_the_index_of_pandas_in_a_csv_is_dropped(name):
    noise().to_csv("f.csv", index_label=name)
    assert split_of("f.csv").train_inputs.shape[1] == 2


@pytest.mark.parametrize("name", [None, "row"])
def test_the_index_of_pandas_in_a_parquet_file_is_dropped(name):
    frame = noise()
    frame.index = np.arange(len(frame)) + 5  # no range from 0, so that pandas stores it
    frame.rename_axis(name).astype({"label": int}).iloc[np.r_[0:60, 61:120]].to_parquet("f.parquet")
    assert split_of("f.parquet").train_inputs.shape[1] == 2


@pytest.mark.parametrize("name", ["Id", "number"])
def test_a_counter_of_rows_is_dropped_or_warned_about(name):
    noise().rename_axis(name).to_csv("f.csv")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        columns = load_split(TrainConfig(data="f.csv", profile="as-is")).train_inputs.shape[1]
    assert columns == 2 or any(name in str(warning.message) for warning in told)


# A21: one rule for missing labels

MISSING = ["NA", "NULL", "None", "n/a", "<NA>", "?"]


def with_missing(path, word):
    """Three classes of ten and five rows without a label."""
    labels = [*"abc"] * 10 + [word] * 5
    values = np.random.default_rng(0).normal(size=len(labels))
    rows = "\n".join(f"{x:.3f},{label}" for x, label in zip(values, labels, strict=True))
    path.write_text(f"x,label\n{rows}\n", encoding="utf-8")


@pytest.mark.parametrize("word", MISSING)
def test_missing_labels_are_no_class_in_training(word, folder):
    with_missing(folder / "f.csv", word)
    with pytest.raises(CollapseError, match=r"row 32 .*label"):
        split_of("f.csv")


@pytest.mark.parametrize("word", [*MISSING, "nan", "NaN"])
def test_missing_labels_are_no_class_in_a_prediction(word, folder, capsys):
    with_missing(folder / "f.csv", word)
    assert "label" in refused(capsys, "predict", "f.csv", "--label-column", "label").replace("--label-column", "")


@pytest.mark.parametrize("word", ["nan", "NaN", ""])
def test_missing_labels_that_are_known_are_refused_in_training(word, folder):
    with_missing(folder / "f.csv", word)
    with pytest.raises(CollapseError, match=r"row 32 .*label"):
        split_of("f.csv")


# B9: counts as people write them

WRITTEN = {
    "value_counts": "species,count\nzebra,50\nant,20\nmouse,5\n",
    "value_counts without a name": ",count\nzebra,50\nant,20\nmouse,5\n",
    "words": "zebra 50\nant 20\nmouse 5\n",
    "colons": "zebra: 50\nant: 20\nmouse: 5\n",
    "tabs": "zebra\t50\nant\t20\nmouse\t5\n",
    "mapping": '{"zebra": 50, "ant": 20, "mouse": 5}',
}


@pytest.mark.parametrize("text", WRITTEN.values(), ids=WRITTEN)
def test_named_counts_are_read_as_people_write_them(text, folder, capsys):
    (folder / ("f.json" if text.startswith("{") else "f.csv")).write_text(text)
    (path,) = folder.iterdir()
    assert counted(capsys, path.name) == dict(zip(NAMES, COUNTS, strict=True))


@pytest.mark.parametrize("words", ["5000,2997", "5000, 2997", "[5000, 2997]"])
def test_counts_in_one_word_are_read(words, capsys):
    assert list(counted(capsys, words).values()) == [5000, 2997]


@pytest.mark.parametrize("text", ["[50, 20, 5]", "50 20 5\n", "50, 20, 5\n"])
def test_counts_in_one_line_are_read(text, folder, capsys):
    (folder / "f.json").write_text(text)
    assert list(counted(capsys, "f.json").values()) == [50, 20, 5]


# B10: data as they are shared


def pictures(folder, counts):
    """A folder with one sub-folder of small pictures a class; returns their paths."""
    paths = []
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            value = np.random.default_rng(len(paths)).integers(0, 255, (6, 6, 3), dtype=np.uint8)
            paths.append(folder / name / f"{i}.png")
            Image.fromarray(value).save(paths[-1])
    return paths


@pytest.mark.parametrize("separator", [" ", ","])
def test_a_list_of_paths_and_labels_is_read(separator, folder):
    paths = pictures(folder / "images", {"a": 20, "b": 10})
    lines = [f"{path.relative_to(folder)}{separator}{int(path.parent.name == 'b')}" for path in paths]
    (folder / "list.txt").write_text("\n".join(lines) + "\n")
    split = split_of("list.txt")
    assert split.train_inputs.shape[1:] == (3, 6, 6)
    assert [*split.counts] == [16, 8]  # a fifth is held out


@pytest.mark.parametrize("kind", ["list", "fixed_size_list", "large_list"])
def test_a_column_of_embeddings_is_read(kind, folder):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = np.random.default_rng(0).normal(size=(30, 4))
    types = {"list": pa.list_(pa.float64()), "fixed_size_list": pa.list_(pa.float64(), 4)}
    column = pa.array(rows.tolist(), types.get(kind, pa.large_list(pa.float32())))
    pq.write_table(pa.table({"embedding": column, "label": ["a"] * 20 + ["b"] * 10}), "f.parquet")
    assert split_of("f.parquet").train_inputs.shape == (24, 4)


def parts_of(folder, *parts):
    """The training data of a folder with these parts, each with sub-folders of pictures."""
    for i, part in enumerate(parts):
        pictures(folder / "data" / part, {"a": 12 - 3 * i, "b": 8 - 2 * i})
    return split_of("data")


@pytest.mark.parametrize("parts", [("train", "test"), ("train", "val"), ("train", "val", "test")])
def test_folders_of_train_and_test_or_val_are_read(parts, folder):
    assert [*parts_of(folder, *parts).counts] == [12, 8]


@pytest.mark.parametrize("parts", [("train", "valid", "test"), ("train", "validation"), ("Train", "Test")])
def test_folders_of_other_parts_are_read(parts, folder):
    split = parts_of(folder, *parts)
    assert split.names == ("a", "b")
    assert [*split.counts] == [12, 8]


@pytest.mark.parametrize("above", ["part1", "2024/train"])
def test_no_remedy_would_merge_classes(above, folder):
    pictures(folder / "data" / above, {"a": 12, "b": 8})
    pictures(folder / "data" / "part2", {"a": 5, "c": 4})
    try:
        names = split_of("data").names
    except CollapseError as error:
        assert "move" not in str(error)  # noqa: PT017
    else:
        assert set(names) >= {"a", "b"}


# B11: CSV with other habits

HABITS = {
    "trailing delimiter": ("a,b,label,", "{:.2f},{:.2f},{},"),
    "a column without a name": (",a,b,label", "0,{:.2f},{:.2f},{}"),
    "empty column in the middle": ("a,,b,label", "{:.2f},,{:.2f},{}"),
}


def rows_of(pattern, size=30):
    values = np.random.default_rng(0).normal(size=(size, 2))
    return [pattern.format(*row, "xyz"[k % 3]) for k, row in enumerate(values)]


@pytest.mark.parametrize(("header", "pattern"), HABITS.values(), ids=HABITS)
def test_empty_columns_are_dropped(header, pattern, folder):
    rows = rows_of(pattern)
    if header.startswith(","):
        rows = [f"{k}{row[1:]}" for k, row in enumerate(rows)]
    (folder / "f.csv").write_text("\n".join([header, *rows]) + "\n")
    assert split_of("f.csv").train_inputs.shape[1] == 2


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
@pytest.mark.parametrize("command", ["load_split", "predict"])
def test_another_delimiter_is_found_or_named(delimiter, command, folder, capsys):
    lines = ["a,b,label", *rows_of("{:.2f},{:.2f},{}")]
    (folder / "f.csv").write_text("\n".join(lines).replace(",", delimiter) + "\n")
    try:
        if command == "predict":
            said = refused(capsys, "predict", "f.csv", "--label-column", "label")
        else:
            said = ""
            assert split_of("f.csv").train_inputs.shape[1] == 2
    except CollapseError as error:
        said = str(error)
    assert not said or "delimiter" in said
