"""Measure images a second of the loader, by cache, pipeline and number of workers."""

import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path

import cv2
import pandas as pd
from torch.utils.data import DataLoader

from ovseg.core.errors import InputError
from ovseg.data.augment.pipelines import PIPELINES, build_transform, seed_transform
from ovseg.data.datamodule import OvarianTumorDataModule, PairDataset
from ovseg.data.samplers import TrainSampler

PIPELINE_ONLY = (
    "albumentations alone"  # a pipeline in a bare loop on arrays: the most a loader can reach
)
WARMUP_BATCHES = 4


@dataclass(frozen=True)
class LoadingCase:
    """What is measured.

    Attributes:
        pipeline: a name of `PIPELINES` or a file.
        loader: `cache`, `decode` or `PIPELINE_ONLY`.
        workers: loader processes.
    """

    pipeline: str
    loader: str
    workers: int


def measure_loading(
    root: str | Path,
    image_size: int = 512,
    pipelines: Iterable[str] = tuple(PIPELINES),
    workers: Iterable[int] = (0, 1, 2),
    repeats: int = 5,
    images: int = 256,
    batch_size: int = 8,
) -> pd.DataFrame:
    """Measure images a second of the training loader, and of each pipeline in a bare loop.

    All cases are measured in turn, `repeats` times, in this process, so that whatever else the
    machine does meets all alike; every repeat draws the same augmentations in every case. OpenCV
    has one thread in all of them.

    Args:
        root: dataset folder.
        image_size: side of the squares, pixels.
        pipelines: names of `PIPELINES` or files.
        workers: numbers of loader processes.
        repeats: how often each case is measured.
        images: how many of an epoch's images are measured.
        batch_size: images a batch.

    Returns:
        A row a case: `size`, `pipeline`, `loader`, `workers`, `batch_size`, `images_per_second`
        (median of the repeats), `lowest` and `highest`.

    Raises:
        InputError: an unknown pipeline, or a dataset that cannot be used.
    """
    pipelines = list(pipelines)
    for pipeline in pipelines:
        build_transform(pipeline)  # an unknown one is an error before anything is read
    modules = {
        "cache": _open_data(root, image_size, batch_size, cache=True),
        "decode": _open_data(root, image_size, batch_size, cache=False),
    }
    cases = [LoadingCase(*case) for case in product(pipelines, modules, workers)]
    cases += [LoadingCase(name, PIPELINE_ONLY, 0) for name in pipelines if name != "none"]

    rates: dict[LoadingCase, list[float]] = {case: [] for case in cases}
    threads = cv2.getNumThreads()
    cv2.setNumThreads(0)  # as in a worker
    for epoch in range(repeats):
        for case in cases:
            module = modules["cache"]
            if case.loader != PIPELINE_ONLY:
                module = modules[case.loader]
            rates[case].append(_measure_case(case, module, images, epoch))
    cv2.setNumThreads(threads)

    rows = []
    for case, found in rates.items():
        rows.append(
            {
                "size": image_size,
                "pipeline": case.pipeline,
                "loader": case.loader,
                "workers": case.workers,
                "batch_size": batch_size,
                "images_per_second": statistics.median(found),
                "lowest": min(found),
                "highest": max(found),
            }
        )
    return pd.DataFrame(rows)


def _open_data(
    root: str | Path, image_size: int, batch_size: int, cache: bool
) -> OvarianTumorDataModule:
    data = OvarianTumorDataModule(
        str(root), image_size, batch_size, num_workers=0, cache=cache, drop_last=True
    )
    if cache:
        data.verify(["train"], keep=True)
    found = len(data.pairs("train"))
    needed = (WARMUP_BATCHES + 1) * batch_size
    if found < needed:
        raise InputError(
            f"{root} has {found} training images, too few to measure, expected {needed} or more. "
            "Lower the batch size or make phantoms."
        )
    return data


def _measure_case(
    case: LoadingCase, module: OvarianTumorDataModule, images: int, epoch: int
) -> float:
    """Images a second of one case in one epoch."""
    module.hparams.update(augmentation=case.pipeline, num_workers=case.workers)
    loader = module.train_dataloader()
    sampler = loader.sampler
    dataset = loader.dataset
    assert isinstance(sampler, TrainSampler)
    assert isinstance(dataset, PairDataset)
    sampler.set_epoch(epoch)
    if case.loader == PIPELINE_ONLY:
        return _measure_pipeline(dataset, sampler, images)
    return _measure_loader(loader, images)


def _measure_loader(loader: DataLoader, images: int) -> float:
    """Images a second after the warm-up, when workers have started and their queue is steady."""
    assert loader.batch_size is not None
    batches = iter(loader)
    for _ in range(WARMUP_BATCHES):
        next(batches)
    measured = max(1, images // loader.batch_size)
    count = 0
    began = time.perf_counter()
    for batch in islice(batches, measured):
        count += len(batch["stem"])
    return count / (time.perf_counter() - began)


def _measure_pipeline(dataset: PairDataset, sampler: TrainSampler, images: int) -> float:
    """Images a second of the pipeline alone: reading, seeding and batching are not counted."""
    transform = dataset.transform
    assert transform is not None
    seconds = 0.0
    for index, seed in islice(sampler, images):
        image, mask = dataset.load(index)
        seed_transform(transform, seed)
        began = time.perf_counter()
        transform(image=image, mask=mask)
        seconds += time.perf_counter() - began
    return images / seconds
