"""Augmentation pipelines by name. The only module that imports albumentations."""

import os
import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import cv2
import numpy as np

# At import albumentations asks PyPI for a newer version, which is slow offline.
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"

import albumentations as A
from albumentations.core.type_definitions import Targets

from ovseg.core.errors import InputError
from ovseg.core.registry import check_arguments, choose
from ovseg.data.augment import baseline, ultrasound
from ovseg.data.augment.calipers import (
    LABELS,
    YELLOWS,
    Point,
    caliper_ends,
    draw_caliper,
    draw_label,
    remove_calipers,
)
from ovseg.data.augment.sector import Sector, find_sector

Span = tuple[float, float]  # smallest and largest value; values are drawn uniformly between them


def _check_span(name: str, span: Span, low: float, high: float) -> Span:
    """The bounds of an argument as a tuple; an augmentation file gives a list.

    Raises:
        InputError: not a smallest and a largest number within `low` and `high`.
    """
    is_pair = isinstance(span, list | tuple) and len(span) == 2
    if is_pair and all(isinstance(bound, int | float) for bound in span):
        smallest, largest = span
        if low <= smallest <= largest <= high:
            return smallest, largest
    raise InputError(
        f"{name} is {span}, expected the smallest and the largest number, within {low}..{high}."
    )


def _check_number(name: str, number: float, low: float, high: float) -> float:
    """A number of an augmentation file.

    Raises:
        InputError: no number within `low` and `high`.
    """
    if not isinstance(number, int | float) or not low <= number <= high:
        raise InputError(f"{name} is {number}, expected a number within {low}..{high}.")
    return number


class _EchoTransform(A.ImageOnlyTransform):
    """Base of transforms that change the echoes: finds the sector in the image.

    The sector is that of the image as the steps before have left it. Random numbers come from the
    generators of Compose, `py_random` and `random_generator`. They are drawn in `apply`, which is
    called once: only the image changes.
    """

    def get_params_dependent_on_data(self, params: dict, data: dict) -> dict:
        return {"sector": find_sector(data["image"])}


class DepthAttenuation(_EchoTransform):
    """Darken with depth (see `ultrasound.attenuate`).

    Args:
        decibel: loss at the deepest echo, within 0..60.
        p: probability.
    """

    def __init__(self, decibel: Span = (3, 12), p: float = 0.5):
        super().__init__(p=p)
        self.decibel = _check_span("decibel", decibel, 0, 60)

    def apply(self, img: np.ndarray, sector: Sector, **_: object) -> np.ndarray:
        decibel = self.py_random.uniform(*self.decibel)
        return ultrasound.attenuate(img, sector, decibel)


class AcousticShadow(_EchoTransform):
    """Cast one to three shadows along the beams (see `ultrasound.cast_shadow`).

    Args:
        decibel: loss in a shadow's middle, within 0..60.
        width: half width of a shadow, within 0.001..1, where 1 is half the sector.
        p: probability.
    """

    def __init__(self, decibel: Span = (5, 20), width: Span = (0.03, 0.2), p: float = 0.5):
        super().__init__(p=p)
        self.decibel = _check_span("decibel", decibel, 0, 60)
        self.width = _check_span("width", width, 0.001, 1)

    def apply(self, img: np.ndarray, sector: Sector, **_: object) -> np.ndarray:
        count = self.py_random.randint(1, 3)
        for _shadow in range(count):
            beam = self.py_random.uniform(-1, 1)
            start = self.py_random.uniform(0, 0.6)
            width = self.py_random.uniform(*self.width)
            decibel = self.py_random.uniform(*self.decibel)
            img = ultrasound.cast_shadow(img, sector, beam, start, width, decibel)
        return img


