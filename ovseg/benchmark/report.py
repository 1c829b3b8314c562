"""What `benchmark` writes: a Markdown table, a JSON file and a figure."""

from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from ovseg.core.files import atomic_dir, atomic_path, write_json
from ovseg.core.plots import save_figure


def write_benchmark(
    output: Path, tables: dict[str, pd.DataFrame], machine: dict[str, Any], overwrite: bool
) -> None:
    """Write `benchmark.md`, `benchmark.json` and a PNG a table.

    Args:
        output: folder to make.
        tables: by name: `train`, `infer`, `scaling`, `layers` or `data`.
        machine: see `ovseg.benchmark.measure.describe_machine`.
        overwrite: replace an earlier benchmark.

    Raises:
        InputError: the folder can't be made.
    """
    with atomic_dir(output, overwrite, marker="benchmark.json") as folder:
        text = [f"# Benchmark\n\n{_describe(machine)}\n"]
        for name, table in tables.items():
            facts = "".join(f"{key}: {value:.4g}. " for key, value in table.attrs.items())
            text.append(f"## {name}\n\n{facts}\n\n{to_markdown(table)}\n")
            save_figure(FIGURES.get(name, _draw_peers)(table), folder / f"{name}.png")
        with atomic_path(folder / "benchmark.md") as temporary:
            temporary.write_text("\n".join(text), encoding="utf-8")
        content = {
            name: {**table.attrs, "rows": table.reset_index().to_dict("records")}
            for name, table in tables.items()
        }
        write_json(folder / "benchmark.json", {"machine": machine, **content})


def to_markdown(table: pd.DataFrame) -> str:
    """A pipe table with numbers to three significant digits; what was not measured stays empty."""
    table = table.reset_index().drop(columns="index", errors="ignore")
    rows = [list(table.columns), ["---"] * len(table.columns)]
    rows += [[_text(value) for value in row] for row in table.itertuples(index=False)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _text(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    if pd.isna(value):
        return ""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _describe(machine: dict[str, Any]) -> str:
    lines = [
        f"- {name}: {value}" for name, value in machine.items() if name not in ("versions", "work")
    ]
    for name in ("versions", "work"):
        lines.append(
            f"- {name}: " + ", ".join(f"{key} {value}" for key, value in machine[name].items())
        )
    return "\n".join(lines)


def _draw_peers(table: pd.DataFrame) -> Figure:
    """Bars of seconds with their spread, and of memory."""
    figure = Figure(figsize=(9, 1.2 + 0.4 * len(table)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    spread = [table["median s"] - table["least s"], table["most s"] - table["median s"]]
    left.barh(table.index, table["median s"], xerr=spread, color="tab:blue", capsize=3)
    left.set(xlabel="seconds a step (median, least and most)")
    right.barh(table.index, table["peak MiB"], color="tab:gray")
    right.set(xlabel="peak memory, MiB")
    left.invert_yaxis()
    return figure


def _draw_scaling(table: pd.DataFrame) -> Figure:
    """Seconds (lines) and memory (dashed) against each variable."""
    variables = table["variable"].unique()
    figure = Figure(figsize=(3.6 * len(variables), 3.6), layout="constrained")
    for axes, variable in zip(
        figure.subplots(1, len(variables), squeeze=False)[0], variables, strict=True
    ):
        memory = axes.twinx()
        for number, (peer, rows) in enumerate(
            table[table["variable"] == variable].groupby("peer", sort=False)
        ):
            x = rows["value"] ** 2 if variable == "image size" else rows["value"]
            axes.plot(x, rows["seconds"], marker="o", color=f"C{number}", label=peer)
            memory.plot(x, rows["peak MiB"], linestyle=":", color=f"C{number}")
        axes.set(
            xlabel="pixels of an image" if variable == "image size" else variable,
            ylabel="seconds",
            ylim=(0, None),
        )
        memory.set(ylabel="peak MiB (dotted)", ylim=(0, None))
        axes.legend()
    return figure


def _draw_layers(table: pd.DataFrame) -> Figure:
    """Bars of forward and backward milliseconds, a row a layer."""
    columns = [name for name in table.columns if name.endswith(" ms")]
    figure = Figure(figsize=(9, 1.5 + 0.3 * len(table)), layout="constrained")
    axes = figure.subplots()
    height = 0.8 / len(columns)
    for number, name in enumerate(columns):
        axes.barh(
            [row + number * height for row in range(len(table))], table[name], height, label=name
        )
    labels = [f"{name}: {what}" for name, what in zip(table.index, table["what"], strict=True)]
    axes.set(
        xlabel="milliseconds",
        yticks=[row + 0.4 - height / 2 for row in range(len(table))],
        yticklabels=labels,
    )
    axes.tick_params(axis="y", labelsize=7)
    axes.invert_yaxis()
    axes.legend()
    return figure


def _draw_data(table: pd.DataFrame) -> Figure:
    """Images a second of each row of `measure_loading`, with their spread."""
    figure = Figure(figsize=(9, 1.2 + 0.35 * len(table)), layout="constrained")
    axes = figure.subplots()
    rates = table["images_per_second"]
    labels = table[["pipeline", "loader", "workers"]].astype(str).agg(", ".join, axis=1)
    axes.barh(labels, rates, xerr=[rates - table["lowest"], table["highest"] - rates], capsize=3)
    axes.set(xlabel="images a second (median, lowest and highest); pipeline, loader, workers")
    axes.invert_yaxis()
    return figure


FIGURES = {"scaling": _draw_scaling, "layers": _draw_layers, "data": _draw_data}
