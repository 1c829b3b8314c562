import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import (
    MPEG4HP41,
    DeflatedExplicitVRLittleEndian,
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLSLossless,
    RLELossless,
)

from dicom_files import MARKS, compress, make_dicom, make_region, save_dicom
from ovseg.core.errors import InputError
from ovseg.data.dicom import count_frames, read_calibration, read_frame
from ovseg.data.pictures import describe_left_out, list_pictures, read_image, stem_of
from ovseg.data.pixel_size import Calibration, PixelSize, Region
from ovseg.data.prepare.phantoms import make_phantom

BUNDLED = Path(pydicom.__file__).parent / "data" / "test_files"


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    """A phantom with a coloured patch, RGB, 40 x 64."""
    image = make_phantom(1, 64)[0][:40].copy()
    image[4:12, 8:24] = (200, 30, 60)
    return image


@pytest.fixture
def save(tmp_path) -> Callable[..., Path]:
    """A function that makes a file `a.dcm`, see `make_dicom`."""

    def write(pixels: np.ndarray, kind: str = "RGB", **values: object) -> Path:
        return save_dicom(tmp_path / "a.dcm", make_dicom(pixels, kind, **values))

    return write


# Colours


@pytest.mark.parametrize(("kind", "error"), [("RGB", 0), ("YBR_FULL", 2), ("YBR_FULL_422", 2)])
def test_colours_without_compression_become_rgb(save, image, kind, error):
    found = read_image(save(image, kind))
    assert found.dtype == np.uint8
    difference = np.abs(found.astype(int) - image)
    # Of two neighbours with one colour the second may differ.
    assert np.abs(difference[:, ::2]).max() <= error


def test_palette_gives_its_colours(save):
    indices = np.array([[0, 1], [2, 1]], np.uint8)
    table = np.array([[10, 20, 30], [40, 50, 60], [255, 0, 128]])
    values = {}
    for channel, name in enumerate(("Red", "Green", "Blue")):
        # 16 bits a value, as most files have it; 255 is 65535.
        column = (table[:, channel] * 257).astype("<u2")
        values[f"{name}PaletteColorLookupTableDescriptor"] = [3, 0, 16]
        values[f"{name}PaletteColorLookupTableData"] = column.tobytes()
    found = read_image(save(indices, "PALETTE COLOR", **values))
    assert found.tolist() == table[indices].tolist()


def test_grey_of_eight_bits_is_taken_as_it_is(save, image):
    grey = image[..., 0]
    found = read_image(save(grey, "MONOCHROME2"))
    assert np.array_equal(found, np.dstack([grey, grey, grey]))


def test_monochrome1_is_turned_over(save, image):
    grey = image[..., 0]
    assert np.array_equal(read_image(save(grey, "MONOCHROME1"))[..., 0], 255 - grey)


DEEP = np.array([[0, 100, 150, 200, 300, 400]], np.uint16)


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        # Without a window, from the smallest to the largest value.
        ({}, [0, 64, 96, 128, 191, 255]),
        # 100 to 300 become 0 to 255.
        (
            {"WindowCenter": 200, "WindowWidth": 200, "VOILUTFunction": "LINEAR_EXACT"},
            [0, 0, 64, 128, 255, 255],
        ),
        # The first of two windows.
        (
            {
                "WindowCenter": [200, 9],
                "WindowWidth": [200, 9],
                "VOILUTFunction": "LINEAR_EXACT",
            },
            [0, 0, 64, 128, 255, 255],
        ),
        # The window is for twice the value.
        (
            {
                "RescaleSlope": 2,
                "RescaleIntercept": 0,
                "WindowCenter": 400,
                "WindowWidth": 400,
                "VOILUTFunction": "LINEAR_EXACT",
            },
            [0, 0, 64, 128, 255, 255],
        ),
        # A window without a width is none.
        ({"WindowCenter": 200, "WindowWidth": 0}, [0, 64, 96, 128, 191, 255]),
        ({"WindowCenter": None, "WindowWidth": None}, [0, 64, 96, 128, 191, 255]),
    ],
)
def test_deep_grey_is_shown_through_its_window(tmp_path, values, shown):
    dataset = make_dicom(DEEP, "MONOCHROME2", BitsStored=12)
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    found = read_image(save_dicom(tmp_path / "a.dcm", dataset))
    assert found[0, :, 0].tolist() == shown


