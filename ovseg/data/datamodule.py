"""Batches of pairs for training and evaluation.

The batch contract, everywhere in ovseg: a dict of `image` uint8 (N, 3, H, W), RGB 0..255; `mask`
uint8 (N, 1, H, W), 0 or 1, or category ids where `classes` is above 1; `stem` list of N str, empty
for a repeated pair that is not to be counted. Scaling to the network's range is the network's own
first layer.
"""

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from pytorch_lightning import LightningDataModule
from pytorch_lightning.utilities import rank_zero_info
from torch.utils.data import DataLoader, Dataset, DistributedSampler, get_worker_info

from ovseg.core.errors import InputError, first_five, join_problems
from ovseg.core.limits import IMAGE_SIZES, MAX_CLASSES, MAX_WORKERS
from ovseg.core.output_place import CACHE
from ovseg.core.registry import choose
from ovseg.data.augment.pipelines import augment, build_transform, side_after
from ovseg.data.boxes import FITS
from ovseg.data.cache import PairCache, PickedCache, SplitCaches
from ovseg.data.geometry import place
from ovseg.data.manifest import (
    category_names,
    check_manifest,
    count_phantoms,
    default_names,
    read_manifest,
)
from ovseg.data.masks import describe_oddities, refuse_implausible
from ovseg.data.pairs import Pair, list_images, read_pair, verify_pairs
from ovseg.data.pictures import read_image
from ovseg.data.prepare.phantoms import write_phantoms
from ovseg.data.samplers import TrainSampler, WholeBatchSampler, as_is, empty_batch, init_worker
from ovseg.data.tree import FOLD_SPLITS, SPLITS, DatasetTree, has_images

# An index of a pair, or with the seed of its augmentation; -1 stands for no pair.
Key = int | tuple[int, int]

# Arguments of the data module from which the records of a cache follow.
CACHE_SETTINGS = (
    "image_size",
    "fit",
    "mask_threshold",
    "mask_blur",
    "invert_masks",
    "exclude",
    "classes",
)
# Snapshots read this many pictures of `mini_test` at most, so as many are checked beforehand.
MAX_MINI_TEST = 64


