"""Synthetic pairs with exact masks, in B-mode and with contrast agent: they need no download.

The image model is the usual one for fully developed speckle. A complex Gaussian field of
scatterers, weighted by the square root of the local echogenicity, passes through a point-spread
function whose lateral width grows with depth. Envelope, depth attenuation, shadows and log
compression follow, and the beams are scan-converted to a sector. Lesions are cysts,
endometrioma-like, solid or mixed, with a bright capsule. Small vessels, shadows and gas in the
tissue reach the same grey values, so no threshold finds the lesion.

With contrast agent (CEUS) the scanner shows bubbles in blood instead of echoes of tissue: the
background is dark, perfused tissue and vessels are bright in the colour of amber, fluid stays
black, and the wall, septa and nodules of a lesion are enhanced. A phantom has the same anatomy in
all looks.

Source: R. F. Wagner et al., Statistics of speckle in ultrasound B-scans, IEEE Trans. Sonics
Ultrason. 30(3), 1983.
"""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from scipy.ndimage import gaussian_filter1d

from ovseg.core.console import progress_bar
from ovseg.core.errors import InputError
from ovseg.core.files import atomic_dir, write_image, write_json
from ovseg.core.registry import choose
from ovseg.data.manifest import FILE_NAME

# The polar grid, fine enough that a grain of speckle spans several cells at 512 pixels.
BEAMS = 256
DEPTHS = 384

# What a lesion is inside; ids in category maps are one higher, 0 is background.
CATEGORIES = ("cyst", "haze", "solid", "mixed")

FRACTIONS = {"train": 0.7, "valid": 0.15, "test": 0.15}
MAX_FOLDS = 8  # 10 phantoms leave 8 for train and valid

LOOKS = {
    "b-mode": "grey echoes",
    "ceus": "contrast agent in amber on black",
    "panels": "both side by side, as scanners show them; pictures are twice as wide as high",
}
# Red, green and blue of full enhancement, and the exponents that darken the weaker one.
AMBER = (255.0, 190.0, 90.0)
AMBER_GAMMA = (0.8, 1.2, 2.0)
SOLID_DECIBEL = -6.0  # echoes of a lesion above it are of tissue, those below it of fluid