def test_lookup_table_goes_before_a_window(save):
    table = Dataset()
    table.LUTDescriptor = [4, 0, 10]
    table.LUTData = np.array([0, 1023, 512, 256], "<u2").tobytes()
    path = save(
        np.array([[0, 1, 2, 3]], np.uint16),
        "MONOCHROME2",
        VOILUTSequence=[table],
        WindowCenter=2,
        WindowWidth=2,
    )
    assert read_image(path)[0, :, 0].tolist() == [0, 255, 128, 64]


# Compression and frames


@pytest.mark.parametrize(
    ("syntax", "error"),
    [(RLELossless, 0), (JPEGLSLossless, 0), (JPEG2000Lossless, 0), (JPEGBaseline8Bit, 4)],
)
@pytest.mark.parametrize("colour", [True, False])
def test_compressed_cine_is_read_frame_by_frame(tmp_path, image, syntax, error, colour):
    frames = np.stack([image, image[::-1], image[:, ::-1]])
    if not colour:
        frames = frames[..., 0]
    dataset = compress(make_dicom(frames, "RGB" if colour else "MONOCHROME2"), syntax)
    path = save_dicom(tmp_path / "a.dcm", dataset)
    assert count_frames(path) == 3
    for index, frame in enumerate(frames):
        found = read_frame(path, index).astype(int)
        expected = frame if colour else np.dstack([frame, frame, frame])
        assert np.abs(found - expected).mean() <= error


def test_cine_without_a_table_of_frames_is_read(tmp_path, image):
    frames = np.stack([image, image[::-1]])
    dataset = compress(make_dicom(frames), JPEG2000Lossless, table=False)
    path = save_dicom(tmp_path / "a.dcm", dataset)
    assert np.array_equal(read_frame(path, 1), frames[1])


def test_lossless_jpeg_is_read():
    found = read_image(BUNDLED / "SC_rgb_jpeg_gdcm.dcm")
    assert found[5, 50].tolist() == [255, 0, 0]
    assert found[45, 50].tolist() == [0, 0, 255]


def test_one_of_several_frames_has_to_be_named(save, image):
    path = save(np.stack([image, image]))
    with pytest.raises(InputError, match="a.dcm has 2 frames, expected 1. `ovseg infer`") as caught:
        read_image(path)
    message = str(caught.value)
    assert f"Predictor.predict does where it is given the folder, {path.parent}." in message
    assert "ovseg.data.pictures.read_image(path, frame), which counts from 0." in message


@pytest.mark.parametrize("path", sorted(BUNDLED.rglob("*.dcm")), ids=lambda path: path.name)
def test_every_file_of_pydicom_is_a_picture_or_one_line(path):
    try:
        frames = count_frames(path)
        found = read_frame(path, frames - 1)
    except InputError as error:
        assert str(error).startswith(str(path))
        assert "\n" not in str(error)
    else:
        assert found.dtype == np.uint8
        assert found.ndim == 3
        read_calibration(path)


# Files that are refused


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"Rows": None}, r"is DICOM without a picture \(Ultrasound Image Storage\)"),
        ({"Rows": 60000, "Columns": 60000}, "60000 rows and 60000 columns, expected 1 to 67,108"),
        ({"Columns": 0}, "40 rows and 0 columns"),
        ({"NumberOfFrames": 100_000}, "100,000 frames, the most that is read is 10,000"),
        ({"NumberOfFrames": 30}, "frame 30 of 30 cannot be decoded; the file is damaged or cut"),
        ({"PhotometricInterpretation": "HSV"}, "has colours of a kind that is not read"),
        ({"PhotometricInterpretation": "MONOCHROME2"}, "has 3 values a pixel of 8 bits"),
        ({"BitsAllocated": 32}, r"of 32 bits \(8 used\) in RGB, expected 3 of 8 or 16 bits"),
        ({"BitsStored": 9}, r"of 8 bits \(9 used\)"),
        ({"SamplesPerPixel": None}, "has None values a pixel"),
        ({"PixelData": None}, "cannot be decoded"),
    ],
)
def test_what_is_no_picture_is_refused_before_it_is_decoded(save, image, values, message):
    path = save(image)
    dataset = pydicom.dcmread(path)
    for keyword, value in values.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    save_dicom(path, dataset)
    with pytest.raises(InputError, match=message):
        count_frames(path)
        read_image(path)


