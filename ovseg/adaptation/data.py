"""Batches of labelled images of the source, each with an unlabelled image of the target.

A batch has what every batch of ovseg has (see `ovseg.data.datamodule`), of the source, and `target`
uint8 (N, 3, H, W), RGB 0..255.
"""

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from ovseg.core.console import map_with_progress
from ovseg.core.errors import InputError, first_five, join_problems
from ovseg.core.files import file_digest
from ovseg.data.augment.pipelines import augment, build_transform, side_after
from ovseg.data.boxes import cut
from ovseg.data.datamodule import Key, OvarianTumorDataModule, PairDataset
from ovseg.data.geometry import place
from ovseg.data.manifest import cut_borders
from ovseg.data.pairs import Pair, list_images
from ovseg.data.pictures import read_image


class TargetImages:
    """The target's images, one of which is drawn at random for each image of the source.

    Args:
        root: a dataset, whose `train/images` are used, or a folder of pictures. No mask is read,
            nor need there be any.
        image_size: side of the square that is given to the network, pixels.
        fit: see `OvarianTumorDataModule`.
        augmentation: see `OvarianTumorDataModule`.

    Raises:
        InputError: no such folder, or no picture in it; an unknown augmentation, or one that cuts.
    """

    def __init__(self, root: Path, image_size: int, fit: str, augmentation: str = "none"):
        self.folder = root / "train" / "images"
        if not self.folder.is_dir():
            self.folder = root
        self.image_size = image_size
        self.fit = fit
        self.transform = build_transform(augmentation)
        if side_after(self.transform, image_size) != image_size:
            raise InputError(
                f"adaptation.target_augmentation {augmentation} cuts a window, but the target's "
                "images are placed as a whole. Take another, such as distortion."
            )
        if not self.folder.is_dir():
            raise InputError(
                f"There is no folder {root}, which adaptation.target_root names. Name a dataset "
                "with train/images, or a folder of pictures."
            )
        images = list_images(self.folder)
        pairs = [Pair(stem, path, None) for stem, path in images.items()]
        self.pairs = cut_borders(pairs, root, fit)

    def __len__(self) -> int:
        return len(self.pairs)

    def verify(self) -> None:
        """Decode every image once.

        Raises:
            InputError: names those that can't be read.
        """
        problems = map_with_progress(_find_problem, self.pairs, "Checking the target")
        found = [problem for problem in problems if problem]
        if found:
            raise InputError(join_problems(found))

    @cached_property
    def digests(self) -> list[str]:
        """SHA-256 of each image's file, sorted."""
        return sorted(file_digest(pair.image_path) for pair in self.pairs)

    def draw(self, seed: int) -> np.ndarray:
        """An image, chosen and augmented by a seed alone, uint8 (S, S, 3)."""
        rng = np.random.default_rng([seed, 1])  # not the numbers of the source's augmentation
        index = int(rng.integers(len(self.pairs)))
        image = place(_read(self.pairs[index]), self.image_size, self.fit)
        if self.transform is not None:
            no_mask = np.zeros(image.shape[:2], np.uint8)
            image, _ = augment(self.transform, image, no_mask, int(rng.integers(2**32)))
        return image


def _read(pair: Pair) -> np.ndarray:
    image = read_image(pair.image_path)
    return image if pair.box is None else cut(image, pair.box)


def _find_problem(pair: Pair) -> str:
    try:
        _read(pair)
    except InputError as error:
        return str(error)
    return ""


class AdaptationDataset(Dataset):
    """Pairs of the source, each with an image of the target.

    Which one follows from the seed of the pair's augmentation, so from (seed, epoch, index): it
    depends neither on the number of workers and processes, nor on a resume, nor on how many images
    either domain has.

    Args:
        source: pairs of the source.
        target: images of the target.
    """

    def __init__(self, source: PairDataset, target: TargetImages):
        self.source = source
        self.target = target

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: Key) -> dict[str, Any]:
        """One pair and `target`, uint8 (3, S, S)."""
        return {**self.source[key], "target": self._draw([key])[0]}

    def __getitems__(self, keys: list[Key]) -> dict[str, Any] | InputError:
        """A batch; in a worker also the error of a file that can't be used, see `PairLoader`."""
        batch = self.source.__getitems__(keys)
        if isinstance(batch, InputError):
            return batch
        try:
            return {**batch, "target": self._draw(keys)}
        except InputError as error:
            if get_worker_info() is None:
                raise
            return error

    def _draw(self, keys: list[Key]) -> Tensor:
        seeds = [key[1] if isinstance(key, tuple) else 0 for key in keys]
        images = np.stack([self.target.draw(seed) for seed in seeds])
        return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


class AdaptationDataModule(OvarianTumorDataModule):
    """The source's dataset, and images of the target in training.

    Its arguments are those of `OvarianTumorDataModule`. Validation and test are the source's.
    `add_target` must be called before training.
    """

    target: TargetImages

    def add_target(self, root: str, augmentation: str, fit: str | None = None) -> None:
        """Add the images of the target, which are as large as the source's in training.

        Args:
            root: see `TargetImages`.
            augmentation: see `TargetImages`.
            fit: see `TargetImages`; None for that of the source.

        Raises:
            InputError: see `TargetImages`; or it is the source's folder.
        """
        if Path(root).resolve() == self.root.resolve():
            raise InputError(
                f"adaptation.target_root and data.root are both {root}, so there is nothing to "
                "adapt to. Name the images of the other domain."
            )
        settings = self.hparams
        of_source = build_transform(settings["augmentation"], settings["augmentation_args"])
        side = side_after(of_source, settings["image_size"])
        self.target = TargetImages(Path(root), side, fit or settings["fit"], augmentation)

    def prepare_data(self) -> None:
        """Verify the source as `OvarianTumorDataModule` does, and every image of the target.

        Raises:
            InputError: see there and `TargetImages.verify`; or both domains have the same images.
        """
        if self._verified:
            return
        super().prepare_data()
        self.target.verify()
        source = sorted(file_digest(pair.image_path) for pair in self.pairs("train"))
        if source == self.target.digests:
            names = [pair.stem for pair in self.target.pairs]
            raise InputError(
                f"{self.target.folder} has the same {len(names)} images as the train split of "
                f"{self.root} ({first_five(names)}), so there is nothing to adapt to. Name the "
                "images of the other domain in adaptation.target_root."
            )

    def target_digest(self) -> str:
        """SHA-256 of the target's images, whatever their names."""
        return hashlib.sha256(" ".join(self.target.digests).encode()).hexdigest()

    def train_dataset(self) -> Dataset:
        """Every training image of the source, each with an image of the target."""
        source = self.dataset("train", self.hparams["augmentation"])
        return AdaptationDataset(source, self.target)
