import os
import socket
import struct
import time
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from ovseg.core.errors import InputError
from ovseg.data.pictures import (
    FORMATS,
    SUFFIXES,
    decode_image,
    describe_left_out,
    list_pictures,
    open_picture,
    read_image,
    read_image_and_orientation,
)


@pytest.fixture
def gradient() -> np.ndarray:
    """RGB, 12 rows and 20 columns, different in every corner."""
    image = np.zeros((12, 20, 3), np.uint8)
    image[..., 0] = np.linspace(0, 200, 20, dtype=np.uint8)
    image[..., 1] = np.linspace(0, 200, 12, dtype=np.uint8)[:, None]
    return image


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_suffix_is_read(tmp_path, gradient, suffix):
    [name] = [name for name, suffixes in FORMATS.items() if suffix in suffixes]
    path = tmp_path / f"picture{suffix}"
    Image.fromarray(gradient).save(path, format=name)
    assert list_pictures(tmp_path) == [path]
    image = read_image(path)
    assert image.shape == (12, 20, 3)
    assert np.abs(image.astype(int) - gradient).mean() < 20  # GIF has a palette, JPEG a loss
    assert np.array_equal(decode_image(path.read_bytes(), "a"), image)


def test_format_is_found_by_content(tmp_path, gradient):
    Image.fromarray(gradient).save(tmp_path / "a.jpg", format="PNG")
    assert np.array_equal(read_image(tmp_path / "a.jpg"), gradient)


def test_format_that_is_not_read_is_an_error(tmp_path, gradient):
    Image.fromarray(gradient).save(tmp_path / "a.png", format="TGA")
    with pytest.raises(InputError, match=r"a\.png cannot be read"):
        read_image(tmp_path / "a.png")


def test_content_that_cannot_be_read_is_an_error_with_the_name_given():
    with pytest.raises(InputError, match=r"^Scan 3 cannot be read: .*\(JPEG, PNG, "):
        decode_image(b"hello", "Scan 3")


def test_kinds_that_are_read_have_dicom_among_them_where_it_is_read(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"hello")
    with pytest.raises(InputError, match=r"AVIF, DICOM\)"):
        read_image(path)
    with pytest.raises(InputError, match=r"AVIF\)"):
        open_picture(path)


def test_content_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path, gradient):
    Image.fromarray(gradient).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    assert decode_image(content, "a", max_pixels=240).shape == (12, 20, 3)
    with pytest.raises(InputError, match="a has more than 239 pixels"):
        decode_image(content[:60], "a", max_pixels=239)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp", ".avif"])
@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda image: image),
        (2, lambda image: image[:, ::-1]),
        (3, lambda image: image[::-1, ::-1]),
        (6, lambda image: np.rot90(image, -1)),
        (8, lambda image: np.rot90(image, 1)),
    ],
)
def test_picture_is_turned_as_viewers_show_it(tmp_path, gradient, suffix, orientation, upright):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"photograph{suffix}"
    Image.fromarray(gradient).save(path, exif=exif, lossless=True, quality=100)
    difference = read_image(path).astype(int) - upright(gradient)
    assert np.abs(difference).max() <= (12 if suffix == ".avif" else 0)
    assert read_image_and_orientation(path)[1] == orientation


def test_first_picture_of_an_mpo_is_the_photograph(tmp_path, gradient):
    photograph = Image.fromarray(gradient)
    preview = photograph.resize((5, 3))
    photograph.save(
        tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[preview], quality=95
    )
    assert read_image(tmp_path / "a.jpg").shape == gradient.shape


def write_deep_ppm(path: Path, image: np.ndarray) -> None:
    height, width, _ = image.shape
    path.write_bytes(f"P6 {width} {height} 65535\n".encode() + image.astype(">u2").tobytes())


def write_deep(path: Path, image: np.ndarray) -> None:
    image = cv2.resize(image, (100, 60))  # JPEG 2000 needs some pixels
    assert cv2.imwrite(str(path), image)


@pytest.mark.parametrize(
    ("name", "write", "channels"),
    [
        ("a.png", write_deep, 1),
        ("a.png", write_deep, 3),
        ("a.tif", write_deep, 1),
        ("a.tif", write_deep, 3),
        ("a.jp2", write_deep, 1),
        ("a.jp2", write_deep, 3),
        ("a.ppm", write_deep_ppm, 3),
    ],
)
def test_sixteen_bits_are_an_error_in_grey_and_in_colour(tmp_path, gradient, name, write, channels):
    deep = gradient[..., :channels].astype(np.uint16) * 16
    write(tmp_path / name, deep)
    with pytest.raises(InputError, match=r"has 16 bits a channel, expected 8 bits"):
        read_image(tmp_path / name)


