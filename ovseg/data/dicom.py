"""Read DICOM files: pictures and cines of ultrasound, and the size of their pixels.

Functions take the path of a file and, where it is in memory, its content; the path is then only its
name in messages. Only what pictures need is read of a header, and no text of it gets into a
message: a header names the patient.
"""

import io
import math
import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
from pydicom import config, dcmread
from pydicom.dataset import Dataset
from pydicom.filereader import data_element_generator
from pydicom.pixels import (
    apply_color_lut,
    apply_modality_lut,
    apply_voi_lut,
    apply_windowing,
    get_decoder,
    pixel_array,
)
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    JPEGExtended12Bit,
    MPEGTransferSyntaxes,
    UID_dictionary,
)

from ovseg.core.errors import InputError
from ovseg.data.pictures import MAX_PIXELS
from ovseg.data.pixel_size import Calibration, PixelSize, Region

# Five minutes at 30 a second; the longest cines of ultrasound have some hundred.
MAX_FRAMES = 10_000

GREY = ("MONOCHROME1", "MONOCHROME2")
PALETTE = "PALETTE COLOR"
# Decoders give RGB for all of them.
COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
SAMPLES = {**dict.fromkeys((*GREY, PALETTE), 1), **dict.fromkeys(COLOURS, 3)}

# What is read of a header; of all else not even the value is read.
KEYWORDS = (
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelSpacing",
    "RescaleIntercept",
    "RescaleSlope",
    "ModalityLUTSequence",
    "WindowCenter",
    "WindowWidth",
    "VOILUTFunction",
    "VOILUTSequence",
    "RedPaletteColorLookupTableDescriptor",
    "GreenPaletteColorLookupTableDescriptor",
    "BluePaletteColorLookupTableDescriptor",
    "RedPaletteColorLookupTableData",
    "GreenPaletteColorLookupTableData",
    "BluePaletteColorLookupTableData",
    "SegmentedRedPaletteColorLookupTableData",
    "SegmentedGreenPaletteColorLookupTableData",
    "SegmentedBluePaletteColorLookupTableData",
    "SequenceOfUltrasoundRegions",
)

# Codes of a region (PS3.3 C.8.5.5.1).
TWO_DIMENSIONS = 1
CENTIMETRES = 3

PREAMBLE_BYTES = 132  # 128 of any content, and DICM
META_GROUP = 0x0002
TRANSFER_SYNTAX = 0x00020010

# Of unusual values pydicom warns with the value, which may name the patient.
config.settings.reading_validation_mode = config.IGNORE
warnings.filterwarnings("ignore", module=r"pydicom(\.|$)")


def count_frames(
    path: Path,
    content: bytes | None = None,
    max_pixels: int = MAX_PIXELS,
    decode_last: bool = True,
) -> int:
    """How many frames a DICOM file has.

    Args:
        path: of the file.
        content: of the file, where it is in memory.
        max_pixels: how many pixels a frame may have.
        decode_last: whether to decode the last of several frames, so that a file that is cut off is
            refused as a whole.

    Raises:
        InputError: it is no image that can be read, or has too many frames or pixels.
    """
    header = _read_header(path, content, max_pixels)
    frames = _frames_of(header)
    if decode_last and frames > 1:
        _decode(path, content, header, frames - 1)
    return frames


def read_frame(
    path: Path,
    frame: int | None = None,
    content: bytes | None = None,
    max_pixels: int = MAX_PIXELS,
) -> np.ndarray:
    """One frame of a DICOM file as RGB, uint8 (H, W, 3), as viewers show it.

    Grey frames are shown with the first window or lookup table of the file. Without one, values of
    8 bits are taken as they are, and of deeper ones the smallest becomes 0 and the largest 255.

    Args:
        path: of the file.
        frame: from 0; None for the only one.
        content: of the file, where it is in memory.
        max_pixels: how many pixels a frame may have.

    Raises:
        InputError: it is no image that can be read, it has several frames and none is named, or
            the frame is damaged.
    """
    header = _read_header(path, content, max_pixels)
    frames = _frames_of(header)
    if frame is None and frames > 1:
        raise InputError(
            f"{path} has {frames} frames, expected 1. `ovseg infer` takes them all, and in Python "
            f"Predictor.predict does where it is given the folder, {path.parent}. Read one with "
            "ovseg.data.pictures.read_image(path, frame), which counts from 0."
        )
    return _decode(path, content, header, frame or 0)


