"""Every command that diagnose, adjust, measure and inspect advise runs as it is printed, whatever the user typed."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

import collapsekit.diagnosis
from collapsekit.cli import main
from collapsekit.cli._remedies import Words

CLASSES = ("NA", "-x", 'it\'s a "b"', "none", "e  # f")
COUNTS = (40, 40, 40, 40, 1)
TABLE = ["--label-column", "my class", "--delimiter", "|", "--keep-na"]
HEAD = ["--head", "my head.npz"]


def table(path, rng, centres, counts):
    lines = ["|".join([*(f"x{i}" for i in range(centres.shape[1])), "my class"])]
    for k, count in enumerate(counts):
        for row in centres[k] + 0.3 * rng.normal(size=(count, centres.shape[1])):
            lines.append("|".join([*(f"{value:.6g}" for value in row), CLASSES[k].replace('"', "”")]))
    Path(path).write_text("\n".join(lines), encoding="utf-8")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Tables with their own delimiter, and classes whose names a shell, or a reader of tables, takes for another."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    centres = 3 * rng.normal(size=(5, 8))
    table("my train.csv", rng, centres, COUNTS)
    table("held out.csv", rng, centres, (20, 20, 0, 20, 20))
    np.savez("my head.npz", weight=centres, bias=-(centres**2).sum(axis=1) / 2)
    return tmp_path


NAMES = tuple(name.replace('"', "”") for name in CLASSES)
GIVEN = [f"--class-names={name}" for name in NAMES]


def findings(capsys, *words):
    assert main(["diagnose", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)["findings"]


def follow(remedy):
    """Run a remedy as a shell would."""
    program, *words = shlex.split(remedy, comments=True)
    assert program == "collapsekit"
    return main(words)


def test_the_order_of_the_rows_is_mended_by_the_line_that_is_printed(folder, capsys):
    first = findings(capsys, "my train.csv", *TABLE, *HEAD, "--held-out", "held out.csv", "--loss", "mse")[0]
    assert first["code"] == "row-order"
    assert follow(f"{shlex.join(shlex.split(first['remedy'], comments=True))} --json") == 0
    again = json.loads(capsys.readouterr().out)
    assert "row-order" not in {one["code"] for one in again["findings"]}
    assert [one["label"] for one in again["classes"]] == [*NAMES]
    assert again["classes"][0]["held_out_recall"] == 1


def test_remedies_of_a_table_run_as_they_are_printed(folder, capsys):
    words = ["my train.csv", *TABLE, *HEAD, "--held-out", "held out.csv"]
    (folder / "head.safetensors").write_bytes(b"another's")
    recipe = ["--weight-decay", "1e-3", "--feature-decay", "1e-3", "--batch-size", "32", "--class-weights", *"11111"]
    found = findings(capsys, *words, *GIVEN, *recipe)
    remedies = {one["code"]: one["remedy"] for one in found if one["remedy"].startswith("collapsekit ")}
    assert {"one-sample-class", "features-not-nonnegative"} <= set(remedies)
    for remedy in remedies.values():
        assert follow(remedy) == 0, remedy
    assert (folder / "head.safetensors").read_bytes() == b"another's"


def advised():
    """Every command in the sentences of the package, f-strings left to the test above."""
    folder = Path(collapsekit.diagnosis.__file__).parent
    text = "".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.py")))
    return sorted(set(re.findall(r'[^f]"(collapsekit (?:diagnose|adjust|measure) [^"{]*)"', text)))


@pytest.mark.parametrize("remedy", advised())
@pytest.mark.parametrize("named", [False, True])
def test_every_advised_command_runs_in_the_users_words(folder, capsys, remedy, named):
    reading = {"label_column": "my class", "delimiter": "|", "keep_na": True}
    words = Words(
        path="my train.csv",
        stored=True,
        door={"model": None, "data": None, "head": "my head.npz"},
        rest={"held_out": "held out.csv", "history": None},
        names=None if named else NAMES,
        reading=reading | ({"class_names": NAMES} if named else {}),
        recipe={"lambda_w": 0.01, "lambda_h": 0.01, "class_weights": (1.0,) * 5},
    )
    assert follow(words.typed(remedy, None)) == 0
    assert "collapsekit:" not in capsys.readouterr().err


def test_all_kinds_of_commands_are_advised():
    assert {remedy.split()[1] for remedy in advised()} == {"diagnose", "adjust", "measure"}
    assert len(advised()) >= 6


def test_a_terminal_breaks_no_command(folder, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "40")
    words = ["my train.csv", *TABLE, *HEAD]
    remedy = findings(capsys, *words)[0]["remedy"]
    assert main(["diagnose", *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if remedy in line] == [f"First: {remedy}", f"   {remedy}"]


def test_the_name_that_adjust_advises_is_free(folder, capsys):
    (folder / "head.safetensors").write_bytes(b"another's")
    words = ["adjust", "my train.csv", "--validation", "held out.csv", *TABLE, *HEAD, *GIVEN]
    assert main(words) == 0
    advice = re.search(r"--out \S+", capsys.readouterr().out)[0]
    assert main([*words, *advice.split()]) == 0
    assert (folder / "head.safetensors").read_bytes() == b"another's"
    assert (folder / advice.split()[1]).exists()


def test_a_page_replaces_nothing_that_diagnose_reads(folder, capsys):
    words = ["diagnose", "my train.csv", *TABLE, *HEAD, "--held-out", "held out.csv"]
    for read in ("my train.csv", "my head.npz", "held out.csv"):
        before = Path(read).read_bytes()
        assert main([*words, "--html", read]) == 2
        assert "is read by this command" in capsys.readouterr().err
        assert Path(read).read_bytes() == before


def test_a_page_does_not_replace_the_network_whose_layer_is_the_head(folder, capsys):
    with np.load("my head.npz") as head:
        np.savez("net.npz", **{f"fc.{key}": head[key] for key in head.files})
    before = Path("net.npz").read_bytes()
    assert main(["diagnose", "my train.csv", *TABLE, "--head", "net.npz:fc", "--html", "net.npz"]) == 2
    assert "is read by this command" in capsys.readouterr().err
    assert Path("net.npz").read_bytes() == before


def test_names_that_were_given_in_the_wrong_order_are_replaced_and_the_recipe_stays(folder, capsys):
    swapped = [f"--class-names={NAMES[k]}" for k in (1, 0, 2, 3, 4)]
    first = findings(capsys, "my train.csv", *TABLE, *HEAD, *swapped, "--loss", "mse")[0]
    assert first["code"] == "row-order"
    words = shlex.split(first["remedy"], comments=True)
    assert [word for word in words if word.startswith("--class-names")] == GIVEN
    assert words[words.index("--loss") + 1] == "mse"
    assert follow(f"{shlex.join(words)} --json") == 0
    assert "row-order" not in capsys.readouterr().out
