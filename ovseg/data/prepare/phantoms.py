"""Synthetic B-mode pairs with exact masks: the dataset that needs no download.

The image model is the usual one for fully developed speckle: a complex Gaussian field of scatterers, weighted by the
square root of the local echogenicity, through a point-spread function whose lateral width grows with depth; envelope,
depth attenuation, shadows and log compression follow, and the beams are scan-converted to a sector. Lesions are cysts,
endometrioma-like, solid or mixed, with a bright capsule; small vessels, shadows and gas in the tissue reach
the same grey values, so no threshold finds the lesion.

Source: R. F. Wagner et al., Statistics of speckle in ultrasound B-scans, IEEE Trans. Sonics Ultrason. 30(3), 1983.
"""

from pathlib import Path

import cv2
import numpy as np
from scipy.ndimage import gaussian_filter1d

from ovseg.core.console import progress_bar
from ovseg.core.errors import InputError
from ovseg.core.files import atomic_dir, write_image, write_json

BEAMS, DEPTHS = (
    256,
    384,
)  # the polar grid, fine enough that speckle spans several cells at 512 pixels
CATEGORIES = (
    "cyst",
    "haze",
    "solid",
    "mixed",
)  # what a lesion is inside; ids in category maps are one higher
SPLITS = {"train": 0.7, "valid": 0.15, "test": 0.15}
MAX_FOLDS = 8  # 10 phantoms leave 8 for train and valid


