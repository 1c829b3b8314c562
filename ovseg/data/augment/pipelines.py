"""Augmentation pipelines by name. The only module that imports albumentations."""

import os
import random
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

os.environ["NO_ALBUMENTATIONS_UPDATE"] = (
    "1"  # it asks PyPI for a newer version at import, slow offline
)

import albumentations as A
from albumentations.core.type_definitions import Targets

import ovseg.data.augment.ultrasound as ultrasound
from ovseg.core.errors import InputError
from ovseg.core.registry import choose
from ovseg.data.augment.calipers import (
    LABELS,
    YELLOWS,
    caliper_ends,
    draw_caliper,
    draw_label,
    remove_calipers,
)
from ovseg.data.augment.sector import Sector, find_sector

Span = tuple[float, float]  # the smallest and the largest value that is drawn, evenly


def _span(name: str, span: Span, low: float, high: float) -> Span:
    """A pair of bounds of an argument, checked; a file gives a list."""
    if not (
        isinstance(span, list | tuple) and len(span) == 2 and low <= span[0] <= span[1] <= high
    ):
        raise InputError(f"{name} is {span}, expected two rising numbers within {low}..{high}.")
    return tuple(span)


class _InSector(A.ImageOnlyTransform):
    """A change of the echoes; where the sector lies is found in the image. Chance comes from Compose's generators."""

    def get_params_dependent_on_data(self, params: dict, data: dict) -> dict:
        return {"sector": find_sector(data["image"])}


class DepthAttenuation(_InSector):
    """Loss of up to `decibel` at the deepest echo (see `attenuate`)."""

    def __init__(self, decibel: Span = (3, 12), p: float = 0.5):
        super().__init__(p=p)
        self.decibel = _span("decibel", decibel, 0, 60)

    def apply(self, img: np.ndarray, sector: Sector, **_: object) -> np.ndarray:
        return ultrasound.attenuate(img, sector, self.py_random.uniform(*self.decibel))


class AcousticShadow(_InSector):
    """One to three shadows along the beams (see `cast_shadow`), `width` the half width, where 1 is half the sector."""

    def __init__(self, decibel: Span = (5, 20), width: Span = (0.03, 0.2), p: float = 0.5):
        super().__init__(p=p)
        self.decibel, self.width = _span("decibel", decibel, 0, 60), _span("width", width, 0.001, 1)

    def apply(self, img: np.ndarray, sector: Sector, **_: object) -> np.ndarray:
        draw = self.py_random.uniform
        for _shadow in range(self.py_random.randint(1, 3)):
            where = {"beam": draw(-1, 1), "start": draw(0, 0.6), "width": draw(*self.width)}
            img = ultrasound.cast_shadow(img, sector, decibel=draw(*self.decibel), **where)
        return img


class GainChange(_InSector):
    """Another gain, within `decibel`, and eight sliders of time-gain compensation, each within `tgc` (dB) of it."""

    def __init__(self, decibel: Span = (-6, 6), tgc: float = 3.0, p: float = 0.5):
        super().__init__(p=p)
        self.decibel, self.tgc = _span("decibel", decibel, -60, 60), tgc

    def apply(self, img: np.ndarray, sector: Sector, **_: object) -> np.ndarray:
        sliders = self.py_random.uniform(*self.decibel) + self.random_generator.uniform(
            -self.tgc, self.tgc, 8
        )
        return ultrasound.change_gain(img, sector, sliders)


class SpeckleChange(_InSector):
    """More speckle (strength of added speckle) or less (share of the smoothed image), half each."""

    def __init__(self, more: Span = (0.1, 0.4), less: Span = (0.3, 1), p: float = 0.5):
        super().__init__(p=p)
        self.more, self.less = _span("more", more, 0, 1), _span("less", less, 0, 1)

    def apply(self, img: np.ndarray, sector: Sector, **_: object) -> np.ndarray:
        if self.py_random.random() < 0.5:
            return ultrasound.smoothen(img, sector, self.py_random.uniform(*self.less))
        texture = ultrasound.speckle_texture(self.random_generator, sector.height, sector.width)
        return ultrasound.roughen(img, sector, texture, self.py_random.uniform(*self.more))


