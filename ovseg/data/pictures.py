"""Open pictures of any usual format. Nothing else in the project decodes a picture."""

import io
import os
import re
import stat
import warnings
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ovseg.core.errors import InputError
from ovseg.core.text import printable

# What is read, whatever the suffix says: Pillow's name of a format -> its usual suffixes.
FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
    "JPEG2000": (".jp2", ".j2k", ".jpx"),
    "GIF": (".gif",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "AVIF": (".avif",),
}
SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)
# DICOM is recognised by its content. A file of such a name that is no DICOM is not passed over.
DICOM_SUFFIXES = (".dcm", ".dicom")
KINDS = (*FORMATS, "DICOM")
DICOM_START = b"DICM"
DICOM_START_AT = 128  # after as many bytes of any content
# Formats that keep every value; of WEBP, JPEG 2000 and AVIF Pillow does not say which kind a file
# is.
LOSSLESS = ("PNG", "BMP", "TIFF", "GIF", "PPM")
EIGHT_BIT_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "RGBX")  # of Pillow
# 8192 x 8192, the largest square of data.image_size: four pictures in threads stay below 2 GB.
MAX_PIXELS = 2**26
# A whole picture of that size without compression has half of it.
MAX_BYTES = 2**29

# Left in folders by file managers, archives and CDs of pictures; neither a picture nor missed.
CLUTTER = ("thumbs.db", "desktop.ini", "__macosx", "dicomdir")
UPRIGHT = 1  # value of the EXIF orientation of a picture that viewers show as it is stored
TURNED = (5, 6, 7, 8)  # values that exchange height and width

# Pillow only warns of a picture of 90 to 180 million pixels; such a picture is refused here.
warnings.simplefilter("error", Image.DecompressionBombWarning)


def list_pictures(folder: Path, dicom: bool = False) -> list[Path]:
    """The pictures of a folder by suffix, in order of their names; hidden files are left out.

    Args:
        folder: of pictures.
        dicom: also take DICOM files, which need no suffix.
    """
    pictures = []
    for path, is_folder in list_visible(folder):
        if not is_folder and is_picture(path, dicom):
            pictures.append(path)
    return pictures


def has_suffix(path: Path) -> bool:
    """Whether a path has a suffix of a picture."""
    return path.suffix.lower() in SUFFIXES


def is_picture(path: Path, dicom: bool) -> bool:
    """Whether a file has a suffix of a picture, or, if that is asked for, is DICOM."""
    if has_suffix(path):
        return True
    return dicom and (path.suffix.lower() in DICOM_SUFFIXES or is_dicom(path))


