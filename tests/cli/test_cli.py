"""The command: its output, its errors (one line, exit 2, nothing written), its JSON."""

import json
import pickle
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose
from safetensors.numpy import save_file

from collapsekit import UFM, long_tail, predict
from collapsekit.cli import COMMANDS, main
from collapsekit.recipe import BatchNorm, LastLayer, Penalty
from collapsekit.theory import weights_for

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
    "recall",
    "test_recall",
    "status",
    "fate",
    "agreement",
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
    assert "Scope: outside the tested range (4 classes; imbalance 50); --json says more." in text


def test_predict_json_equals_the_library(capsys):
    assert main(["predict", "60", "30", "10", "--weight-decay", "1e-3", "--feature-decay", "1e-4", "--json"]) == 0
    content = printed(capsys)
    problem = Penalty(1e-3, 1e-4).problem([60, 30, 10])
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
    (["predict", "."], "folder"),
    (["predict", "5", "3", "--long-tail", "5:3:2"], "counts: give"),
    (["predict", "--long-tail", "5:3"], "LARGEST:SMALLEST:CLASSES"),
    (["predict", "--long-tail", "3:5:2"], "swap the two"),
    (["predict", "5", "3", "--lambda-w", "1"], "--lambda-h: missing"),
    (["predict", "5", "3", "--lambda-w", "0", "--lambda-h", "1"], "--lambda-w=0"),
    (["predict", "5", "3", "--lambda-w", "one"], "--lambda-w"),
    (["predict", "5", "3", "--weight-decay", "1"], "--feature-decay=None"),
    (["predict", "5", "3", "--weight-decay", "1", "--feature-decay", "1", "--optimizer", "adamw"], "decoupled decay"),
    (["predict", "5", "3", "--weight-decay", "1", "--lambda-w", "1"], "not both"),
    (["predict", "binary", "--label-column", "x"], "UTF-8"),
    (["predict", "empty"], "empty"),
    (["predict", "labels.csv", "--label-column", "nothing"], "not among its columns"),
    (["predict", "labels.csv", "--label-column", "species"], "row 3"),
    (["train", "--profile", "flat"], "--profile"),
    (["train", "--ratio", "0.5"], "ratio=0.5"),
    (["train", "--epochs", "0"], "epochs=0"),
    (["train", "--largest", "5000"], "largest=5000"),
    (["train", "--data", "nothing"], "data='nothing'"),
    (["train", "--class-names", "a", "b"], "2 names for 10 classes"),
    (["train", "--device", "abacus"], "device='abacus'"),
    (["train", "--weight-decay", "1"], "give both"),
    (["train", "--out", "empty/below"], "empty/below"),
    (["train", "--data", "labels.csv", "--epochs", "1"], "row 3"),
    (["train", "--data", "model.pt"], "never opened"),
    (["train", "--data", "empty"], "data='empty'"),
    (["train", "--network", "cnn", "--data", "flat.npz"], "needs images"),
    (["train", "--network", "nothing"], "network='nothing'"),
    (["train", "--network", "no_such_module:f"], "cannot be imported"),
    (["train", "--recipe", "batchnorm", "--feature-decay", "1"], "only the recipe penalty"),
    (["train", "--recipe", "batchnorm", "--batch-size", "612"], "batch of one"),
    (["train", "--smoothing", "2"], "smoothing=2"),
    (["train", "--ldam", "-1"], "ldam=-1"),
    (["train", "--head", "body.1"], "head='body.1'"),
    (["train", "--optimizer", "lion"], "--optimizer"),
    (["predict", "5", "3", "--weight-decay", "1", "--batchnorm-branches", "1", "--batchnorm-decay", "none"], "nothing"),
    (["predict", "5", "3", "--lambda-w", "1", "--lambda-h", "1", "--smoothing", "1.5"], "smoothing=1.5"),
    (["predict", "5", "3", "--html", "page.html"], "--html: a page needs penalties"),
    (["predict", "5", "3", "--lambda-w", "1", "--lambda-h", "1", "--html", "."], "is a folder"),
    (["advise"], "counts: give"),
    (["advise", "5", "3"], "--weight-decay: missing"),
    (["advise", "5", "3", "--lambda-w", "1", "--lambda-h", "1", "--keep", "x"], "--keep='x': no such class"),
    (["advise", "5", "3", "--lambda-w", "1", "--lambda-h", "1", "--margins", "wide"], "--margins"),
    (["advise", "5", "3", "--lambda-w", "1"], "--lambda-h: missing"),
    (["measure"], "requires an argument"),
    (["measure", "nothing.npz"], "features='nothing.npz'"),
    (["measure", "model.pt"], "never opened"),
    (["measure", "image.npz"], "shape (1, 3, 3)"),
    (["measure", "flat.npz", "--head", "wide.npz"], "weight: shape"),
    (["measure", "flat.npz", "--head", "flat.npz"], "holds no head"),
    (["measure", "flat.npz", "--head", "model.pt"], "never opened"),
    (["measure", "flat.npz", "--weight-decay", "1", "--batchnorm-branches", "1"], "head: missing"),
    (["measure", "flat.npz", "--class-names", "a"], "1 names for 2 classes"),
    (["measure", "nan.npz"], "sample 1 holds"),
    (["report", "nowhere"], "holds no run"),
    (["frobnicate"], "Unknown command"),
]


