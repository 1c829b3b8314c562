"""What `ovseg benchmark` writes: a Markdown table, a JSON file and a figure for each table."""

from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ovseg.benchmark.measure import OTHERS
from ovseg.core.files import atomic_dir, atomic_path, write_json
from ovseg.core.plots import save_figure

DISTURBED = 0.05  # share of the CPUs from which a measurement is doubtful


def write_benchmark(
    output: Path, tables: dict[str, pd.DataFrame], machine: dict[str, Any], overwrite: bool
) -> None:
    """Write `benchmark.md`, `benchmark.json` and a PNG for each table.

    Args:
        output: folder to make.
        tables: by name: `train`, `infer`, `formats`, `scaling`, `layers` or `data`.
        machine: see `ovseg.benchmark.measure.describe_machine`.
        overwrite: replace an earlier benchmark.

    Raises:
        InputError: the folder cannot be made.
    """
    with atomic_dir(output, overwrite, marker="benchmark.json") as folder:
        text = [f"# Benchmark\n\n{_describe(machine)}\n"]
        content: dict[str, Any] = {"machine": machine}
        for name, table in tables.items():
            facts = "".join(f"{key}: {value:.4g}. " for key, value in table.attrs.items())
            disturbance = describe_disturbance(table)
            if disturbance:
                facts += f"\n\n**{disturbance}**"
            text.append(f"## {name}\n\n{facts}\n\n{to_markdown(table)}\n")
            content[name] = {**table.attrs, "rows": table.reset_index().to_dict("records")}
            draw = FIGURES.get(name, _draw_peers)
            save_figure(draw(table), folder / f"{name}.png")
        with atomic_path(folder / "benchmark.md") as temporary:
            temporary.write_text("\n".join(text), encoding="utf-8")
        write_json(folder / "benchmark.json", content)


def describe_disturbance(table: pd.DataFrame) -> str:
    """A warning if other processes used the CPU while a table was measured, else empty."""
    share = table.attrs.get(OTHERS, 0.0)
    if share <= DISTURBED:
        return ""
    return (
        f"Other processes used {share:.0%} of the CPUs during the timed steps: these times are not "
        "those of a quiet machine. Measure again when nothing else runs."
    )


def to_markdown(table: pd.DataFrame) -> str:
    """A Markdown table, numbers to three significant digits; what was not measured stays empty."""
    table = table.reset_index().drop(columns="index", errors="ignore")
    return table.map(_text).to_markdown(index=False, disable_numparse=True)


def _text(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    if pd.isna(value):
        return ""
    if abs(value) >= 1000:
        return f"{value:.0f}"
    return f"{value:.3g}"


def _describe(machine: dict[str, Any]) -> str:
    """A list of the machine's facts; versions and work last, each in one line."""
    lines = []
    details = []
    for name, value in machine.items():
        if name in ("versions", "work"):
            texts = [f"{key} {setting}" for key, setting in value.items()]
            details.append(f"- {name}: {', '.join(texts)}")
        else:
            lines.append(f"- {name}: {value}")
    return "\n".join(lines + details)


def _draw_seconds(axes: Axes, table: pd.DataFrame) -> None:
    """Bars of median seconds with their spread, a row each."""
    median = table["median s"]
    spread = [median - table["least s"], table["most s"] - median]
    axes.barh(table.index, median, xerr=spread, color="tab:blue", capsize=3)


def _draw_peers(table: pd.DataFrame) -> Figure:
    """Bars of seconds with their spread, and of memory."""
    figure = Figure(figsize=(9, 1.2 + 0.4 * len(table)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    _draw_seconds(left, table)
    left.set(xlabel="seconds a step (median, least and most)")
    right.barh(table.index, table["peak MiB"], color="tab:gray")
    right.set(xlabel="peak memory, MiB")
    left.invert_yaxis()
    return figure


def _draw_scaling(table: pd.DataFrame) -> Figure:
    """Seconds (lines) and memory (dotted) against each variable."""
    variables = table["variable"].unique()
    figure = Figure(figsize=(3.6 * len(variables), 3.6), layout="constrained")
    panels = figure.subplots(1, len(variables), squeeze=False)[0]
    for axes, variable in zip(panels, variables, strict=True):
        memory = axes.twinx()
        of_variable = table[table["variable"] == variable]
        for number, (peer, rows) in enumerate(of_variable.groupby("peer", sort=False)):
            values = rows["value"]
            if variable == "image size":
                values = values**2
            color = f"C{number}"
            axes.plot(values, rows["seconds"], marker="o", color=color, label=peer)
            memory.plot(values, rows["peak MiB"], linestyle=":", color=color)
        label = "pixels of an image" if variable == "image size" else variable
        axes.set(xlabel=label, ylabel="seconds", ylim=(0, None))
        memory.set(ylabel="peak MiB (dotted)", ylim=(0, None))
        axes.legend()
    return figure


def _draw_layers(table: pd.DataFrame) -> Figure:
    """Bars of forward and backward milliseconds, a row a layer."""
    columns = [name for name in table.columns if name.endswith("ward ms")]
    labels = [f"{name}: {what}" for name, what in table["what"].items()]
    figure = Figure(figsize=(9, 1.5 + 0.3 * len(table)), layout="constrained")
    axes = figure.subplots()
    height = 0.8 / len(columns)
    rows = range(len(table))
    for number, name in enumerate(columns):
        positions = [row + number * height for row in rows]
        axes.barh(positions, table[name], height, label=name)
    middles = [row + 0.4 - height / 2 for row in rows]
    axes.set_yticks(middles, labels, fontsize=7)
    axes.set(xlabel="milliseconds")
    axes.invert_yaxis()
    axes.legend()
    return figure


def _draw_data(table: pd.DataFrame) -> Figure:
    """Images a second of each row of `measure_loading`, with their spread."""
    figure = Figure(figsize=(9, 1.2 + 0.35 * len(table)), layout="constrained")
    axes = figure.subplots()
    rates = table["images_per_second"]
    spread = [rates - table["lowest"], table["highest"] - rates]
    labels = table[["pipeline", "loader", "workers"]].astype(str).agg(", ".join, axis=1)
    axes.barh(labels, rates, xerr=spread, capsize=3)
    axes.set(xlabel="images a second (median, lowest and highest); pipeline, loader, workers")
    axes.invert_yaxis()
    return figure


def _draw_formats(table: pd.DataFrame) -> Figure:
    """Bars of seconds a picture with their spread, of Dice, memory and size, a row a file."""
    figure = Figure(figsize=(13, 1.2 + 0.4 * len(table)), layout="constrained")
    left, middle, memory, right = figure.subplots(1, 4, sharey=True)
    _draw_seconds(left, table)
    left.set(xlabel="seconds a picture (median, least and most)")
    middle.barh(table.index, table["Dice"], color="tab:green")
    middle.set(xlabel="mean Dice on validation images")
    memory.barh(table.index, table["peak MiB"], color="tab:gray")
    memory.set(xlabel="most memory, MiB")
    right.barh(table.index, table["file MB"], color="tab:gray")
    right.set(xlabel="size of the file, MB")
    left.invert_yaxis()
    return figure


# Name of a table -> how it is drawn; others are tables of peers.
FIGURES = {
    "formats": _draw_formats,
    "scaling": _draw_scaling,
    "layers": _draw_layers,
    "data": _draw_data,
}