class GainChange(_EchoTransform):
    """Change the gain and eight sliders of time-gain compensation (see `ultrasound.change_gain`).

    Args:
        decibel: change of the gain, within -60..60.
        tgc: largest deviation of a slider from that gain, dB, within 0..60.
        p: probability.
    """

    def __init__(self, decibel: Span = (-6, 6), tgc: float = 3.0, p: float = 0.5):
        super().__init__(p=p)
        self.decibel = _check_span("decibel", decibel, -60, 60)
        self.tgc = _check_number("tgc", tgc, 0, 60)

    def apply(self, img: np.ndarray, sector: Sector, **_: object) -> np.ndarray:
        gain = self.py_random.uniform(*self.decibel)
        deviations = self.random_generator.uniform(-self.tgc, self.tgc, 8)
        return ultrasound.change_gain(img, sector, gain + deviations)


class SpeckleChange(_EchoTransform):
    """Add speckle or, as often, reduce it (see `ultrasound.add_speckle`, `reduce_speckle`).

    Args:
        more: strength of the added speckle, within 0..1.
        less: share of the smoothed image, within 0..1.
        p: probability.
    """

    def __init__(self, more: Span = (0.1, 0.4), less: Span = (0.3, 1), p: float = 0.5):
        super().__init__(p=p)
        self.more = _check_span("more", more, 0, 1)
        self.less = _check_span("less", less, 0, 1)

    def apply(self, img: np.ndarray, sector: Sector, **_: object) -> np.ndarray:
        if self.py_random.random() < 0.5:
            strength = self.py_random.uniform(*self.less)
            return ultrasound.reduce_speckle(img, sector, strength)

        texture = ultrasound.speckle_texture(self.random_generator, sector.height, sector.width)
        strength = self.py_random.uniform(*self.more)
        return ultrasound.add_speckle(img, sector, texture, strength)


class Haze(_EchoTransform):
    """Add a band of clutter (see `ultrasound.add_haze`).

    Args:
        decibel: of the haze in its middle, above black, within 0..60.
        depth: of the band's middle, within 0..1.
        width: standard deviation of the band in depths, within 0.01..1.
        p: probability.
    """

    def __init__(
        self,
        decibel: Span = (8, 25),
        depth: Span = (0, 0.6),
        width: Span = (0.05, 0.25),
        p: float = 0.5,
    ):
        super().__init__(p=p)
        self.decibel = _check_span("decibel", decibel, 0, 60)
        self.depth = _check_span("depth", depth, 0, 1)
        self.width = _check_span("width", width, 0.01, 1)

    def apply(self, img: np.ndarray, sector: Sector, **_: object) -> np.ndarray:
        depth = self.py_random.uniform(*self.depth)
        width = self.py_random.uniform(*self.width)
        decibel = self.py_random.uniform(*self.decibel)
        texture = ultrasound.speckle_texture(self.random_generator, sector.height, sector.width)
        return ultrasound.add_haze(img, sector, texture, depth, width, decibel)


class SectorAffine(A.DualTransform):
    """Rotate and scale about the apex of the sector (see `ultrasound.rotate_about_apex`).

    Args:
        degrees: angle, within -45..45.
        scale: factor, within 0.5..2.
        p: probability.
    """

    _targets = (Targets.IMAGE, Targets.MASK)

    def __init__(self, degrees: Span = (-8, 8), scale: Span = (0.85, 1.15), p: float = 0.5):
        super().__init__(p=p)
        self.degrees = _check_span("degrees", degrees, -45, 45)
        self.scale = _check_span("scale", scale, 0.5, 2)

    def get_params_dependent_on_data(self, params: dict, data: dict) -> dict:
        degrees = self.py_random.uniform(*self.degrees)
        scale = self.py_random.uniform(*self.scale)
        return {"sector": find_sector(data["image"]), "degrees": degrees, "scale": scale}

    def apply(
        self, img: np.ndarray, sector: Sector, degrees: float, scale: float, **_: object
    ) -> np.ndarray:
        return ultrasound.rotate_about_apex(img, sector, degrees, scale)

    apply_to_mask = apply  # `rotate_about_apex` reads (H, W) by nearest neighbour


