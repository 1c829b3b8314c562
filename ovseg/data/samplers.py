"""How a loader runs: which images a process loads and in which order, its workers, its batches."""

from collections.abc import Iterator

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset, DistributedSampler, get_worker_info


class TrainSampler(DistributedSampler):
    """Yields (index, augmentation seed), both a function of (seed, epoch, index) alone.

    So what an epoch sees depends neither on the number of workers, nor on whether they persist, nor on a resume, and
    with several processes each image keeps its augmentation. A DistributedSampler, so Lightning leaves it as it is and
    calls `set_epoch`.
    """

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for index in super().__iter__():
            yield (
                index,
                int(np.random.SeedSequence([self.seed, self.epoch, index]).generate_state(1)[0]),
            )


class WholeBatchSampler(DistributedSampler):
    """Deals whole batches to the processes in turn, without repeating an image to even the shares.

    The batches are those of one process, so batch-wide scores and their means do not depend on the number of processes.
    A process for which no batch is left gets the last pair as index -1, whose stem is empty: it is not to be counted.
    """

    def __init__(self, dataset: Dataset, batch_size: int, num_replicas: int, rank: int):
        super().__init__(dataset, num_replicas=num_replicas, rank=rank, shuffle=False)
        starts = range(rank * batch_size, len(dataset), num_replicas * batch_size)
        self.indices = [
            i for start in starts for i in range(start, min(start + batch_size, len(dataset)))
        ] or [-1]

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)


def empty_batch(count: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Room for images (N, 3, S, S) and masks (N, 1, S, S), uint8, in one piece of memory.

    In a worker it is memory that the main process can map, as torch's own collation has it: a new piece of it costs
    more than the copying, so there is one a batch.
    """
    length = count * size * size
    flat = torch.empty(0 if get_worker_info() else 4 * length, dtype=torch.uint8)
    if get_worker_info():
        flat.set_(torch.UntypedStorage._new_shared(4 * length))
    return flat[: 3 * length].view(count, 3, size, size), flat[3 * length :].view(
        count, 1, size, size
    )


def as_is(batch: dict) -> dict:
    """The collation of batches that are whole already."""
    return batch


def init_worker(_: int) -> None:
    """Keep OpenCV to the worker's own thread: its pool can hang a forked worker."""
    cv2.setNumThreads(0)