def read_calibration(path: Path, content: bytes | None = None) -> Calibration:
    """What a readable DICOM file says about the size of its pixels.

    A header whose values can't be understood says nothing.
    """
    header = _read_header(path, content)
    try:
        items = header.get("SequenceOfUltrasoundRegions") or []
        regions = [_read_region(item) for item in items]
        spacing = None
        if header.get("PixelSpacing"):
            height, width = header.PixelSpacing
            spacing = _make_size(height, width)
    # Elements of an item are parsed only now, which raises nearly anything for damaged ones.
    except Exception:
        return Calibration()
    return Calibration(regions, spacing)


def _read_region(item: Dataset) -> Region:
    """An item of SequenceOfUltrasoundRegions, whose lengths are in cm."""
    size = None
    units = (item.PhysicalUnitsXDirection, item.PhysicalUnitsYDirection)
    if item.RegionSpatialFormat == TWO_DIMENSIONS and units == (CENTIMETRES, CENTIMETRES):
        # A negative length is a direction.
        size = _make_size(abs(item.PhysicalDeltaY) * 10, abs(item.PhysicalDeltaX) * 10)
    return Region(
        top=int(item.RegionLocationMinY0),
        bottom=int(item.RegionLocationMaxY1),
        left=int(item.RegionLocationMinX0),
        right=int(item.RegionLocationMaxX1),
        size=size,
    )


def _make_size(height: float, width: float) -> PixelSize | None:
    """A size in mm; None for lengths that pixels can't have."""
    lengths = (float(height), float(width))
    if all(math.isfinite(length) and length > 0 for length in lengths):
        return PixelSize(*lengths)
    return None


def _read_header(path: Path, content: bytes | None = None, max_pixels: int = MAX_PIXELS) -> Dataset:
    """The `KEYWORDS` of a file's header, checked."""
    try:
        with open(path, "rb") if content is None else io.BytesIO(content) as file:
            syntax = _read_syntax(file)
            # It would be unpacked as a whole, which may be any size.
            if syntax == DeflatedExplicitVRLittleEndian:
                raise InputError(
                    f"{path} is compressed as a whole ({syntax.name}), which is not read. Export "
                    "it without compression or with JPEG."
                )
            file.seek(0)
            header = dcmread(file, stop_before_pixels=True, specific_tags=list(KEYWORDS))
        for element in (*header.file_meta, *header):  # each is parsed only now
            element.value  # noqa: B018
    except InputError:
        raise
    # The parser raises nearly anything for a damaged header.
    except Exception as error:
        reason = getattr(error, "strerror", None) or "its header is damaged or cut off"
        raise InputError(f"{path} cannot be read ({reason}). Export it again.") from None
    if "Rows" not in header or "Columns" not in header:
        kind = _name_uid(header.file_meta.get("MediaStorageSOPClassUID"))
        raise InputError(f"{path} is DICOM without a picture ({kind}). Remove it.")
    _check_syntax(path, header)
    _check_pixels(path, header, max_pixels)
    return header


def _read_syntax(file: BinaryIO) -> UID:
    """The transfer syntax of a file's meta information; empty where it names none."""
    file.seek(PREAMBLE_BYTES)
    meta = data_element_generator(
        file,
        is_implicit_VR=False,
        is_little_endian=True,
        stop_when=lambda tag, vr, length: tag >> 16 != META_GROUP,
    )
    for element in meta:
        if element.tag == TRANSFER_SYNTAX:
            return UID((element.value or b"").decode("ascii").rstrip("\0 "))
    return UID("")


def _check_syntax(path: Path, header: Dataset) -> None:
    """Refuse an encoding of the pixels that can't be decoded here."""
    syntax = header.file_meta.get("TransferSyntaxUID")
    name = _name_uid(syntax)
    if syntax in MPEGTransferSyntaxes:
        raise InputError(
            f"{path} is a video ({name}), which is not read. Export it as a cine of single frames, "
            "such as JPEG Baseline."
        )
    deep = syntax == JPEGExtended12Bit and header.get("BitsStored") != 8
    try:
        decoder = get_decoder(syntax or "")
    except NotImplementedError:
        decoder = None
    if decoder is None or deep:
        raise InputError(
            f"{path} is encoded as {name}, which is not read. Export it without compression or "
            "with JPEG Baseline."
        )
    if not decoder.is_available:
        raise InputError(
            f"{path} is encoded as {name}, which needs another package: "
            f"{' or '.join(decoder.missing_dependencies)}. Install one with pip."
        )