class DrawCalipers(A.ImageOnlyTransform):
    """Draw one or two measurements and sometimes a label, as sonographers leave them.

    Args:
        on_lesion: probability, within 0..1, that the marks are on the lesion's edge rather than
            anywhere.
        p: probability.
    """

    def __init__(self, on_lesion: float = 0.5, p: float = 0.5):
        super().__init__(p=p)
        self.on_lesion = _check_number("on_lesion", on_lesion, 0, 1)

    def get_params_dependent_on_data(self, params: dict, data: dict) -> dict:
        image = data["image"]
        sector = find_sector(image)
        no_lesion = np.zeros(image.shape[:2], np.uint8)
        mask = data.get("mask", no_lesion)

        count = self.py_random.choice((1, 1, 2))
        on_lesion = self.py_random.random() < self.on_lesion
        ends = []
        for _ in range(count + 1):  # the first is for the label
            ends.append(caliper_ends(self.py_random, mask, sector, on_lesion))
        return {"ends": ends}

    def apply(self, img: np.ndarray, ends: list[tuple[Point, Point]], **_: object) -> np.ndarray:
        color = self.py_random.choice(YELLOWS)
        style = self.py_random.choice(("plus", "plus", "x"))
        dotted = self.py_random.random() < 0.7

        if self.py_random.random() < 0.4:
            text = self.py_random.choice(LABELS)
            column, row = np.mean(ends[0], axis=0)
            img = draw_label(img, text, (int(column), int(row)), color)
        for pair in ends[1:]:
            img = draw_caliper(img, pair, color, style, dotted)
        return img


class RemoveCalipers(A.ImageOnlyTransform):
    """Remove yellow marks, so that the network also sees lesions without any."""

    def apply(self, img: np.ndarray, **_: object) -> np.ndarray:
        return remove_calipers(img)


class GaussianNoise(A.ImageOnlyTransform):
    """Add noise to every channel; A.GaussNoise takes five times as long.

    Args:
        deviation: standard deviation, within 0..1, where 1 is white.
        p: probability.
    """

    def __init__(self, deviation: Span = (0.01, 0.05), p: float = 0.5):
        super().__init__(p=p)
        self.deviation = _check_span("deviation", deviation, 0, 1)

    def apply(self, img: np.ndarray, **_: object) -> np.ndarray:
        seed = int(self.random_generator.integers(2**31))
        deviation = self.py_random.uniform(*self.deviation)
        return ultrasound.add_noise(img, seed, deviation)


# Changes a picture, uint8 (H, W, 3), or a mask, uint8 (H, W) of 0 and 255.
Variant = Callable[[np.ndarray, np.random.Generator], np.ndarray]