class PairDataset(Dataset):
    """Pairs as dicts of tensors, placed in a square of `image_size`; an augmentation may cut it.

    Item (index, seed) is augmented with that seed. A loader takes whole batches of it
    (`__getitems__`), so a cached image is copied once, into its batch.

    Args:
        pairs: the pairs.
        image_size: side of the square, pixels.
        fit: see `OvarianTumorDataModule`.
        mask_threshold: see `OvarianTumorDataModule`.
        augmentation: see `OvarianTumorDataModule`.
        classes: see `OvarianTumorDataModule`.
        cache: the records of these pairs; None to decode the pairs.
        invert_masks: see `OvarianTumorDataModule`.
        mask_blur: see `OvarianTumorDataModule`.
        augmentation_args: see `OvarianTumorDataModule`.
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
        invert_masks: bool = False,
        mask_blur: int = 0,
        augmentation_args: dict[str, Any] | None = None,
    ):
        self.pairs = pairs
        self.image_size = image_size
        self.fit = fit
        self.mask_threshold = mask_threshold
        self.classes = classes
        self.transform = build_transform(augmentation, augmentation_args)
        self.cache = cache
        self.invert_masks = invert_masks
        self.mask_blur = mask_blur

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: Key) -> dict[str, Any]:
        """One pair: `image` uint8 (3, S, S), `mask` uint8 (1, S, S), `stem`."""
        batch = self._load_batch([key])
        return {name: values[0] for name, values in batch.items()}

    def __getitems__(self, keys: list[Key]) -> dict[str, Any] | InputError:
        """A batch; in a worker also the error of a file that can't be used, see `PairLoader`."""
        try:
            return self._load_batch(keys)
        except InputError as error:
            if get_worker_info() is None:
                raise
            return error

    def _load_batch(self, keys: list[Key]) -> dict[str, Any]:
        images, masks = empty_batch(len(keys), side_after(self.transform, self.image_size))
        stems = []
        for row, key in enumerate(keys):
            if isinstance(key, tuple):
                index, seed = key
            else:
                index = key
                seed = 0
            self._write(index, seed, images.numpy()[row], masks.numpy()[row, 0])
            stems.append(self.pairs[index].stem if index >= 0 else "")
        return {"image": images, "mask": masks, "stem": stems}

    def _write(self, index: int, seed: int, planes: np.ndarray, labels: np.ndarray) -> None:
        """Put an image into its planes (3, S, S) of a batch, and its mask into `labels` (S, S)."""
        if self.cache is not None and self.transform is None:
            record = self.cache.records[index]
            planes[:] = record[:3]
            labels[:] = record[3]
            return
        image, mask = self.load(index)
        if self.transform is not None:
            image, mask = augment(self.transform, image, mask, seed)
        # It writes into the batch, and is several times as fast as numpy's transpose.
        cv2.split(image, list(planes))
        labels[:] = mask

    def load(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Placed image (S, S, 3) and mask (S, S), from the cache where there is one."""
        if self.cache is not None:
            *planes, mask = self.cache.records[index]
            # Copies, because the records are read-only.
            return cv2.merge(planes), np.array(mask)
        pair = self.pairs[index]
        image, mask = read_pair(
            pair, self.mask_threshold, self.classes, self.invert_masks, self.mask_blur
        )
        return place(image, self.image_size, self.fit), place(mask, self.image_size, self.fit)


class PairLoader(DataLoader):
    """A loader that reports a file that a worker can't use as the main process would.

    An error that is raised in a worker reaches the main process with the worker's traceback in its
    message. So the worker returns it in place of the batch.
    """

    def __iter__(self) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        for batch in super().__iter__():
            if isinstance(batch, InputError):
                raise batch
            yield batch


class OvarianTumorDataModule(LightningDataModule):
    """The dataset tree `root/{train,valid,test}/{images,masks}`, pairs matched by stem.

    It is what `ovseg prepare_data` writes, and the TensorFlow baseline's own layout (JPEG masks,
    any picture format). Every pair is decoded and checked once before the first epoch. With
    `classes` above 1 the category maps in `categories`, which `prepare_data` writes too, are used
    instead of `masks`.

    Args:
        root: the dataset's folder.
        image_size: side of the square that images and masks are placed in, pixels, 16..8192.
        batch_size: images a batch and process.
        num_workers: loader processes; 0 loads in the main process, as do splits that are cached and
            not augmented.
        augmentation: for training: a name of `ovseg.data.augment.pipelines.PIPELINES` or an
            albumentations YAML/JSON file.
        augmentation_args: arguments of that pipeline.
        shuffle: new order of the training images in each epoch (the baseline has none).
        drop_last: leave out a short last training batch; batch normalisation fails on a batch of
            one pixel.
        seed: order and augmentation follow from (seed, epoch, image).
        fit: how a picture that is not square fills the square: `letterbox`, `stretch`, or
            `stretch_nearest`, which resizes by nearest neighbour. From a dataset that was prepared
            with letterbox, the latter take each picture without its border.
        mask_threshold: grey values above it are lesion, 0..254.
        mask_blur: side of the box that masks are blurred with at their files' size before every
            pixel that is not black becomes lesion, as in the baseline, pixels, 0..99; 0 for none.
            Scores at the original size take masks without it.
        exclude: stems to leave out of every split.
        mini_test: folder of images for the snapshots of every epoch; by default images of `test`,
            or of `valid` where there is no test image.
        phantoms: where `root` does not exist, write this many synthetic pairs there; 0 never does.
            A message says if another number of phantoms is there.
        classes: 1 for lesion and background; the number of categories and background for category
            ids as masks. The command line gives the network as many.
        cache: keep the decoded pairs (4 bytes a pixel of a pair: 1 MB at 512) in `root/.cache`, or
            in the named folder. The cache is built with the verification, which a later start then
            need not repeat.
        fold: validate with this fold of a dataset prepared with `--folds`, 0, 1, ..., and train on
            all other images of train and valid; test stays as it is.
        valid_share: validate with this share of the folder train, the last of its images in
            alphabetical order of the files, train on the others, and leave the folder valid out,
            0..0.9; 0 takes the folders as they are.
        train_on_valid: train on the images of valid too, for a network whose recipe was chosen
            elsewhere; the scores of valid are then those of trained images.
        steps_per_epoch: batches of an epoch; None for every training image once. If the images do
            not suffice, they are taken again in a new order, augmented anew.
        invert_masks: the lesion is drawn in black on white: grey values up to `mask_threshold` are
            lesion.
        category_names: names of the categories 1, 2, ... where `classes` is above 1; by default
            those of the dataset's manifest.json, or "category 1", ...

    Attributes:
        needs_test: whether a dataset without test images is an error.

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
        invert_masks: bool = False,
        category_names: list[str] | None = None,
        mask_blur: int = 0,
        augmentation_args: dict[str, Any] | None = None,
        valid_share: float = 0.0,
        steps_per_epoch: int | None = None,
        train_on_valid: bool = False,
    ):
        super().__init__()
        self.save_hyperparameters()
        _check_range("image_size", image_size, *IMAGE_SIZES)
        _check_range("batch_size", batch_size, 1, 65536)
        _check_range("num_workers", num_workers, 0, MAX_WORKERS)
        _check_range("mask_threshold", mask_threshold, 0, 254)
        _check_range("mask_blur", mask_blur, 0, 99)
        _check_range("valid_share", valid_share, 0, 0.9)
        if steps_per_epoch is not None:
            _check_range("steps_per_epoch", steps_per_epoch, 1, 10**6)
        _check_range("seed", seed, 0, 2**32 - 1)
        _check_range("classes", classes, 1, MAX_CLASSES)
        choose("fit", fit, FITS)
        if invert_masks and classes > 1:
            raise InputError("data.invert_masks is for masks, so data.classes must be 1.")
        if mask_blur and (invert_masks or classes > 1):
            raise InputError(
                "data.mask_blur is for white masks of one class. Leave out data.invert_masks and "
                "data.classes."
            )
        if valid_share and fold is not None:
            raise InputError(
                "data.valid_share and data.fold both choose the validation images. Leave one out."
            )
        if train_on_valid and (valid_share or fold is not None):
            raise InputError(
                "data.train_on_valid leaves no image to validate with, as data.valid_share and "
                "data.fold ask for. Leave one out."
            )
        build_transform(augmentation, augmentation_args)  # checks names, arguments, or the file
        self.root = Path(root)
        self.tree = DatasetTree(self.root, exclude, classes, fold, fit, valid_share, train_on_valid)
        settings = {name: self.hparams[name] for name in CACHE_SETTINGS}
        self._caches = SplitCaches(_cache_folder(self.root, cache), settings)
        self.needs_test = True
        self._verified = False
        self._empty: dict[str, set[str]] = {}  # stems by folder, of what was verified
        self._digests: dict[str, str] = {}

    def prepare_data(self) -> None:
        """Write the phantoms if asked, then verify every pair of every split.

        Lightning calls it once a machine.

        Raises:
            InputError: the tree is missing or incomplete, or pairs can't be used (see
                `verify_pairs`).
        """
        if self._verified:
            return
        if self.hparams["phantoms"] and not self.root.exists():
            write_phantoms(
                self.root,
                self.hparams["phantoms"],
                self.hparams["image_size"],
                self.hparams["seed"],
            )
        self._tell_of_other_phantoms()
        splits = self.splits
        if "test" not in splits:
            rank_zero_info(
                f"{self.root} has no test images: nothing is scored on test, and snapshots show "
                "images of valid."
            )
        self.verify(splits, keep=True, needs_lesion="train")
        self.tree.check_exclude(splits)
        if self.hparams["mini_test"]:
            for pair in self.mini_test_pairs(MAX_MINI_TEST):
                read_image(pair.image_path)
        # An augmentation that fails should do so here.
        self.dataset("train", self.hparams["augmentation"])[0, 0]
        self._verified = True

    def _tell_of_other_phantoms(self) -> None:
        wanted = self.hparams["phantoms"]
        if not wanted:
            return
        found = count_phantoms(self.root)
        if found is not None and found != wanted:
            rank_zero_info(
                f"{self.root} holds {found} phantoms, which are used: data.phantoms {wanted} is "
                "for a folder that does not exist yet."
            )

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits of the dataset: without `test` where it has no images and needs none."""
        if self.needs_test or has_images(self.root, "test"):
            return SPLITS
        return FOLD_SPLITS

    def verify(
        self, splits: Iterable[str], keep: bool = False, needs_lesion: str | None = None
    ) -> None:
        """Decode and check every pair of some splits, or find them in a valid cache.

        What is not read, empty masks and other oddities are counted in a line each.

        Args:
            splits: names of splits.
            keep: build the cache where there is no valid one; worth it for more than one pass.
            needs_lesion: the split that is refused if all of its masks are empty.

        Raises:
            InputError: see `prepare_data`.
        """
        mask_threshold = self.hparams["mask_threshold"]
        classes = self.hparams["classes"]
        invert = self.hparams["invert_masks"]
        blur = self.hparams["mask_blur"]
        check_manifest(self.root, self.hparams["fit"], classes, self.hparams["category_names"])
        folders = {}
        for split in splits:
            if self.pairs(split):
                folders.update(self.tree.folders(split))
        if invert and read_manifest(self.root).get("fit") == "letterbox":
            raise InputError(
                f"{self.root} was prepared with borders, which data.invert_masks would make "
                "lesion. Invert the original masks and prepare the dataset again."
            )
        if classes > 1 and self.categories == default_names(classes - 1):
            rank_zero_info(
                f"The categories of {self.root} have no names, so they are called "
                f"{first_five(self.categories)}. data.category_names gives them names."
            )
        if self.leakage:
            rank_zero_info(
                f"leakage: near-duplicates of one examination are in two splits of {self.root}."
            )
        problems = []
        for name, pairs in folders.items():
            lines = self.tree.describe_left_out(name)
            check = partial(verify_pairs, pairs, mask_threshold, classes, invert, blur)
            try:
                masks = self._caches.verify(name, pairs, check, keep)
                refuse_implausible(name, masks, mask_threshold, name == needs_lesion)
            except InputError as error:
                problems.append(str(error))
            else:
                stems = [pair.stem for pair in pairs]
                self._empty[name] = {
                    stem for stem, mask in zip(stems, masks, strict=True) if not mask.lesion
                }
                lines += describe_oddities(name, stems, masks, mask_threshold, invert)
            for line in lines:
                rank_zero_info(line)
        if problems:
            raise InputError(join_problems(problems))

    def has_lesion(self, split: str) -> bool:
        """Whether any mask of a split that was verified is not empty."""
        wanted = set(self.pairs(split))
        for name, pairs in self.tree.folders(split).items():
            for pair in pairs:
                if pair in wanted and pair.stem not in self._empty[name]:
                    return True
        return False

    def digest(self, folder: str) -> str:
        """SHA-256 of the pairs in the folder of a split, see `ovseg.data.cache.pairs_digest`.

        It is that of no pair where the folder is left out, see `valid_share`.
        """
        if folder not in self._digests:
            pairs = self.tree.folders(folder).get(folder, [])
            self._digests[folder] = self._caches.digest(folder, pairs)
        return self._digests[folder]

    @property
    def leakage(self) -> bool:
        """Whether the dataset was prepared with near-duplicates in two splits.

        Its scores are then too good.
        """
        return bool(read_manifest(self.root).get("leakage"))

    @property
    def categories(self) -> list[str]:
        """Names of ids 1, 2, ...; empty for one class.

        Raises:
            InputError: the dataset does not fit `classes`.
        """
        given = self.hparams["category_names"]
        return category_names(self.root, self.hparams["classes"], given)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps.

        These are where the dataset is, the digests of what was trained on and validated with,
        unless no image was read, the names of the categories, and what the fold holds out.
        """
        state: dict[str, Any] = {"root": str(self.root.absolute())}
        if self._verified:
            state["digests"] = {name: self.digest(name) for name in FOLD_SPLITS}
        if self.hparams["classes"] > 1:
            state["categories"] = self.categories
        if self.hparams["fold"] is not None:
            state["held_out"] = self.tree.held_out()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Check that ids mean what they meant in training, and that the same images are held out.

        Raises:
            InputError: the dataset has other categories than the checkpoint, or its fold holds
                other images.
        """
        categories = self.categories
        trained_for = state_dict.get("categories", categories)
        if trained_for != categories:
            raise InputError(
                f"The checkpoint was trained for {first_five(trained_for)}, but the categories of "
                f"{self.root} are {first_five(categories)}. Use a dataset with the same categories."
            )
        if "held_out" in state_dict and state_dict["held_out"] != self.tree.held_out():
            raise InputError(
                f"Fold {self.hparams['fold']} of {self.root} holds other images than when the "
                "checkpoint was trained, so it may have seen them. Use the dataset of that time, "
                "or train again."
            )

    def pairs(self, split: str) -> list[Pair]:
        """The pairs of `train`, `valid` or `test`, in natural order; see `DatasetTree.pairs`."""
        return self.tree.pairs(split)

    def mini_test_pairs(self, count: int) -> list[Pair]:
        """The first `count` pictures for snapshots; those of a folder `mini_test` have no mask."""
        folder = self.hparams["mini_test"]
        if not folder:
            split = "test" if "test" in self.splits else "valid"
            return self.pairs(split)[:count]
        pairs = [Pair(stem, path, None) for stem, path in list_images(Path(folder)).items()]
        return pairs[:count]

    def read_pair(self, pair: Pair) -> tuple[np.ndarray, np.ndarray]:
        """Image and mask of a pair at the file's size, see `ovseg.data.pairs.read_pair`."""
        settings = self.hparams
        return read_pair(
            pair,
            settings["mask_threshold"],
            settings["classes"],
            settings["invert_masks"],
            settings["mask_blur"],
        )

    def dataset(self, split: str, augmentation: str = "none") -> PairDataset:
        """The dataset of a split."""
        pairs = self.pairs(split)
        return PairDataset(
            pairs,
            self.hparams["image_size"],
            self.hparams["fit"],
            self.hparams["mask_threshold"],
            augmentation,
            self.hparams["classes"],
            self._caches.pick(self.tree.folders(split), pairs),
            self.hparams["invert_masks"],
            self.hparams["mask_blur"],
            None if augmentation == "none" else self.hparams["augmentation_args"],
        )

    def train_dataset(self) -> Dataset:
        """What `train_dataloader` loads: every training image, augmented."""
        return self.dataset("train", self.hparams["augmentation"])

    def train_dataloader(self) -> DataLoader:
        """The training images in the order of the epoch, once each without `steps_per_epoch`.

        Raises:
            InputError: no batch is left without the short last one.
        """
        dataset = self.train_dataset()
        batch_size = self.hparams["batch_size"]
        drop_last = self.hparams["drop_last"]
        steps = self.hparams["steps_per_epoch"]
        replicas, rank = self._world()
        sampler = TrainSampler(
            dataset,
            replicas,
            rank,
            shuffle=self.hparams["shuffle"],
            seed=self.hparams["seed"],
            drop_last=drop_last,
            count=None if steps is None else steps * batch_size,
        )
        if self.trainer:
            # Workers load their first batches before Lightning tells the sampler the epoch with
            # which a resumed run begins.
            progress: Any = self.trainer.fit_loop.epoch_progress.current
            sampler.set_epoch(progress.processed)
        if drop_last and len(sampler) < batch_size:
            raise InputError(
                f"{len(sampler)} training images do not fill one batch of {batch_size}, and "
                "data.drop_last leaves out short batches. Lower data.batch_size."
            )
        return self._loader(dataset, sampler, drop_last)

    def val_dataloader(self) -> DataLoader:
        """Every image of `valid`."""
        return self.eval_dataloader("valid")

    def test_dataloader(self) -> DataLoader:
        """Every image of `test`."""
        return self.eval_dataloader("test")

    def eval_dataloader(self, split: str) -> DataLoader:
        """Every image of a split once, in order, whatever the number of processes."""
        dataset = self.dataset(split)
        replicas, rank = self._world()
        sampler = WholeBatchSampler(dataset, self.hparams["batch_size"], replicas, rank)
        return self._loader(dataset, sampler)

    def _world(self) -> tuple[int, int]:
        """Number of processes, and the rank of this one."""
        if self.trainer is None:
            return 1, 0
        return self.trainer.world_size, self.trainer.global_rank

    def _loader(
        self, dataset: Dataset, sampler: DistributedSampler, drop_last: bool = False
    ) -> DataLoader:
        workers = self.hparams["num_workers"]
        if (
            isinstance(dataset, PairDataset)
            and dataset.cache is not None
            and dataset.transform is None
        ):
            # Copying a record is quicker than sending it from another process.
            workers = 0
        return PairLoader(
            dataset,
            self.hparams["batch_size"],
            sampler=sampler,
            drop_last=drop_last,
            collate_fn=as_is,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=init_worker,
            # Its own, because each iterator would otherwise draw from the numbers that dropout
            # gets.
            generator=torch.Generator(),
        )


def _cache_folder(root: Path, cache: bool | str) -> Path | None:
    """The folder of a dataset's cache files; None for no cache."""
    if not cache:
        return None
    if isinstance(cache, bool):
        return root / CACHE
    return Path(cache) / root.resolve().name


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise InputError(f"data.{name} is {value}, expected {low}..{high}.")
