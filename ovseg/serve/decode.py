"""Decode a picture that was sent: a file of a usual format, or a frame of a DICOM file."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ovseg.core.errors import InputError
from ovseg.data.pictures import decode_image, import_dicom, is_dicom_content
from ovseg.data.pixel_size import Calibration, PixelSize

# 4096 x 4096, more than any ultrasound machine saves. It takes about 0.5 GB to predict.
MAX_PIXELS = 2**24
NAME = "The picture"  # in messages; the server does not learn the file's own


@dataclass(frozen=True)
class Picture:
    """A picture that was sent.

    Attributes:
        image: RGB, uint8 (H, W, 3).
        frames: how many the file has.
        calibration: what a DICOM file says about the size of its pixels; None for other files.
    """

    image: np.ndarray
    frames: int = 1
    calibration: Calibration | None = None

    def find_pixel_size(self, lesion: np.ndarray) -> tuple[PixelSize | None, str]:
        """See `Calibration.find_size`."""
        if self.calibration is None:
            return None, "unknown: only a DICOM file tells the size of its pixels"
        return self.calibration.find_size(lesion)


def decode_picture(content: bytes, frame: int = 1) -> Picture:
    """Decode a file that is in memory.

    Args:
        content: of the file.
        frame: of a cine, from 1.

    Raises:
        InputError: the file can't be read, or has no such frame.
    """
    if not is_dicom_content(content):
        _check_frame(frame, 1)
        return Picture(decode_image(content, NAME, MAX_PIXELS))
    path = Path(NAME)
    dicom = import_dicom(path)
    # A page asks for the first frame before others, so a cine that is cut off is refused there.
    frames = dicom.count_frames(path, content, MAX_PIXELS, decode_last=frame == 1)
    _check_frame(frame, frames)
    image = dicom.read_frame(path, frame - 1, content, MAX_PIXELS)
    return Picture(image, frames, dicom.read_calibration(path, content))


def _check_frame(frame: int, frames: int) -> None:
    if frame > frames:
        raise InputError(f"{NAME} has no frame {frame}; its last one is {frames}.")
