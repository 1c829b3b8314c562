"""The baseline's INI file: what its inferencer does to pictures and predictions."""

from dataclasses import dataclass
from typing import Any

import cv2
from PIL import ImageColor

from ovseg.baseline.ini import BaselineFile, is_number

WHERE = "infer --as_baseline"


@dataclass(frozen=True)
class InferSettings:
    """What the baseline's inferencer reads, beside the size of its network.

    Attributes:
        rgb: whether the network gets pictures as RGB; as BGR otherwise, whatever the training had.
        gamma: exponent of the pictures' values; 0 for none.
        sharpening: strength of the sharpening of pictures; 0 for none.
        color_converter: OpenCV's number of a conversion of three channels to three; None for none.
        blur: sides of the Gaussian box that predictions are blurred with, pixels; None for none.
        threshold: grey value from which on a binarised prediction is white; None for no binarising.
        colors: names of the colours of 0 and of 255; None for grey.
        merged: whether pictures with their predictions added are written too.
        mask_colorize: whether its colouring of several classes is asked for.
    """

    rgb: bool
    gamma: float
    sharpening: float
    color_converter: int | None
    blur: tuple[int, int] | None
    threshold: int | None
    colors: tuple[str, str] | None
    merged: bool
    mask_colorize: bool


def read_infer(file: BaselineFile) -> InferSettings:
    """Read the settings; adds a row of each key.

    Raises:
        InputError: a value of a wrong kind, or a name that Pillow or OpenCV does not know.
    """
    blur = None
    if file.flag("infer", "blur", WHERE, False):
        blur = _read_sides(file)
    else:
        file.note("infer", "ksize", "ignored: infer.blur is False")
    threshold = None
    if file.flag("infer", "binarize", WHERE, False):
        threshold = file.integer("infer", "threshold", WHERE, 127)
    else:
        file.note("infer", "threshold", "ignored: infer.binarize is False")
    colors = None
    if file.flag("segmentation", "colorize", WHERE, False):
        colors = (
            _read_color(file, "black"),
            _read_color(file, "white"),
        )
    else:
        file.unused["segmentation"] = "segmentation.colorize is False"
    color_section = file.find_section("color_order", "dataset", "image")
    rgb = file.get(color_section, "color_order", WHERE, "rgb") == "rgb"
    merged = file.get("infer", "merged_dir", f"{WHERE} writes them into merged/", None)
    return InferSettings(
        rgb=rgb,
        gamma=_read_picture_number(file, "gamma"),
        sharpening=_read_picture_number(file, "sharpening"),
        color_converter=_read_converter(file),
        blur=blur,
        threshold=threshold,
        colors=colors,
        merged=merged is not None,
        mask_colorize=file.flag("infer", "mask_colorize", f"{WHERE} refuses it", False),
    )


def _read_sides(file: BaselineFile) -> tuple[int, int]:
    value = file.get("infer", "ksize", WHERE, (5, 5))
    is_pair = isinstance(value, list | tuple) and len(value) == 2
    if not is_pair or not all(type(side) is int and side % 2 == 1 and side > 0 for side in value):
        raise file.unexpected("infer", "ksize", value, "two odd numbers such as (5,5)")
    return value[0], value[1]


def _read_color(file: BaselineFile, key: str) -> str:
    """A colour; by default that of the key's name."""
    name = file.word("segmentation", key, WHERE, key)
    try:
        ImageColor.getrgb(name)
    except ValueError:
        expected = "a colour such as 'green'"
        raise file.unexpected("segmentation", key, name, expected) from None
    return name


def _read_picture_number(file: BaselineFile, key: str) -> float:
    value = _read_picture_key(file, key, 0)
    if not is_number(value):
        section = file.find_section(key, "image", "dataset")
        raise file.unexpected(section, key, value, "a finite float")
    return value


def _read_converter(file: BaselineFile) -> int | None:
    key = "color_converter"
    name = _read_picture_key(file, key, None)
    if name is None:
        return None
    code = getattr(cv2, str(name).removeprefix("cv2."), None)
    if not str(name).startswith("cv2.COLOR_") or not isinstance(code, int):
        section = file.find_section(key, "image", "dataset")
        raise file.unexpected(section, key, name, "a name such as 'cv2.COLOR_BGR2HSV'")
    return code


def _read_picture_key(file: BaselineFile, key: str, default: Any) -> Any:
    """A key that training reads too, whose row may explain more already."""
    section = file.find_section(key, "image", "dataset")
    row = file.rows.get(f"{section}.{key}")
    value = file.get(section, key, WHERE, default)
    if row is not None:
        file.rows[f"{section}.{key}"] = row
    return value
