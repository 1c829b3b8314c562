"""Write masks of DICOM pictures as DICOM Segmentation objects, which other programs open.

highdicom takes only single pictures where there is no frame of reference, as in ultrasound (its
issue 284). So every frame of a cine gets a file of its own, made as that of a single picture, which
names the cine and the frame that it belongs to.
"""

import logging
import warnings
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

import highdicom
from highdicom.seg import (
    SegmentAlgorithmTypeValues,
    Segmentation,
    SegmentationTypeValues,
    SegmentDescription,
)
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import UltrasoundImageStorage

from ovseg import __version__
from ovseg.core.errors import InputError, WriteError
from ovseg.core.files import atomic_path
from ovseg.inference.pictures import InferPicture
from ovseg.inference.results import read_labels

# Without them a file can't be referred to.
NEEDED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
# Of the patient and the study; they are copied, but may be missing or empty (type 2 in PS3.3).
COPIED = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
)
SERIES_NUMBER = 1000  # behind those of an examination
MAX_LABEL = 64  # characters (VR LO)

# It warns with the patient's name where that is unusual.
warnings.filterwarnings("ignore", module=r"highdicom(\.|$)")
logging.getLogger("highdicom").addHandler(logging.NullHandler())


def write_segs(
    pictures: Sequence[InferPicture], folder: Path, categories: Sequence[str], model: str
) -> list[str]:
    """Write the DICOM-SEG of each picture whose mask is written.

    The files of one source are a series. They name the patient as the source does.

    Args:
        pictures: of DICOM; the frames of a file one after the other.
        folder: of the masks; the files are written below it.
        categories: names of the ids 1, 2, ... in the masks; empty for one lesion.
        model: digest of the checkpoint.

    Returns:
        A message for each source that no DICOM-SEG can belong to.
    """
    segments = _describe_segments(categories, model)
    problems = []
    for path, frames in groupby(pictures, key=lambda picture: picture.path):
        try:
            _write_series(_read_source(path), frames, folder, segments)
        except WriteError:
            raise
        except InputError as error:
            problems.append(str(error))
        # highdicom raises nearly anything for a header that breaks the standard.
        except Exception as error:
            reason = type(error).__name__
            problems.append(f"{path}: no DICOM-SEG is written for its header ({reason}).")
    return problems


def _describe_segments(categories: Sequence[str], model: str) -> list[SegmentDescription]:
    """The segments 1, 2, ..., which are the ids in masks."""
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name="ovseg",
        family=codes.cid7162.ArtificialIntelligence,
        version=__version__,
        source="ovseg",
        parameters={"checkpoint_sha256": model},
    )
    # A category may be anything, such as a normal ovary.
    kind = codes.SCT.Lesion if categories else codes.SCT.Neoplasm
    segments = []
    for number, name in enumerate(categories or ["ovarian tumour"], start=1):
        segment = SegmentDescription(
            segment_number=number,
            segment_label=name[:MAX_LABEL],
            segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
            segmented_property_type=kind,
            algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
            anatomic_regions=[codes.SCT.Ovary],
        )
        segments.append(segment)
    return segments


def _read_source(path: Path) -> Dataset:
    """The header of a file as highdicom takes it for each of its frames.

    Raises:
        InputError: a DICOM-SEG can't belong to it.
    """
    source = dcmread(path, stop_before_pixels=True)
    missing = [keyword for keyword in NEEDED if not source.get(keyword)]
    if missing:
        raise InputError(f"{path}: no DICOM-SEG is written, because it has no {missing[0]}.")
    if "SharedFunctionalGroupsSequence" in source:
        raise InputError(
            f"{path}: no DICOM-SEG is written, because it is an enhanced multi-frame image."
        )
    for keyword in COPIED:
        if keyword not in source:
            setattr(source, keyword, None)
    # It says nothing without a position.
    if "FrameOfReferenceUID" in source and "ImagePositionPatient" not in source:
        del source.FrameOfReferenceUID
    return source


def _write_series(
    source: Dataset,
    frames: Iterable[InferPicture],
    folder: Path,
    segments: Sequence[SegmentDescription],
) -> None:
    storage = source.SOPClassUID
    has_frames = "NumberOfFrames" in source
    if has_frames:
        source.SOPClassUID = UltrasoundImageStorage
        source.NumberOfFrames = 1
    series = highdicom.UID()
    for number, picture in enumerate(frames, start=1):
        assert picture.frame is not None and picture.seg is not None  # as of all DICOM
        seg = Segmentation(
            source_images=[source],
            pixel_array=read_labels(folder / picture.mask, len(segments)),
            segmentation_type=SegmentationTypeValues.BINARY,
            segment_descriptions=segments,
            series_instance_uid=series,
            series_number=SERIES_NUMBER,
            sop_instance_uid=highdicom.UID(),
            instance_number=number,
            manufacturer="ovseg",
            manufacturer_model_name="ovseg",
            software_versions=__version__,
            device_serial_number="none",
            content_label="OVSEG",
            content_description="Prediction of a network, not checked by a person",
            # Also an empty mask is a result.
            omit_empty_frames=False,
        )
        # Empty where the source says nothing, as the standard has it without a position.
        seg.PatientOrientation = source.get("PatientOrientation")
        if has_frames:
            _name_frame(seg, storage, picture.frame + 1)
        with atomic_path(folder / picture.seg) as temporary:
            seg.save_as(temporary)


def _name_frame(seg: Segmentation, storage: str, number: int) -> None:
    """Refer to one frame of a cine instead of to a single picture.

    Args:
        seg: of one frame.
        storage: SOP class of the cine.
        number: of the frame, from 1.
    """
    for item in seg.SourceImageSequence:
        item.ReferencedSOPClassUID = storage
    for series in seg.ReferencedSeriesSequence:
        for item in series.ReferencedInstanceSequence:
            item.ReferencedSOPClassUID = storage
    for segment in seg.PerFrameFunctionalGroupsSequence:
        for derivation in segment.DerivationImageSequence:
            for item in derivation.SourceImageSequence:
                item.ReferencedSOPClassUID = storage
                item.ReferencedFrameNumber = number
