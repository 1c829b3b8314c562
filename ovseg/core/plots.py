"""Figures of numbers, drawn as PNG without a display."""

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ovseg.core.files import atomic_path
from ovseg.core.text import printable

DOTS_PER_INCH = 110


def draw_curves(table: pd.DataFrame, path: Path) -> None:
    """A line for every column but `epoch`."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name in table.columns.drop("epoch"):
        axes.plot(table["epoch"], table[name], marker=".", label=name)
    axes.set(xlabel="epoch", title=path.stem)
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, path)


def draw_histogram(values: np.ndarray, name: str, path: Path) -> None:
    """A histogram of scores in 0..1 with mean and median; NaN is left out."""
    values = values[~np.isnan(values)]
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    edges = np.linspace(0, 1, 21).tolist()
    axes.hist(values, bins=edges, color="tab:blue", edgecolor="white")
    if len(values):
        mean = values.mean()
        median = np.median(values)
        axes.axvline(mean, color="tab:red", label=f"mean {mean:.3f}")
        axes.axvline(median, color="black", label=f"median {median:.3f}")
        axes.legend()
    axes.set(xlabel=f"{name} per image", ylabel="images", title=f"{len(values)} images")
    save_figure(figure, path)


def draw_boxes(groups: dict[str, np.ndarray], title: str, path: Path) -> None:
    """Scores in 0..1 of several groups as boxes, with a point for each image.

    The number of images stands beside each group's name.
    """
    figure = Figure(figsize=(8, 1.2 + 0.45 * len(groups)), layout="constrained")
    axes = figure.subplots()
    heights = np.arange(len(groups), 0, -1)  # the first group on top
    axes.boxplot(
        list(groups.values()),
        positions=heights,
        orientation="horizontal",
        widths=0.6,
        showfliers=False,
    )
    rng = np.random.default_rng(0)
    for height, values in zip(heights, groups.values(), strict=True):
        jitter = rng.uniform(-0.2, 0.2, len(values))
        axes.scatter(values, height + jitter, s=10, alpha=0.6, color="tab:blue")
    labels = [f"{plain_text(name)} ({len(values)})" for name, values in groups.items()]
    axes.set_yticks(heights, labels)
    axes.set(xlim=(-0.02, 1.02), title=title)
    axes.grid(axis="x", alpha=0.3)
    save_figure(figure, path)


def draw_confusion(counts: pd.DataFrame, path: Path) -> None:
    """Numbers of images, rows reference and columns prediction, shaded by share of the row."""
    size = len(counts)
    figure = Figure(figsize=(2.5 + 0.6 * size, 2.2 + 0.6 * size), layout="constrained")
    axes = figure.subplots()
    row_totals = counts.sum(axis=1).clip(lower=1).to_numpy()
    share = counts / row_totals[:, None]
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts.to_numpy()):
        is_dark = share.iat[row, column] > 0.5
        color = "white" if is_dark else "black"
        axes.text(column, row, count or "", ha="center", va="center", color=color)
    names = [plain_text(name) for name in counts.index]
    axes.set_xticks(range(size), names, rotation=40, ha="right")
    axes.set_yticks(range(size), names)
    axes.set(xlabel="predicted, by most pixels", ylabel="reference")
    axes.set(title=f"{counts.to_numpy().sum()} images")
    save_figure(figure, path)


def draw_leakage(dice: pd.DataFrame, differences: dict[str, dict], path: Path) -> None:
    """Test Dice of each seed and split, and what the leak adds with its 95 % intervals.

    Args:
        dice: a row a seed, a column a split.
        differences: name -> `mean`, `ci95` (None for one seed) and `count` of a difference.
        path: to write.
    """
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[2, 3])
    for _, row in dice.iterrows():
        left.plot(row.index, row, marker="o", color="tab:blue", alpha=0.6)
    left.set(title="test Dice, a line a seed", ylabel="mean Dice per image")

    labels = []
    for height, (name, found) in enumerate(reversed(differences.items())):
        labels.append(f"{name} ({found['count']})")
        if found["mean"] is None:
            continue
        right.plot(found["mean"], height, "o", color="black")
        interval = found["ci95"] or [found["mean"], found["mean"]]
        right.plot(interval, [height, height], color="black")
    right.axvline(0, color="gray", linewidth=1)
    right.set_yticks(range(len(labels)), labels)
    right.set(title="what the leak adds to Dice, 95 % interval")
    save_figure(figure, path)


def draw_bars(counts: dict[str, int], title: str, unit: str, path: Path) -> None:
    """A bar with its number for every name."""
    figure = Figure(figsize=(5, 3.5), layout="constrained")
    axes = figure.subplots()
    bars = axes.bar(list(counts), list(counts.values()), color="tab:blue")
    axes.bar_label(bars)
    axes.set(ylabel=unit, title=plain_text(title))
    axes.margins(y=0.1)
    save_figure(figure, path)


def draw_distributions(values: dict[str, list[float]], unit: str, path: Path) -> None:
    """The spread of the values of each name as box plots; a name without values is left empty."""
    figure = Figure(figsize=(5, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.boxplot(list(values.values()), tick_labels=list(values))
    axes.set(ylabel=unit)
    save_figure(figure, path)


def draw_sweep(
    trials: pd.DataFrame, parameters: dict[str, bool], value: str, mode: str, path: Path
) -> None:
    """The value of each finished trial, the best so far, and the value against each parameter.

    Args:
        trials: a row a trial: `trial`, `value` and the parameters.
        parameters: at least one: name -> whether its axis is logarithmic.
        value: what the value is.
        mode: `max` or `min`, which is best.
        path: to write.
    """
    figure = Figure(figsize=(4 * (len(parameters) + 1), 3.5), layout="constrained")
    first, *others = figure.subplots(1, len(parameters) + 1, squeeze=False)[0]
    values = trials["value"]
    best = values.cummax() if mode == "max" else values.cummin()
    first.scatter(trials["trial"], values, s=16)
    first.step(trials["trial"], best, where="post", color="tab:red", label="best so far")
    first.set(xlabel="trial", ylabel=value)
    first.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    first.legend()
    for axes, (name, logarithmic) in zip(others, parameters.items(), strict=True):
        _scatter_parameter(axes, trials, name)
        if logarithmic:
            axes.set_xscale("log")
    points = others[-1].collections[0]
    figure.colorbar(points, label="trial")
    save_figure(figure, path)


def _scatter_parameter(axes: Axes, trials: pd.DataFrame, name: str) -> None:
    """The value against one parameter; what is not a number is drawn by its text."""
    column = trials[name]
    types = pd.api.types
    if types.is_bool_dtype(column) or not types.is_numeric_dtype(column):
        column = column.astype(str)
    axes.scatter(column, trials["value"], c=trials["trial"])
    axes.set_xlabel(name)


def plain_text(name: str) -> str:
    """A name that Matplotlib draws as it is, not as a formula."""
    return printable(name).replace("$", r"\$")


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG."""
    with atomic_path(path) as temporary, warnings.catch_warnings():
        # Of letters that the font lacks, such as Chinese ones in a name, boxes are drawn.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(temporary, dpi=DOTS_PER_INCH)
