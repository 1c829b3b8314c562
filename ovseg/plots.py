"""Figures of numbers, drawn without a display."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ovseg.files import atomic_path


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
        for label, value, color in [("mean", values.mean(), "tab:red"), ("median", np.median(values), "black")]:
            axes.axvline(value, color=color, label=f"{label} {value:.3f}")
        axes.legend()
    axes.set(xlabel=f"{name} per image", ylabel="images", title=f"{len(values)} images")
    save_figure(figure, path)


def draw_paired(theirs: np.ndarray, ours: np.ndarray, path: Path) -> None:
    """Two tools' scores of the same images against each other, as PNG; above the diagonal ours is better."""
    figure = Figure(figsize=(4.5, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="gray", linewidth=1)
    axes.scatter(theirs, ours, s=14)
    axes.set(xlabel="Dice, other tool", ylabel="Dice, ours", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    save_figure(figure, path)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG at 110 dots an inch."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)
