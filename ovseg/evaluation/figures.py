"""Figures of an evaluation, of its numbers alone.

Each is one panel that is readable on a phone; a page lays several side by side. Blue, black and
grey with different line styles are distinct for colour-blind readers and in print without colour.
"""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ovseg.core.plots import PANEL_WIDTH, draw_curve_lines, plain_text

BLUE = "#0072B2"
# Okabe and Ito (2008), without what is too pale for a line: contrast 3:1 or more on a light page
# and on a dark one.
LINES: dict[str, list] = {
    "color": [BLUE, "#D55E00", "#009E73", "#CC79A7", "black", "gray"],
    "linestyle": ["-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1))],
}


def _panel(height: float) -> Figure:
    return Figure(figsize=(PANEL_WIDTH, height), layout="constrained")


def draw_histogram(values: np.ndarray, name: str) -> Figure:
    """A histogram of scores in 0..1 with mean and median; NaN is left out."""
    values = values[~np.isnan(values)]
    figure = _panel(3.2)
    axes = figure.subplots()
    edges = np.linspace(0, 1, 21).tolist()
    axes.hist(values, bins=edges, color=BLUE, edgecolor="white")
    if len(values):
        mean = values.mean()
        median = np.median(values)
        axes.axvline(mean, color="black", label=f"mean {mean:.3f}")
        axes.axvline(median, color="black", linestyle="--", label=f"median {median:.3f}")
        axes.legend(loc="upper left")
    axes.yaxis.set_major_locator(MaxNLocator("auto", integer=True))
    axes.set(xlabel=f"{name} per image", ylabel="images", title=f"{len(values)} images")
    return figure


def draw_failures(failures: list[dict[str, Any]]) -> Figure:
    """A bar for each kind of failure that occurs, see `summary.summarise_failures`."""
    rows = [row for row in failures if row["images"]]
    rows.sort(key=lambda row: -row["images"])
    figure = _panel(0.8 + 0.32 * len(rows))
    axes = figure.subplots()
    counts = [row["images"] for row in rows]
    colors = ["lightgray" if row["kind"] == "good" else BLUE for row in rows]
    bars = axes.barh([row["kind"] for row in rows], counts, color=colors)
    axes.bar_label(bars, [f"{row['images']} ({row['share']:.0%})" for row in rows], padding=3)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.4 * max(counts))  # room for the labels
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set(xlabel="images")
    return figure


def draw_subgroups(subgroups: list[dict[str, Any]], overall: dict[str, Any]) -> Figure:
    """Mean Dice of each subgroup with its interval, against that of all images.

    Args:
        subgroups: see `summary.summarise_subgroups`.
        overall: see `summary.summarise_values`.
    """
    figure = _panel(0.8 + 0.42 * len(subgroups))
    axes = figure.subplots()
    across = axes.get_yaxis_transform()  # x as a share of the panel's width
    for height, row in enumerate(subgroups):
        label = plain_text(f"{row['by']}: {row['name']} ({row['images']})")
        axes.text(0.01, height - 0.3, label, transform=across, va="center", fontsize="small")
        if row["mean"] is None:
            continue
        axes.plot(row["mean"], height, "o", color=BLUE)
        if row["ci95"] is not None:
            axes.plot(row["ci95"], [height, height], color=BLUE)
    if overall["mean"] is not None:
        axes.axvline(overall["mean"], color="gray", linewidth=1)
    axes.set(yticks=[], ylim=(len(subgroups) - 0.5, -0.7))
    axes.grid(axis="x", alpha=0.3)
    axes.set(xlabel="mean Dice, 95 % interval; grey: all images")
    return figure


def draw_reliability(calibration: dict[str, Any], temperature: float) -> Figure:
    """Share of lesion against probability, and how many pixels have it.

    Args:
        calibration: see `Evaluation.run`.
        temperature: of the post-processing; where it is not 1, what it changed is drawn too.
    """
    bins = calibration["bins"]
    figure = _panel(3.7)
    upper, lower = figure.subplots(2, 1, height_ratios=[4, 1], sharex=True)
    upper.plot([0, 1], [0, 1], color="gray", linewidth=1)
    if temperature != 1:
        before = _list_points(calibration["raw"]["bins"])
        upper.plot(*before, marker="s", linestyle=":", color="gray", label="without temperature")
    after = _list_points(bins)
    upper.plot(*after, marker="o", color=BLUE, label=f"temperature {temperature:g}")
    upper.set(ylabel="share of lesion", xlim=(0, 1), ylim=(0, 1))
    if temperature != 1:
        upper.legend()
    title = f"calibration error {calibration['error']:.3f}, Brier score {calibration['brier']:.3f}"
    upper.set_title(title, fontsize="medium")
    width = 1 / len(bins["pixels"])
    middles = [(index + 0.5) * width for index in range(len(bins["pixels"]))]
    lower.bar(middles, bins["pixels"], width, color=BLUE, edgecolor="white")
    lower.set(yscale="log", ylabel="pixels", xlabel="probability of lesion")
    return figure


def _list_points(bins: dict[str, list[float | None]]) -> tuple[list[float], list[float]]:
    """Probabilities and shares of lesion of the bins that have a pixel."""
    probabilities = []
    shares = []
    for probability, lesion in zip(bins["probability"], bins["lesion"], strict=True):
        if probability is not None and lesion is not None:
            probabilities.append(probability)
            shares.append(lesion)
    return probabilities, shares


def draw_risk_coverage(confidence: dict[str, Any], flags: dict[str, Any] | None) -> Figure:
    """Mean 1 - Dice of the surest images, see `summary.summarise_confidence`.

    Args:
        confidence: see there.
        flags: see `summary.summarise_flags`; what remains without the flagged images is marked.
    """
    figure = _panel(3.7)
    axes = figure.subplots()
    axes.plot(confidence["coverage"], confidence["risk"], color=BLUE, label="by confidence")
    axes.axhline(confidence["random"], color="gray", linestyle="--", label="in random order")
    kept = 0 if flags is None else flags["images"] - flags["flagged"]
    if kept:
        place = (confidence["coverage"][kept - 1], confidence["risk"][kept - 1])
        axes.plot(*place, "D", color="black", label="without flagged images")
    axes.set(
        xlabel="share of the images kept, the surest first",
        ylabel="their mean 1 - Dice",
        xlim=(0, 1),
    )
    title = f"area {confidence['area']:.3f}, best possible {confidence['perfect']:.3f}"
    axes.set_title(title, fontsize="medium")
    axes.set_ylim(bottom=0)
    axes.legend()
    return figure


def draw_training(table: pd.DataFrame, epoch: int, title: str) -> Figure:
    """The curves of a training, with the epoch of the evaluated checkpoint.

    Args:
        table: `epoch`, counted from 1, and a column for each curve.
        epoch: of the checkpoint.
        title: of the figure.
    """
    figure = _panel(3.7)
    axes = figure.subplots()
    axes.set_prop_cycle(**LINES)
    draw_curve_lines(axes, table)
    axes.axvline(epoch, color="gray", linewidth=1)
    axes.set(title=title, xlabel=f"epoch; grey: the evaluated one, {epoch}")
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize="small")
    return figure
