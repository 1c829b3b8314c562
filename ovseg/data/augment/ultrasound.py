"""What probe, tissue and console do to a B-mode picture, as functions of uint8 RGB arrays.

A B-mode picture shows log-compressed echo amplitude: 255 grey levels span a dynamic range of about
60 dB (consoles offer 40 to 80). So what multiplies the echo (gain, attenuation, shadow, speckle)
adds to the grey level, here as a field in dB. Echoes of two sources add as powers. All changes stay
inside the sector. Level 0 means "no echo" and stays 0, so borders and the inside of a black cyst
stay black at any gain.

The package usaugment 1.0.1 has attenuation, shadow, haze and speckle reduction as albumentations
transforms. They are written anew here for these reasons: on a uint8 picture it leaves only 0 or the
full level (its factor in 0..1 is cast to uint8, measured), its haze clips to 0..1, it draws from
the global random generators, and it needs a mask of the sector as a target.
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
        decibel: float32, on the sector's grid or (H, W). A level at most doubles, so black stays
            black.
        sector: of the image.
    """
    levels = decibel * np.float32(LEVELS_PER_DB)
    if levels.shape == sector.mask.shape:
        levels = sector.enlarge(levels * sector.rim)
    else:
        levels = levels * sector.enlarge(sector.rim)

    increase = _to_rgb(levels)
    decrease = _to_rgb(-levels)
    brighter = cv2.add(image, cv2.min(increase, image))
    return cv2.subtract(brighter, decrease)


def _to_rgb(levels: np.ndarray) -> np.ndarray:
    """Grey levels (H, W), cut to 0..255 and to whole numbers, as uint8 (H, W, 3)."""
    grey = np.clip(levels, 0, 255).astype(np.uint8)
    return cv2.merge([grey] * 3)


def attenuate(image: np.ndarray, sector: Sector, decibel: float) -> np.ndarray:
    """Darken with depth, by `decibel` at the deepest echo.

    Soft tissue costs 0.5 to 1 dB/(cm MHz) each way, which is linear in dB along the beam. The
    console's time-gain compensation takes back an average, so some dB of too little or too much
    compensation remain.

    Source: T. L. Szabo, Diagnostic Ultrasound Imaging, 2nd ed., 2014, ch. 4; as augmentation A.
    Ostvik et al., IEEE Trans. Med. Imaging 40(5), 2021.
    """
    return shift_levels(image, -decibel * sector.depth, sector)


def cast_shadow(
    image: np.ndarray, sector: Sector, beam: float, start: float, width: float, decibel: float
) -> np.ndarray:
    """Darken what is behind a strong absorber or reflector (calcification, gas, a fibroma) on its
    beams.

    Args:
        image: RGB, uint8 (H, W, 3).
        sector: of the image.
        beam: direction of the shadow's middle, -1..1 from side to side.
        start: depth of the absorber, 0..1.
        width: half width of the shadow in the unit of `beam`; its edge is smooth, as a beam has a
            width.
        decibel: loss in its middle.

    Source: F. W. Kremkau and K. J. W. Taylor, J. Ultrasound Med. 5(4), 1986; as augmentation (a
    Gaussian spot) E. Smistad et al., Ultrasound Med. Biol. 44(12), 2018.
    """
    across = np.exp(-(((sector.angle - beam) / width) ** 4))
    behind = np.clip((sector.depth - start) / 0.04, 0, 1)
    return shift_levels(image, -decibel * across * behind, sector)


def change_gain(image: np.ndarray, sector: Sector, sliders: np.ndarray) -> np.ndarray:
    """Change the gain and the time-gain compensation, by the console's row of sliders.

    Args:
        image: RGB, uint8 (H, W, 3).
        sector: of the image.
        sliders: gain in dB at equal steps of depth, from the probe down, (N,).

    Source: T. L. Szabo, Diagnostic Ultrasound Imaging, 2nd ed., 2014, ch. 4.
    """
    depths = np.linspace(0, 1, len(sliders))
    gain = np.interp(sector.depth, depths, sliders)
    return shift_levels(image, gain.astype(np.float32), sector)


