"""What probe, tissue and console do to a B-mode picture, as functions of uint8 RGB arrays.

A B-mode picture shows log-compressed echo amplitude: 255 grey levels span a dynamic range of about 60 dB (consoles
offer 40 to 80). So what multiplies the echo (gain, attenuation, shadow, speckle) adds to the grey level, here as a
field in dB, and echoes of two sources add as powers. Everything is confined to the sector; level 0 means "no
echo" and stays 0, so borders and the inside of a black cyst stay black whatever the gain.

The package usaugment 1.0.1 has attenuation, shadow, haze and speckle reduction as albumentations transforms. They are
written anew here because, measured on a uint8 picture, it leaves 0 or the full level only (its factor in 0..1 is cast
to uint8), haze clips to 0..1, it draws from the global generators, and it needs a mask of the sector as a target.
"""

from functools import cache

import cv2
import numpy as np

from ovseg.data.augment.sector import Sector

LEVELS_PER_DB = 255 / 60


def shift_levels(image: np.ndarray, decibel: np.ndarray, sector: Sector) -> np.ndarray:
    """Add a field in dB to the echoes inside the sector.

    Args:
        image: RGB, uint8 (H, W, 3).
        decibel: float32, on the sector's grid or (H, W). A level at most doubles, so black stays black.
        sector: of the image.
    """
    levels = decibel * np.float32(LEVELS_PER_DB)
    if levels.shape == sector.mask.shape:
        levels = sector.enlarge(levels * sector.rim)
    else:
        levels = levels * sector.enlarge(sector.rim)
    up, down = (cv2.merge([cv2.max(part, 0).astype(np.uint8)] * 3) for part in (levels, -levels))
    return cv2.subtract(cv2.add(image, cv2.min(up, image)), down)


def attenuate(image: np.ndarray, sector: Sector, decibel: float) -> np.ndarray:
    """Loss that grows with depth, `decibel` at the deepest echo.

    Soft tissue costs 0.5 to 1 dB/(cm MHz) each way, which is linear in dB along the beam; the console's time-gain
    compensation takes back an average, so too little or too much of some dB remains.

    Source: T. L. Szabo, Diagnostic Ultrasound Imaging, 2nd ed., 2014, ch. 4; as augmentation A. Ostvik et al., IEEE
    Trans. Med. Imaging 40(5), 2021.
    """
    return shift_levels(image, -decibel * sector.depth, sector)


def cast_shadow(
    image: np.ndarray, sector: Sector, beam: float, start: float, width: float, decibel: float
) -> np.ndarray:
    """The shadow of a strong absorber or reflector (calcification, gas, a fibroma): what lies behind it on its beams.

    Args:
        image: RGB, uint8 (H, W, 3).
        sector: of the image.
        beam: direction of its middle, -1..1 from side to side.
        start: depth of the absorber, 0..1.
        width: half width in the unit of `beam`; the rim falls off smoothly, as the beam is as wide as the rim.
        decibel: loss in its middle.

    Source: F. W. Kremkau and K. J. W. Taylor, J. Ultrasound Med. 5(4), 1986; as augmentation (a Gaussian blot) E.
    Smistad et al., Ultrasound Med. Biol. 44(12), 2018.
    """
    across = np.exp(-(((sector.angle - beam) / width) ** 4))
    return shift_levels(
        image, -decibel * across * np.clip((sector.depth - start) / 0.04, 0, 1), sector
    )


def change_gain(image: np.ndarray, sector: Sector, sliders: np.ndarray) -> np.ndarray:
    """Another gain, and another time-gain compensation, by the console's row of sliders.

    Args:
        image: RGB, uint8 (H, W, 3).
        sector: of the image.
        sliders: gain in dB at equal steps of depth, from the probe down, (N,).

    Source: T. L. Szabo, Diagnostic Ultrasound Imaging, 2nd ed., 2014, ch. 4.
    """
    steps = np.linspace(0, 1, len(sliders))
    return shift_levels(image, np.interp(sector.depth, steps, sliders).astype(np.float32), sector)