@pytest.mark.parametrize(
    ("syntax", "message"),
    [
        (MPEG4HP41, r"is a video \(MPEG-4 AVC/H.264 High Profile / Level 4.1\), which is not read"),
        ("1.2.840.10008.1.2.4.95", "is encoded as JPIP Referenced Deflate, which is not read"),
        (HTJ2KLossless, "is encoded as High-Throughput JPEG 2000 .*, which needs another package"),
    ],
)
def test_encoding_that_is_not_read_is_named(tmp_path, image, syntax, message):
    dataset = compress(make_dicom(image), RLELossless)
    dataset.file_meta.TransferSyntaxUID = syntax
    path = save_dicom(tmp_path / "a.dcm", dataset)
    with pytest.raises(InputError, match=message):
        count_frames(path)


def test_jpeg_of_twelve_bits_is_named(tmp_path, image):
    dataset = compress(make_dicom(image), JPEGBaseline8Bit)
    dataset.BitsAllocated = 16
    dataset.BitsStored = 12
    dataset.file_meta.TransferSyntaxUID = JPEGExtended12Bit
    path = save_dicom(tmp_path / "a.dcm", dataset)
    with pytest.raises(InputError, match="is encoded as JPEG Extended .*, which is not read"):
        count_frames(path)


def test_file_that_is_compressed_as_a_whole_is_refused_unopened(save, image):
    path = save(image)
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    save_dicom(path, dataset)
    with pytest.raises(InputError, match="is compressed as a whole .Deflated Explicit VR"):
        count_frames(path)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.7, 0.98])
def test_file_that_is_cut_off_is_one_line(save, image, share):
    path = save(np.stack([image, image]))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(InputError, match="a.dcm.* (cut off|without a picture)") as caught:
        count_frames(path)
    assert not [mark for mark in MARKS if mark in str(caught.value)]


def test_other_content_under_the_name_of_dicom_is_one_line(tmp_path):
    (tmp_path / "a.dcm").write_bytes(b"\x30\x82" + bytes(1000))
    with pytest.raises(InputError, match="a.dcm does not begin as a DICOM file does: .*encrypted"):
        read_image(tmp_path / "a.dcm")


def test_missing_package_is_one_sentence(save, image, monkeypatch):
    path = save(image)
    monkeypatch.delitem(sys.modules, "ovseg.data.dicom", raising=False)
    monkeypatch.delattr("ovseg.data.dicom", raising=False)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(InputError) as caught:
        read_image(path)
    assert str(caught.value) == f"{path} is DICOM, which needs pip install 'ovseg[dicom]'."


# Folders


def test_folder_takes_dicom_of_any_name_where_it_is_asked_for(tmp_path, image):
    for name in ("1.2.840.10008", "b.dcm", "c.ima", "DICOMDIR"):
        save_dicom(tmp_path / name, make_dicom(image))
    (tmp_path / "d.txt").write_text("DICM")
    (tmp_path / "e.DCM").touch()
    names = [path.name for path in list_pictures(tmp_path, dicom=True)]
    assert names == ["1.2.840.10008", "b.dcm", "c.ima", "e.DCM"]
    assert list_pictures(tmp_path) == []
    assert describe_left_out(tmp_path, dicom=True).endswith("1 file was left out: 1 .txt.")


def test_stem_of_dicom_named_by_a_number_is_the_whole_name(tmp_path, image):
    stems = []
    for name in ("1.2.840.10008", "b.dcm", "c.jpg"):
        stems.append(stem_of(save_dicom(tmp_path / name, make_dicom(image))))
    assert stems == ["1.2.840.10008", "b", "c"]


# Calibration


def test_regions_and_spacing_are_read_in_mm(save, image):
    path = save(
        image,
        SequenceOfUltrasoundRegions=[
            make_region((2, 30, 4, 60), (0.02, 0.01)),
            make_region((31, 39, 4, 60), (-0.02, 0.01)),
            make_region((0, 1, 0, 9), (0.02, 0.01), spatial=3),
            make_region((0, 1, 0, 9), (0.02, 0.01), units=4),
            make_region((0, 1, 0, 9), (0.0, 0.01)),
        ],
        PixelSpacing=[0.3, 0.4],
    )
    found = read_calibration(path)
    size = PixelSize(0.2, 0.1)
    assert found.regions[0] == Region(top=2, bottom=30, left=4, right=60, size=size)
    assert found.regions[1].size == size
    assert [region.size for region in found.regions[2:]] == [None, None, None]
    assert found.spacing == PixelSize(0.3, 0.4)


def test_broken_calibration_says_nothing(save, image):
    region = make_region((2, 30, 4, 60), (0.02, 0.01))
    del region.RegionLocationMinX0
    path = save(image, SequenceOfUltrasoundRegions=[region], PixelSpacing=[0.3, 0.4])
    assert read_calibration(path) == Calibration()
    assert read_calibration(save(image)) == Calibration([])
