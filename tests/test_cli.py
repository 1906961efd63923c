"""The command: its output, its errors (one line, exit 2, nothing written), its JSON."""

import json
import subprocess
import sys

import pytest

from collapsekit import UFM
from collapsekit.cli import main

SMOKE = ["train", "--epochs", "3", "--hidden", "8", "--feature-dim", "12"]
CLASS_KEYS = {
    "label",
    "count",
    "predicted_confidence",
    "measured_confidence",
    "margin",
    "predicted_margin",
    "feature_sqnorm",
    "predicted_feature_sqnorm",
    "classifier_sqnorm",
    "predicted_classifier_sqnorm",
    "test_recall",
    "status",
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def printed(capsys):
    return json.loads(capsys.readouterr().out)


def test_predict_prints_the_golden_values(capsys):
    assert main(["predict", "500", "300", "40", "10", "--lambda-w", "0.03", "--lambda-h", "0.001"]) == 0
    text = capsys.readouterr().out
    assert "2.6128" in text
    assert "1 of 4 classes collapse" in text
    assert "Scope: tested on" in text


def test_predict_json_equals_the_library(capsys):
    assert main(["predict", "60", "30", "10", "--weight-decay", "1e-3", "--feature-decay", "1e-4", "--json"]) == 0
    content = printed(capsys)
    problem = UFM.from_training([60, 30, 10], weight_decay=1e-3, feature_decay=1e-4)
    assert content["problem"]["lambda_h"] == problem.lambda_h
    assert content["labels"] == ["0", "1", "2"]
    assert set(content["thresholds"]) >= {"critical_product", "minority_collapse", "complete_collapse"}


@pytest.mark.parametrize(
    ("text", "arguments", "labels", "counts"),
    [
        ("60\n30\n\n10\n", [], ["0", "1", "2"], [60, 30, 10]),
        ("cat,60\ndog,30\n", [], ["cat", "dog"], [60, 30]),
        ("id,kind\n1,b\n2,a\n3,b\n", ["--label-column", "kind"], ["b", "a"], [2, 1]),
    ],
)
def test_predict_reads_counts_from_files(folder, capsys, text, arguments, labels, counts):
    (folder / "counts.csv").write_text(text)
    assert main(["predict", "counts.csv", *arguments, "--json"]) == 0
    content = printed(capsys)
    assert content["labels"] == labels
    assert content["counts"] == counts


def test_predict_long_tail(capsys):
    assert main(["predict", "--long-tail", "5000:50:100", "--json"]) == 0
    counts = printed(capsys)["counts"]
    assert (counts[0], counts[-1], len(counts)) == (5000, 50, 100)


MISUSE = [
    (["predict"], "counts: give"),
    (["predict", "5"], "at least two classes"),
    (["predict", "5", "0"], "class 1 has 0 samples"),
    (["predict", "5", "-3"], "-3"),
    (["predict", "5", "2.5"], "2.5"),
    (["predict", "5", "nan"], "class 1 has nan"),
    (["predict", "5", "x"], "'x' is not a number"),
    (["predict", "missing.csv"], "No such file"),
    (["predict", "."], "directory"),
    (["predict", "5", "3", "--long-tail", "5:3:2"], "counts: give"),
    (["predict", "--long-tail", "5:3"], "LARGEST:SMALLEST:CLASSES"),
    (["predict", "--long-tail", "3:5:2"], "swap the two"),
    (["predict", "5", "3", "--lambda-w", "1"], "--lambda-h: missing"),
    (["predict", "5", "3", "--lambda-w", "0", "--lambda-h", "1"], "lambda_w=0"),
    (["predict", "5", "3", "--lambda-w", "one"], "--lambda-w"),
    (["predict", "5", "3", "--weight-decay", "1"], "feature_decay=None"),
    (["predict", "5", "3", "--weight-decay", "1", "--feature-decay", "1", "--optimizer", "adamw"], "decoupled decay"),
    (["predict", "5", "3", "--weight-decay", "1", "--lambda-w", "1"], "not both"),
    (["predict", "binary", "--label-column", "x"], "UTF-8"),
    (["predict", "empty"], "empty"),
    (["predict", "labels.csv", "--label-column", "nothing"], "its columns are"),
    (["predict", "labels.csv", "--label-column", "kind"], "row 3"),
    (["train", "--profile", "flat"], "--profile"),
    (["train", "--ratio", "0.5"], "ratio=0.5"),
    (["train", "--epochs", "0"], "epochs=0"),
    (["train", "--largest", "5000"], "largest=5000"),
    (["train", "--data", "nothing"], "data='nothing'"),
    (["train", "--class-names", "a", "b"], "2 names for 10 classes"),
    (["train", "--device", "abacus"], "device='abacus'"),
    (["train", "--weight-decay", "1"], "give both"),
    (["train", "--out", "empty/below"], "empty/below"),
    (["report", "nowhere"], "holds no run"),
    (["frobnicate"], "Unknown command"),
]


@pytest.mark.parametrize(("arguments", "fragment"), MISUSE, ids=lambda value: " ".join(value)[:40])
def test_misuse_is_one_line_and_exit_2(folder, capsys, arguments, fragment):
    (folder / "empty").write_text("")
    (folder / "binary").write_bytes(b"\xff\xfe\x00kind")
    (folder / "labels.csv").write_text("id,kind\n1,a\n2,\n")
    before = sorted(path.name for path in folder.iterdir())
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert fragment in err
    assert err.count("\n") == 1
    left = {path.name for path in folder.iterdir()} - set(before)
    assert not [path for name in left for path in (folder / name).rglob("*") if path.is_file()]


def test_train_json_has_the_agreed_keys(folder, capsys):
    assert main([*SMOKE, "--json", "--class-names", *["$a", "<b>", "[red]c", "d", "e", "f", "g", "h", "i", "j"]]) == 0
    out, _ = capsys.readouterr()
    content = json.loads(out)
    assert set(content["classes"][0]) == CLASS_KEYS
    assert {"objective", "predicted_objective", "verdict", "run", "report"} <= set(content)
    assert [c["label"] for c in content["classes"][:3]] == ["$a", "<b>", "[red]c"]
    page = (folder / content["report"]).read_text(encoding="utf-8")
    assert "&lt;b&gt;" in page
    assert "<b>" not in page


def test_train_prints_table_verdict_and_report_then_report_agrees(folder, capsys):
    assert main([*SMOKE, "--out", "here"]) == 0
    text = capsys.readouterr().out
    assert "NOT reached" in text
    assert text.count("squeezed") + text.count("alive") >= 10
    run = next((folder / "here").iterdir())
    assert main(["report", str(run), "--out", "again.html"]) == 0
    assert (folder / "again.html").read_text() == (run / "report.html").read_text()


def test_ctrl_c_says_how_to_go_on(folder, capsys, monkeypatch):
    import collapsekit.cli.train

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(collapsekit.cli.train, "run_training", interrupted)
    assert main(SMOKE) == 130
    assert "--resume" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["predict", "train", "report"])
def test_help_has_an_example(capsys, command):
    main([command, "--help"])
    assert f"Example: collapsekit {command}" in capsys.readouterr().out


def test_predict_never_imports_torch():
    code = (
        "import sys; from collapsekit.cli import main; main(['predict', '5', '3']); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