def _check_pixels(path: Path, header: Dataset, max_pixels: int) -> None:
    """Refuse what is known before the pixels are decoded."""
    rows = header.Rows
    columns = header.Columns
    if not _is_count(rows) or not _is_count(columns) or rows * columns > max_pixels:
        raise InputError(
            f"{path} has {rows} rows and {columns} columns, expected 1 to {max_pixels:,} pixels. "
            "Export it at another size."
        )
    frames = _frames_of(header)
    if frames > MAX_FRAMES:
        raise InputError(
            f"{path} has {frames:,} frames, the most that is read is {MAX_FRAMES:,}. Split it."
        )
    kind = header.get("PhotometricInterpretation")
    if kind not in SAMPLES:
        raise InputError(
            f"{path} has colours of a kind that is not read, expected one of "
            f"{', '.join(SAMPLES)}. Export it as RGB."
        )
    samples = header.get("SamplesPerPixel")
    bits = header.get("BitsAllocated")
    stored = header.get("BitsStored")
    if samples != SAMPLES[kind] or bits not in (8, 16) or stored not in range(1, bits + 1):
        raise InputError(
            f"{path} has {samples} values a pixel of {bits} bits ({stored} used) in {kind}, "
            f"expected {SAMPLES[kind]} of 8 or 16 bits. Export it again."
        )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and value > 0


def _frames_of(header: Dataset) -> int:
    frames = header.get("NumberOfFrames")
    return int(frames) if _is_count(frames) else 1


def _name_uid(uid: UID | None) -> str:
    """The name of a public UID; others are not shown, as they may stand for a patient."""
    if uid is None:
        return "unnamed"
    if not isinstance(uid, str) or uid not in UID_dictionary:
        return "of a private kind"
    return UID(uid).name


def _decode(path: Path, content: bytes | None, header: Dataset, frame: int) -> np.ndarray:
    """A frame as RGB, uint8 (H, W, 3)."""
    try:
        source = path if content is None else io.BytesIO(content)
        pixels = pixel_array(source, index=frame, decoding_plugin=_choose_plugin(header))
        return _to_rgb(pixels, header)
    # Every decoder raises errors of its own for damaged pixels, and of any kind.
    except Exception:
        raise InputError(
            f"{path}: frame {frame + 1} of {_frames_of(header)} cannot be decoded; the file is "
            "damaged or cut off. Export it again."
        ) from None


def _choose_plugin(header: Dataset) -> str:
    """What decodes the pixels; empty for pixels without compression.

    gdcm writes to the terminal itself where a file is damaged, so others come first.
    """
    plugins = get_decoder(header.file_meta.TransferSyntaxUID).available_plugins
    others = [plugin for plugin in plugins if plugin != "gdcm"]
    return next(iter([*others, *plugins]), "")


def _to_rgb(pixels: np.ndarray, header: Dataset) -> np.ndarray:
    """Decoded pixels, (H, W) or (H, W, 3) of up to 16 bits, as RGB, uint8 (H, W, 3)."""
    kind = header.PhotometricInterpretation
    if kind in GREY:
        grey = _show_grey(pixels, header)
        return np.repeat(grey[..., None], 3, axis=2)
    if kind == PALETTE:
        colours = apply_color_lut(pixels, header)
        return _drop_bits(colours, colours.dtype.itemsize * 8)
    return _drop_bits(pixels, header.BitsStored)


def _drop_bits(pixels: np.ndarray, bits: int) -> np.ndarray:
    """Keep the 8 highest of so many bits."""
    return (pixels >> max(bits - 8, 0)).astype(np.uint8)


def _show_grey(pixels: np.ndarray, header: Dataset) -> np.ndarray:
    """Grey values as viewers show them, uint8 (H, W)."""
    values = apply_modality_lut(pixels, header)
    is_scaled = "ModalityLUTSequence" in header or "RescaleSlope" in header
    if header.get("VOILUTSequence"):
        values = apply_voi_lut(values, header)
        low = 0.0
        high = 2.0 ** header.VOILUTSequence[0].LUTDescriptor[2] - 1
    elif _has_window(header):
        values = apply_windowing(values, header)
        low, high = apply_windowing(np.array([-1e9, 1e9]), header)
    elif header.BitsStored <= 8 and header.PixelRepresentation == 0 and not is_scaled:
        low = 0.0
        high = 2.0**header.BitsStored - 1
    else:
        low = float(values.min())
        high = float(values.max())

    share = (values.astype(np.float64) - low) / max(high - low, 1e-9)
    shown = np.round(share.clip(0, 1) * 255).astype(np.uint8)
    if header.PhotometricInterpretation == "MONOCHROME1":
        return 255 - shown
    return shown


def _has_window(header: Dataset) -> bool:
    """Whether there is a window, which is at least 1 wide by the standard."""
    widths = header.get("WindowWidth")
    centres = header.get("WindowCenter")
    if widths is None or centres is None:
        return False
    width = np.ravel(widths)[0]
    return width >= 1
