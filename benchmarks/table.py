"""Print what `make bench` measured, and store it: time, cost in units of np.log, memory in arrays, accuracy reached."""

import json
import sys
from pathlib import Path

import numpy as np

RESULTS = Path(__file__).with_name("results.json")


def main(path):
    measured = json.loads(Path(path).read_text(encoding="utf-8"))
    rows = [
        {"name": row["name"], "median ms": round(1e3 * row["stats"]["median"], 1)} | row["extra_info"]
        for row in measured["benchmarks"]
    ]
    machine = measured["machine_info"]
    setting = {
        "processor": machine["cpu"].get("brand_raw", "unknown"),
        "python": machine["python_version"],
        "numpy": np.__version__,
    }
    RESULTS.write_text(json.dumps(setting | {"rows": rows}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(", ".join(f"{key} {value}" for key, value in setting.items()))
    for row in rows:
        print("; ".join(f"{key} {value:.3g}" if key != "name" else value for key, value in row.items()))


if __name__ == "__main__":
    main(sys.argv[1])
