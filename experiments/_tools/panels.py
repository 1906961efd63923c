"""A panel for each experiment beside the collapse line; used by summary.py."""

from itertools import zip_longest

import numpy as np
from matplotlib.axes import Axes

import batchnorm_law
import effective_penalties
import everyday
import first_light
import generalisation
import mini_batches
import optimiser
import paper_settings
import revival
import weights
from _tools import harness
from _tools.harness import setting
from collapsekit.report.figures import BLUE, GREEN, GREY, ORANGE, plain_ticks

COLOURS = (ORANGE, BLUE, GREEN, "#CC79A7", "#56B4E9", "#E69F00", "black")
MARKERS = "osD^vPX"


def draw_weights(ax: Axes, rows) -> None:
    """Margins against class size, lines predicted, marks measured."""
    for i, name in enumerate(weights.LOSSES):
        own = [row for row in rows if weights.loss_of(row) == name]
        for j, row in enumerate(own):
            style = {"color": COLOURS[i], "ms": 4, "mfc": "none"}
            if j == 0:
                ax.plot(row["counts"], row["predicted_margins"], "-", color=COLOURS[i], lw=1, label=name)
            ax.plot(row["counts"], row["margins"], MARKERS[i], **style)
    low, high = ax.get_ylim()
    ax.set(xscale="log", xlabel="training samples", ylabel="margin", title="weights: margins by loss")
    ax.set_ylim(low - 0.4 * (high - low), high)  # room for the legend
    plain_ticks(ax)
    _legend(ax)