@pytest.mark.parametrize("bits", [10, 12])
def test_deep_avif_is_an_error(tmp_path, gradient, bits):
    path = tmp_path / "a.avif"
    deep = gradient.astype(np.uint16) * 4
    assert cv2.imwrite(str(path), deep, [cv2.IMWRITE_AVIF_DEPTH, bits])
    with pytest.raises(InputError, match=rf"a\.avif has {bits} bits a channel, expected 8 bits"):
        read_image(path)


def test_eight_bits_of_jpeg_2000_are_read(tmp_path, gradient):
    write_deep(tmp_path / "a.jp2", gradient)
    assert read_image(tmp_path / "a.jp2").shape == (60, 100, 3)


def test_grey_image_becomes_rgb(tmp_path, save_png):
    image = read_image(save_png(tmp_path / "grey.png", np.full((4, 6), 7, np.uint8)))
    assert image.shape == (4, 6, 3)
    assert (image == 7).all()


def test_truncated_image_is_an_error(tmp_path):
    path = tmp_path / "cut.jpg"
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(InputError, match=r"cut\.jpg cannot be read"):
        read_image(path)


@pytest.mark.parametrize("suffix", [".tif", ".gif", ".png", ".webp", ".avif"])
def test_several_frames_are_an_error(tmp_path, suffix):
    path = tmp_path / f"film{suffix}"
    frame = Image.fromarray(np.zeros((8, 8), np.uint8))
    second = Image.fromarray(np.full((8, 8), 255, np.uint8))
    frame.save(path, save_all=True, append_images=[second])
    with pytest.raises(InputError, match=r"film\..* has several frames, expected 1"):
        read_image(path)


def test_film_of_many_frames_is_refused_at_once(tmp_path):
    entries = [(256, 8), (257, 8), (258, 8), (262, 1), (273, 8), (277, 1), (278, 8), (279, 64)]
    size = 2 + 12 * len(entries) + 4
    film = [b"II*\0", struct.pack("<I", 8)]
    for frame in range(20_000):
        film.append(struct.pack("<H", len(entries)))
        film += [struct.pack("<HHII", tag, 3, 1, value) for tag, value in entries]
        film.append(struct.pack("<I", 8 + (frame + 1) * size))
    (tmp_path / "film.tif").write_bytes(b"".join(film))
    start = time.perf_counter()
    with pytest.raises(InputError, match="has several frames"):
        read_image(tmp_path / "film.tif")
    assert time.perf_counter() - start < 0.5


def write_png_header(path: Path, width: int, height: int) -> None:
    """A PNG of that size without pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    data = b"IDAT" + zlib.compress(b"")
    end = struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + end)


@pytest.mark.parametrize("side", [8200, 10_000, 20_000])
def test_huge_picture_is_refused_by_its_header(tmp_path, side):
    write_png_header(tmp_path / "huge.png", side, side)
    with pytest.raises(InputError, match=r"huge\.png has more than 67,108,864 pixels"):
        read_image(tmp_path / "huge.png")


def test_huge_file_is_not_opened(tmp_path):
    with open(tmp_path / "huge.png", "wb") as file:
        file.truncate(2**30)  # sparse
    with pytest.raises(InputError, match=r"huge\.png has 1024 MB, expected at most 512"):
        read_image(tmp_path / "huge.png")


@pytest.mark.timeout(10)
def test_pipe_and_device_and_socket_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.png")
    os.symlink("/dev/zero", "device.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.png")
        for name in ("pipe.png", "device.png", "socket.png"):
            with pytest.raises(InputError, match=f"{name} is no regular file"):
                read_image(Path(name))


def test_missing_file_is_named_once(tmp_path):
    with pytest.raises(InputError, match=r"a\.png cannot be read \(No such file or directory\)"):
        open_picture(tmp_path / "a.png")


def test_what_is_left_out_is_one_line(tmp_path):
    for name in ("1.dcm", "2.dcm", "3.DCM", "notes.txt", "README", "a.png"):
        (tmp_path / name).touch()
    for name in ("sub", "folder.png", "__MACOSX"):
        (tmp_path / name).mkdir()
    for name in (".hidden", ".DS_Store", "Thumbs.db", "desktop.ini"):
        (tmp_path / name).touch()
    assert describe_left_out(tmp_path) == (
        f"{tmp_path}: 5 files were left out: 3 .dcm, 1 without suffix, 1 .txt; it holds 2 folders, "
        "whose pictures are not looked for."
    )
    assert list_pictures(tmp_path) == [tmp_path / "a.png"]


def test_nothing_is_said_of_a_folder_of_pictures(tmp_path):
    (tmp_path / "a.png").touch()
    (tmp_path / "Thumbs.db").touch()
    assert describe_left_out(tmp_path) == ""
