"""Whether a picture shows colour Doppler.

An image counts as colour Doppler where red (or blue) exceeds both other channels by more than 60 of
255 grey levels in enough pixels. In the 1,218 images of OTU_2d at 512 x 512, 159 have at least
0.005 % red, in their flow or in the velocity scale beside the sector; each of the others has at
most 0.002 %: one of those is colour Doppler without flow, the others looked at are B-mode. Blue
needs 0.5 %: the scanners write settings in blue, which reaches 0.23 %; one image of blue flow alone
has 0.79 %. Yellow calipers and green frames are neither. Images whose colour box shows neither flow
nor scale are not found.
"""

import cv2
import numpy as np

# How much a channel exceeds the others, grey levels, and in which share of the pixels; see above.
EXCESS = 60
RED_SHARE = 5e-5
BLUE_SHARE = 5e-3


def measure_colours(image: np.ndarray) -> tuple[float, float]:
    """Share of the pixels of an RGB image, uint8 (H, W, 3), that are saturated red, and blue."""
    red, green, blue = cv2.split(image)
    red_excess = cv2.subtract(red, cv2.max(green, blue))
    blue_excess = cv2.subtract(blue, cv2.max(red, green))
    return float((red_excess > EXCESS).mean()), float((blue_excess > EXCESS).mean())


def is_doppler(red: float, blue: float) -> bool:
    """Whether so much of a picture is the red or blue of colour Doppler; see the module."""
    return red >= RED_SHARE or blue >= BLUE_SHARE
