"""What `infer` writes of DICOM pictures beside their masks: areas in mm^2 and DICOM-SEG.

Both are made of the masks in the output, so that an interrupted `infer` can continue.
"""

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import Image

from ovseg.core.errors import InputError
from ovseg.core.files import write_table
from ovseg.core.registry import choose
from ovseg.data.pictures import import_dicom
from ovseg.data.pixel_size import Calibration
from ovseg.inference.pictures import InferPicture

AREAS = "areas.csv"
DICOMSEG = "dicomseg"
FORMATS = {"png": "masks", DICOMSEG: "masks, and a DICOM-SEG of each DICOM picture"}


def check_format(format: str, frame_step: int) -> None:
    """Raise InputError where the options for DICOM can't be used."""
    choose("format", format, FORMATS)
    if frame_step < 1:
        raise InputError(f"frame_step is {frame_step}, expected at least 1.")
    if format == DICOMSEG:
        _import_dicom_seg()


def _import_dicom_seg() -> ModuleType:
    try:
        from ovseg.inference import dicom_seg
    except ImportError:
        raise InputError(
            f"--format {DICOMSEG} needs highdicom: pip install 'ovseg[dicom]'."
        ) from None
    return dicom_seg


def write_dicom_results(
    pictures: Sequence[InferPicture], folder: Path, categories: Sequence[str], digest: str
) -> list[str]:
    """Write `areas.csv` and the DICOM-SEG of the DICOM pictures among others; without any, nothing.

    Args:
        pictures: all of `infer`; those whose mask was not written are left out.
        folder: of the masks.
        categories: names of the ids 1, 2, ... in the masks; empty for one lesion.
        digest: SHA-256 of the checkpoint that predicted the masks.

    Returns:
        A message for each file that gets no DICOM-SEG.
    """
    written = []
    for picture in pictures:
        if picture.frame is not None and (folder / picture.mask).is_file():
            written.append(picture)
    if not written:
        return []

    _write_areas(written, folder)
    if written[0].seg is None:
        return []
    return _import_dicom_seg().write_segs(written, folder, categories, digest)


def _write_areas(pictures: Sequence[InferPicture], folder: Path) -> None:
    """Write `areas.csv`, a row for each mask; of the header only sizes get into it.

    Its columns are the mask, its pixels, their area in mm^2, the height and width of a pixel in mm,
    and where that size is from or why it is unknown, see `Calibration.find_size`.
    """
    import pandas  # takes long, and only DICOM needs it

    columns = ["mask", "area_pixels", "area_mm2", "pixel_height_mm", "pixel_width_mm"]
    calibrations: dict[Path, Calibration] = {}
    rows = []
    for picture in pictures:
        path = picture.path
        if path not in calibrations:
            calibrations[path] = import_dicom(path).read_calibration(path)
        lesion = read_labels(folder / picture.mask) > 0
        size, source = calibrations[path].find_size(lesion)
        pixels = int(lesion.sum())
        row: list[object] = [str(picture.mask), pixels]
        if size is None:
            row += [None, None, None]
        else:
            row += [round(pixels * size.height * size.width, 2), size.height, size.width]
        rows.append([*row, source])
    write_table(folder / AREAS, pandas.DataFrame(rows, columns=[*columns, "calibration"]))


def read_labels(path: Path) -> np.ndarray:
    """A mask that `infer` wrote, as it is stored: uint8 (H, W)."""
    with Image.open(path) as picture:
        return np.array(picture)
