"""`ovseg infer` on a folder with an odd file among pictures: it is predicted, or refused in a line.

The others are predicted in any case, and the exit code tells whether a file failed.
"""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

from dicom_files import compress, make_dicom, save_dicom
from ovseg.data.prepare.phantoms import make_phantom

HEIGHT, WIDTH = 40, 64
IMAGE = make_phantom(3, WIDTH)[0][:HEIGHT]
# UIDs of encodings of DICOM that are not read.
MPEG4 = "1.2.840.10008.1.2.4.102"
JPIP = "1.2.840.10008.1.2.4.94"
DEFLATED = "1.2.840.10008.1.2.1.99"


@pytest.fixture
def infer(run, tmp_path, run_command, capsys) -> Callable[..., tuple[int, list[str]]]:
    """A function that predicts the folder `in`: its exit code and lines on standard error."""

    def call(*options: str) -> tuple[int, list[str]]:
        command = ["infer", "--run", run, "--images", tmp_path / "in", "--device", "cpu"]
        code = run_command(*command, "--output", tmp_path / "out", *options)
        return code, capsys.readouterr().err.splitlines()

    return call


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with two good pictures."""
    (tmp_path / "in").mkdir()
    for name in ("1.png", "9.png"):
        Image.fromarray(IMAGE).save(tmp_path / "in" / name)
    return tmp_path / "in"


def save_turned(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(IMAGE).save(path, exif=exif)


def save_dicom_of(syntax: str) -> Callable[[Path], object]:
    return lambda path: save_dicom(path, compress(make_dicom(IMAGE), syntax))


def save_as(mode: str) -> Callable[[Path], None]:
    return lambda path: Image.fromarray(IMAGE).convert(mode).save(path)


PREDICTED: dict[str, tuple[str, Callable[[Path], object], tuple[int, int]]] = {
    "grey": ("5.png", save_as("L"), (HEIGHT, WIDTH)),
    "black and white": ("5.png", save_as("1"), (HEIGHT, WIDTH)),
    "palette": ("5.png", save_as("P"), (HEIGHT, WIDTH)),
    "transparent": ("5.png", save_as("RGBA"), (HEIGHT, WIDTH)),
    "grey and transparent": ("5.png", save_as("LA"), (HEIGHT, WIDTH)),
    "for print": ("5.jpg", save_as("CMYK"), (HEIGHT, WIDTH)),
    "turned by EXIF": ("5.jpg", save_turned, (WIDTH, HEIGHT)),
    "one pixel": ("5.png", lambda path: Image.new("RGB", (1, 1)).save(path), (1, 1)),
    "a line": ("5.png", lambda path: Image.new("RGB", (3000, 1)).save(path), (1, 3000)),
    "a GIF of one frame": ("5.gif", save_as("P"), (HEIGHT, WIDTH)),
    "a PNG named as JPEG": (
        "5.jpg",
        lambda path: Image.fromarray(IMAGE).save(path, format="PNG"),
        (HEIGHT, WIDTH),
    ),
    "a link": ("5.png", lambda path: path.symlink_to(path.with_name("1.png")), (HEIGHT, WIDTH)),
    "DICOM in JPEG 2000": ("5.dcm", save_dicom_of(JPEG2000Lossless), (HEIGHT, WIDTH)),
    "DICOM in JPEG-LS": ("5.dcm", save_dicom_of(JPEGLSLossless), (HEIGHT, WIDTH)),
    "DICOM in RLE": ("5", save_dicom_of(RLELossless), (HEIGHT, WIDTH)),
}


@pytest.mark.parametrize("kind", PREDICTED)
def test_unusual_picture_is_predicted(folder, infer, tmp_path, kind, read_png):
    name, write, size = PREDICTED[kind]
    write(folder / name)
    code, lines = infer("--overlays", "--probabilities")
    assert code == 0, lines
    for place in (".", "overlays", "probabilities"):
        assert read_png(tmp_path / "out" / place / "5.png").shape[:2] == size
        assert len(list((tmp_path / "out" / place).glob("*.png"))) == 3


def save_film(path: Path) -> None:
    frames = [Image.fromarray(np.full((8, 8), grey, np.uint8)) for grey in (0, 99, 200)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


def save_with_syntax(syntax: str) -> Callable[[Path], object]:
    """A DICOM file whose header names an encoding."""

    def save(path: Path) -> None:
        dataset = compress(make_dicom(IMAGE), JPEG2000Lossless)
        dataset.file_meta.TransferSyntaxUID = syntax
        save_dicom(path, dataset)

    return save


REFUSED: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "a text": ("5.jpg", lambda path: path.write_text("no picture"), "no picture of a kind that is"),
    "nothing": ("5.png", lambda path: path.touch(), "no picture of a kind that is read"),
    "a picture that is cut off": (
        "5.png",
        lambda path: path.write_bytes((path.parent / "1.png").read_bytes()[:300]),
        "cannot be read",
    ),
    "16 bits, grey": (
        "5.png",
        lambda path: Image.fromarray(np.zeros((8, 8), np.uint16)).save(path),
        "has 16 bits a channel, expected 8 bits. Convert it",
    ),
    "30,000 x 30,000": (
        "5.png",
        lambda path: path.write_bytes(b"P6 30000 30000 255\n"),
        "has more than 67,108,864 pixels, the most that is read. Shrink the picture",
    ),
    "a video": (
        "5.png",
        lambda path: path.write_bytes(b"\0\0\0\x18ftypmp42" + bytes(400)),
        "no picture of a kind that is read",
    ),
    "an animated GIF": ("5.gif", save_film, "has several frames, expected 1"),
    "a link to itself": (
        "5.png",
        lambda path: path.symlink_to(path),
        "cannot be read (Too many levels of symbolic links)",
    ),
    "a link to nothing": (
        "5.png",
        lambda path: path.symlink_to(path.with_name("gone.png")),
        "cannot be read (No such file or directory)",
    ),
    "a pipe": ("5.png", os.mkfifo, "is no regular file, expected a picture. Remove it"),
    "an encrypted DICOM": (
        "5.dcm",
        lambda path: path.write_bytes(np.random.default_rng(0).bytes(4000)),
        "does not begin as a DICOM file does: it is another kind of file, damaged or encrypted",
    ),
    "a DICOM video": ("5.dcm", save_with_syntax(MPEG4), "is a video (MPEG-4 AVC/H.264 High"),
    "a deflated DICOM": (
        "5.dcm",
        save_with_syntax(DEFLATED),
        "is compressed as a whole (Deflated Explicit VR Little Endian), which is not read",
    ),
    "an unknown compression": (
        "5.dcm",
        save_with_syntax(JPIP),
        "is encoded as JPIP Referenced, which is not read. Export it without compression",
    ),
}


@pytest.mark.timeout(60)  # a pipe would be waited for
@pytest.mark.parametrize("kind", REFUSED)
def test_file_that_is_no_picture_is_refused_in_a_line_and_the_rest_goes_on(
    folder, infer, tmp_path, kind
):
    name, write, message = REFUSED[kind]
    write(folder / name)
    code, lines = infer()
    assert code == 1
    failed = [line for line in lines if line.startswith("failed: ")]
    assert len(failed) == 1
    assert failed[0].startswith(f"failed: {folder / name} ")
    assert message in failed[0]
    assert lines[-1] == "1 files failed."
    assert "Traceback" not in "".join(lines)
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == ["1.png", "9.png"]


def test_folders_and_files_of_other_kinds_are_left_out_and_counted(folder, infer, tmp_path):
    (folder / "5.png").mkdir()
    Image.fromarray(IMAGE).save(folder / "5.png" / "inner.png")
    (folder / "round.png").symlink_to(folder, target_is_directory=True)
    (folder / "scan.mp4").touch()
    (folder / "film.mp4").touch()
    (folder / "notes.txt").touch()
    code, lines = infer()
    assert code == 0
    assert "holds 1 folders, whose pictures are not looked for (5.png): add" in lines[0]
    assert lines[1] == f"{folder}: 3 files were left out: 2 .mp4, 1 .txt."
    assert len(list((tmp_path / "out").glob("*.png"))) == 2


def test_recursive_takes_a_folder_named_as_a_picture_and_follows_no_round(folder, infer, tmp_path):
    (folder / "5.png").mkdir()
    Image.fromarray(IMAGE).save(folder / "5.png" / "inner.png")
    (folder / "5.png" / "round").symlink_to(folder, target_is_directory=True)
    assert infer("--recursive")[0] == 0
    masks = [path for path in (tmp_path / "out").rglob("*.png") if path.is_file()]
    names = sorted(str(path.relative_to(tmp_path / "out")) for path in masks)
    assert names == ["1.png", "5.png/inner.png", "9.png"]