class Haze(_InSector):
    """A band of clutter, `decibel` above black, its middle within `depth` (0..1) (see `add_haze`)."""

    def __init__(
        self,
        decibel: Span = (8, 25),
        depth: Span = (0, 0.6),
        width: Span = (0.05, 0.25),
        p: float = 0.5,
    ):
        super().__init__(p=p)
        self.decibel, self.depth = _span("decibel", decibel, 0, 60), _span("depth", depth, 0, 1)
        self.width = _span("width", width, 0.01, 1)

    def apply(self, img: np.ndarray, sector: Sector, **_: object) -> np.ndarray:
        depth, width, decibel = (
            self.py_random.uniform(*span) for span in (self.depth, self.width, self.decibel)
        )
        texture = ultrasound.speckle_texture(self.random_generator, sector.height, sector.width)
        return ultrasound.add_haze(img, sector, texture, depth, width, decibel)


class SectorAffine(A.DualTransform):
    """Turn (within `degrees`) and scale about the apex of the sector (see `turn`)."""

    _targets = (Targets.IMAGE, Targets.MASK)

    def __init__(self, degrees: Span = (-8, 8), scale: Span = (0.85, 1.15), p: float = 0.5):
        super().__init__(p=p)
        self.degrees, self.scale = _span("degrees", degrees, -45, 45), _span("scale", scale, 0.5, 2)

    def get_params_dependent_on_data(self, params: dict, data: dict) -> dict:
        degrees, scale = self.py_random.uniform(*self.degrees), self.py_random.uniform(*self.scale)
        return {"sector": find_sector(data["image"]), "degrees": degrees, "scale": scale}

    def apply(
        self, img: np.ndarray, sector: Sector, degrees: float, scale: float, **_: object
    ) -> np.ndarray:
        return ultrasound.turn(img, sector, degrees, scale)

    apply_to_mask = apply  # labels are two-dimensional and take the nearest value


class DrawCalipers(A.ImageOnlyTransform):
    """One or two measurements and at times a label, as sonographers leave them (see `ovseg.data.augment.calipers`).

    `on_lesion` is how often on the lesion's edge rather than anywhere; at 0.5 or less a mark does not point to one.
    """

    def __init__(self, on_lesion: float = 0.5, p: float = 0.5):
        super().__init__(p=p)
        self.on_lesion = on_lesion

    def get_params_dependent_on_data(self, params: dict, data: dict) -> dict:
        sector, rng = find_sector(data["image"]), self.py_random
        mask = data.get("mask", np.zeros(data["image"].shape[:2], np.uint8))
        count, on_lesion = rng.choice((1, 1, 2)), rng.random() < self.on_lesion
        return {"ends": [caliper_ends(rng, mask, sector, on_lesion) for _ in range(count + 1)]}

    def apply(self, img: np.ndarray, ends: list, **_: object) -> np.ndarray:
        rng, color = self.py_random, self.py_random.choice(YELLOWS)
        style, dotted = rng.choice(("plus", "plus", "x")), rng.random() < 0.7
        if rng.random() < 0.4:
            at = tuple(int(n) for n in np.mean(ends[0], axis=0))
            img = draw_label(img, rng.choice(LABELS), at, color)
        for pair in ends[1:]:
            img = draw_caliper(img, pair, color, style, dotted)
        return img


class RemoveCalipers(A.ImageOnlyTransform):
    """Fill yellow marks from around them, so that the network also meets lesions without any."""

    def apply(self, img: np.ndarray, **_: object) -> np.ndarray:
        return remove_calipers(img)


class GaussianNoise(A.ImageOnlyTransform):
    """Noise of every channel, its deviation within `deviation` (1 is white); A.GaussNoise takes five times as long."""

    def __init__(self, deviation: Span = (0.01, 0.05), p: float = 0.5):
        super().__init__(p=p)
        self.deviation = _span("deviation", deviation, 0, 1)

    def apply(self, img: np.ndarray, **_: object) -> np.ndarray:
        seed, deviation = (
            int(self.random_generator.integers(2**31)),
            self.py_random.uniform(*self.deviation),
        )
        return ultrasound.add_noise(img, seed, deviation)


BLACK = {"border_mode": cv2.BORDER_CONSTANT, "fill": 0, "fill_mask": 0}


def _flips() -> list:
    """Horizontal and vertical flips, as the baseline's generator has them."""
    return [A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.5)]


def _standard() -> list:
    """Left-right flip, small rotation, scaling and shift with a black border, brightness, gamma and noise."""
    move = {
        "scale": (0.85, 1.15),
        "translate_percent": (-0.06, 0.06),
        "rotate": (-15, 15),
        "shear": (-5, 5),
    }
    return [
        A.HorizontalFlip(p=0.5),
        A.Affine(**move, **BLACK, p=0.8),
        A.RandomBrightnessContrast(brightness_limit=0.2, contrast_limit=0.2, p=0.5),
        A.RandomGamma(gamma_limit=(80, 125), p=0.3),
        GaussianNoise(deviation=(0.01, 0.05), p=0.3),
    ]


