"""DICOM files of ultrasound, made for the tests."""

import io
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import convert_color_space, set_pixel_data
from pydicom.uid import (
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
    UltrasoundImageStorage,
    UltrasoundMultiFrameImageStorage,
)

# What names the patient, with values that are found in no other place.
IDENTIFYING = {
    "PatientName": "MARKED^NAME",
    "PatientID": "MARKED-ID",
    "PatientBirthDate": "19010203",
    "PatientSex": "F",
    "OtherPatientIDs": "MARKED-OTHER",
    "PatientAddress": "MARKED-STREET",
    "PatientComments": "MARKED-COMMENT",
    "AccessionNumber": "MARKED-ACCESSION",
    "StudyID": "MARKED-STUDY",
    "StudyDescription": "MARKED-DESCRIPTION",
    "SeriesDescription": "MARKED-SERIES",
    "InstitutionName": "MARKED-INSTITUTION",
    "ReferringPhysicianName": "MARKED^PHYSICIAN",
    "OperatorsName": "MARKED^OPERATOR",
    "StationName": "MARKED-STATION",
    "DeviceSerialNumber": "MARKED-DEVICE",
    "ProtocolName": "MARKED-PROTOCOL",
    "ImageComments": "MARKED-IMAGE",
    "StudyDate": "19010204",
    "StudyTime": "010203",
    "StudyInstanceUID": "1.2.3.98765431",
    "SeriesInstanceUID": "1.2.3.98765432",
    "SOPInstanceUID": "1.2.3.98765433",
}
MARKS = ("MARKED", "19010203", "19010204", "1.2.3.9876543")


def make_dicom(pixels: np.ndarray, kind: str = "RGB", **values: object) -> Dataset:
    """A picture or cine of ultrasound in memory, without compression.

    Args:
        pixels: uint8 or uint16, (H, W), (H, W, 3), or of frames (N, H, W), (N, H, W, 3).
        kind: its PhotometricInterpretation; of YBR_FULL and YBR_FULL_422 `pixels` are RGB, which is
            converted.
        values: more elements of the header, by keyword; None leaves one out.
    """
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    is_cine = pixels.ndim - (kind not in ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR")) == 3
    storage = UltrasoundMultiFrameImageStorage if is_cine else UltrasoundImageStorage
    dataset.SOPClassUID = storage
    dataset.Modality = "US"
    dataset.ImageType = ["ORIGINAL", "PRIMARY"]
    dataset.SeriesNumber = 1
    dataset.InstanceNumber = 1
    dataset.Manufacturer = "none"
    for keyword, value in IDENTIFYING.items():
        setattr(dataset, keyword, value)

    if kind.startswith("YBR"):
        pixels = convert_color_space(pixels, "RGB", "YBR_FULL")
    bits = values.pop("BitsStored", pixels.dtype.itemsize * 8)
    set_pixel_data(dataset, pixels, kind, bits, generate_instance_uid=False)
    if kind == "YBR_FULL_422":
        dataset.PixelData = _halve_colours(pixels)
    for keyword, value in values.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    return dataset


def _halve_colours(pixels: np.ndarray) -> bytes:
    """YBR_FULL as YBR_FULL_422: two pixels share the colour of the first."""
    left = pixels[..., 0::2, :]
    right = pixels[..., 1::2, :]
    parts = (left[..., 0], right[..., 0], left[..., 1], left[..., 2])
    return np.stack(parts, axis=-1).tobytes()


def save_dicom(path: Path, dataset: Dataset) -> Path:
    """Write a file with preamble and meta information."""
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def encode_dicom(dataset: Dataset) -> bytes:
    """The content of a file of `save_dicom`."""
    content = io.BytesIO()
    dataset.save_as(content, enforce_file_format=True)
    return content.getvalue()


def compress(dataset: Dataset, syntax: str, table: bool = True) -> Dataset:
    """Compress a file of `make_dicom` in place: RLE, JPEG-LS, JPEG 2000 or JPEG of quality 95.

    Args:
        dataset: of 8 bits.
        syntax: UID of the transfer syntax.
        table: whether there is a table of the frames' places.
    """
    if syntax in (RLELossless, JPEGLSLossless):
        dataset.compress(syntax, generate_instance_uid=False)
        return dataset

    frames = dataset.pixel_array
    if dataset.get("NumberOfFrames", 1) == 1:
        frames = frames[None]
    encoded = []
    for frame in frames:
        buffer = io.BytesIO()
        picture = Image.fromarray(frame)
        if syntax == JPEG2000Lossless:
            picture.save(buffer, format="JPEG2000", no_jp2=True)
        else:
            assert syntax == JPEGBaseline8Bit
            picture.save(buffer, format="JPEG", quality=95)
        encoded.append(buffer.getvalue())
    dataset.PixelData = encapsulate(encoded, has_bot=table)
    dataset["PixelData"].VR = "OB"
    dataset.file_meta.TransferSyntaxUID = syntax
    if dataset.SamplesPerPixel == 3:
        kinds = {JPEG2000Lossless: "YBR_RCT", JPEGBaseline8Bit: "YBR_FULL_422"}
        dataset.PhotometricInterpretation = kinds[syntax]
    return dataset


def make_region(
    box: tuple[int, int, int, int], delta: tuple[float, float], spatial: int = 1, units: int = 3
) -> Dataset:
    """An item of SequenceOfUltrasoundRegions.

    Args:
        box: first row, last row, first column, last column.
        delta: height and width of a pixel in cm.
        spatial: RegionSpatialFormat, 1 is 2D.
        units: of both directions, 3 is cm.
    """
    region = Dataset()
    region.RegionSpatialFormat = spatial
    region.RegionDataType = 1
    region.RegionFlags = 2
    region.RegionLocationMinY0 = box[0]
    region.RegionLocationMaxY1 = box[1]
    region.RegionLocationMinX0 = box[2]
    region.RegionLocationMaxX1 = box[3]
    region.PhysicalUnitsXDirection = units
    region.PhysicalUnitsYDirection = units
    region.PhysicalDeltaY = delta[0]
    region.PhysicalDeltaX = delta[1]
    return region
