"""Texts that coincide across classes: do types of samples predict the networks that the frame does not?

Run: python experiments/coinciding_texts.py       (a minute; trains nothing)
Needs Debian's fortunes, fortunes-min. Writes experiments/results/coinciding_texts.json.

The eight runs of experiments/collapse_line.py on texts of which some stand in two classes, as they are stored, are laid
beside the optimum of their types of samples (`collapsekit.data.types_of`): a set of texts with the same words is one
type with the share of each class among its copies. Texts that a network cannot separate although their words differ
are not known of. The band, 0.005, was written before the optima were computed.
"""

import json
import time

import numpy as np

from _tools import datasets, harness
from _tools.harness import line, spread
from collapsekit import UFM, predict
from collapsekit.data import types_of
from collapsekit.recipe import LastLayer
from collapsekit.training import TrainConfig, load_split

BANDS = {"deviation": 0.005}


def judged(row):
    """The stored run beside the optimum of its types."""
    config = TrainConfig.from_dict(row["config"])
    split = load_split(config)
    labels = split.train_labels.numpy()
    counts, targets = types_of(split.train_inputs.numpy(), labels, len(split.names))
    plain = config.problem(split.counts, LastLayer(dim=512), split.names)
    types = predict(UFM.from_types(counts, targets, plain.lambda_w, plain.lambda_h))
    measured = np.array(row["confidences"])
    return {
        "config": row["config"],
        "types": len(counts),
        "coinciding_samples": int(counts[(targets.max(axis=1) < 1)].sum()),
        "basis": types.basis.value,
        "gap": types.gap,
        "predicted_confidences": types.confidences,
        "confidences": measured,
        "largest_deviation": float(np.abs(measured - types.confidences).max()),
        "without_types": row["largest_deviation"],
    }


def judge(rows, bands):
    before, after = ([row[key] for row in rows] for key in ("without_types", "largest_deviation"))
    return [
        line(
            "texts that coincide across classes, as types of samples",
            f"MLP × fortunes, {rows[0]['coinciding_samples']} of its training texts in two classes × {len(rows)} runs",
            f"deviation 0 (band {bands['deviation']}); without types up to {max(before):.2g}",
            f"{spread(after)}, worst {max(after):.2g}",
            max(after) <= bands["deviation"],
        )
    ]


def main():
    started = time.monotonic()
    datasets.prepare()
    rows = [row for row in harness.stored("collapse_line") if row["config"].get("data") == datasets.TEXTS]
    found = [{key: harness.plain(value) for key, value in judged(row).items()} for row in rows]
    lines, minutes = judge(found, BANDS), (time.monotonic() - started) / 60
    print(harness.table(lines))
    content = {"schema": 2, "name": "coinciding_texts", "run_minutes": round(minutes, 1), "bands": BANDS}
    content |= {"table": lines, "runs": found}
    path = harness.RESULTS / "coinciding_texts.json"
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
