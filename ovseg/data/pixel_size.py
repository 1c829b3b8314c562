"""The size of a picture's pixels in millimetres, of the whole picture or of regions in it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Programs round the sizes that they write, so equal ones may differ a little.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class PixelSize:
    """Height and width of a pixel, in mm."""

    height: float
    width: float

    def is_close(self, other: "PixelSize") -> bool:
        """Whether two sizes are equal but for rounding."""
        found = (self.height, self.width)
        return np.allclose(found, (other.height, other.width), rtol=TOLERANCE, atol=0)


@dataclass(frozen=True)
class Region:
    """A rectangle of a picture, such as the sector or a Doppler curve.

    Attributes:
        top, bottom: the first and the last row.
        left, right: the first and the last column.
        size: of its pixels; None where they stand for anything but two lengths, such as time.
    """

    top: int
    bottom: int
    left: int
    right: int
    size: PixelSize | None

    @property
    def pixels(self) -> tuple[slice, slice]:
        """Its rows and columns, to index an array."""
        return slice(self.top, self.bottom + 1), slice(self.left, self.right + 1)


@dataclass(frozen=True)
class Calibration:
    """What a file says about the size of its pixels.

    Attributes:
        regions: of the picture.
        spacing: of all pixels; it counts only where no region has a size.
    """

    regions: Sequence[Region] = ()
    spacing: PixelSize | None = None

    def find_size(self, lesion: np.ndarray) -> tuple[PixelSize | None, str]:
        """The size of the pixels that a lesion covers.

        Args:
            lesion: bool, (H, W).

        Returns:
            The size and where it is from, `region` or `PixelSpacing`; or None and why it is
            unknown.
        """
        if all(region.size is None for region in self.regions):
            if self.spacing is None:
                return None, "unknown: the file is not calibrated"
            return self.spacing, "PixelSpacing"

        touched = [region for region in self.regions if lesion[region.pixels].any()]
        covered = np.zeros_like(lesion)
        sizes = []
        for region in touched:
            covered[region.pixels] = True
            if region.size is None:
                return None, "unknown: the lesion touches a region that is no 2D picture in cm"
            sizes.append(region.size)
        if (lesion & ~covered).any():
            return None, "unknown: the lesion is not inside the calibrated regions"
        if not sizes:
            return None, "no lesion"
        if not all(size.is_close(sizes[0]) for size in sizes):
            return None, "unknown: the lesion lies in regions of different pixel sizes"
        return sizes[0], "region"
