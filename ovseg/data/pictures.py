"""Open pictures of any usual format. Nothing else in the project decodes a picture."""

import io
import os
import stat
import warnings
from collections import Counter
from pathlib import Path

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
}
SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)
# Formats that keep every value; of WEBP and JPEG 2000 Pillow does not say which kind a file is.
LOSSLESS = ("PNG", "BMP", "TIFF", "GIF", "PPM")
EIGHT_BIT_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "RGBX")  # of Pillow
# 8192 x 8192, the largest square of data.image_size: four pictures in threads stay below 2 GB.
MAX_PIXELS = 2**26
# A whole picture of that size without compression has half of it.
MAX_BYTES = 2**29

# Left in folders by file managers and archives; neither a picture nor missed.
CLUTTER = ("thumbs.db", "desktop.ini", "__macosx")
TURNED = (5, 6, 7, 8)  # values of the EXIF orientation that exchange height and width

# Pillow only warns of a picture of 90 to 180 million pixels; such a picture is refused here.
warnings.simplefilter("error", Image.DecompressionBombWarning)


def list_pictures(folder: Path) -> list[Path]:
    """The pictures of a folder by suffix, in order of their names; hidden files are left out."""
    pictures = []
    for path, is_folder in list_visible(folder):
        if not is_folder and has_suffix(path):
            pictures.append(path)
    return pictures


def has_suffix(path: Path) -> bool:
    """Whether a path has a suffix of a picture."""
    return path.suffix.lower() in SUFFIXES


def list_visible(folder: Path) -> list[tuple[Path, bool]]:
    """What a folder holds, in order of names, and whether each is a folder.

    Hidden files and what file managers and archives leave behind are left out.
    """
    visible = []
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if not entry.name.startswith(".") and entry.name.lower() not in CLUTTER:
                visible.append((Path(folder) / entry.name, entry.is_dir()))
    return visible


def describe_left_out(folder: Path, with_folders: bool = True) -> str:
    """What of a folder is not read, in a line; empty where everything is a picture.

    Hidden files and what file managers leave behind are not counted.

    Args:
        folder: of pictures.
        with_folders: whether to count the folders in it.
    """
    suffixes: Counter[str] = Counter()
    folders = 0
    for path, is_folder in list_visible(folder):
        if is_folder:
            folders += with_folders
        elif not has_suffix(path):
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


def open_picture(
    path: Path, content: bytes | None = None, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Decode a picture completely and turn it as viewers show it (EXIF orientation).

    Of an MPO the first picture is taken, which is the photograph.

    Args:
        path: of the file.
        content: of the file, where it is in memory; `path` is then only its name in messages.
        max_pixels: how many pixels the picture may have.

    Raises:
        InputError: no regular file, unreadable, truncated, too large, several frames, or more than
            8 bits a channel.
    """
    try:
        source: Path | io.BytesIO = path
        if content is None:
            _check_file(path)
        else:
            source = io.BytesIO(content)
        with Image.open(source, formats=tuple(FORMATS)) as picture:
            _check_header(picture, path, content, max_pixels)
            picture.load()
            ImageOps.exif_transpose(picture, in_place=True)
    except InputError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InputError(_describe_size(path, max_pixels)) from None
    except UnidentifiedImageError:
        raise InputError(
            f"{path} cannot be read: it is damaged, or no picture of a kind that is read "
            f"({', '.join(FORMATS)}). Replace or remove the file."
        ) from None
    # The decoders of Pillow raise nearly anything for a broken file.
    except Exception as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path} cannot be read ({reason}). Replace or remove the file.") from None
    return picture


def decode_image(content: bytes, name: str, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """The picture of a file that is in memory, as `read_image` reads it from a disk.

    Args:
        content: of the file.
        name: of the picture, for messages.
        max_pixels: how many pixels it may have.

    Raises:
        InputError: see `open_picture`.
    """
    return np.array(open_picture(Path(name), content, max_pixels).convert("RGB"))


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


def read_image(path: Path) -> np.ndarray:
    """Read a picture as RGB, uint8 (H, W, 3), turned as viewers show it.

    Raises:
        InputError: see `open_picture`.
    """
    return np.array(open_picture(path).convert("RGB"))


def is_lossy(picture: Image.Image) -> bool:
    """Whether compression may have changed the values of a decoded file."""
    return picture.format not in LOSSLESS


def is_turned(path: Path) -> bool:
    """Whether the EXIF orientation of a readable picture exchanges its height and width."""
    with Image.open(path, formats=tuple(FORMATS)) as picture:
        return picture.getexif().get(0x0112) in TURNED
