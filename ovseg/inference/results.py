"""What `infer` writes beside masks: files for programs and annotation tools, and DICOM-SEG.

All are made of the masks in the output, so that an interrupted `infer` can continue.
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import Image

from ovseg.core.console import compute_ahead, progress_bar
from ovseg.core.errors import InputError, first_five
from ovseg.core.registry import choose
from ovseg.data.prepare.sources import LESION
from ovseg.inference.annotation_files import (
    Place,
    Result,
    Writer,
    write_coco,
    write_contours,
    write_label_studio,
    write_labelme,
    write_npy,
)
from ovseg.inference.pictures import InferPicture
from ovseg.inference.table import PredictionTable, Row

MASKS = "png"
DICOMSEG = "dicomseg"
WRITERS: dict[str, Writer] = {
    "npy": write_npy,
    "coco": write_coco,
    "labelme": write_labelme,
    "labelstudio": write_label_studio,
    "contours": write_contours,
}
# Of `infer`. Masks are always written: the others are made of them.
FORMATS = (MASKS, *WRITERS, DICOMSEG)
FOR_TOOLS = ("coco", "labelme", "labelstudio")  # they name the picture, which the tool opens


def check_formats(formats: Sequence[str], frame_step: int) -> None:
    """Raise InputError where the formats, or the options for DICOM, can't be used."""
    for name in formats:
        choose("format", name, dict.fromkeys(FORMATS))
    if frame_step < 1:
        raise InputError(f"frame_step is {frame_step}, expected at least 1.")
    if DICOMSEG in formats:
        _import_dicom_seg()


def _import_dicom_seg() -> ModuleType:
    try:
        from ovseg.inference import dicom_seg
    except ImportError:
        raise InputError(
            f"--format {DICOMSEG} needs highdicom: pip install 'ovseg[dicom]'."
        ) from None
    return dicom_seg


def check_pictures(formats: Sequence[str], pictures: Iterable[InferPicture]) -> None:
    """Raise InputError where a format is for tools that can't open the pictures.

    Raises:
        InputError: some are DICOM.
    """
    chosen = [name for name in formats if name in FOR_TOOLS]
    if not chosen:
        return
    paths = {str(picture.path): None for picture in pictures if picture.frame is not None}
    if paths:
        raise InputError(
            f"--format {' '.join(chosen)} names pictures for annotation tools, which open no "
            f"DICOM: {first_five(paths)}. Leave the format out (npy and contours take DICOM), or "
            "convert the pictures."
        )


def write_results(
    table: PredictionTable,
    pictures: Sequence[InferPicture],
    formats: Sequence[str],
    output: Path,
    categories: Sequence[str],
    digest: str,
) -> list[str]:
    """Write the files of some formats.

    Args:
        table: of the unfinished output folder.
        pictures: all of `infer`; those whose mask was not written are left out.
        formats: names in `FORMATS`.
        output: where the folder will be.
        categories: names of the ids 1, 2, ... in the masks; empty for one lesion.
        digest: SHA-256 of the checkpoint that predicted the masks.

    Returns:
        A message for each file that gets no DICOM-SEG.
    """
    chosen = [name for name in WRITERS if name in formats]
    if chosen:
        place = Place(table.folder, output, categories or [LESION])

        def read(predicted: tuple[InferPicture, Row]) -> Result:
            picture, row = predicted
            labels = read_labels(table.folder / picture.mask, len(place.names))
            return Result(picture, labels, row["confidence"])

        with ExitStack() as stack, ThreadPoolExecutor(1) as pool:
            writers = [stack.enter_context(WRITERS[name](place)) for name in chosen]
            results = compute_ahead(pool, read, table.done(pictures))
            title = f"Writing {', '.join(chosen)}"
            for result in progress_bar(results, title, len(pictures)):
                for add in writers:
                    add(result)

    if DICOMSEG not in formats:
        return []
    dicom = [picture for picture, _ in table.done(pictures) if picture.frame is not None]
    return _import_dicom_seg().write_segs(dicom, table.folder, categories, digest)


def read_labels(path: Path, classes: int) -> np.ndarray:
    """The labels of a mask that `infer` wrote: uint8 (H, W), 0 and the ids 1..`classes`.

    Args:
        path: the mask, which holds ids, or 0 and 255 for one class.
        classes: how many there are.
    """
    with Image.open(path) as picture:
        stored = np.array(picture)
    return (stored > 0).astype(np.uint8) if classes == 1 else stored
