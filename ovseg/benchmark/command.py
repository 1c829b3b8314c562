"""`benchmark`: from options to measurements to files."""

import importlib.util
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from ovseg.benchmark.layers import measure_layers
from ovseg.benchmark.measure import describe_machine, measure_peers, measure_scaling
from ovseg.benchmark.peers import ONLY_INFER, PRECISIONS, Workload
from ovseg.benchmark.report import to_markdown, write_benchmark
from ovseg.core.device import choose_device
from ovseg.core.errors import InputError
from ovseg.core.files import check_output_dir
from ovseg.core.processes import run_alone
from ovseg.core.registry import choose
from ovseg.training.config import read_experiment

PACKAGES = {
    "tensorflow": "tensorflow",
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "monai": "monai",
}
WHAT = ("train", "infer", "layers", "data")


def benchmark(
    what: str,
    output: Path,
    config: Path,
    arch_args: list[str],
    peers: list[str] | None = None,
    data: str | None = None,
    image_size: int | None = None,
    batch_size: int | None = None,
    repeats: int = 5,
    warmup: int = 2,
    threads: int | None = None,
    precision: str = "32",
    channels_last: bool = False,
    scaling: bool = False,
    device: str = "auto",
    overwrite: bool = False,
) -> str:
    """Measure, and write `benchmark.md`, `benchmark.json` and figures; see `ovseg benchmark --help` for the options.

    Returns:
        The Markdown tables.

    Raises:
        InputError: an option that can't be measured, told before anything is.
    """
    choose("benchmark", what, dict.fromkeys(WHAT))
    choose("precision", precision, PRECISIONS)
    numbers = {"repeats": repeats, "warmup": warmup, "threads": threads, "image-size": image_size}
    for name, value in {**numbers, "batch-size": batch_size}.items():
        if value is not None and value < 1:
            raise InputError(f"--{name} is {value}, expected at least 1.")
    check_output_dir(output, overwrite, marker="benchmark.json")
    settings = read_experiment(config, data, arch_args, None)
    work = Workload(
        mode="infer" if what == "infer" else "train",
        model=settings["model"],
        clip_value=(settings.get("trainer") or {}).get("gradient_clip_val"),
        image_size=image_size or settings["data"].get("image_size", 512),
        batch_size=batch_size or (1 if what == "infer" else settings["data"].get("batch_size", 2)),
        threads=threads or torch.get_num_threads(),
        device=str(choose_device(device)),
        precision=precision,
        channels_last=channels_last,
    )
    tables = _measure(what, work, settings, peers, repeats, warmup, scaling)
    write_benchmark(output, tables, describe_machine(work), overwrite)
    return "\n\n".join(to_markdown(table) for table in tables.values())


def _measure(
    what: str,
    work: Workload,
    settings: dict[str, Any],
    peers: list[str] | None,
    repeats: int,
    warmup: int,
    scaling: bool,
) -> dict[str, pd.DataFrame]:
    if what == "layers":
        return {what: run_alone(measure_layers, work, repeats)}
    if what == "data":
        from ovseg.benchmark.loading import measure_loading

        return {
            what: pd.DataFrame(
                measure_loading(settings["data"]["root"], work.image_size, repeats=repeats)
            )
        }
    tables = {what: measure_peers(work, peers or default_peers(work), repeats, warmup)}
    if scaling:
        tables["scaling"] = measure_scaling(work, peers or ["ovseg"], repeats)
    return tables


def default_peers(work: Workload) -> list[str]:
    """All peers of the same network whose packages are installed and that can do the work; the reference first."""
    names = ["tensorflow", "torch", "ovseg", *(ONLY_INFER if work.mode == "infer" else ())]
    if work.device != "cpu":
        names = [
            "torch",
            "ovseg",
            "compile",
            *(["graphs"] if work.device.startswith("cuda") else []),
        ]
    if work.model["arch"] != "flexible_unet" and "tensorflow" in names:
        names.remove("tensorflow")
    return [
        name for name in names if name not in PACKAGES or importlib.util.find_spec(PACKAGES[name])
    ]
