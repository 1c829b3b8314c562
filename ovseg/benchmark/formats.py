"""A run as each of its exported files: time, memory, size and masks on real pictures."""

import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from ovseg.benchmark.measure import OTHERS
from ovseg.core.checkpoints import read_members
from ovseg.core.console import progress_bar
from ovseg.core.errors import InputError
from ovseg.core.processes import busy_seconds, own_process, peak_memory
from ovseg.inference.agreement import choose_images, dice_between
from ovseg.inference.export import export_run
from ovseg.inference.model_files import find_model_file
from ovseg.inference.predictor import Predictor

# Name of a row -> format and precision of its file.
FILES = {
    "ONNX": ("onnx", "float32"),
    "ONNX, int8": ("onnx", "int8"),
    "OpenVINO": ("openvino", "float32"),
    "OpenVINO, int8": ("openvino", "int8"),
    "safetensors, float16": ("safetensors", "float16"),
}
RUN = "the run, torch"
RUNTIME = "ONNX by ovseg.runtime"
BATCH = 8
# Seconds before each measurement: threads of the engine before it go on spinning for a while, which
# made the run's own network look twice as slow.
PAUSE = 0.25

# Of the process that measures one file: from pictures to labels of each.
_predict: Callable[[list[np.ndarray]], list[np.ndarray]]


def measure_formats(
    run: Path, data: str | None, repeats: int, threads: int, device: str
) -> pd.DataFrame:
    """Measure a run and its exported files, which take turns, each in a process of its own.

    Args:
        run: run folder or checkpoint.
        data: the dataset whose validation images are predicted, if not that of training.
        repeats: timed pictures, and timed batches of `BATCH`, of each.
        threads: of the CPU.
        device: of the run itself; its files run on the CPU.

    Returns:
        A row each, but for files that are refused: seconds to load (after torch's import), seconds
        a picture (median, least and most; from pixels to mask with the run's post-processing),
        pictures a second in batches, the most memory of the process, in which torch (about 0.4 GB)
        is imported in any case, size of the file, mean Dice against the reference, and the
        least Dice of a mask with the run's own.

    Raises:
        InputError: the run or its dataset can't be used, or a package is missing.
    """
    root = None if data is None else Path(data)
    sample = choose_images(read_members(run)[0], root)
    if not sample.is_real:
        raise InputError(f"The dataset of {run} is not here. Name it with --data.")
    batch = sample.pictures[:BATCH]
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        sources = {RUN: run}
        for name, (kind, precision) in FILES.items():
            folder = Path(scratch) / f"{kind}_{precision}"
            try:
                export_run(run, folder, kind, precision, root)
            # One that is refused, such as int8 that costs too much, is left out of the table.
            except InputError as error:
                print(f"{name} is not measured: {error}")
                continue
            sources[name] = find_model_file(folder)
        if "ONNX" in sources:
            sources[RUNTIME] = sources["ONNX"]

        rows: dict[str, dict[str, Any]] = {}
        processes: dict[str, ProcessPoolExecutor] = {}
        for name, source in progress_bar(sources.items(), "Loading"):
            process = stack.enter_context(own_process())
            processes[name] = process
            by = device if name == RUN else "cpu"
            seconds = process.submit(_load, name, source, threads, by).result()
            process.submit(_time, batch).result()  # untimed
            rows[name] = {"load s": seconds, "file MB": _megabytes(source)}

        times: dict[str, list[float]] = {name: [] for name in sources}
        batches: dict[str, list[float]] = {name: [] for name in sources}
        began = time.perf_counter()
        busy = busy_seconds()
        for number in progress_bar(range(repeats), "Measuring"):
            picture = sample.pictures[number % len(sample.pictures)]
            for name, process in processes.items():
                times[name].append(process.submit(_time, [picture]).result())
                batches[name].append(process.submit(_time, batch).result())
        own = sum(map(sum, [*times.values(), *batches.values()])) * threads
        cores = (time.perf_counter() - began) * torch.get_num_threads()
        others = max(0.0, busy_seconds() - busy - own) / cores

        for name, process in processes.items():
            rows[name]["peak MiB"] = process.submit(peak_memory).result()
        labels = {}
        for name, process in progress_bar(processes.items(), "Comparing masks"):
            labels[name] = process.submit(_label, sample.pictures).result()
    for name, row in rows.items():
        row["median s"] = float(np.median(times[name]))
        row["least s"] = min(times[name])
        row["most s"] = max(times[name])
        row["pictures/s"] = len(batch) / float(np.median(batches[name]))
        row["Dice"] = _mean_dice(labels[name], sample.masks)
        row["least Dice with the run"] = min(_dices(labels[name], labels[RUN]))
    table = pd.DataFrame.from_dict(rows, "index").rename_axis("file")
    table.attrs[OTHERS] = others
    return table


def _load(name: str, source: Path, threads: int, device: str) -> float:
    """Load a run or a file in this process; returns the seconds, imports of packages included."""
    global _predict
    torch.set_num_threads(threads)
    began = time.perf_counter()
    if name == RUNTIME:
        from ovseg.runtime import Model

        model = Model(source, threads)

        def predict(pictures: list[np.ndarray]) -> list[np.ndarray]:
            return [model.predict(picture).labels for picture in pictures]
    else:
        predictor = Predictor.load(source, device)

        def predict(pictures: list[np.ndarray]) -> list[np.ndarray]:
            return [prediction.labels for prediction in predictor.predict(pictures, BATCH)]

    _predict = predict
    return time.perf_counter() - began


def _time(pictures: Sequence[np.ndarray]) -> float:
    """Seconds that some pictures take together."""
    time.sleep(PAUSE)
    began = time.perf_counter()
    _predict(list(pictures))
    return time.perf_counter() - began


def _label(pictures: Sequence[np.ndarray]) -> list[np.ndarray]:
    return _predict(list(pictures))


def _megabytes(source: Path) -> float:
    """Size of a run's checkpoint or of an exported file, with the weights beside it."""
    if source.is_dir():
        source = read_members(source)[0].path
    files = [source, source.with_suffix(".bin")] if source.suffix == ".xml" else [source]
    return sum(file.stat().st_size for file in files) / 1e6


def _dices(labels: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> list[float]:
    pairs = zip(labels, others, strict=True)
    return [dice_between(first > 0, second > 0) for first, second in pairs]


def _mean_dice(labels: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> float:
    return float(np.mean(_dices(labels, masks)))
