"""Batches of pairs for training and evaluation.

The batch contract, everywhere in ovseg: a dict of `image` uint8 (N, 3, H, W), RGB 0..255; `mask` uint8 (N, 1, H, W),
0 or 1, or category ids where `classes` is above 1; `stem` list of N str, empty for a repeated pair that is not to be
counted. Scaling to the network's range is the network's own first layer.
"""

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from pytorch_lightning import LightningDataModule
from pytorch_lightning.utilities import rank_zero_info
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from ovseg.core.errors import InputError, first_five
from ovseg.core.registry import choose
from ovseg.data.augment.pipelines import augment, build_transform
from ovseg.data.cache import PairCache, PickedCache, SplitCaches
from ovseg.data.geometry import FITS, place
from ovseg.data.manifest import category_names, check_manifest, read_manifest
from ovseg.data.pairs import Pair, list_images, read_image, read_pair, verify_pairs
from ovseg.data.prepare.phantoms import write_phantoms
from ovseg.data.samplers import TrainSampler, WholeBatchSampler, as_is, empty_batch, init_worker
from ovseg.data.tree import SPLITS, DatasetTree


class PairDataset(Dataset):
    """Pairs as dicts of tensors, placed in a square of `image_size`; item (index, seed) is augmented with that seed.

    A loader takes whole batches of it (`__getitems__`), so a cached image is copied once, into its batch.
    """

    def __init__(
        self,
        pairs: list[Pair],
        image_size: int,
        fit: str,
        mask_threshold: int,
        augmentation: str = "none",
        classes: int = 1,
        cache: PairCache | PickedCache | None = None,
    ):
        self.pairs, self.image_size, self.fit, self.mask_threshold = (
            pairs,
            image_size,
            fit,
            mask_threshold,
        )
        self.classes, self.transform, self.cache = classes, build_transform(augmentation), cache

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: int | tuple[int, int]) -> dict:
        return {name: values[0] for name, values in self.__getitems__([key]).items()}

    def __getitems__(self, keys: list[int | tuple[int, int]]) -> dict:
        """A batch."""
        images, masks = empty_batch(len(keys), self.image_size)
        indices = [key[0] if isinstance(key, tuple) else key for key in keys]
        for row, key in enumerate(keys):
            seed = key[1] if isinstance(key, tuple) else 0
            self._write(indices[row], seed, images.numpy()[row], masks.numpy()[row, 0])
        return {
            "image": images,
            "mask": masks,
            "stem": [self.pairs[i].stem if i >= 0 else "" for i in indices],
        }

    def _write(self, index: int, seed: int, planes: np.ndarray, labels: np.ndarray) -> None:
        """Put an image into its planes (3, S, S) of a batch, and its mask into `labels` (S, S)."""
        if self.cache and self.transform is None:
            record = self.cache.records[index]
            planes[:], labels[:] = record[:3], record[3]
            return
        image, mask = self.load(index)
        if self.transform is not None:
            image, mask = augment(self.transform, image, mask, seed)
        cv2.split(image, list(planes))  # in place, and several times as fast as numpy's transpose
        labels[:] = mask

    def load(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Placed image (S, S, 3) and mask (S, S), from the cache where there is one."""
        if self.cache:
            *planes, mask = self.cache.records[index]
            return cv2.merge(planes), np.array(mask)  # copies: the records are read-only
        pair = self.pairs[index]
        pictures = read_pair(pair, self.mask_threshold, self.classes)
        return tuple(place(picture, self.image_size, self.fit) for picture in pictures)


class OvarianTumorDataModule(LightningDataModule):
    """The dataset tree `root/{train,valid,test}/{images,masks}`, pairs matched by stem.

    It is what `prepare_data` writes, and the TensorFlow baseline's own layout (JPEG masks, any picture format). Every
    pair is decoded and checked once before the first epoch. With `classes` above 1 the category maps in `categories`,
    which `prepare_data` writes too, take the place of `masks`.

    Args:
        root: the dataset's folder.
        image_size: side of the square that images and masks are placed in, pixels, 16..8192.
        batch_size: images a batch and process.
        num_workers: loader processes; 0 loads in the main process, as do splits that are cached and not augmented.
        augmentation: for training: a name of `ovseg.data.augment.pipelines.PIPELINES` or an albumentations YAML/JSON file.
        shuffle: new order of the training images in each epoch (the baseline has none).
        drop_last: leave out a short last training batch; batch normalisation fails on a batch of one pixel.
        seed: order and augmentation follow from (seed, epoch, image).
        fit: how a picture that is not square fills the square: `letterbox` or `stretch`. From a dataset that was
            prepared with letterbox, stretch takes each picture without its border.
        mask_threshold: grey values above it are lesion, 0..254.
        exclude: stems to leave out of every split.
        mini_test: folder of images for the snapshots of every epoch; by default images of `test`.
        phantoms: where `root` does not exist, write this many synthetic pairs there; 0 never does.
        classes: 1 for lesion and background; the number of categories and background for category ids as masks. The
            command line gives the network as many.
        cache: keep the decoded pairs (4 bytes a pixel of a pair: 1 MB at 512) in `root/.cache`, or in the named folder;
            built with the verification, which a later start then need not repeat.
        fold: validate with this fold of a dataset prepared with `--folds`, 0, 1, ..., and train on all other images of
            train and valid; test stays as it is.

    Raises:
        InputError: a value out of range, an unknown `augmentation` or `fit`.
    """

    def __init__(
        self,
        root: str,
        image_size: int = 512,
        batch_size: int = 2,
        num_workers: int = 2,
        augmentation: str = "none",
        shuffle: bool = True,
        drop_last: bool = False,
        seed: int = 42,
        fit: str = "letterbox",
        mask_threshold: int = 127,
        exclude: list[str | int] | None = None,
        mini_test: str | None = None,
        phantoms: int = 0,
        classes: int = 1,
        cache: bool | str = True,
        fold: int | None = None,
    ):
        super().__init__()
        self.save_hyperparameters()
        _check_range("image_size", image_size, 16, 8192)
        _check_range("batch_size", batch_size, 1, 65536)
        _check_range("num_workers", num_workers, 0, 1024)
        _check_range("mask_threshold", mask_threshold, 0, 254)
        _check_range("seed", seed, 0, 2**32 - 1)
        _check_range("classes", classes, 1, 256)
        choose("fit", fit, FITS)
        build_transform(augmentation)
        self.root = Path(root)
        self.tree = DatasetTree(self.root, exclude, classes, fold, fit)
        self._verified = False
        folder = (
            self.root / ".cache"
            if isinstance(cache, bool)
            else Path(cache) / self.root.resolve().name
        )
        settings = {
            name: self.hparams[name]
            for name in ("image_size", "fit", "mask_threshold", "exclude", "classes")
        }
        self._caches = SplitCaches(folder if cache else None, settings)

    def prepare_data(self) -> None:
        """Write the phantoms where asked for, then verify every pair of every split; runs once a machine.

        Raises:
            InputError: the tree is missing or incomplete, or pairs can't be used (see `verify_pairs`).
        """
        if self._verified:
            return
        if self.hparams.phantoms and not self.root.exists():
            write_phantoms(
                self.root, self.hparams.phantoms, self.hparams.image_size, self.hparams.seed
            )
        self.verify(SPLITS, keep=True)
        self.tree.check_exclude()
        for pair in self.mini_test_pairs(count=64) if self.hparams.mini_test else ():
            read_image(pair.image_path)
        _ = self.dataset("train", self.hparams.augmentation)[
            0, 0
        ]  # an augmentation that fails does so here
        self._verified = True

    def verify(self, splits: Iterable[str], keep: bool = False) -> None:
        """Decode and check every pair of some splits, or find them in a valid cache; empty masks are counted and named.

        Args:
            splits: names of splits.
            keep: build the cache where there is no valid one; worth it for more than one pass.

        Raises:
            InputError: see `prepare_data`.
        """
        check_manifest(self.root, self.hparams.fit, self.hparams.classes)
        folders = {
            name: pairs
            for split in splits
            if self.pairs(split)
            for name, pairs in self.tree.folders(split).items()
        }
        if self.leakage:
            rank_zero_info(
                f"leakage: near-duplicates of one examination are in two splits of {self.root}."
            )
        for name, pairs in folders.items():
            check = partial(verify_pairs, pairs, self.hparams.mask_threshold, self.hparams.classes)
            empty = self._caches.verify(name, pairs, check, keep)
            if empty:
                rank_zero_info(
                    f"{len(empty)} of {len(pairs)} masks in {name} are empty: {first_five(empty)}"
                )

    @property
    def leakage(self) -> bool:
        """The dataset was prepared with near-duplicates in two splits, so its scores are too good."""
        return bool(read_manifest(self.root).get("leakage"))

    @property
    def categories(self) -> list[str]:
        """Names of ids 1, 2, ...; empty for one class. Raises InputError where the dataset does not fit `classes`."""
        return category_names(self.root, self.hparams.classes)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: the names of the categories, for those who have it alone, and what is held out."""
        categories = {"categories": self.categories} if self.hparams.classes > 1 else {}
        return (
            categories
            if self.hparams.fold is None
            else {**categories, "held_out": self.tree.held_out()}
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Check that ids mean here what they meant in training, and that the same images are held out.

        Raises:
            InputError: the dataset has other categories than the checkpoint, or its fold holds other images.
        """
        if state_dict.get("categories", self.categories) != self.categories:
            raise InputError(
                f"The checkpoint was trained for {first_five(state_dict['categories'])}, but the categories of "
                f"{self.root} are {first_five(self.categories)}. Use a dataset with the same categories."
            )
        if "held_out" in state_dict and state_dict["held_out"] != self.tree.held_out():
            raise InputError(
                f"Fold {self.hparams.fold} of {self.root} holds other images than when the checkpoint was trained, so "
                "it may have seen them. Use the dataset of that time, or train anew."
            )

    def pairs(self, split: str) -> list[Pair]:
        """The pairs of `train`, `valid` or `test`, in natural order of their stems; see `DatasetTree.pairs`."""
        return self.tree.pairs(split)

    def mini_test_pairs(self, count: int) -> list[Pair]:
        """The `count` pictures that snapshots show; those of the folder `mini_test` have no mask."""
        if self.hparams.mini_test:
            return [
                Pair(stem, path, None)
                for stem, path in list_images(Path(self.hparams.mini_test)).items()
            ][:count]
        return self.pairs("test")[:count]

    def dataset(self, split: str, augmentation: str = "none") -> PairDataset:
        """The dataset of a split."""
        settings = self.hparams
        pairs = self.pairs(split)
        options = (
            settings.image_size,
            settings.fit,
            settings.mask_threshold,
            augmentation,
            settings.classes,
        )
        return PairDataset(pairs, *options, self._caches.pick(self.tree.folders(split), pairs))

    def train_dataloader(self) -> DataLoader:
        dataset = self.dataset("train", self.hparams.augmentation)
        replicas, rank = self._world()
        options = {
            "shuffle": self.hparams.shuffle,
            "seed": self.hparams.seed,
            "drop_last": self.hparams.drop_last,
        }
        sampler = TrainSampler(dataset, replicas, rank, **options)
        if self.trainer:  # workers fetch their first batches before Lightning says which epoch a resume begins with
            sampler.set_epoch(self.trainer.fit_loop.epoch_progress.current.processed)
        if self.hparams.drop_last and len(sampler) < self.hparams.batch_size:
            raise InputError(
                f"{len(sampler)} training images do not fill one batch of {self.hparams.batch_size}, and "
                "data.drop_last leaves out short batches. Lower data.batch_size."
            )
        return self._loader(dataset, sampler, self.hparams.drop_last)

    def val_dataloader(self) -> DataLoader:
        return self.eval_dataloader("valid")

    def test_dataloader(self) -> DataLoader:
        return self.eval_dataloader("test")

    def eval_dataloader(self, split: str) -> DataLoader:
        """Every image of a split once, in order, whatever the number of processes."""
        dataset = self.dataset(split)
        return self._loader(
            dataset, WholeBatchSampler(dataset, self.hparams.batch_size, *self._world())
        )

    def _world(self) -> tuple[int, int]:
        """Number of processes and this one's rank."""
        return (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)

    def _loader(
        self, dataset: PairDataset, sampler: DistributedSampler, drop_last: bool = False
    ) -> DataLoader:
        copied = (
            dataset.cache and dataset.transform is None
        )  # quicker than the way from another process
        workers = 0 if copied else self.hparams.num_workers
        return DataLoader(
            dataset,
            self.hparams.batch_size,
            sampler=sampler,
            drop_last=drop_last,
            collate_fn=as_is,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=init_worker,
            generator=torch.Generator(),  # its own, or each iterator would draw from the numbers that dropout gets
        )


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise InputError(f"data.{name} is {value}, expected {low}..{high}.")
