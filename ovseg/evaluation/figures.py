"""Figures of an evaluation, of its summary alone."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ovseg.core.plots import save_figure

# Okabe and Ito (2008), distinct for colour-blind readers too. Of each kind of failure.
KIND_COLORS = {
    "good": "#009E73",
    "boundary only": "#56B4E9",
    "part of it": "#0072B2",
    "too much": "#E69F00",
    "extra components": "#F0E442",
    "split": "#CC79A7",
    "other": "#999999",
    "wrong structure": "#D55E00",
    "false alarm": "#8B4513",
    "missed": "#000000",
}


def draw_failures(failures: list[dict[str, Any]], path: Path) -> None:
    """The kinds of failure as one bar, see `summary.summarise_failures`."""
    shares = {row["kind"]: row for row in failures}
    figure = Figure(figsize=(9, 2.2), layout="constrained")
    axes = figure.subplots()
    left = 0.0
    for kind, color in KIND_COLORS.items():
        row = shares[kind]
        if row["images"] == 0:
            continue
        label = f"{kind} ({row['images']})"
        axes.barh(0, row["share"], left=left, color=color, edgecolor="white", label=label)
        left += row["share"]
    axes.set(xlim=(0, 1), yticks=[], xlabel="share of the images")
    figure.legend(loc="outside upper center", ncols=5, frameon=False)
    save_figure(figure, path)


def draw_subgroups(subgroups: list[dict[str, Any]], overall: dict[str, Any], path: Path) -> None:
    """Mean Dice of each subgroup with its interval, against that of all images.

    Args:
        subgroups: see `summary.summarise_subgroups`.
        overall: see `summary.summarise_values`.
        path: to write.
    """
    figure = Figure(figsize=(8, 1 + 0.3 * len(subgroups)), layout="constrained")
    axes = figure.subplots()
    labels = []
    for height, row in enumerate(subgroups):
        labels.append(f"{row['by']}: {row['name']} ({row['images']})")
        if row["mean"] is None:
            continue
        axes.plot(row["mean"], height, "o", color="#0072B2")
        if row["ci95"] is not None:
            axes.plot(row["ci95"], [height, height], color="#0072B2")
    if overall["mean"] is not None:
        axes.axvline(overall["mean"], color="gray", linewidth=1, label="all images")
        axes.legend(loc="lower left")
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.set(xlabel="mean Dice, original size, and its 95 % interval; in brackets: images")
    save_figure(figure, path)


def draw_reliability(calibration: dict[str, Any], temperature: float, path: Path) -> None:
    """Share of lesion against probability, and how many pixels have it.

    Args:
        calibration: see `Evaluation.run`.
        temperature: of the post-processing; where it is not 1, what it changed is drawn too.
        path: to write.
    """
    bins = calibration["bins"]
    figure = Figure(figsize=(5, 4.2), layout="constrained")
    upper, lower = figure.subplots(2, 1, height_ratios=[4, 1], sharex=True)
    upper.plot([0, 1], [0, 1], color="gray", linewidth=1)
    if temperature != 1:
        before = _list_points(calibration["raw"]["bins"])
        upper.plot(*before, marker="s", linestyle=":", color="#E69F00", label="without temperature")
    after = _list_points(bins)
    upper.plot(*after, marker="o", color="#0072B2", label=f"temperature {temperature:g}")
    upper.set(ylabel="share of lesion", xlim=(0, 1), ylim=(0, 1))
    if temperature != 1:
        upper.legend()
    title = f"calibration error {calibration['error']:.3f}, Brier score {calibration['brier']:.3f}"
    upper.set_title(title)
    width = 1 / len(bins["pixels"])
    middles = [(index + 0.5) * width for index in range(len(bins["pixels"]))]
    lower.bar(middles, bins["pixels"], width, color="#0072B2", edgecolor="white")
    lower.set(yscale="log", ylabel="pixels", xlabel="probability of lesion")
    save_figure(figure, path)


def _list_points(bins: dict[str, list[float | None]]) -> tuple[list[float], list[float]]:
    """Probabilities and shares of lesion of the bins that have a pixel."""
    probabilities = []
    shares = []
    for probability, lesion in zip(bins["probability"], bins["lesion"], strict=True):
        if probability is not None and lesion is not None:
            probabilities.append(probability)
            shares.append(lesion)
    return probabilities, shares


def draw_risk_coverage(
    confidence: dict[str, Any], flags: dict[str, Any] | None, path: Path
) -> None:
    """Mean 1 - Dice of the surest images, see `summary.summarise_confidence`.

    Args:
        confidence: see there.
        flags: see `summary.summarise_flags`; what remains without the flagged images is marked.
        path: to write.
    """
    figure = Figure(figsize=(5, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.plot(confidence["coverage"], confidence["risk"], color="#0072B2", label="by confidence")
    axes.axhline(confidence["random"], color="gray", linewidth=1, label="in random order")
    kept = 0 if flags is None else flags["images"] - flags["flagged"]
    if kept:
        place = (confidence["coverage"][kept - 1], confidence["risk"][kept - 1])
        axes.plot(*place, "D", color="#D55E00", label="without flagged images")
    axes.set(
        xlabel="share of the images kept, the surest first",
        ylabel="their mean 1 - Dice",
        title=f"area {confidence['area']:.3f}, best possible {confidence['perfect']:.3f}",
        xlim=(0, 1),
    )
    axes.set_ylim(bottom=0)
    axes.legend()
    save_figure(figure, path)
