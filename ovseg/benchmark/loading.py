"""Images a second that the loader delivers: with and without cache, with each pipeline, by the number of workers."""

import statistics
import time
from collections.abc import Iterable
from itertools import islice, product
from pathlib import Path

import cv2
from torch.utils.data import DataLoader

from ovseg.core.errors import InputError
from ovseg.data.augment.pipelines import PIPELINES, build_transform, seed_transform
from ovseg.data.datamodule import OvarianTumorDataModule

ALONE = "albumentations alone"  # the pipeline in a bare loop on arrays in memory: what a loader can at best reach
WARM_UP = 4  # batches


def measure_loading(
    root: str | Path,
    image_size: int = 512,
    pipelines: Iterable[str] = tuple(PIPELINES),
    workers: Iterable[int] = (0, 1, 2),
    repeats: int = 5,
    images: int = 256,
    batch_size: int = 8,
) -> list[dict]:
    """Images a second of the training loader, and of each pipeline in a bare loop.

    All cases are measured in turn, `repeats` times, in this process, so that whatever else the machine does meets all
    alike; every repeat draws the same augmentations in every case. OpenCV has one thread in all of them.

    Args:
        root: dataset folder.
        image_size: side of the squares, pixels.
        pipelines: names of `PIPELINES` or files.
        workers: numbers of loader processes.
        repeats: how often each case is measured.
        images: how many of an epoch's are measured.
        batch_size: images a batch.

    Returns:
        A row a case: `size`, `pipeline`, `loader` (`cache`, `decode`, or `albumentations alone`), `workers`,
        `batch_size`, `images_per_second` (median of the repeats), `lowest` and `highest`.

    Raises:
        InputError: unknown pipeline, or a dataset that can't be used.
    """
    modules = {
        loader: _data(root, image_size, batch_size, loader == "cache")
        for loader in ("cache", "decode")
    }
    names = [name for name in pipelines if build_transform(name) or name == "none"]
    cases = list(product(names, modules, workers)) + [
        (name, ALONE, 0) for name in names if name != "none"
    ]
    rates: dict[tuple, list[float]] = {case: [] for case in cases}
    threads = cv2.getNumThreads()
    cv2.setNumThreads(0)  # as in a worker
    for epoch, (name, loader, count) in product(range(repeats), cases):
        loading = modules.get(loader, modules["cache"])
        loading.hparams.update(augmentation=name, num_workers=count)
        measure = _measure_alone if loader == ALONE else _measure_loader
        rates[name, loader, count].append(measure(loading.train_dataloader(), images, epoch))
    cv2.setNumThreads(threads)
    return [
        {
            "size": image_size,
            "pipeline": name,
            "loader": loader,
            "workers": count,
            "batch_size": batch_size,
        }
        | {
            "images_per_second": statistics.median(found),
            "lowest": min(found),
            "highest": max(found),
        }
        for (name, loader, count), found in rates.items()
    ]


def _data(
    root: str | Path, image_size: int, batch_size: int, cache: bool
) -> OvarianTumorDataModule:
    data = OvarianTumorDataModule(
        str(root), image_size, batch_size, num_workers=0, cache=cache, drop_last=True
    )
    if cache:
        data.verify(["train"], keep=True)
    found = len(data.pairs("train"))
    if found < (WARM_UP + 1) * batch_size:
        raise InputError(
            f"{root} has {found} training images, too few to measure, expected {(WARM_UP + 1) * batch_size} or more. "
            "Lower the batch size or make phantoms."
        )
    return data


def _measure_loader(loader: DataLoader, images: int, epoch: int) -> float:
    """Images a second from the fifth batch on, when workers have started and their queue is in its steady state."""
    loader.sampler.set_epoch(epoch)
    batches = iter(loader)
    _ = [next(batches) for _ in range(WARM_UP)]
    start = time.perf_counter()
    count = sum(
        len(batch["stem"]) for batch in islice(batches, max(1, images // loader.batch_size))
    )
    return count / (time.perf_counter() - start)


def _measure_alone(loader: DataLoader, images: int, epoch: int) -> float:
    """Images a second of the pipeline in a bare loop: neither reading nor seeding nor batching is counted."""
    loader.sampler.set_epoch(epoch)
    transform, spent = loader.dataset.transform, 0.0
    for index, seed in islice(loader.sampler, images):
        image, mask = loader.dataset.load(index)
        seed_transform(transform, seed)
        start = time.perf_counter()
        transform(image=image, mask=mask)
        spent += time.perf_counter() - start
    return images / spent
