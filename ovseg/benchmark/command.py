"""`ovseg benchmark`: from options to measurements to files."""

import sys
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from ovseg.benchmark.formats import measure_formats
from ovseg.benchmark.layers import measure_layers
from ovseg.benchmark.measure import (
    check_scaling,
    describe_machine,
    measure_peers,
    measure_scaling,
    scaling_points,
)
from ovseg.benchmark.peers import PRECISIONS, Workload, check_peer, default_peers
from ovseg.benchmark.report import describe_disturbance, to_markdown, write_benchmark
from ovseg.core.device import choose_device
from ovseg.core.errors import InputError, first_five
from ovseg.core.files import check_output_dir
from ovseg.core.processes import run_alone
from ovseg.core.registry import choose
from ovseg.core.runs import RunFolder
from ovseg.models import find_architecture
from ovseg.training.settings import read_experiment

WHAT = ("train", "infer", "layers", "data")


def benchmark(
    what: str,
    output: Path,
    config: Path,
    arch_args: list[str],
    run: Path | None = None,
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
    """Measure, and write `benchmark.md`, `benchmark.json` and figures.

    `ovseg benchmark --help` explains the options.

    Returns:
        The Markdown tables.

    Raises:
        InputError: something that cannot be measured; nothing has been measured before.
    """
    choose("benchmark", what, dict.fromkeys(WHAT))
    choose("precision", precision, PRECISIONS)
    _check_positive(
        repeats=repeats,
        warmup=warmup,
        threads=threads,
        image_size=image_size,
        batch_size=batch_size,
    )
    check_output_dir(output, overwrite, marker="benchmark.json")
    if run is not None:
        _check_run(what, run, arch_args, peers, scaling)
        config = RunFolder.of(run).config
    settings = read_experiment(config, data, arch_args, None)
    work = _read_workload(
        what, settings, image_size, batch_size, threads, device, precision, channels_last
    )
    if what == "layers":
        tables = {what: run_alone(measure_layers, work, repeats)}
    elif run is not None:
        tables = {"formats": measure_formats(run, data, repeats, work.threads, work.device)}
    elif what == "data":
        tables = {what: _measure_data(config, settings, work.image_size, repeats)}
    else:
        tables = _measure_peers(work, peers, repeats, warmup, scaling)
    write_benchmark(output, tables, describe_machine(work), overwrite)
    for table in tables.values():
        warning = describe_disturbance(table)
        if warning:
            print(warning, file=sys.stderr)
    return "\n\n".join(to_markdown(table) for table in tables.values())


def _check_run(
    what: str, run: Path, arch_args: list[str], peers: list[str] | None, scaling: bool
) -> None:
    """Refuse what does not go with the files of a run."""
    if what != "infer":
        raise InputError(f"--run is for `benchmark infer`, not for {what}. Leave it out.")
    given = {"--arch_args": arch_args, "--peers": peers, "--scaling": scaling}
    surplus = [name for name, value in given.items() if value]
    if surplus:
        raise InputError(f"--run has no {first_five(surplus)}. Leave them out, or --run.")
    if not RunFolder.of(run).config.is_file():
        raise InputError(f"{run} is no run folder with a configuration. Name one with --run.")


def _check_positive(**numbers: int | None) -> None:
    wrong = []
    for name, value in numbers.items():
        if value is not None and value < 1:
            wrong.append(f"--{name} is {value}")
    if wrong:
        raise InputError(f"{first_five(wrong)}, expected at least 1.")


def _read_workload(
    what: str,
    settings: dict[str, Any],
    image_size: int | None,
    batch_size: int | None,
    threads: int | None,
    device: str,
    precision: str,
    channels_last: bool,
) -> Workload:
    """The workload of a training configuration, with the options that replace its values."""
    model = settings["model"]
    find_architecture(model.get("arch"))
    trainer = settings.get("trainer") or {}
    mode = "infer" if what == "infer" else "train"
    if batch_size is None:
        batch_size = 1 if mode == "infer" else settings["data"].get("batch_size", 2)
    return Workload(
        mode=mode,
        model=model,
        clip_value=trainer.get("gradient_clip_val"),
        image_size=image_size or settings["data"].get("image_size", 512),
        batch_size=batch_size,
        threads=threads or torch.get_num_threads(),
        device=str(choose_device(device)),
        precision=precision,
        channels_last=channels_last,
    )


def _measure_data(
    config: Path, settings: dict[str, Any], image_size: int, repeats: int
) -> pd.DataFrame:
    root = settings["data"].get("root")
    if root is None:
        raise InputError(
            f"{config} has no data.root, so there is nothing to load. Add --data FOLDER."
        )
    from ovseg.benchmark.loading import measure_loading

    return measure_loading(root, image_size, repeats=repeats)


def _measure_peers(
    work: Workload, peers: list[str] | None, repeats: int, warmup: int, scaling: bool
) -> dict[str, pd.DataFrame]:
    compared = peers or default_peers(work)
    for peer in compared:
        check_peer(peer, work)
    if not scaling:
        return {work.mode: measure_peers(work, compared, repeats, warmup)}

    scaled = peers or ["ovseg"]
    points = scaling_points(work)
    check_scaling(points, scaled)  # before the minutes that the comparison takes
    return {
        work.mode: measure_peers(work, compared, repeats, warmup),
        "scaling": measure_scaling(points, scaled, repeats),
    }