class BaselineVariant(A.DualTransform):
    """A pair as it is, or one of the variants that the TensorFlow baseline's augmentor makes of it.

    All are equally likely: the baseline makes every variant of the pairs of a batch, and draws the
    batch from them. See `ovseg.data.augment.baseline` for each, and for its defects.

    Args:
        hflip: flip horizontally, and every sheared picture too.
        vflip: flip vertically, and every sheared picture too, also in both ways.
        angles: rotations, degrees.
        shrinks: factors, above 0, at most 1.
        shears: factors.
        deformation_sigmas: of the noise of each deformation, pixels, at least 1.
        deformation_alpha: factor of that noise.
        distortions: largest shift of each distortion, as a share of the side, within 0..1.
        distortion_sigma: of the noise of distortions, pixels, above 0.
        barrel_centers: columns and rows of barrel distortions, as shares of the sides; each
            variant has one more of them.
        barrel_radius: share of the width, above 0.
        barrel_amount: strength.
        pincushion_centers: as `barrel_centers`.
        pincushion_radius: share of the width, above 0.
        pincushion_amount: strength, below 0.
        sharpening: strength; 0 for no such variant.
        brightening: factor and offset; empty for no such variant.
        p: probability.
    """

    _targets = (Targets.IMAGE, Targets.MASK)

    def __init__(
        self,
        hflip: bool = True,
        vflip: bool = True,
        angles: Sequence[float] = (90, 180, 270),
        shrinks: Sequence[float] = (0.8,),
        shears: Sequence[float] = (),
        deformation_sigmas: Sequence[int] = (),
        deformation_alpha: float = 1300,
        distortions: Sequence[float] = (),
        distortion_sigma: float = 40,
        barrel_centers: Sequence[Sequence[float]] = (),
        barrel_radius: float = 0.5,
        barrel_amount: float = 0.5,
        pincushion_centers: Sequence[Sequence[float]] = (),
        pincushion_radius: float = 0.5,
        pincushion_amount: float = -0.5,
        sharpening: float = 0,
        brightening: Sequence[float] = (),
        p: float = 1,
    ):
        super().__init__(p=p)
        for shrink in shrinks:
            _check_number("shrinks", shrink, 0.05, 1)
        for sigma in deformation_sigmas:
            _check_number("deformation_sigmas", sigma, 1, 1000)
        for size in distortions:
            _check_number("distortions", size, 0, 1)
        _check_number("distortion_sigma", distortion_sigma, 0.1, 1000)
        _check_number("barrel_radius", barrel_radius, 0.001, 10)
        _check_number("pincushion_radius", pincushion_radius, 0.001, 10)
        for center in (*barrel_centers, *pincushion_centers):
            _check_pair("centers", center)
        if brightening:
            _check_pair("brightening", brightening)

        flips = []
        for name, is_made in (("horizontal", hflip), ("vertical", vflip)):
            if is_made:
                flips.append(name)
        self.flips = tuple(flips)
        sigmas = tuple(deformation_sigmas)
        self.variants: list[Variant] = [_plain(np.copy)]
        for name in flips:
            self.variants.append(_plain(_flip, (name,)))
        for angle in angles:
            self.variants.append(_plain(baseline.rotate, angle))
        for shrink in shrinks:
            self.variants.append(_plain(baseline.shrink, shrink))
        for factor in shears:
            for count in range(len(flips) + 1):
                for names in combinations(flips, count):
                    self.variants.append(_plain(_shear_and_flip, factor, names))
        for number in range(len(sigmas)):
            self.variants.append(_plain(baseline.deform, deformation_alpha, sigmas, number))
        for size in distortions:
            self.variants.append(partial(_distort, size, distortion_sigma))
        lenses = (
            (barrel_centers, barrel_radius, barrel_amount),
            (pincushion_centers, pincushion_radius, pincushion_amount),
        )
        for centers, radius, amount in lenses:
            for count in range(1, len(centers) + 1):
                self.variants.append(_plain(baseline.bulge, centers[:count], radius, amount))
        if sharpening:
            self.variants.append(_plain(baseline.sharpen, sharpening))
        if brightening:
            self.variants.append(_plain(baseline.brighten, *brightening))

    def get_params(self) -> dict[str, Any]:
        seeds = self.random_generator.integers(2**31, size=2)
        return {"variant": self.py_random.choice(self.variants), "seeds": seeds}

    def apply(
        self, img: np.ndarray, variant: Variant, seeds: np.ndarray, **_: object
    ) -> np.ndarray:
        return variant(img, np.random.default_rng(seeds[0]))

    def apply_to_mask(
        self, mask: np.ndarray, variant: Variant, seeds: np.ndarray, **_: object
    ) -> np.ndarray:
        labels = np.zeros_like(mask)
        # One class has the id 1, whose variant may have lesion where the mask has none.
        for label in range(1, max(1, mask.max()) + 1):
            white = (mask == label) * np.uint8(255)
            labels[variant(white, np.random.default_rng(seeds[1])) > 0] = label
        return labels


def _check_pair(name: str, pair: Sequence[float]) -> None:
    if len(pair) != 2:
        raise InputError(f"{name} has {pair}, expected two numbers.")


def _plain(function: Callable[..., np.ndarray], *arguments: object) -> Variant:
    """The variant of a function that draws no random numbers; a lambda can't go to a worker."""
    return partial(_without_random, function, arguments)


def _without_random(
    function: Callable[..., np.ndarray],
    arguments: Sequence[object],
    picture: np.ndarray,
    _random: np.random.Generator,
) -> np.ndarray:
    return function(picture, *arguments)


