"""Figures of numbers, drawn without a display."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ovseg.core.files import atomic_path


def draw_curves(table: pd.DataFrame, path: Path) -> None:
    """A line for every column but `epoch`, as PNG."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name in table.columns.drop("epoch"):
        axes.plot(table["epoch"], table[name], marker=".", label=name)
    axes.set(xlabel="epoch", title=path.stem)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, path)


def draw_histogram(values: np.ndarray, name: str, path: Path) -> None:
    """A histogram of scores in 0..1, NaN left out, with mean and median, as PNG."""
    values = values[~np.isnan(values)]
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.hist(values, bins=np.linspace(0, 1, 21), color="tab:blue", edgecolor="white")
    if len(values):
        for label, value, color in [
            ("mean", values.mean(), "tab:red"),
            ("median", np.median(values), "black"),
        ]:
            axes.axvline(value, color=color, label=f"{label} {value:.3f}")
        axes.legend()
    axes.set(xlabel=f"{name} per image", ylabel="images", title=f"{len(values)} images")
    save_figure(figure, path)


def draw_boxes(groups: dict[str, np.ndarray], title: str, path: Path) -> None:
    """Scores in 0..1 of several groups as boxes with a point for each image, as PNG; counts stand beside the names."""
    figure = Figure(figsize=(8, 1.2 + 0.45 * len(groups)), layout="constrained")
    axes = figure.subplots()
    labels = [f"{name} ({len(values)})" for name, values in groups.items()]
    places = np.arange(len(groups), 0, -1)  # the first on top
    axes.boxplot(
        list(groups.values()),
        positions=places,
        orientation="horizontal",
        widths=0.6,
        showfliers=False,
    )
    jitter = np.random.default_rng(0)
    for place, values in zip(places, groups.values(), strict=True):
        axes.scatter(
            values,
            place + jitter.uniform(-0.2, 0.2, len(values)),
            s=10,
            alpha=0.6,
            color="tab:blue",
        )
    axes.set_yticks(places, labels)
    axes.set(xlim=(-0.02, 1.02), title=title)
    axes.grid(axis="x", alpha=0.3)
    save_figure(figure, path)


def draw_confusion(counts: pd.DataFrame, path: Path) -> None:
    """Numbers of images, rows reference and columns prediction, shaded by their share of the row, as PNG."""
    figure = Figure(
        figsize=(2.5 + 0.6 * len(counts), 2.2 + 0.6 * len(counts)), layout="constrained"
    )
    axes = figure.subplots()
    share = counts / counts.sum(axis=1).clip(lower=1).to_numpy()[:, None]
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts.to_numpy()):
        color = "white" if share.iat[row, column] > 0.5 else "black"
        axes.text(column, row, count or "", ha="center", va="center", color=color)
    axes.set_xticks(range(len(counts)), counts.columns, rotation=40, ha="right")
    axes.set_yticks(range(len(counts)), counts.index)
    axes.set(
        xlabel="predicted, by most pixels",
        ylabel="reference",
        title=f"{counts.to_numpy().sum()} images",
    )
    save_figure(figure, path)


def draw_paired(theirs: np.ndarray, ours: np.ndarray, path: Path) -> None:
    """Two tools' scores of the same images against each other, as PNG; above the diagonal ours is better."""
    figure = Figure(figsize=(4.5, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="gray", linewidth=1)
    axes.scatter(theirs, ours, s=14)
    axes.set(xlabel="Dice, other tool", ylabel="Dice, ours", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    save_figure(figure, path)


def draw_leakage(dice: pd.DataFrame, differences: dict[str, dict], path: Path) -> None:
    """Test Dice of each seed and split, and what the leak adds with its 95 % intervals, as PNG."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[2, 3])
    for _, row in dice.iterrows():
        left.plot(row.index, row, marker="o", color="tab:blue", alpha=0.6)
    left.set(title="test Dice, a line a seed", ylabel="mean Dice per image")
    found_in = dict(reversed(differences.items()))
    for height, found in enumerate(found_in.values()):
        if found["mean"] is not None:
            right.plot(found["mean"], height, "o", color="black")
            right.plot(found["ci95"] or [found["mean"]] * 2, [height, height], color="black")
    right.axvline(0, color="gray", linewidth=1)
    right.set_yticks(
        range(len(found_in)), [f"{name} ({found['count']})" for name, found in found_in.items()]
    )
    right.set(title="what the leak adds to Dice, 95 % interval")
    save_figure(figure, path)


def draw_bars(counts: dict[str, int], title: str, unit: str, path: Path) -> None:
    """A bar with its number for every name, as PNG."""
    figure = Figure(figsize=(5, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.bar_label(axes.bar(list(counts), list(counts.values()), color="tab:blue"))
    axes.set(ylabel=unit, title=title)
    axes.margins(y=0.1)
    save_figure(figure, path)


def draw_distributions(values: dict[str, list[float]], unit: str, path: Path) -> None:
    """The spread of values under each name as box plots, as PNG; a name without values is left empty."""
    figure = Figure(figsize=(5, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.boxplot(list(values.values()), tick_labels=list(values))
    axes.set(ylabel=unit)
    save_figure(figure, path)


def draw_sweep(
    trials: pd.DataFrame, parameters: dict[str, bool], value: str, mode: str, path: Path
) -> None:
    """The value of each finished trial, the best so far, and the value against each parameter, as PNG.

    Args:
        trials: a row a trial: `trial`, `value` and the parameters.
        parameters: name -> whether its axis is logarithmic.
        value: what the value is.
        mode: `max` or `min`, which is best.
        path: to write.
    """
    figure = Figure(figsize=(4 * (len(parameters) + 1), 3.5), layout="constrained")
    first, *others = figure.subplots(1, len(parameters) + 1, squeeze=False)[0]
    best = trials["value"].cummax() if mode == "max" else trials["value"].cummin()
    first.scatter(trials["trial"], trials["value"], s=16)
    first.step(trials["trial"], best, where="post", color="tab:red", label="best so far")
    first.set(xlabel="trial", ylabel=value)
    first.xaxis.get_major_locator().set_params(integer=True)
    first.legend()
    for axes, (name, logarithmic) in zip(others, parameters.items(), strict=True):
        numbers = pd.api.types.is_numeric_dtype(trials[name]) and not pd.api.types.is_bool_dtype(
            trials[name]
        )
        points = axes.scatter(
            trials[name] if numbers else trials[name].astype(str),
            trials["value"],
            c=trials["trial"],
        )
        axes.set_xlabel(name)
        if logarithmic:
            axes.set_xscale("log")
    figure.colorbar(points, label="trial")
    save_figure(figure, path)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG at 110 dots an inch."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)