def is_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM files do, whatever its name."""
    if not path.is_file():  # a pipe would be waited for
        return False
    try:
        with open(path, "rb") as file:
            return is_dicom_content(file.read(DICOM_START_AT + len(DICOM_START)))
    except OSError:  # it is reported when it is read
        return False


def is_dicom_content(content: bytes) -> bool:
    """Whether the content of a file begins as DICOM files do."""
    return content.startswith(DICOM_START, DICOM_START_AT)


def stem_of(path: Path) -> str:
    """The name of a picture without its suffix.

    DICOM files are often named by a number such as 1.2.840.10, which has no suffix.
    """
    known = has_suffix(path) or path.suffix.lower() in DICOM_SUFFIXES
    if not known and is_dicom(path):
        return path.name
    return path.stem


def list_visible(folder: Path) -> list[tuple[Path, bool]]:
    """What a folder holds, in order of names, and whether each is a folder.

    Hidden files and what file managers and archives leave behind are left out.
    """
    visible = []
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if not entry.name.startswith(".") and entry.name.lower() not in CLUTTER:
                visible.append((Path(folder) / entry.name, _is_folder(entry)))
    return visible


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # such as a link to itself, which is reported when it is read
        return False


def describe_left_out(folder: Path, with_folders: bool = True, dicom: bool = False) -> str:
    """What of a folder is not read, in a line; empty where everything is a picture.

    Hidden files and what file managers leave behind are not counted.

    Args:
        folder: of pictures.
        with_folders: whether to count the folders in it.
        dicom: see `list_pictures`.
    """
    suffixes: Counter[str] = Counter()
    folders = 0
    for path, is_folder in list_visible(folder):
        if is_folder:
            folders += with_folders
        elif not is_picture(path, dicom):
            suffixes[printable(path.suffix.lower()) or "without suffix"] += 1

    parts = []
    if suffixes:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in suffixes.most_common(5))
        count = suffixes.total()
        files = "1 file was" if count == 1 else f"{count} files were"
        parts.append(f"{files} left out: {kinds}")
    if folders:
        subfolders = "1 folder" if folders == 1 else f"{folders} folders"
        parts.append(f"it holds {subfolders}, whose pictures are not looked for")
    if not parts:
        return ""
    return f"{printable(folder)}: {'; '.join(parts)}."


def open_picture(path: Path) -> Image.Image:
    """Decode a picture completely and turn it as viewers show it (EXIF orientation).

    Of an MPO the first picture is taken, which is the photograph.

    Raises:
        InputError: no regular file, unreadable, truncated, too large, several frames, or more than
            8 bits a channel.
    """
    return _open(path)[0]


def _open(
    path: Path,
    content: bytes | None = None,
    max_pixels: int = MAX_PIXELS,
    kinds: Iterable[str] = FORMATS,
) -> tuple[Image.Image, int]:
    """`open_picture`, and the EXIF orientation that it had, 1..8.

    Args:
        path: of the file.
        content: of the file, where it is in memory; `path` is then only its name in messages.
        max_pixels: how many pixels the picture may have.
        kinds: that the caller reads, for messages.
    """
    try:
        source: Path | io.BytesIO = path
        if content is None:
            _check_file(path)
        else:
            source = io.BytesIO(content)
        with Image.open(source, formats=tuple(FORMATS)) as picture:
            _check_header(picture, path, content, max_pixels)
            # Before the pixels: Pillow turns a TIFF when it decodes it.
            orientation = picture.getexif().get(0x0112, UPRIGHT)
            picture.load()
            ImageOps.exif_transpose(picture, in_place=True)
    except InputError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InputError(_describe_size(path, max_pixels)) from None
    except UnidentifiedImageError:
        raise InputError(
            f"{path} cannot be read: it is damaged, or no picture of a kind that is read "
            f"({', '.join(kinds)}). Replace or remove the file."
        ) from None
    # The decoders of Pillow raise nearly anything for a broken file.
    except Exception as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path} cannot be read ({reason}). Replace or remove the file.") from None
    if orientation not in range(1, 9):
        orientation = UPRIGHT  # Pillow leaves such a picture as it is
    return picture, orientation


def decode_image(content: bytes, name: str, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """The picture of a file in memory that is no DICOM, as `read_image` reads it from a disk.

    Args:
        content: of the file.
        name: of the picture, for messages.
        max_pixels: how many pixels it may have.

    Raises:
        InputError: see `open_picture`.
    """
    picture, _ = _open(Path(name), content, max_pixels, KINDS)
    return np.array(picture.convert("RGB"))


def _check_file(path: Path) -> None:
    """Refuse what is no file of a sensible size; to open a pipe would wait for ever."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path} is no regular file, expected a picture. Remove it.")
    if status.st_size > MAX_BYTES:
        raise InputError(
            f"{path} has {status.st_size >> 20} MB, expected at most {MAX_BYTES >> 20}. Shrink it."
        )


def _check_header(picture: Image.Image, path: Path, content: bytes | None, max_pixels: int) -> None:
    """Refuse what is known before the pixels are decoded."""
    if picture.width * picture.height > max_pixels:
        raise InputError(_describe_size(path, max_pixels))

    if picture.format == "JPEG2000":
        codestream = path.read_bytes() if content is None else content
        _refuse_depth(_read_jpeg2000_bits(codestream), str(path))
    if picture.format == "AVIF":
        boxes = path.read_bytes() if content is None else content
        _refuse_depth(_read_avif_bits(boxes), str(path))
    check_eight_bits(picture, str(path))

    # A JPEG with further pictures, such as a preview, as phones and cameras write it, is an MPO.
    if picture.format != "MPO" and _has_second_frame(picture):
        raise InputError(
            f"{path} has several frames, expected 1. Save the frame you mean as its own file."
        )


def _describe_size(path: Path, max_pixels: int) -> str:
    return (
        f"{path} has more than {max_pixels:,} pixels, the most that is read. Shrink the picture, "
        "or cut out the part that you mean."
    )


def _has_second_frame(picture: Image.Image) -> bool:
    """Whether there is another frame; to count the frames would read all of them."""
    try:
        picture.seek(1)
    except EOFError:
        picture.seek(0)
        return False
    return True


def _read_jpeg2000_bits(content: bytes) -> int:
    """The largest number of bits that the header (SIZ) of a JPEG 2000 codestream has."""
    start = content.find(b"\xff\x4f\xff\x51")
    components = int.from_bytes(content[start + 40 : start + 42], "big")
    sizes = content[start + 42 : start + 42 + 3 * components : 3]
    return max((size & 0x7F) + 1 for size in sizes)