def speckle_texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Draw fully developed speckle in dB, float32 (height, width), in grains of 2 pixels.

    The envelope of many scatterers is Rayleigh distributed: the modulus of a complex Gaussian
    field. Its logarithm has a standard deviation of 5.57 dB at any echogenicity; the mean is 0
    here.

    Source: R. F. Wagner et al., IEEE Trans. Sonics Ultrason. 30(3), 1983.
    """
    rows = -(-height // 2)  # rounded up
    columns = -(-width // 2)
    real, imaginary = rng.standard_normal((2, rows, columns), np.float32)
    power = np.maximum(real**2 + imaginary**2, 1e-3)
    decibel = 10 * np.log10(power) - np.float32(0.5)  # 0.5: the mean of the logarithm
    return cv2.resize(decibel, (width, height), interpolation=cv2.INTER_LINEAR)


def add_speckle(
    image: np.ndarray, sector: Sector, texture: np.ndarray, strength: float
) -> np.ndarray:
    """Add `texture` (see `speckle_texture`) times `strength`, as a console without compounding."""
    return shift_levels(image, texture * np.float32(strength), sector)


def reduce_speckle(image: np.ndarray, sector: Sector, strength: float) -> np.ndarray:
    """Mix in the image after a bilateral filter, `strength` (0..1) of it: compounding, and
    consoles' own filters.

    Source: E. Smistad et al., Ultrasound Med. Biol. 44(12), 2018.
    """
    smooth = cv2.bilateralFilter(image, 5, 20 + 40 * strength, 2)
    mixed = cv2.addWeighted(smooth, strength, image, 1 - strength, 0)
    well_inside = (sector.enlarge(sector.core) > 0).astype(np.uint8)
    return cv2.copyTo(mixed, well_inside, image.copy())


def add_haze(
    image: np.ndarray,
    sector: Sector,
    texture: np.ndarray,
    depth: float,
    width: float,
    decibel: float,
) -> np.ndarray:
    """Add clutter: multipath echoes of the wall and side lobes, which fill a band of depths, also
    in fluid.

    Args:
        image: RGB, uint8 (H, W, 3).
        sector: of the image.
        texture: the clutter's own speckle, dB, float32 (H, W).
        depth: of the band's middle, 0..1.
        width: standard deviation of the band, in depths.
        decibel: of the haze in its middle, above the darkest level shown.

    Source: M. A. Lediju et al., Ultrasound Med. Biol. 35(6), 2009; as augmentation A. Ostvik et
    al., IEEE Trans. Med. Imaging 40(5), 2021.
    """
    profile = decibel * np.exp(-0.5 * ((sector.depth - depth) / width) ** 2)
    band = (profile * sector.core).astype(np.float32)
    levels = sector.enlarge(band * np.float32(LEVELS_PER_DB)) * (1 + texture / 60)
    haze = _to_rgb(levels)

    excess = cv2.LUT(cv2.absdiff(image, haze), _power_sum())
    excess = cv2.min(excess, cv2.min(image, haze))
    return cv2.add(cv2.max(image, haze), excess)


@cache
def _power_sum() -> np.ndarray:
    """How much the sum of two incoherent echoes exceeds the stronger one, by their difference.

    Returns:
        Levels, uint8 (256,); the index is the difference in levels.
    """
    difference = np.arange(256) / LEVELS_PER_DB
    excess = 10 * np.log10(1 + 10 ** (-difference / 10))
    return np.round(excess * LEVELS_PER_DB).astype(np.uint8)


def rotate_about_apex(
    picture: np.ndarray, sector: Sector, degrees: float, scale: float
) -> np.ndarray:
    """Rotate and scale about the apex, black outside: the probe tilted and the depth setting
    changed.

    The beams still meet in the apex, so the result is a sector again.

    Args:
        picture: an image (H, W, 3), read bilinearly, or labels (H, W), read by nearest neighbour.
        sector: of the image.
        degrees: angle, counterclockwise.
        scale: factor.
    """
    matrix = cv2.getRotationMatrix2D(sector.apex, degrees, scale)
    is_image = picture.ndim == 3
    flags = cv2.INTER_LINEAR if is_image else cv2.INTER_NEAREST
    return cv2.warpAffine(picture, matrix, (sector.width, sector.height), flags=flags)


def add_noise(image: np.ndarray, seed: int, deviation: float) -> np.ndarray:
    """Add Gaussian noise, rounded to whole levels, to every channel, also outside the sector.

    Args:
        image: uint8 (H, W, 3).
        seed: of OpenCV's generator.
        deviation: standard deviation, where 1 is white.
    """
    cv2.setRNGSeed(seed)
    mean = np.zeros(3)
    spread = np.full(3, 255 * deviation)
    noise = cv2.randn(np.empty(image.shape, np.int16), mean, spread)
    return cv2.add(image, noise, dtype=cv2.CV_8U)  # values beyond 0..255 are cut off