def _flip(picture: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    if "horizontal" in names:
        picture = picture[:, ::-1]
    if "vertical" in names:
        picture = picture[::-1]
    return np.ascontiguousarray(picture)


def _shear_and_flip(picture: np.ndarray, factor: float, names: tuple[str, ...]) -> np.ndarray:
    return _flip(baseline.shear(picture, factor), names)


def _distort(
    size: float, sigma: float, picture: np.ndarray, random: np.random.Generator
) -> np.ndarray:
    return baseline.distort(picture, size, sigma, random)


class RandomWindow(A.DualTransform):
    """Scale a picture at random and cut a square window out of it, smaller than the picture was.

    What lies outside the picture is black. If one class fills too much of a window, another is
    drawn, ten times at most, as mmsegmentation's RandomCrop does.

    Args:
        share: side of the window, within 0.1..1, as a share of the picture's side.
        scale: factor of the picture, within 0.1..10.
        largest: share of one class above which a window is drawn again, within 0..1.
        p: probability; 1, because all pictures of a batch have one size.
    """

    _targets = (Targets.IMAGE, Targets.MASK)

    def __init__(
        self,
        share: float = 384 / 448,
        scale: Span = (0.5, 2),
        largest: float = 0.75,
        p: float = 1,
    ):
        super().__init__(p=_check_number("p", p, 1, 1))
        self.share = _check_number("share", share, 0.1, 1)
        self.scale = _check_span("scale", scale, 0.1, 10)
        self.largest = _check_number("largest", largest, 0, 1)

    def get_params_dependent_on_data(self, params: dict, data: dict) -> dict:
        mask = data["mask"]
        window = self.window_of(len(mask))
        scale = self.py_random.uniform(*self.scale)
        scaled = scale * len(mask)
        for _ in range(10):
            left = self.py_random.uniform(0, max(0, scaled - window))
            top = self.py_random.uniform(0, max(0, scaled - window))
            # A pixel's centre is half a pixel from its edge, before and after the scaling.
            offset = (scale - 1) / 2
            matrix = np.array([[scale, 0, offset - left], [0, scale, offset - top]])
            classes = np.bincount(_warp(mask, matrix, window, cv2.INTER_NEAREST).ravel())
            if classes.max() <= self.largest * window**2:
                break
        return {"matrix": matrix, "window": window}

    def window_of(self, side: int) -> int:
        """The side of the window in a picture of some side, pixels."""
        return round(self.share * side)

    def apply(self, img: np.ndarray, matrix: np.ndarray, window: int, **_: object) -> np.ndarray:
        return _warp(img, matrix, window, cv2.INTER_LINEAR)

    def apply_to_mask(
        self, mask: np.ndarray, matrix: np.ndarray, window: int, **_: object
    ) -> np.ndarray:
        return _warp(mask, matrix, window, cv2.INTER_NEAREST)


def _warp(image: np.ndarray, matrix: np.ndarray, side: int, interpolation: int) -> np.ndarray:
    return cv2.warpAffine(image, matrix, (side, side), flags=interpolation, borderValue=0)


def _distortion() -> list[A.BasicTransform]:
    """mmsegmentation's photometric distortion, whose ranges these are.

    Each step has a chance of a half; contrast comes before or after the colours. Only saturation
    is not the same: albumentations mixes with grey what mmsegmentation scales in HSV.
    """
    contrast = A.RandomBrightnessContrast(brightness_limit=0, contrast_limit=0.5, p=0.5)
    colours = [
        A.ColorJitter(brightness=(1, 1), contrast=(1, 1), saturation=(0.5, 1.5), hue=0, p=0.5),
        A.HueSaturationValue(hue_shift_limit=18, sat_shift_limit=0, val_shift_limit=0, p=0.5),
    ]
    return [
        A.RandomBrightnessContrast(brightness_limit=32 / 255, contrast_limit=0, p=0.5),
        A.OneOf([A.Sequential([contrast, *colours]), A.Sequential([*colours, contrast])], p=1),
    ]


# Transforms that flip, and which of `ovseg.inference.labels.FLIPS` they make.
FLIPPING: dict[type, tuple[str, ...]] = {
    A.HorizontalFlip: ("horizontal",),
    A.VerticalFlip: ("vertical",),
    A.D4: ("horizontal", "vertical"),
    A.SquareSymmetry: ("horizontal", "vertical"),
}
BLACK_BORDER = {"border_mode": cv2.BORDER_CONSTANT, "fill": 0, "fill_mask": 0}


def _strong() -> list[A.BasicTransform]:
    return [
        A.HorizontalFlip(p=0.5),
        A.Affine(
            scale=(0.7, 1.4),
            translate_percent=(-0.12, 0.12),
            rotate=(-25, 25),
            shear=(-8, 8),
            **BLACK_BORDER,
            p=0.9,
        ),
        A.GridDistortion(num_steps=4, distort_limit=0.25, **BLACK_BORDER, p=0.3),
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


# Each function makes the steps of a pipeline, in order, or its only step: new ones for every
# Compose, because a transform holds the random generators of the one Compose that it is in.
PIPELINES: dict[str, Callable[..., list[A.BasicTransform] | A.BasicTransform]] = {
    "none": lambda: [],
    # What the baseline's generator makes of a pair, with `augmentation_args` of its configuration.
    "baseline": BaselineVariant,
    # As the baseline's generator has them.
    "flips": lambda: [
        A.HorizontalFlip(p=0.5),
        A.VerticalFlip(p=0.5),
    ],
    # Small changes of place, size, brightness and noise.
    "standard": lambda: [
        A.HorizontalFlip(p=0.5),
        A.Affine(
            scale=(0.85, 1.15),
            translate_percent=(-0.06, 0.06),
            rotate=(-15, 15),
            shear=(-5, 5),
            **BLACK_BORDER,
            p=0.8,
        ),
        A.RandomBrightnessContrast(brightness_limit=0.2, contrast_limit=0.2, p=0.5),
        A.RandomGamma(gamma_limit=(80, 125), p=0.3),
        GaussianNoise(deviation=(0.01, 0.05), p=0.3),
    ],
    # For pretrained networks: `standard` over wider ranges, bent tissue, blur, and squares cut out.
    "strong": _strong,
    # `strong` where a yellow mark says less about the lesion: some are erased, some misplaced.
    "strong_calipers": lambda: [
        RemoveCalipers(p=0.3),
        DrawCalipers(on_lesion=0.3, p=0.3),
        *_strong(),
    ],
    # What differs between two good pictures of one console: view, gain, speckle, calipers.
    "ultrasound_light": lambda: [
        A.HorizontalFlip(p=0.5),
        RemoveCalipers(p=0.4),
        SectorAffine(degrees=(-5, 5), scale=(0.9, 1.1), p=0.5),
        GainChange(decibel=(-4, 4), tgc=2.0, p=0.5),
        SpeckleChange(more=(0.05, 0.2), less=(0.2, 0.7), p=0.3),
        DrawCalipers(p=0.3),
    ],
    # Also what differs between consoles, patients and sonographers, over wider ranges.
    "ultrasound_strong": lambda: [
        A.HorizontalFlip(p=0.5),
        RemoveCalipers(p=0.5),
        SectorAffine(degrees=(-10, 10), scale=(0.8, 1.2), p=0.7),
        Haze(p=0.25),  # before what darkens: the sector is found in what is not black
        SpeckleChange(p=0.5),
        DepthAttenuation(p=0.3),
        AcousticShadow(p=0.35),
        GainChange(decibel=(-6, 6), tgc=3.0, p=0.6),
        DrawCalipers(p=0.4),
    ],
    # Of the MMOTU paper, on pictures of 448 pixels: a window of 384 of the picture at half to
    # twice its size. Networks with learned positions take `photometric`, which cuts nothing.
    "mmotu": lambda: [RandomWindow(), A.HorizontalFlip(p=0.5), *_distortion()],
    "photometric": lambda: [A.HorizontalFlip(p=0.5), *_distortion()],
    "distortion": _distortion,
}


def build_transform(
    augmentation: str, arguments: Mapping[str, object] | None = None
) -> A.Compose | None:
    """A pipeline by name, or one that `albumentations.save` wrote as YAML or JSON.

    Args:
        augmentation: a name of `PIPELINES` or the path of a .yaml, .yml or .json file.
        arguments: of the pipeline, if it has any.

    Returns:
        A Compose for `image` uint8 (H, W, 3) and `mask` uint8 (H, W), which reads masks by nearest
        neighbour, whatever a file says; None for `none`.

    Raises:
        InputError: unknown name or argument, or a file that is missing or no albumentations
            pipeline.
    """
    path = Path(augmentation)
    arguments = arguments or {}
    if path.suffix.lower() in (".yaml", ".yml", ".json"):
        if arguments:
            raise InputError(f"{path} holds its own arguments. Leave augmentation_args out.")
        return _load(path)

    make_steps = choose("augmentation", augmentation, PIPELINES)
    check_arguments(f"augmentation {augmentation}", make_steps, arguments)
    steps = make_steps(**arguments)
    if isinstance(steps, A.BasicTransform):
        steps = [steps]
    if not steps:
        return None
    return A.Compose(steps, mask_interpolation=cv2.INTER_NEAREST)


def side_after(transform: A.Compose | None, side: int) -> int:
    """The side of the squares that a pipeline makes of squares of some side, pixels."""
    for step in [] if transform is None else transform.transforms:
        if isinstance(step, RandomWindow):
            side = step.window_of(side)
    return side


def flips_of(transform: A.Compose | None) -> set[str]:
    """The flips that a pipeline makes, by the names in `FLIPPING` or of the transform itself."""
    flips: set[str] = set()
    steps: list[Any] = [transform]
    while steps:
        step = steps.pop()
        if step is None or step.p == 0:
            continue
        flips.update(getattr(step, "flips", FLIPPING.get(type(step), ())))
        steps += getattr(step, "transforms", [])
    return flips


def _load(path: Path) -> A.Compose:
    if not path.is_file():
        raise InputError(
            f"There is no augmentation file {path}. Name one of {', '.join(PIPELINES)} or a file."
        )

    data_format = "json" if path.suffix.lower() == ".json" else "yaml"
    try:
        pipeline = A.load(path, data_format=data_format)
    except Exception as error:  # albumentations raises whatever its parsers and constructors raise
        raise InputError(
            f"{path} is not an albumentations pipeline ({error}). "
            "Write it with albumentations.save."
        ) from error

    if not isinstance(pipeline, A.Compose):
        raise InputError(
            f"{path} holds a {type(pipeline).__name__}, expected an albumentations Compose."
        )
    pipeline.set_mask_interpolation(cv2.INTER_NEAREST)
    return pipeline


def seed_transform(transform: A.Compose, seed: int) -> None:
    """Let all transforms of a pipeline draw from one pair of generators.

    Compose's own `set_random_seed` gives each transform a generator of the same seed, so that they
    draw the same numbers: both flips together or none, large rotations only with large scales.
    """
    transform.set_random_state(np.random.default_rng(seed), random.Random(seed))


def augment(
    transform: A.Compose, image: np.ndarray, mask: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Apply a pipeline to a pair; the same seed gives the same result in any process.

    Args:
        transform: from `build_transform`.
        image: RGB, uint8 (H, W, 3).
        mask: uint8 (H, W).
        seed: 0 or more.

    Raises:
        InputError: the pipeline fails, or changed the dtype of the image, or its size otherwise
            than `side_after` says.
    """
    seed_transform(transform, seed)
    try:
        result = transform(image=image, mask=mask)
    except (ValueError, cv2.error) as error:  # of albumentations and of the OpenCV that it calls
        raise InputError(
            f"The augmentation fails on an image of {image.shape[:2]}: {error}"
        ) from error

    changed = result["image"]
    height, width, channels = image.shape
    expected = (side_after(transform, height), side_after(transform, width), channels)
    if changed.shape != expected or changed.dtype != np.uint8:
        raise InputError(
            f"The augmentation turned uint8 {image.shape} into {changed.dtype} {changed.shape}. "
            "It must keep size and dtype: scaling and normalisation are the network's first layer, "
            "and only RandomWindow cuts."
        )
    return changed, result["mask"]
