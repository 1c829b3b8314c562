import resource

import pytest
import torch

from ovseg.core.errors import InputError
from ovseg.data.samplers import TrainSampler, WholeBatchSampler, empty_batch
from support import make_data


def shares_of(count: int, batch_size: int, world: int) -> list[list[int]]:
    """The indices that each of `world` processes gets."""
    shares = []
    for rank in range(world):
        sampler = WholeBatchSampler(range(count), batch_size, world, rank)
        shares.append(list(sampler))
        assert len(sampler) == len(shares[-1])
    return shares


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_processes_share_whole_batches_without_repeats(world):
    batches = []
    for share in shares_of(11, 4, world):
        assert share  # a process without a batch would keep the others waiting
        if share == [-1]:
            continue
        assert -1 not in share
        for start in range(0, len(share), 4):
            batches.append(share[start : start + 4])

    assert sorted(batches) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]


def test_process_without_a_batch_gets_one_image_that_is_not_counted():
    assert shares_of(3, 4, 2) == [[0, 1, 2], [-1]]


def test_an_image_keeps_its_augmentation_whatever_the_number_of_processes():
    whole = TrainSampler(range(10), 1, 0, shuffle=True, seed=5)
    halves = [TrainSampler(range(10), 2, rank, shuffle=True, seed=5) for rank in (0, 1)]

    both = [*halves[0], *halves[1]]

    assert sorted(both) == sorted(whole)


def test_augmentation_seeds_follow_from_seed_and_epoch():
    def seeds(seed: int, epoch: int) -> list[int]:
        sampler = TrainSampler(range(10), 1, 0, shuffle=False, seed=seed)
        sampler.set_epoch(epoch)
        return [augmentation_seed for _, augmentation_seed in sampler]

    first = seeds(5, 0)
    assert seeds(5, 0) == first
    assert len(set(first)) == 10
    assert not set(first) & set(seeds(5, 1))
    assert not set(first) & set(seeds(6, 0))


def test_empty_batch_has_room_for_images_and_masks():
    images, masks = empty_batch(3, 8)
    assert images.shape == (3, 3, 8, 8)
    assert masks.shape == (3, 1, 8, 8)
    assert images.dtype == masks.dtype == torch.uint8


def test_worker_without_shared_memory_is_one_sentence(phantom_root):
    def limit(_: int) -> None:
        """Shared memory is held to the limit of a file's size, here 16 kB."""
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**14, 2**14))

    loader = make_data(phantom_root, cache=False, num_workers=1).train_dataloader()
    loader.worker_init_fn = limit
    message = r"got no shared memory .* Set --data.num_workers 0, .* docker run --shm-size"
    with pytest.raises(InputError, match=message) as caught:
        next(iter(loader))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("world", [1, 2])
def test_count_repeats_images_in_new_orders_with_other_seeds(world):
    samplers = [TrainSampler(range(4), world, rank, seed=5, count=6) for rank in range(world)]
    shares = [list(sampler) for sampler in samplers]
    assert [len(share) for share in shares] == [6] * world == [len(one) for one in samplers]
    mixed = [pair for pairs in zip(*shares, strict=True) for pair in pairs]
    indices = [index for index, _ in mixed]
    assert sorted(indices[:4]) == [0, 1, 2, 3]
    assert len(set(mixed)) == len(mixed)  # a repeated image has another seed


def test_count_below_the_images_shortens_an_epoch():
    sampler = TrainSampler(range(9), 1, 0, shuffle=False, count=4)
    assert [index for index, _ in sampler] == [0, 1, 2, 3]
