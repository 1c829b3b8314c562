"""The order in which a process loads images, and what else the loader of a dataset needs."""

from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset, DistributedSampler, get_worker_info

from ovseg.core.errors import InputError


class TrainSampler(DistributedSampler):
    """Yields (index, augmentation seed), both a function of (seed, epoch, index) alone.

    So what an epoch sees depends neither on the number of workers, nor on whether they persist,
    nor on a resume, and with several processes each image keeps its augmentation. It is a
    DistributedSampler because Lightning keeps such a sampler and calls its `set_epoch`.

    Args:
        dataset: of the training images.
        num_replicas: number of processes.
        rank: of this process.
        shuffle: whether each epoch has a new order.
        seed: from which orders and augmentations follow.
        drop_last: see `DistributedSampler`.
        count: indices of an epoch and process; None for every image once. If there are fewer
            images, all are taken again, in a new order and with other augmentation seeds.
    """

    def __init__(
        self,
        dataset: Dataset,
        num_replicas: int,
        rank: int,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
        count: int | None = None,
    ):
        super().__init__(dataset, num_replicas, rank, shuffle, seed, drop_last)
        self.count = count

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for index, round_number in self._indices():
            entropy = [self.seed, self.epoch, index]
            if round_number:
                entropy.append(round_number)
            sequence = np.random.SeedSequence(entropy)
            augmentation_seed = int(sequence.generate_state(1)[0])
            yield index, augmentation_seed

    def __len__(self) -> int:
        return super().__len__() if self.count is None else self.count

    def _indices(self) -> list[tuple[int, int]]:
        """Pairs of an index and of how often all images were taken before."""
        if self.count is None:
            return [(index, 0) for index in super().__iter__()]
        images = len(self.dataset)  # type: ignore[arg-type]  # one with indices has a length
        needed = self.count * self.num_replicas
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        pairs: list[tuple[int, int]] = []
        round_number = 0
        while len(pairs) < needed:
            order = torch.arange(images)
            if self.shuffle:
                order = torch.randperm(images, generator=generator)
            pairs += [(index, round_number) for index in order.tolist()]
            round_number += 1
        return pairs[self.rank : needed : self.num_replicas]


class WholeBatchSampler(DistributedSampler):
    """Gives whole batches to the processes in turn, without repeating an image to even the shares.

    The batches are those of one process, so scores of a batch and their means do not depend on the
    number of processes. A process for which no batch is left gets index -1, which stands for the
    last pair with an empty stem: it is not to be counted.
    """

    def __init__(self, dataset: Dataset, batch_size: int, num_replicas: int, rank: int):
        super().__init__(dataset, num_replicas=num_replicas, rank=rank, shuffle=False)
        count = len(dataset)  # type: ignore[arg-type]  # one with indices has a length

        self.indices: list[int] = []
        for start in range(rank * batch_size, count, num_replicas * batch_size):
            end = min(start + batch_size, count)
            self.indices += range(start, end)

        if not self.indices:
            self.indices = [-1]

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)


def empty_batch(count: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Memory for images (N, 3, S, S) and masks (N, 1, S, S), uint8, not initialised.

    Both lie in one piece of memory. In a worker it is memory that the main process can map, as in
    torch's own collation; to allocate it costs more than to copy, hence one piece for both.

    Args:
        count: N.
        size: S, pixels.

    Raises:
        InputError: a worker gets no shared memory.
    """
    plane = size * size
    flat = _empty_bytes(4 * count * plane)
    images = flat[: 3 * count * plane].view(count, 3, size, size)
    masks = flat[3 * count * plane :].view(count, 1, size, size)
    return images, masks


def _empty_bytes(length: int) -> torch.Tensor:
    """A flat uint8 tensor, not initialised; in a worker it lies in shared memory.

    Raises:
        InputError: there is no shared memory left.
    """
    if get_worker_info() is None:
        return torch.empty(length, dtype=torch.uint8)

    # torch's default_collate makes such memory in the same way (checked with 2.14). The public
    # `share_memory_` would first allocate ordinary memory, then copy it.
    try:
        storage = torch.UntypedStorage._new_shared(length)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"A loader process got no shared memory for a batch of {length / 1e6:.1f} MB "
            f"({reason}). "
            "Set --data.num_workers 0, or give more of it (/dev/shm; docker run --shm-size 2g)."
        ) from None
    return torch.empty(0, dtype=torch.uint8).set_(storage)


def as_is(batch: Any) -> Any:
    """The collation of batches that the dataset made whole already."""
    return batch


def init_worker(_: int) -> None:
    """Keep OpenCV to the worker's own thread: its thread pool can hang a forked worker."""
    cv2.setNumThreads(0)