def _read_avif_bits(content: bytes) -> int:
    """The largest number of bits that the headers (av1C) of the pictures in an AVIF have.

    Source: AV1 Codec ISO Media File Format Binding, section 2.3.
    """
    bits = 8
    for header in re.finditer(rb"av1C\x81.(.)", content, re.DOTALL):
        flags = header[1][0]
        if flags & 0x40:  # high_bitdepth
            bits = max(bits, 12 if flags & 0x20 else 10)  # twelve_bit
    return bits


def check_eight_bits(picture: Image.Image, name: str) -> None:
    """Raise InputError, which begins with `name`, for a picture of more than 8 bits a channel.

    Pillow decodes colours of 16 bits to 8 without a word. Of a picture that was opened and not
    decoded yet, the file's own depth is checked too.
    """
    _refuse_depth(_find_depth(picture), name)
    if picture.mode not in EIGHT_BIT_MODES:
        raise InputError(
            f"{name} has mode {picture.mode}, expected 8 bits a channel. Convert it to 8 bits."
        )


def _refuse_depth(bits: int, name: str) -> None:
    if bits > 8:
        raise InputError(
            f"{name} has {bits} bits a channel, expected 8 bits. Convert it to 8 bits."
        )


def _find_depth(picture: Image.Image) -> int:
    """Bits a channel of the file that a picture was opened from, as far as Pillow tells; else 8."""
    if picture.format == "TIFF":
        return max(picture.tag_v2.get(258, (1,)))  # type: ignore[attr-defined]

    for tile in getattr(picture, "tile", ()):
        arguments = tile[3]
        if picture.format == "PNG" and ";16" in str(arguments):
            return 16
        if picture.format == "PPM" and tile[0].startswith("ppm") and arguments[1] > 255:
            return 16
    return 8


def read_image(path: Path, frame: int | None = None) -> np.ndarray:
    """Read a picture as RGB, uint8 (H, W, 3), turned as viewers show it.

    Args:
        path: of the picture, which may be DICOM.
        frame: of a DICOM file with several, from 0.

    Raises:
        InputError: see `open_picture` and `ovseg.data.dicom.read_frame`.
    """
    if is_dicom(path):
        return import_dicom(path).read_frame(path, frame)
    if path.suffix.lower() in DICOM_SUFFIXES:
        raise InputError(
            f"{path} does not begin as a DICOM file does: it is another kind of file, damaged or "
            "encrypted. Export it again, or remove it."
        )
    return _read(path, KINDS)[0]


def read_image_and_orientation(path: Path) -> tuple[np.ndarray, int]:
    """`read_image` where DICOM is not taken, and the EXIF orientation of the file.

    It is 1 for a picture as it is stored, 2..8 for one that is turned by it.
    """
    return _read(path, FORMATS)


def _read(path: Path, kinds: Iterable[str]) -> tuple[np.ndarray, int]:
    """`_open` as RGB, uint8 (H, W, 3)."""
    picture, orientation = _open(path, kinds=kinds)
    if picture.mode != "RGB":  # to convert what is RGB already would copy it
        picture = picture.convert("RGB")
    return np.array(picture), orientation


def import_dicom(path: Path) -> ModuleType:
    """The module `ovseg.data.dicom`, which needs a package of an extra.

    Args:
        path: the DICOM file that it is needed for.

    Raises:
        InputError: the package is missing.
    """
    try:
        from ovseg.data import dicom
    except ImportError:
        raise InputError(f"{path} is DICOM, which needs pip install 'ovseg[dicom]'.") from None
    return dicom


def is_lossy(picture: Image.Image) -> bool:
    """Whether compression may have changed the values of a decoded file."""
    return picture.format not in LOSSLESS


def advise_on_size(image: Path, size: tuple[int, int], other: tuple[int, int]) -> str:
    """What to do about a readable picture whose labels were made for another size.

    Args:
        image: the picture.
        size: its (height, width), turned by its EXIF orientation.
        other: (height, width) of its mask or annotation.
    """
    if other == (size[1], size[0]) and _open(image)[1] in TURNED:
        return (
            "The labels fit the image as it is stored, but its EXIF orientation turns it by 90 "
            "degrees. If they were drawn on the image as it is stored, remove its orientation "
            "(exiftool -Orientation= FILE); otherwise turn them as viewers show the image."
        )
    return "Export them again."
