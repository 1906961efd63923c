"""Are wd and wd/(mN) found again from the last layer of a trained BatchNorm network alone?

Run: python experiments/effective_penalties.py [--workers 2] [--out FOLDER]       (about 15 core-minutes; none where
FOLDER holds the runs of batchnorm_law.py). Writes experiments/results/effective_penalties.json.

The band below was committed before the run. Decay on everything is expected to fail it: what the decay of earlier
layers adds looks like a larger feature penalty, 7.5 % in a trial.
"""

import batchnorm_law
import harness

BAND = 0.05  # relative error of either penalty
KEYS = ("network", "weight_decay", "decay_on", "seed")


def within(row):
    errors = [row[f"effective_{name}_error"] for name in ("lambda_w", "lambda_h")]
    return all(error is not None and error <= BAND for error in errors)


if __name__ == "__main__":
    bands = {"effective_lambda_w_error": BAND, "effective_lambda_h_error": BAND}
    harness.main(__doc__, "effective_penalties", list(batchnorm_law.RUNS), KEYS, bands, within)