def make_phantom(seed: int, size: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """One synthetic image and its mask, uint8 (size, size) of 0 and 1; see `make_phantom_with_category`."""
    return make_phantom_with_category(seed, size)[:2]


def make_phantom_with_category(seed: int, size: int = 256) -> tuple[np.ndarray, np.ndarray, int]:
    """One synthetic image, its mask, and the category of its lesion.

    Args:
        seed: the same seed and size give the same pixels.
        size: side of the square picture, pixels, at least 32.

    Returns:
        RGB image, uint8 (size, size, 3), lesion mask, uint8 (size, size) of 0 and 1, and id, 1..4 in the order of
        `CATEGORIES`; there is always one lesion.

    Raises:
        InputError: `size` is below 32.
    """
    if size < 32:
        raise InputError(f"Phantoms of {size} pixels are too small to draw, expected at least 32.")
    rng = np.random.default_rng(seed)
    half_angle, near = rng.uniform(0.55, 0.85), rng.uniform(0.08, 0.2)
    x, y = _polar_positions(half_angle, near)
    decibel = _tissue(rng, x, y)
    decibel, distance, category = _add_lesion(rng, x, y, decibel)
    envelope = _speckle(rng, decibel + _attenuation(rng, near))
    image = _scan_convert(_compress(rng, envelope), size, half_angle, near)
    mask = _scan_convert((distance < 0).astype(np.float32), size, half_angle, near) > 0.5
    return (
        np.repeat(image.clip(0, 255).astype(np.uint8)[..., None], 3, 2),
        mask.astype(np.uint8),
        category,
    )


def _polar_positions(half_angle: float, near: float) -> tuple[np.ndarray, np.ndarray]:
    """Position of every polar cell in the picture, each (DEPTHS, BEAMS), 0..1 from top left."""
    angle = np.linspace(-half_angle, half_angle, BEAMS)[None]
    radius = np.linspace(near, 1, DEPTHS)[:, None]
    return 0.5 + 0.95 * radius * np.sin(angle), 0.02 + 0.95 * radius * np.cos(angle) - near * 0.5


def _smooth_noise(rng: np.random.Generator, scale: tuple[float, float]) -> np.ndarray:
    """Noise of unit variance, correlated over about `scale` cells, (DEPTHS, BEAMS)."""
    rows, columns = (
        max(4, round(n / (1.5 * s))) for n, s in zip((DEPTHS, BEAMS), scale, strict=True)
    )
    noise = cv2.resize(
        rng.standard_normal((rows, columns)), (BEAMS, DEPTHS), interpolation=cv2.INTER_CUBIC
    )
    return noise / noise.std()


def _tissue(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Echogenicity of the surroundings in dB: layers, small dark vessels, bright reflectors with their shadows."""
    decibel = 3 * _smooth_noise(rng, (30, 30)) + 2.5 * _smooth_noise(rng, (6, 50))
    for _ in range(rng.integers(2, 7)):
        vessel = _distance(
            rng, x, y, rng.uniform(0.2, 0.8), rng.uniform(0.2, 0.9), rng.uniform(0.015, 0.04)
        )
        decibel = np.where(vessel < 0, rng.uniform(-30, -15), decibel)
    for _ in range(rng.integers(0, 4)):
        decibel = _add_reflector(rng, decibel)
    return decibel


def _add_reflector(rng: np.random.Generator, decibel: np.ndarray) -> np.ndarray:
    """A short bright interface (gas, calcification) and the acoustic shadow below it."""
    depth, beam, width = rng.integers(20, DEPTHS - 60), rng.integers(0, BEAMS), rng.uniform(4, 18)
    profile = np.exp(-0.5 * ((np.arange(BEAMS) - beam) / width) ** 4)[None]
    row = np.arange(DEPTHS)[:, None]
    bright = 16 * np.exp(-0.5 * ((row - depth) / 2.5) ** 2)
    shadow = -rng.uniform(8, 30) * (row > depth + 4)
    return decibel + profile * (bright + shadow)


def _distance(
    rng: np.random.Generator, x: np.ndarray, y: np.ndarray, cx: float, cy: float, radius: float
) -> np.ndarray:
    """Signed distance-like map of an irregular ellipse, negative inside, in picture sides."""
    turn, stretch = rng.uniform(0, np.pi), rng.uniform(0.65, 1.0)
    dx, dy = x - cx, y - cy
    u, v = dx * np.cos(turn) + dy * np.sin(turn), (dy * np.cos(turn) - dx * np.sin(turn)) / stretch
    theta = np.linspace(-np.pi, np.pi, 181)
    rim = sum(
        rng.normal(0, 0.10 / k) * np.cos(k * theta + rng.uniform(0, 6.28)) for k in range(2, 6)
    )
    return np.hypot(u, v) - radius * (1 + np.interp(np.arctan2(v, u), theta, rim))


def _add_lesion(
    rng: np.random.Generator, x: np.ndarray, y: np.ndarray, decibel: np.ndarray
) -> tuple:
    """Draw the lesion into the echogenicity; returns it with the lesion's distance map and category id."""
    radius = rng.uniform(0.09, 0.24)
    cx, cy = rng.uniform(0.35, 0.65), rng.uniform(0.36, 0.68)
    distance = _distance(rng, x, y, cx, cy, radius)
    kind = str(rng.choice(CATEGORIES))
    inside = _lesion_inside(rng, x, y, cx, cy, radius, kind)
    decibel = np.where(distance < 0, inside, decibel)
    decibel = decibel + rng.uniform(6, 12) * np.exp(-0.5 * (distance / 0.007) ** 2)
    fluid = max(0.0, -float(inside.mean()) - 8) / 4
    below = np.maximum.accumulate(distance < 0, axis=0) & (distance > 0.01)
    return (
        decibel + fluid * cv2.GaussianBlur(below.astype(float), (0, 0), 4),
        distance,
        CATEGORIES.index(kind) + 1,
    )


def _lesion_inside(rng, x, y, cx: float, cy: float, radius: float, kind: str) -> np.ndarray:
    """Echogenicity inside a lesion in dB: anechoic, low-level echoes, solid, or fluid with septa and a nodule."""
    if kind == "solid":
        return rng.uniform(-5, 8) + 2.5 * _smooth_noise(rng, (8, 8))
    if kind == "haze":
        return rng.uniform(-13, -7) + 0.7 * _smooth_noise(rng, (20, 20))
    fluid = rng.uniform(-34, -22) + 1.0 * _smooth_noise(rng, (20, 20))
    if kind == "cyst":
        return fluid
    turn, offset = rng.uniform(0, np.pi), rng.uniform(-0.5, 0.5) * radius
    septum = np.abs(
        (x - cx) * np.cos(turn) + (y - cy) * np.sin(turn) - offset + 0.1 * (y - cy) ** 2 / radius
    )
    nodule_at = rng.uniform(0, 2 * np.pi)
    nodule = _distance(
        rng,
        x,
        y,
        cx + 0.7 * radius * np.cos(nodule_at),
        cy + 0.7 * radius * np.sin(nodule_at),
        0.4 * radius,
    )
    fluid = np.where(nodule < 0, rng.uniform(-4, 3), fluid)
    return np.where(septum < 0.006, 0.0, fluid)


def _attenuation(rng: np.random.Generator, near: float) -> np.ndarray:
    """Loss with depth that the time-gain compensation left over, and a haze of the near field, in dB (DEPTHS, 1)."""
    depth = np.linspace(near, 1, DEPTHS)[:, None]
    return -rng.uniform(0, 16) * depth + rng.uniform(0, 8) * np.exp(-((depth - near) / 0.06))


def _speckle(rng: np.random.Generator, decibel: np.ndarray) -> np.ndarray:
    """Envelope of scatterers of the given echogenicity through the point-spread function, (DEPTHS, BEAMS)."""
    amplitude = 10 ** (decibel / 20)
    field = amplitude * (
        rng.standard_normal(decibel.shape) + 1j * rng.standard_normal(decibel.shape)
    )
    axial, lateral = rng.uniform(1.2, 1.9), rng.uniform(1.0, 2.2)
    field = gaussian_filter1d(field.real, axial, 0) + 1j * gaussian_filter1d(field.imag, axial, 0)
    focused = gaussian_filter1d(field.real, lateral, 1) + 1j * gaussian_filter1d(
        field.imag, lateral, 1
    )
    spread = gaussian_filter1d(field.real, 2 * lateral, 1) + 1j * gaussian_filter1d(
        field.imag, 2 * lateral, 1
    )
    weight = np.linspace(0, 1, DEPTHS)[:, None] ** 2
    return np.abs(focused * (1 - weight) + spread * weight * np.sqrt(2)) * np.sqrt(
        4 * np.pi * axial * lateral
    )


def _compress(rng: np.random.Generator, envelope: np.ndarray) -> np.ndarray:
    """Log compression to grey levels 0..255 with a random gain and dynamic range, float32."""
    decibel = 20 * np.log10(envelope + 10 ** (rng.uniform(-44, -34) / 20))
    reach, gain = rng.uniform(48, 62), rng.uniform(-6, 4)
    return (255 * np.clip((decibel + gain + reach - 18) / reach, 0, 1)).astype(np.float32)


def _scan_convert(polar: np.ndarray, size: int, half_angle: float, near: float) -> np.ndarray:
    """Beams (DEPTHS, BEAMS) to a (size, size) sector; 0 outside."""
    column, row = np.meshgrid((np.arange(size) + 0.5) / size, (np.arange(size) + 0.5) / size)
    dx, dy = (column - 0.5) / 0.95, (row - 0.02 + near * 0.5) / 0.95
    radius, angle = np.hypot(dx, dy), np.arctan2(dx, dy)
    to_row = (radius - near) / (1 - near) * (DEPTHS - 1)
    to_column = (angle / half_angle + 1) / 2 * (BEAMS - 1)
    return cv2.remap(
        polar, to_column.astype(np.float32), to_row.astype(np.float32), cv2.INTER_LINEAR
    )


def write_phantoms(
    output: Path,
    count: int,
    size: int = 256,
    seed: int = 0,
    overwrite: bool = False,
    folds: int = 0,
) -> None:
    """Write a dataset tree of phantoms as `prepare_data` writes one, and its `manifest.json`.

    The pictures are `{train,valid,test}/{images,masks,categories}/phantom_<n>.png`.

    Args:
        output: folder to make; it appears only when it is whole.
        count: number of pairs, at least 10, dealt 70 : 15 : 15.
        size: side of the pictures, pixels.
        seed: phantom n is drawn from (seed, n).
        overwrite: replace a dataset that this function wrote before.
        folds: also deal train and valid to so many folds, in turn, as `prepare_data` does by groups; 0 deals none.

    Raises:
        InputError: `count` or `size` too small, `folds` out of range, or `output` exists.
    """
    if seed < 0:
        raise InputError(f"The seed of phantoms is {seed}, expected 0 or more.")
    if count < 10:
        raise InputError(f"{count} phantoms are too few to split, expected at least 10.")
    if folds and not 2 <= folds <= MAX_FOLDS:
        raise InputError(f"--folds is {folds}, expected 2..{MAX_FOLDS}, or 0 for none.")
    train_end, valid_end = (
        round(count * SPLITS["train"]),
        round(count * (SPLITS["train"] + SPLITS["valid"])),
    )
    with atomic_dir(output, overwrite, marker="manifest.json") as folder:
        items = []
        for number in progress_bar(range(count), "Drawing phantoms"):
            split = "train" if number < train_end else "valid" if number < valid_end else "test"
            image, mask, category = make_phantom_with_category(seed * 1_000_003 + number, size)
            pictures = {
                "images": image,
                "masks": mask * 255,
                "categories": mask * np.uint8(category),
            }
            for kind, picture in pictures.items():
                write_image(folder / split / kind / f"phantom_{number}.png", picture)
            fold = number % folds if folds and split != "test" else None
            items.append(
                {"stem": f"phantom_{number}", "split": split, "fold": fold, "category": category}
            )
        manifest = {"made_by": "phantoms", "count": count, "size": size, "seed": seed}
        write_json(folder / "manifest.json", {**manifest, "categories": CATEGORIES, "items": items})