def speckle_texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Fully developed speckle in dB, mean 0 and standard deviation 5.6, float32 (height, width), grains of 2 pixels.

    The envelope of many scatterers is Rayleigh distributed: the modulus of a complex Gaussian field; its logarithm
    varies by 5.57 dB whatever the echogenicity.

    Source: R. F. Wagner et al., IEEE Trans. Sonics Ultrason. 30(3), 1983.
    """
    real, imaginary = rng.standard_normal((2, -(-height // 2), -(-width // 2)), np.float32)
    decibel = 10 * np.log10(np.maximum(real**2 + imaginary**2, 1e-3)) - np.float32(
        0.5
    )  # 0.5: the mean of the log
    return cv2.resize(decibel, (width, height), interpolation=cv2.INTER_LINEAR)


def roughen(image: np.ndarray, sector: Sector, texture: np.ndarray, strength: float) -> np.ndarray:
    """More speckle, as of a console without compounding: `texture` (see `speckle_texture`) times `strength` added."""
    return shift_levels(image, texture * np.float32(strength), sector)


def smoothen(image: np.ndarray, sector: Sector, strength: float) -> np.ndarray:
    """Less speckle, as compounding and the consoles' own filters leave it: a bilateral filter, mixed in.

    Source: E. Smistad et al., Ultrasound Med. Biol. 44(12), 2018.
    """
    smooth = cv2.bilateralFilter(image, 5, 20 + 40 * strength, 2)
    mixed = cv2.addWeighted(smooth, strength, image, 1 - strength, 0)
    return cv2.copyTo(mixed, (sector.enlarge(sector.core) > 0).astype(np.uint8), image.copy())


def add_haze(
    image: np.ndarray,
    sector: Sector,
    texture: np.ndarray,
    depth: float,
    width: float,
    decibel: float,
) -> np.ndarray:
    """Clutter: multipath echoes of the wall and side lobes that fill a band of depths, also in fluid.

    Args:
        image: RGB, uint8 (H, W, 3).
        sector: of the image.
        texture: the clutter's own speckle, dB, float32 (H, W).
        depth: of the band's middle, 0..1.
        width: standard deviation of the band, in depths.
        decibel: of the haze in its middle, above the darkest level shown.

    Source: M. A. Lediju et al., Ultrasound Med. Biol. 35(6), 2009; as augmentation A. Ostvik et al., IEEE Trans. Med.
    Imaging 40(5), 2021.
    """
    band = decibel * np.exp(-0.5 * ((sector.depth - depth) / width) ** 2)
    band = (band * sector.core).astype(np.float32)
    levels = sector.enlarge(band * np.float32(LEVELS_PER_DB)) * (1 + texture / 60)
    haze = cv2.merge([np.clip(levels, 0, 255).astype(np.uint8)] * 3)
    more = cv2.min(cv2.LUT(cv2.absdiff(image, haze), _power_sum()), cv2.min(image, haze))
    return cv2.add(cv2.max(image, haze), more)


@cache
def _power_sum() -> np.ndarray:
    """By how much two incoherent echoes exceed the stronger one, in levels, by their difference in levels."""
    difference = np.arange(256) / LEVELS_PER_DB
    return np.round(10 * np.log10(1 + 10 ** (-difference / 10)) * LEVELS_PER_DB).astype(np.uint8)


def turn(picture: np.ndarray, sector: Sector, degrees: float, scale: float) -> np.ndarray:
    """Turn and scale about the apex, black outside: the probe tilted and the depth setting changed.

    The beams still meet in the apex, so the result is a sector again. An image (H, W, 3) is read bilinearly, labels
    (H, W) by nearest neighbour.
    """
    matrix = cv2.getRotationMatrix2D(sector.apex, degrees, scale)
    flags = cv2.INTER_LINEAR if picture.ndim == 3 else cv2.INTER_NEAREST
    return cv2.warpAffine(picture, matrix, (sector.width, sector.height), flags=flags)


def add_noise(image: np.ndarray, seed: int, deviation: float) -> np.ndarray:
    """Gaussian noise on every channel, in whole numbers, also outside the sector.

    Args:
        image: uint8 (H, W, 3).
        seed: of OpenCV's generator.
        deviation: standard deviation, where 1 is white.
    """
    cv2.setRNGSeed(seed)
    noise = cv2.randn(np.empty(image.shape, np.int16), (0.0,) * 3, (255 * deviation,) * 3)
    return cv2.add(image, noise, dtype=cv2.CV_8U)  # saturates