def _strong() -> list:
    """The steps of `standard` over wider ranges, bent tissue, blur, and squares cut out: for pretrained networks."""
    move = {
        "scale": (0.7, 1.4),
        "translate_percent": (-0.12, 0.12),
        "rotate": (-25, 25),
        "shear": (-8, 8),
    }
    return [
        A.HorizontalFlip(p=0.5),
        A.Affine(**move, **BLACK, p=0.9),
        A.GridDistortion(num_steps=4, distort_limit=0.25, **BLACK, p=0.3),
        A.RandomBrightnessContrast(brightness_limit=0.3, contrast_limit=0.3, p=0.7),
        A.RandomGamma(gamma_limit=(60, 160), p=0.5),
        A.GaussianBlur(sigma_limit=(0.5, 1.5), p=0.2),
        GaussianNoise(deviation=(0.01, 0.08), p=0.4),
        A.CoarseDropout(
            num_holes_range=(1, 4),
            hole_height_range=(0.08, 0.2),
            hole_width_range=(0.08, 0.2),
            p=0.3,
        ),
    ]


def _ultrasound_light() -> list:
    """What differs between two good pictures of one console: view, gain, speckle, calipers."""
    return [
        A.HorizontalFlip(p=0.5),
        RemoveCalipers(p=0.4),
        SectorAffine(degrees=(-5, 5), scale=(0.9, 1.1), p=0.5),
        GainChange(decibel=(-4, 4), tgc=2.0, p=0.5),
        SpeckleChange(more=(0.05, 0.2), less=(0.2, 0.7), p=0.3),
        DrawCalipers(p=0.3),
    ]


def _ultrasound_strong() -> list:
    """Also what differs between consoles, patients and hands: attenuation, shadows, clutter, and wider ranges."""
    return [
        A.HorizontalFlip(p=0.5),
        RemoveCalipers(p=0.5),
        SectorAffine(degrees=(-10, 10), scale=(0.8, 1.2), p=0.7),
        Haze(p=0.25),  # before what darkens: the sector is found in what is not black
        SpeckleChange(p=0.5),
        DepthAttenuation(p=0.3),
        AcousticShadow(p=0.35),
        GainChange(decibel=(-6, 6), tgc=3.0, p=0.6),
        DrawCalipers(p=0.4),
    ]


PIPELINES: dict[str, Callable[[], list]] = {
    "none": list,
    "flips": _flips,
    "standard": _standard,
    "strong": _strong,
    "ultrasound_light": _ultrasound_light,
    "ultrasound_strong": _ultrasound_strong,
}


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
        raise InputError(
            f"There is no augmentation file {path}. Name one of {', '.join(PIPELINES)} or a file."
        )
    try:
        pipeline = A.load(path, data_format="json" if path.suffix.lower() == ".json" else "yaml")
    except Exception as error:  # albumentations raises whatever its parsers and constructors raise
        raise InputError(
            f"{path} is not an albumentations pipeline ({error}). Write it with albumentations.save."
        ) from error
    if not isinstance(pipeline, A.Compose):
        raise InputError(
            f"{path} holds a {type(pipeline).__name__}, expected an albumentations Compose."
        )
    return pipeline


def seed_transform(transform: A.Compose, seed: int) -> None:
    """Let all transforms of a pipeline draw from one pair of generators.

    Compose's own `set_random_seed` gives each a generator of the same seed, so that they draw the same numbers: both
    flips together or none, large turns only with large scales.
    """
    transform.set_random_state(np.random.default_rng(seed), random.Random(seed))


def augment(
    transform: A.Compose, image: np.ndarray, mask: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Apply a pipeline to a pair; the same seed gives the same result in any process.

    Raises:
        InputError: the pipeline fails, or changed the size or the dtype of the pair.
    """
    seed_transform(transform, seed)
    try:
        result = transform(image=image, mask=mask)
    except ValueError as error:  # albumentations' own errors are ValueErrors
        raise InputError(
            f"The augmentation fails on an image of {image.shape[:2]}: {error}"
        ) from error
    if result["image"].shape != image.shape or result["image"].dtype != np.uint8:
        raise InputError(
            f"The augmentation turned uint8 {image.shape} into {result['image'].dtype} {result['image'].shape}. "
            "It must keep size and dtype: scaling and normalisation are the network's first layer."
        )
    return result["image"], result["mask"]
