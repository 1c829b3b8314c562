"""Augmentation pipelines by name. The only module that imports albumentations."""

import os
import random
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # it asks PyPI for a newer version at import, slow offline

import albumentations as A

from ovseg.errors import InputError, choose


def _flips() -> list:
    """Horizontal and vertical flips, as the baseline's generator has them."""
    return [A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.5)]


def _standard() -> list:
    """Left-right flip, small rotation, scaling and shift with a black border, brightness, gamma and noise."""
    affine = A.Affine(
        scale=(0.85, 1.15),
        translate_percent=(-0.06, 0.06),
        rotate=(-15, 15),
        shear=(-5, 5),
        interpolation=cv2.INTER_LINEAR,
        mask_interpolation=cv2.INTER_NEAREST,
        border_mode=cv2.BORDER_CONSTANT,
        fill=0,
        fill_mask=0,
        p=0.8,
    )
    return [
        A.HorizontalFlip(p=0.5),
        affine,
        A.RandomBrightnessContrast(brightness_limit=0.2, contrast_limit=0.2, p=0.5),
        A.RandomGamma(gamma_limit=(80, 125), p=0.3),
        A.GaussNoise(std_range=(0.01, 0.05), p=0.3),
    ]


PIPELINES: dict[str, Callable[[], list]] = {"none": list, "flips": _flips, "standard": _standard}


def build_transform(augmentation: str) -> A.Compose | None:
    """A pipeline by name, or one that `albumentations.save` wrote as YAML or JSON.

    Args:
        augmentation: a name of `PIPELINES` or the path of a .yaml, .yml or .json file.

    Returns:
        A Compose for `image` uint8 (H, W, 3) and `mask` uint8 (H, W), nearest for masks; None for `none`.

    Raises:
        InputError: unknown name, or a file that is missing or no albumentations pipeline.
    """
    path = Path(augmentation)
    if path.suffix.lower() in (".yaml", ".yml", ".json"):
        return _load(path)
    steps = choose("augmentation", augmentation, PIPELINES)()
    return A.Compose(steps, mask_interpolation=cv2.INTER_NEAREST) if steps else None


def _load(path: Path) -> A.Compose:
    if not path.is_file():
        raise InputError(f"There is no augmentation file {path}. Name one of {', '.join(PIPELINES)} or a file.")
    try:
        pipeline = A.load(path, data_format="json" if path.suffix.lower() == ".json" else "yaml")
    except Exception as error:  # albumentations raises whatever its parsers and constructors raise
        raise InputError(
            f"{path} is not an albumentations pipeline ({error}). Write it with albumentations.save."
        ) from error
    if not isinstance(pipeline, A.Compose):
        raise InputError(f"{path} holds a {type(pipeline).__name__}, expected an albumentations Compose.")
    return pipeline


def augment(transform: A.Compose, image: np.ndarray, mask: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Apply a pipeline to a pair; the same seed gives the same result in any process.

    All transforms draw from one pair of generators. Compose's own `set_random_seed` would give each a generator of the
    same seed, so that they draw the same numbers: both flips together or none, large turns only with large scales.

    Raises:
        InputError: the pipeline fails, or changed the size or the dtype of the pair.
    """
    transform.set_random_state(np.random.default_rng(seed), random.Random(seed))
    try:
        result = transform(image=image, mask=mask)
    except ValueError as error:  # albumentations' own errors are ValueErrors
        raise InputError(f"The augmentation fails on an image of {image.shape[:2]}: {error}") from error
    if result["image"].shape != image.shape or result["image"].dtype != np.uint8:
        raise InputError(
            f"The augmentation turned uint8 {image.shape} into {result['image'].dtype} {result['image'].shape}. "
            "It must keep size and dtype: scaling and normalisation are the network's first layer."
        )
    return result["image"], result["mask"]