def draw_batchnorm(ax: Axes, rows) -> None:
    """Measured against predicted error 1 − p, by condition."""
    names = [name for name in batchnorm_law.SETTINGS if name != "γ, β excluded"]
    for i, name in enumerate(names):
        own = [r for r in rows if batchnorm_law.condition(r) == name and "predicted_confidences" in r]
        if own:
            x, y = (1 - np.concatenate([row[key] for row in own]) for key in ("predicted_confidences", "confidences"))
            style = {"color": COLOURS[i % 7], "ms": 3, "mfc": "none", "alpha": 0.8}
            ax.plot(x, y, MARKERS[(i + i // 7) % 7], label=name, **style)
    ax.plot([0.03, 1], [0.03, 1], color=GREY, lw=0.8, zorder=0)
    ax.set(xscale="log", yscale="log", xlim=(0.02, 60), xlabel="1 − p of the law", ylabel="1 − p measured")
    ax.set_title("BatchNorm law: nothing fitted")
    _legend(ax, loc="center right")  # beside the data


def draw_paper(ax: Axes, rows) -> None:
    """Margins against class size: measured, by the converted formula, by the published one."""
    labelled = set()
    for row in rows:
        order = np.argsort(row["counts"], kind="stable")
        counts = np.array(row["counts"])[order]
        name = paper_settings.name_of(row)
        marks = {"margins": ("os"[list(paper_settings.DATA).index(name)], ORANGE, name)}
        lines = {
            "predicted_margins": ("-", BLUE, "units converted"),
            "published_margins": ("--", GREY, "published script"),
        }
        for key, (form, colour, label) in (lines | marks).items():
            shown = None if label in labelled else label
            labelled.add(label)
            ax.plot(counts, np.array(row[key])[order], form, color=colour, mfc="none", ms=4, lw=1, label=shown)
    ax.set(xlabel="training samples", ylabel="margin", title="the paper's settings")
    _legend(ax)


def draw_optimiser(ax: Axes, rows) -> None:
    """Share of classes dead against the theory, with warm-up and without."""
    names = list(dict.fromkeys(optimiser.change_of(row) for row in rows))
    for shift, warm in ((-0.2, True), (0.2, False)):
        shares = []
        for name in names:
            own = [r for r in rows if optimiser.change_of(r) == name and (setting(r, "warmup") > 0) == warm]
            shares.append(100 * optimiser.dead(own) / max(1, sum(len(row["counts"]) for row in own)))
        label = "warm-up" if warm else "no warm-up"
        ax.barh(np.arange(len(names)) + shift, shares, 0.36, color=(ORANGE, BLUE)[warm], label=label)
    ax.set_yticks(range(len(names)), [name.replace("λ_W/λ_H", "ratio") for name in names], fontsize=6)
    ax.invert_yaxis()
    ax.set(xlim=(0, 1.5 * ax.get_xlim()[1]), xlabel="classes dead against the theory, %")  # room for the legend
    ax.set_title("what the optimiser loses")
    _legend(ax, loc="center right")


def draw_generalisation(ax: Axes, rows) -> None:
    """Balanced test accuracy against the training margin of the rarest class relative to the largest."""
    for i, name in enumerate(generalisation.METHODS):
        own = [row for row in rows if generalisation.method_of(row) == name]
        if own:
            slopes = [row["margins"][-1] - row["margins"][0] for row in own]
            values = [100 * row["balanced_accuracy"] for row in own]
            ax.plot(slopes, values, MARKERS[i], color=COLOURS[i], ms=5, mfc="none", label=name)
    ax.set(xlabel="margin of the rarest minus the largest class", ylabel="balanced test accuracy, %")
    low, high = ax.get_ylim()
    ax.set(title="generalisation: not promised", ylim=(low, high + 0.45 * (high - low)))  # room for the legend
    _legend(ax)


def draw_everyday(ax: Axes, rows) -> None:
    """Training confidence against class size beside the law's, or the certified optimum's where there is a bias."""
    for i, name in enumerate(everyday.SETTINGS):
        own = [row for row in rows if everyday.name_of(row) == name]
        for j, row in enumerate(own):
            style = {"color": COLOURS[i], "mfc": "none", "ms": 4}
            ax.plot(row["counts"], row["confidences"], MARKERS[i], label=None if j else name, **style)
            if j == 0:
                wanted = row.get("solved_confidences", row["law_confidences"])
                ax.plot(row["counts"], wanted, "-", color=COLOURS[i], lw=0.8)
    ax.set(xscale="log", xlabel="training samples", ylabel="training confidence", ylim=(0, 1.05))
    plain_ticks(ax)
    ax.set_title("everyday settings: lines are predicted")
    _legend(ax, loc="lower right")


def draw_deviations(title, bands):
    """Return what draws each run's largest deviation against its penalties, with the band."""

    def panel(ax: Axes, rows) -> None:
        found = [(row["times_threshold"], row["largest_deviation"]) for row in rows]
        ax.plot(*zip(*found, strict=True), "o", color=ORANGE, mfc="none", ms=4)
        ax.axhline(bands["largest_deviation"], color=GREY, lw=0.8, ls="--", label="band")
        ax.set(
            xscale="log", yscale="log", xlabel="times the smallest threshold", ylabel="largest deviation, confidence"
        )
        ax.set_title(title)
        _legend(ax)

    return panel


def draw_effective(ax: Axes, rows) -> None:
    """Relative error of either penalty found from the trained network alone, with the band."""
    names = list(effective_penalties.GROUPS)
    for shift, key, colour in ((-0.1, "w", ORANGE), (0.1, "h", BLUE)):
        found = [(names.index(effective_penalties.group_of(row)) + shift, row) for row in rows]
        errors = [(x, 100 * row[f"effective_lambda_{key}_error"]) for x, row in found]
        ax.plot(*zip(*errors, strict=True), "o", color=colour, mfc="none", ms=4, label=f"λ_{key.upper()}")
    ax.axhline(100 * max(effective_penalties.BANDS.values()), color=GREY, lw=0.8, ls="--", label="band")
    ax.set_xticks(range(len(names)), [name.replace("decay on ", "") for name in names], fontsize=6)
    ax.set(yscale="log", ylabel="error, %", title="penalties found from the network")
    _legend(ax)


def draw_controls(ax: Axes, rows) -> None:
    """Mean |cosine| between class means: none where a feature penalty makes them orthogonal, large without one."""
    for i, (name, wanted) in enumerate((("balanced, feature penalty", False), ("long tail, none", True))):
        own = [row for row in rows if (setting(row, "recipe") == "plain") == wanted]
        ax.plot([i] * len(own), [row["mean_cosine"] for row in own], "o", color=COLOURS[i], mfc="none", label=name)
    ax.set_xticks([])
    ax.set(xlim=(-0.5, 1.5), yscale="log", ylabel="mean |cosine| of class means", title="controls")
    _legend(ax, loc="center left")


def draw_revival(ax: Axes, rows) -> None:
    """Share of the lost classes that come back after each change."""
    names = list(revival.CHANGES)
    for i, name in enumerate(names):
        before, back, _ = revival.came_back([row for row in rows if revival.change_of(row) == name])
        ax.barh(i, 100 * back / max(1, before), 0.6, color=ORANGE)
    ax.set_yticks(range(len(names)), [name.replace(", penalties", ",\npenalties") for name in names], fontsize=6)
    ax.invert_yaxis()
    ax.set(xlim=(0, 105), xlabel="lost classes that come back, %", title="what revives a lost class")


def _legend(ax: Axes, **where) -> None:
    if ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False, fontsize=6, **where)


PANELS = {
    "first_light": draw_deviations("first light: digits", first_light.BANDS),
    "mini_batches": draw_deviations("mini-batches: Fashion-MNIST", mini_batches.BANDS),
    "effective_penalties": draw_effective,
    "batchnorm_law": draw_batchnorm,
    "weights": draw_weights,
    "paper_settings": draw_paper,
    "controls": draw_controls,
    "optimiser": draw_optimiser,
    "revival": draw_revival,
    "everyday": draw_everyday,
    "generalisation": draw_generalisation,
}


def draw(axes) -> None:
    """Draw every panel that has results."""
    for ax, name in zip_longest(axes, PANELS):
        rows = harness.stored(name) if name else []
        if rows:
            PANELS[name](ax, rows)
        else:
            ax.set_axis_off()