class Trap:
    """A pickle that leaves a file behind when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize(("arguments", "fragment"), MISUSE, ids=lambda value: " ".join(value)[:40])
def test_misuse_is_one_line_and_exit_2(folder, capsys, arguments, fragment):
    (folder / "empty").write_text("")
    (folder / "binary").write_bytes(b"\xff\xfe\x00kind")
    (folder / "labels.csv").write_text("id,species\n1,a\n2,\n")
    (folder / "model.pt").write_bytes(pickle.dumps(Trap(str(folder / "sprung"))))
    X, y = np.arange(12.0).reshape(4, 3), np.array([0, 1, 0, 1])
    np.savez(folder / "flat.npz", X=X, y=y)
    np.savez(folder / "image.npz", X=np.zeros((4, 3, 3)), y=y)
    np.savez(folder / "wide.npz", weight=np.ones((2, 5)))
    np.savez(folder / "nan.npz", X=np.where(X == 4, np.nan, X), y=y)
    before = sorted(path.name for path in folder.iterdir())
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert fragment in err
    assert err.count("\n") == 1
    assert not (folder / "sprung").exists()
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
    assert sum(text.count(word) for word in ("lost", "never predicted", "weak", "alive")) >= 10
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


ADVISED = ["--weight-decay", "0.1", "--batchnorm-branches", "1"]


def test_advise_json_is_what_the_library_says_before_and_after_every_remedy(capsys):
    assert main(["advise", "--long-tail", "5000:50:10", *ADVISED, "--json"]) == 0
    content = printed(capsys)
    problem = BatchNorm(0.1).problem(long_tail(5000, 50, 10), LastLayer(branches=1))
    advice = weights_for(problem)
    assert_allclose(content["class_weights"], advice.torch_weights)
    assert_allclose(content["confidences"], predict(problem).confidences)
    after = content["confidences_after"]
    assert set(after) == {"decays", "class weights", "oversampling"}
    assert_allclose(after["class weights"], predict(advice.problem).confidences)
    again = BatchNorm(0.1).problem(content["counts"], LastLayer(branches=1))  # the recipe as it stands
    assert_allclose(after["oversampling"], predict(again).confidences)
    assert not predict(again).collapses.any()
    assert min(after["decays"]) > 0.1
    assert [remedy["reaches"] for remedy in content["remedies"]] == [True, True, True]
    assert "class 8 is dead at every target margin" in content["impossible"]["target margins"]


def test_advise_prints_every_class_before_and_after(folder, capsys):
    (folder / "counts.csv").write_text("ant,500\n<b>,300\ncat,40\n[red]dog,10\n")
    words = ["advise", "counts.csv", "--lambda-w", "0.03", "--lambda-h", "0.001", "--keep", "cat", "--html", "a.html"]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "[red]dog" in text
    assert text.count("→ confidence") == 2
    assert "may grow by a factor below 1.176 for class cat to live" in text
    assert "Target margins: impossible, class [red]dog is dead" in text
    page = (folder / "a.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;" in page
    assert page.count("<svg") == 2
    assert "may grow by a factor below 1.176" in page


def test_predict_writes_its_table_and_figures_to_a_page(folder, capsys):
    assert main(["predict", "500", "300", "40", "10", *ADVISED, "--html", "p.html", "--json"]) == 0
    content = printed(capsys)
    assert content["page"] == "p.html"
    page = (folder / "p.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 5
    assert page.count('<th scope="row">') == 4
    assert "dies at weight decay" in page


@pytest.mark.parametrize("command", ["predict", "advise"])
def test_without_a_closed_form_there_is_a_page_too(folder, capsys, command):
    words = ["500", "300", "40", "10", "--lambda-w", "0.03", "--lambda-h", "0.001", "--bias", "free"]
    assert main([command, *words, "--html", "p.html"]) == 0
    page = (folder / "p.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 2
    assert page.count('<th scope="row">') == 4
    assert "page: p.html" in capsys.readouterr().out


def test_predict_says_at_which_decay_each_class_dies(capsys):
    assert main(["predict", "500", "300", "40", "10", *ADVISED]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("3 "))
    decay = float(row.split()[7])
    for shift, dead in ((-0.001, False), (0.001, True)):
        recipe = BatchNorm(decay * (1 + shift)).problem([500, 300, 40, 10], LastLayer(branches=1))
        assert bool(predict(recipe).collapses[3]) is dead


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(capsys, command):
    main([command, "--help"])
    assert f"Example: collapsekit {command}" in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fills_its_lines_and_has_no_markup(capsys, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "80")
    main([command, "--help"])
    text = capsys.readouterr().out
    assert "``" not in text
    assert max(map(len, text.splitlines())) <= 80
    above = text.split("╭")[0].split("Example:")[0].split("\n\n")[1:]
    for paragraph in above:  # no line ends where the next word would have found room
        lines = paragraph.splitlines()
        assert all(len(f"{a.rstrip()} {b.split()[0]}") > 80 for a, b in pairwise(lines)), paragraph


@pytest.mark.parametrize("command", COMMANDS)
def test_help_refers_to_nothing_that_it_does_not_show(capsys, command):
    main([command, "--help"])
    assert "See above" not in capsys.readouterr().out


@pytest.mark.parametrize("wish", ["equal", "ldam"])
def test_advise_names_remedies_and_no_function(capsys, wish):
    words = ["advise", "500", "300", "40", "2", "--lambda-w", "0.3", "--lambda-h", "0.1", "--margins", wish]
    assert main(words) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert text.count("impossible, ") == 3
    assert "lower the penalties or weigh the class." in text
    assert not re.search("largest_penalty|[a-z]+_for", text)


BRANCHES = ["--weight-decay", "1", "--batchnorm-branches", "1"]
FEATURES = ["--weight-decay", "1", "--feature-decay", "1"]
FLAGS = [
    (
        [*BRANCHES, "--batchnorm-decay", "gain_frozen_shift", "--bias", "free"],
        "--batchnorm-decay='gain_frozen_shift': ",
    ),
    ([*BRANCHES, "--batchnorm-decay", "none"], "--batchnorm-decay='none': with γ and β excluded"),
    ([*FEATURES, "--batch-size", "9", "--drop-last"], "--batch-size=9: larger than N = 8"),
    ([*FEATURES, "--batch-size", "0"], "--batch-size=0: must be a whole number"),
    ([*FEATURES, "--feature-reduction", "entry_mean"], "--feature-dim=None: a mean over all entries"),
    ([*FEATURES, "--optimizer", "adamw"], "--optimizer='adamw': the decoupled decay"),
    ([*FEATURES, "--class-weights", "1"], "--class-weights: shape (1,)"),
    ([*FEATURES, "--loss-factor", "0"], "--loss-factor=0.0: must be one finite number"),
    (["--weight-decay", "1"], "--feature-decay=None: "),
    (["--lambda-w", "0", "--lambda-h", "1"], "--lambda-w=0.0: must be one finite number"),
]


@pytest.mark.parametrize(("words", "said"), FLAGS, ids=lambda value: value[-1] if isinstance(value, list) else "")
@pytest.mark.parametrize("command", ["predict", "advise", "solve"])
def test_errors_name_the_flag(capsys, command, words, said):
    assert main([command, "5", "3", *words]) == 2
    assert capsys.readouterr().err.startswith(f"collapsekit: {said}")


SHIFTED = [*BRANCHES, "--batchnorm-decay", "gain"]
FROZEN = [*BRANCHES, "--batchnorm-decay", "gain_frozen_shift"]
OWN = ["--lambda-w", "0.01", "--lambda-h", "0.01"]
REVIEWED = [
    ([*SHIFTED, "--dim", "1"], "--dim=1: with γ decayed and β free"),
    ([*FROZEN, "--no-relu"], "--no-relu: with β frozen the law needs the ReLU"),
    ([*FROZEN, "--logit-adjustment", "1"], "--batchnorm-decay='gain_frozen_shift': class 0 holds 62%"),
    (["--bias", "free"], "--bias: thresholds are known without it"),
    ([*BRANCHES, "--no-norm-bias-decay", "--batchnorm-decay", "gain"], "--batchnorm-decay=gain: contradicts"),
    ([*OWN, "--no-norm-bias-decay"], "--no-norm-bias-decay: belongs to a recipe"),
    ([*BRANCHES, "--learning-rate", "0.1"], "--steps: missing; a horizon needs"),
    ([*OWN, "--learning-rate", "0.1", "--steps", "9"], "--steps: a horizon needs the recipe's --weight-decay"),
    ([*BRANCHES, "--learning-rate", "0.1", "--steps", "1000000000000"], "--steps=1000000000000: no training takes"),
    ([*BRANCHES, "--schedule", "step"], "--milestones=(): only the schedule 'step'"),
    ([*BRANCHES, "--steps", "5", "--learning-rate", "1", "--warmup-steps", "6"], "--warmup-steps=6: longer than"),
    ([*OWN, "--focal", "2", "--loss", "mse"], "--focal=2: contradicts --loss=mse"),
    ([*OWN, "--ldam", "-1"], "--ldam=-1: give a number of at least 0"),
    ([*OWN, "--bias", "-1"], "--bias='-1': give none, free, decays or a penalty"),
    ([*OWN, "--time-limit", "0"], "--time-limit=0: give seconds above 0"),
]


@pytest.mark.parametrize(("words", "said"), REVIEWED, ids=lambda value: value if isinstance(value, str) else "")
def test_what_predict_cannot_answer_is_refused_by_flag(capsys, words, said):
    assert main(["predict", "5", "3", *words]) == 2
    assert capsys.readouterr().err.startswith(f"collapsekit: {said}")


def test_a_free_shift_is_a_free_bias_whatever_the_head_has(capsys):
    found = []
    for bias in ("none", "free", "decays", "0.01"):
        assert main(["predict", "50", "30", *SHIFTED[2:], "--weight-decay", "0.1", "--bias", bias, "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out)["confidences"])
    assert_allclose(found, [found[0]] * 4)


def test_bounds_alone_say_so(capsys):
    counts = [str(count) for count in range(100, 2200)]
    words = [*counts, "--lambda-w", "1e-6", "--lambda-h", "1e-9", "--bias", "free"]
    assert main(["predict", *words, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["collapses"] is None
    assert content["confidences"][0] is None
    assert content["confidence_floor"][0] is not None
    assert "bias" in content["why"]
    assert main(["advise", *words]) == 2
    assert "too many to search" in capsys.readouterr().err


def test_decoupled_decay_gets_a_horizon(capsys):
    words = ["500", "30", *BRANCHES, "--optimizer", "adamw", "--learning-rate", "1e-5", "--steps", "100"]
    for command in ("predict", "advise"):
        assert main([command, *words]) == 0
        assert "no class can be lost to it" in capsys.readouterr().out
    assert main(["predict", *words, "--json"]) == 0
    assert_allclose(json.loads(capsys.readouterr().out)["horizon"], 0.001)


def test_landscape_names_the_flag_of_the_width(capsys):
    assert main(["landscape", "5", "3", "--lambda-w", "1", "--lambda-h", "1"]) == 2
    assert capsys.readouterr().err == "collapsekit: --dim: missing; local descent happens at one width\n"


def test_help_says_what_each_command_is_for(capsys):
    main(["--help"])
    words = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for command, summary in COMMANDS.items():
        assert f"{command} {summary}" in words


def test_predict_never_imports_torch():
    words = ["predict", "5", "3", "--lambda-w", "0.1", "--lambda-h", "0.1"]
    code = f"import sys; from collapsekit.cli import main; main({words}); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


FRAME = predict(UFM([60, 30, 10], 0.01, 0.0002, names=["ant", "<b>", "cat"]))


@pytest.fixture
def stored(folder):
    """Features and head of an exact frame, one file a kind."""
    weights, features = FRAME.weights_and_features()
    labels = np.repeat([0, 1, 2], [60, 30, 10])
    arrays = {"features": features[labels], "labels": labels, "weight": weights}
    np.savez(folder / "all.npz", **arrays)
    save_file({key: np.ascontiguousarray(value) for key, value in arrays.items()}, folder / "all.safetensors")
    np.savez(folder / "head.npz", weight=weights)
    np.save(folder / "x.npy", features[labels])
    np.save(folder / "labels.npy", labels)
    rows = [
        ",".join([*map(repr, row.tolist()), FRAME.problem.names[k]])
        for row, k in zip(features[labels], labels, strict=True)
    ]
    (folder / "table.csv").write_text("\n".join(["a,b,c,label", *rows]) + "\n")
    return folder


@pytest.mark.parametrize(
    "arguments", [["all.npz"], ["all.safetensors"], ["x.npy", "--head", "head.npz"]], ids=lambda words: words[0]
)
def test_measure_lays_an_exact_frame_on_its_prediction(stored, capsys, arguments):
    assert main(["measure", *arguments, "--lambda-w", "0.01", "--lambda-h", "0.0002", "--json"]) == 0
    content = printed(capsys)
    assert content["comparison"]["largest_deviation"] < 1e-6
    assert "reached the predicted geometry" in content["comparison"]["verdict"]
    nearest = content["nearest_references"][0]
    assert nearest["name"] == "prediction"
    assert nearest["shape"] < 1e-6
    found = content["effective_penalties"]
    assert_allclose([found["lambda_w"], found["lambda_h"]], [0.01, 0.0002], rtol=1e-5)


def test_measure_without_penalties_and_without_a_head(stored, capsys):
    assert main(["measure", "all.npz", "--class-names", "ant", "<b>", "[red]"]) == 0
    text = capsys.readouterr().out
    assert "[red]" in text
    assert "no penalties were given" in text
    assert "λ_W ≈ 0.01" in text
    assert main(["measure", "table.csv"]) == 0
    text = capsys.readouterr().out
    assert "ant" in text
    assert "nc1" in text
    assert "confidence" not in text


def test_measure_takes_row_numbers_of_the_head_where_classes_have_no_samples(stored, capsys):
    weights, features = FRAME.weights_and_features()
    np.savez("part.npz", features=features[[0, 2, 2]], labels=[0, 2, 2], weight=weights)
    assert main(["measure", "part.npz", "--json"]) == 0
    content = printed(capsys)
    assert content["counts"] == [1, 0, 2]
    assert content["effective_penalties"] is None
    assert main(["measure", "part.npz", "--lambda-w", "1", "--lambda-h", "1"]) == 2
    assert "class 1 has no samples" in capsys.readouterr().err


def test_a_recipe_without_theory_prints_the_measured_columns_alone(folder, capsys):
    assert main([*SMOKE, "--recipe", "plain"]) == 0
    text = capsys.readouterr().out
    assert "No prediction: without a feature penalty" in text
    assert "confidence\npredicted" not in text.split("No prediction")[0]
    assert "measured" not in text.split("No prediction")[0]
    assert main([*SMOKE, "--recipe", "plain", "--json"]) == 0
    content = printed(capsys)
    assert set(content["classes"][0]) == CLASS_KEYS
    assert content["classes"][0]["predicted_confidence"] is None
    assert content["predicted_objective"] is None


@pytest.mark.parametrize("command", ["predict", "advise"])
@pytest.mark.parametrize("page", ["labels.txt", "link.html", "none/page.html"])
def test_a_page_replaces_no_counts_and_is_refused_before_the_work(folder, capsys, command, page):
    Path("labels.txt").write_text("0\n0\n0\n1\n", encoding="utf-8")
    Path("link.html").symlink_to("labels.txt")
    words = ["labels.txt", "--lines", "labels", "--lambda-w", "0.3", "--lambda-h", "0.1", "--html", page]
    assert main([command, *words]) == 2
    assert f"--html='{page}': " in capsys.readouterr().err
    assert Path("labels.txt").read_text(encoding="utf-8") == "0\n0\n0\n1\n"


@pytest.mark.parametrize("command", ["predict", "advise"])
def test_a_page_is_not_silently_left_out_where_nothing_is_predicted(folder, capsys, command):
    words = ["100", "50", "--weight-decay", "0.1", "--optimizer", "adamw", "--learning-rate", "1e-3", "--steps", "1000"]
    assert main([command, *words, "--html", "p.html"]) == 2
    assert "--html: no class can be predicted" in capsys.readouterr().err
    assert main([command, *words]) == 0