def make_phantom(seed: int, size: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """Draw an image and its mask, uint8 of 0 and 1; see `make_phantom_with_category`."""
    image, mask, _ = make_phantom_with_category(seed, size)
    return image, mask


def make_phantom_with_category(
    seed: int, size: int = 256, look: str = "b-mode"
) -> tuple[np.ndarray, np.ndarray, int]:
    """Draw an image, its mask, and the category of its lesion.

    Args:
        seed: the same seed, size and look give the same pixels; 0 or more.
        size: height of the picture, pixels, at least 32.
        look: see `LOOKS`. The same seed draws the same lesion in each.

    Returns:
        RGB image, uint8 (size, size, 3), of panels (size, 2 * size, 3); lesion mask, uint8 of the
        same height and width, of 0 and 1, in both panels; and id, 1..4 in the order of
        `CATEGORIES`. There is always one lesion.

    Raises:
        InputError: `size` is below 32, or an unknown look.
    """
    choose("look of phantoms", look, LOOKS)
    if size < 32:
        raise InputError(f"Phantoms of {size} pixels are too small to draw, expected at least 32.")

    rng = np.random.default_rng(seed)
    fan = Fan.draw(rng)
    x, y = fan.positions()
    tissue = _tissue(rng, x, y)
    lesion = _draw_lesion(rng, x, y)

    drawn = []
    if look in ("b-mode", "panels"):
        drawn.append(_draw_echoes(rng, fan, tissue, lesion, size))
    if look in ("ceus", "panels"):
        # Numbers of its own: they are the same whether the echoes are drawn too.
        drawn.append(_draw_perfusion(np.random.default_rng([seed, 1]), fan, tissue, lesion, size))
    image = np.concatenate(drawn, axis=1)

    inside = (lesion.distance < 0).astype(np.float32)
    mask = (fan.scan_convert(inside, size) > 0.5).astype(np.uint8)
    return image, np.concatenate([mask] * len(drawn), axis=1), lesion.category


def _draw_echoes(
    rng: np.random.Generator, fan: "Fan", tissue: "Tissue", lesion: "Lesion", size: int
) -> np.ndarray:
    """The phantom in B-mode, RGB, uint8 (size, size, 3)."""
    decibel = _add_lesion(tissue.decibel, lesion) + _attenuation(rng, fan.near)
    envelope = speckle_envelope(rng, decibel)
    grey = fan.scan_convert(_compress(rng, envelope), size)
    grey = grey.clip(0, 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, 2)


def _draw_perfusion(
    rng: np.random.Generator, fan: "Fan", tissue: "Tissue", lesion: "Lesion", size: int
) -> np.ndarray:
    """The phantom with contrast agent, RGB, uint8 (size, size, 3)."""
    x, y = fan.positions()
    decibel = rng.uniform(-34, -26) + 4 * _smooth_noise(rng, (20, 20))
    for _ in range(rng.integers(2, 6)):
        # Organs around take up the agent too, more or less than the lesion does.
        distance = _distance_to_ellipse(
            rng, x, y, rng.uniform(0.15, 0.85), rng.uniform(0.2, 0.9), rng.uniform(0.05, 0.16)
        )
        decibel = np.where(distance < 0, rng.uniform(-26, -8), decibel)
    decibel = np.where(tissue.vessels, rng.uniform(-8, 4), decibel)

    # Fluid has no blood; septa, nodules and solid tumours have.
    perfused = rng.uniform(-22, -4) + 2 * _smooth_noise(rng, (10, 10))
    within = np.where(lesion.inside > SOLID_DECIBEL, perfused, -45.0)
    decibel = np.where(lesion.distance < 0, within, decibel)
    decibel = decibel + rng.uniform(6, 18) * np.exp(-0.5 * (lesion.distance / 0.008) ** 2)
    decibel = decibel + tissue.shadow + _attenuation(rng, fan.near)

    envelope = speckle_envelope(rng, decibel)
    share = fan.scan_convert(_compress(rng, envelope), size).clip(0, 255) / 255
    channels = []
    for brightest, gamma in zip(AMBER, AMBER_GAMMA, strict=True):
        channels.append(brightest * share**gamma)
    return np.stack(channels, axis=2).astype(np.uint8)


@dataclass(frozen=True)
class Tissue:
    """What is around the lesion; maps are (DEPTHS, BEAMS).

    Attributes:
        decibel: echogenicity, with reflectors and their shadows, dB.
        vessels: where blood flows, bool.
        shadow: what reflectors leave of the sound behind them, dB, 0 or less.
    """

    decibel: np.ndarray
    vessels: np.ndarray
    shadow: np.ndarray


@dataclass(frozen=True)
class Lesion:
    """A lesion; maps are (DEPTHS, BEAMS).

    Attributes:
        distance: to its edge, negative inside; its unit is the picture's side.
        inside: echogenicity, dB, over the whole picture.
        capsule: what the capsule adds, dB.
        category: its id, 1..4.
    """

    distance: np.ndarray
    inside: np.ndarray
    capsule: np.ndarray
    category: int


@dataclass(frozen=True)
class Fan:
    """The beams of a convex probe.

    Attributes:
        half_angle: between the middle beam and the first or last one, radians.
        near: distance of the probe's face from the apex; the deepest echo is at 1.
    """

    half_angle: float
    near: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "Fan":
        """Draw a fan: what `make_phantom` draws first."""
        half_angle = rng.uniform(0.55, 0.85)
        near = rng.uniform(0.08, 0.2)
        return cls(half_angle, near)

    def positions(self) -> tuple[np.ndarray, np.ndarray]:
        """Column and row of each cell in the picture, (DEPTHS, BEAMS) each, 0..1 from top left."""
        angle = np.linspace(-self.half_angle, self.half_angle, BEAMS)[None]
        radius = np.linspace(self.near, 1, DEPTHS)[:, None]
        x = 0.5 + 0.95 * radius * np.sin(angle)
        y = 0.02 + 0.95 * radius * np.cos(angle) - self.near * 0.5
        return x, y

    def scan_convert(self, polar: np.ndarray, size: int) -> np.ndarray:
        """Resample beams, float32 (DEPTHS, BEAMS), to a sector, (size, size); 0 outside."""
        centers = (np.arange(size) + 0.5) / size
        x, y = np.meshgrid(centers, centers)
        dx = (x - 0.5) / 0.95
        dy = (y - 0.02 + self.near * 0.5) / 0.95
        radius = np.hypot(dx, dy)
        angle = np.arctan2(dx, dy)

        row = (radius - self.near) / (1 - self.near) * (DEPTHS - 1)
        column = (angle / self.half_angle + 1) / 2 * (BEAMS - 1)
        return cv2.remap(polar, column.astype(np.float32), row.astype(np.float32), cv2.INTER_LINEAR)


def _smooth_noise(rng: np.random.Generator, scale: tuple[float, float]) -> np.ndarray:
    """Noise of unit variance, correlated over about `scale` cells, (DEPTHS, BEAMS)."""
    scale_rows, scale_columns = scale
    rows = max(4, round(DEPTHS / (1.5 * scale_rows)))
    columns = max(4, round(BEAMS / (1.5 * scale_columns)))
    coarse = rng.standard_normal((rows, columns))
    noise = cv2.resize(coarse, (BEAMS, DEPTHS), interpolation=cv2.INTER_CUBIC)
    return noise / noise.std()


def _tissue(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> Tissue:
    """Draw the tissue: layers, dark vessels, bright reflectors with shadows."""
    grains = _smooth_noise(rng, (30, 30))
    layers = _smooth_noise(rng, (6, 50))
    decibel = 3 * grains + 2.5 * layers

    vessels = np.zeros(x.shape, bool)
    for _ in range(rng.integers(2, 7)):
        center_x = rng.uniform(0.2, 0.8)
        center_y = rng.uniform(0.2, 0.9)
        radius = rng.uniform(0.015, 0.04)
        distance = _distance_to_ellipse(rng, x, y, center_x, center_y, radius)
        decibel = np.where(distance < 0, rng.uniform(-30, -15), decibel)
        vessels |= distance < 0

    shadows = np.zeros(x.shape)
    for _ in range(rng.integers(0, 4)):
        reflector, shadow = _draw_reflector(rng)
        decibel = decibel + reflector
        shadows = shadows + shadow
    return Tissue(decibel, vessels, shadows)


def _draw_reflector(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A short bright interface (gas, calcification) with its acoustic shadow; the shadow alone."""
    depth = rng.integers(20, DEPTHS - 60)
    beam = rng.integers(0, BEAMS)
    width = rng.uniform(4, 18)

    row = np.arange(DEPTHS)[:, None]
    column = np.arange(BEAMS)[None]
    profile = np.exp(-0.5 * ((column - beam) / width) ** 4)
    bright = 16 * np.exp(-0.5 * ((row - depth) / 2.5) ** 2)
    shadow = -rng.uniform(8, 30) * (row > depth + 4)
    return profile * (bright + shadow), profile * shadow


def _distance_to_ellipse(
    rng: np.random.Generator,
    x: np.ndarray,
    y: np.ndarray,
    center_x: float,
    center_y: float,
    radius: float,
) -> np.ndarray:
    """Draw an irregular ellipse: a map like a signed distance to its edge, negative inside.

    The unit of `x`, `y`, centre, radius and distance is the picture's side.
    """
    rotation = rng.uniform(0, np.pi)
    stretch = rng.uniform(0.65, 1.0)
    dx = x - center_x
    dy = y - center_y
    u = dx * np.cos(rotation) + dy * np.sin(rotation)
    v = (dy * np.cos(rotation) - dx * np.sin(rotation)) / stretch

    theta = np.linspace(-np.pi, np.pi, 181)
    bulge = np.zeros_like(theta)  # how far the edge is outside of the ellipse, in radii
    for wave in range(2, 6):
        amplitude = rng.normal(0, 0.10 / wave)
        phase = rng.uniform(0, 6.28)
        bulge = bulge + amplitude * np.cos(wave * theta + phase)
    edge = radius * (1 + np.interp(np.arctan2(v, u), theta, bulge))
    return np.hypot(u, v) - edge


def _draw_lesion(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> Lesion:
    """Draw a lesion near the middle of the picture."""
    radius = rng.uniform(0.09, 0.24)
    center_x = rng.uniform(0.35, 0.65)
    center_y = rng.uniform(0.36, 0.68)
    distance = _distance_to_ellipse(rng, x, y, center_x, center_y, radius)
    kind = str(rng.choice(CATEGORIES))
    inside = _lesion_inside(rng, x, y, center_x, center_y, radius, kind)
    capsule = rng.uniform(6, 12) * np.exp(-0.5 * (distance / 0.007) ** 2)
    return Lesion(distance, inside, capsule, CATEGORIES.index(kind) + 1)


def _add_lesion(decibel: np.ndarray, lesion: Lesion) -> np.ndarray:
    """The echogenicity with a lesion in it, dB."""
    decibel = np.where(lesion.distance < 0, lesion.inside, decibel)
    decibel = decibel + lesion.capsule

    # Fluid attenuates little, so what is below a dark lesion is brighter.
    enhancement = max(0.0, -float(lesion.inside.mean()) - 8) / 4
    below = np.maximum.accumulate(lesion.distance < 0, axis=0) & (lesion.distance > 0.01)
    return decibel + enhancement * cv2.GaussianBlur(below.astype(float), (0, 0), 4)


def _lesion_inside(
    rng: np.random.Generator,
    x: np.ndarray,
    y: np.ndarray,
    center_x: float,
    center_y: float,
    radius: float,
    kind: str,
) -> np.ndarray:
    """Echogenicity of a lesion in dB, over the whole picture.

    It is solid (`solid`), low-level echoes (`haze`), anechoic (`cyst`), or fluid with a septum and
    a nodule (`mixed`).
    """
    if kind == "solid":
        return rng.uniform(-5, 8) + 2.5 * _smooth_noise(rng, (8, 8))
    if kind == "haze":
        return rng.uniform(-13, -7) + 0.7 * _smooth_noise(rng, (20, 20))

    fluid = rng.uniform(-34, -22) + 1.0 * _smooth_noise(rng, (20, 20))
    if kind == "cyst":
        return fluid

    dx = x - center_x
    dy = y - center_y
    direction = rng.uniform(0, np.pi)
    offset = rng.uniform(-0.5, 0.5) * radius
    across = dx * np.cos(direction) + dy * np.sin(direction)
    septum = np.abs(across - offset + 0.1 * dy**2 / radius)

    around = rng.uniform(0, 2 * np.pi)
    nodule_x = center_x + 0.7 * radius * np.cos(around)
    nodule_y = center_y + 0.7 * radius * np.sin(around)
    nodule = _distance_to_ellipse(rng, x, y, nodule_x, nodule_y, 0.4 * radius)

    fluid = np.where(nodule < 0, rng.uniform(-4, 3), fluid)
    return np.where(septum < 0.006, 0.0, fluid)


def _attenuation(rng: np.random.Generator, near: float) -> np.ndarray:
    """Loss that time-gain compensation left over, and haze near the probe, in dB (DEPTHS, 1)."""
    depth = np.linspace(near, 1, DEPTHS)[:, None]
    loss = rng.uniform(0, 16) * depth
    haze = rng.uniform(0, 8) * np.exp(-((depth - near) / 0.06))
    return -loss + haze


def speckle_envelope(rng: np.random.Generator, decibel: np.ndarray) -> np.ndarray:
    """Draw the envelope of the echoes of fully developed speckle.

    Args:
        rng: source of random numbers.
        decibel: echogenicity, (DEPTHS, BEAMS).

    Returns:
        Amplitude, (DEPTHS, BEAMS).
    """
    amplitude = 10 ** (decibel / 20)
    real = rng.standard_normal(decibel.shape)
    imaginary = rng.standard_normal(decibel.shape)
    field = amplitude * (real + 1j * imaginary)

    # The point-spread function: its lateral width doubles from the probe to the deepest echo.
    axial = rng.uniform(1.2, 1.9)  # standard deviations, cells
    lateral = rng.uniform(1.0, 2.2)
    field = gaussian_filter1d(field, axial, axis=0)
    narrow = gaussian_filter1d(field, lateral, axis=1)
    wide = gaussian_filter1d(field, 2 * lateral, axis=1)
    weight = np.linspace(0, 1, DEPTHS)[:, None] ** 2
    echo = narrow * (1 - weight) + wide * weight * np.sqrt(2)
    return np.abs(echo) * np.sqrt(4 * np.pi * axial * lateral)


def _compress(rng: np.random.Generator, envelope: np.ndarray) -> np.ndarray:
    """Log compression to grey levels 0..255 with a random gain and dynamic range, float32."""
    noise = 10 ** (rng.uniform(-44, -34) / 20)
    decibel = 20 * np.log10(envelope + noise)
    dynamic_range = rng.uniform(48, 62)
    gain = rng.uniform(-6, 4)
    share = np.clip((decibel + gain + dynamic_range - 18) / dynamic_range, 0, 1)
    return (255 * share).astype(np.float32)


def write_phantoms(
    output: Path,
    count: int,
    size: int = 256,
    seed: int = 0,
    overwrite: bool = False,
    folds: int = 0,
    look: str = "b-mode",
) -> None:
    """Write a dataset tree of phantoms as `ovseg prepare_data` writes one, and its `manifest.json`.

    The pictures are `{train,valid,test}/{images,masks,categories}/phantom_<n>.png`.

    Args:
        output: folder to make; it appears only when it is complete.
        count: number of pairs, at least 10, split 70 : 15 : 15.
        size: height of the pictures, pixels.
        seed: phantom n is drawn from (seed, n); 0 or more.
        overwrite: replace a dataset that this function wrote before.
        folds: also divide train and valid into so many folds, in turn (`ovseg prepare_data` does it
            by groups); 0 makes none.
        look: see `LOOKS`.

    Raises:
        InputError: `seed`, `count`, `size` or `folds` out of range, an unknown look, or `output`
            exists.
    """
    choose("look of phantoms", look, LOOKS)
    if seed < 0:
        raise InputError(f"The seed of phantoms is {seed}, expected 0 or more.")
    if count < 10:
        raise InputError(f"{count} phantoms are too few to split, expected at least 10.")
    if folds and not 2 <= folds <= MAX_FOLDS:
        raise InputError(f"--folds is {folds}, expected 2..{MAX_FOLDS}, or 0 for none.")

    train_end = round(count * FRACTIONS["train"])
    valid_end = round(count * (FRACTIONS["train"] + FRACTIONS["valid"]))
    splits = ["train"] * train_end
    splits += ["valid"] * (valid_end - train_end)
    splits += ["test"] * (count - valid_end)

    with atomic_dir(output, overwrite, marker=FILE_NAME) as folder:
        items = []
        for number in progress_bar(range(count), "Drawing phantoms"):
            stem = f"phantom_{number}"
            split = splits[number]
            fold = number % folds if folds and split != "test" else None

            own_seed = seed * 1_000_003 + number
            image, mask, category = make_phantom_with_category(own_seed, size, look)
            write_image(folder / split / "images" / f"{stem}.png", image)
            write_image(folder / split / "masks" / f"{stem}.png", mask * 255)
            write_image(folder / split / "categories" / f"{stem}.png", mask * np.uint8(category))
            items.append({"stem": stem, "split": split, "fold": fold, "category": category})

        manifest = {
            "made_by": "phantoms",
            "count": count,
            "size": size,
            "seed": seed,
            "look": look,
            "categories": CATEGORIES,
            "items": items,
        }
        write_json(folder / FILE_NAME, manifest)
