"""A model that `ovseg export` wrote, without torch: numpy, ONNX Runtime and Pillow are enough.

    model = Model("export")
    prediction = model.predict("scan.png")
    prediction.labels  # uint8 (H, W), 1 where there is lesion

From a terminal: `python -m ovseg.runtime --model export --images scan.png --output masks`.
In a small container: `pip install numpy pillow onnxruntime`, and `pip install --no-deps .` in a
clone.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

from ovseg.core.errors import InputError, first_five
from ovseg.core.files import check_writable, write_image
from ovseg.core.text import printable
from ovseg.data.boxes import cut, fit_box
from ovseg.data.pictures import check_eight_bits, describe_left_out, list_pictures, open_picture
from ovseg.inference.labels import Postprocessing, flip_axes

CUBIC = -0.75  # OpenCV's parameter of cubic interpolation
METADATA = "ovseg"  # the key of the description in the file
MODEL_FILE = "model.onnx"  # in a folder of `ovseg export`


@dataclass(frozen=True)
class RuntimePrediction:
    """The result for one picture, at the picture's own size.

    Attributes:
        labels: uint8 (H, W), 1 where there is lesion, or ids of categories.
        probs: float32 (classes, H, W) in 0..1, averaged over the flips; of several classes the
            first is the background.
    """

    labels: np.ndarray
    probs: np.ndarray


class Model:
    """A network in ONNX Runtime, and what its file says about the way from picture to mask.

    Args:
        path: `model.onnx`, written by `ovseg export`, or its folder.
        threads: of the CPU; 0 for all cores.

    Attributes:
        description: see `docs/inference.md`.

    Raises:
        InputError: the file is missing, broken or not from `ovseg export`.
    """

    def __init__(self, path: str | Path, threads: int = 0):
        if Path(path).is_dir():
            path = Path(path) / MODEL_FILE
        if not Path(path).is_file():
            raise InputError(f"There is no file {path}. Write it with ovseg export.")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        try:
            self.session = onnxruntime.InferenceSession(
                path, options, providers=["CPUExecutionProvider"]
            )
        # ONNX Runtime has an exception of its own for each kind of damage.
        except Exception as error:
            raise InputError(f"{path} is no model of ONNX ({error}).") from None
        self.description = _read_description(self.session, path)
        try:
            self.postprocessing = Postprocessing(**self.description["postprocessing"])
        except TypeError as error:
            raise InputError(f"The post-processing in {path} is not known here: {error}.") from None
        self.size = self.description["image_size"]
        self.fit = self.description["fit"]

    def predict(self, picture: str | Path | Image.Image | np.ndarray) -> RuntimePrediction:
        """Segment one picture.

        Args:
            picture: a path; an image of Pillow of 8 bits a channel, which is turned as viewers show
                it (EXIF orientation); or an array, RGB, uint8 (H, W, 3).

        Raises:
            InputError: the file can't be read, or the picture is of another kind.
        """
        if isinstance(picture, str | Path):
            picture = np.array(open_picture(Path(picture)).convert("RGB"))
        elif isinstance(picture, Image.Image):
            check_eight_bits(picture, "The picture")
            picture = np.array(ImageOps.exif_transpose(picture).convert("RGB"))
        if not isinstance(picture, np.ndarray):
            raise InputError(
                f"A picture is of the type {type(picture).__name__}, expected a path, an image of "
                "Pillow or an array of numpy. Predict several one by one."
            )
        if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
            raise InputError(
                f"A picture is {picture.dtype} of shape {picture.shape}, expected uint8 (H, W, 3)."
            )
        height, width = picture.shape[:2]
        square = place(picture, self.size, self.fit)
        square_probs = self._average_flips(square.transpose(2, 0, 1)[None])[0]
        probs = np.stack([restore(channel, height, width, self.fit) for channel in square_probs])
        return RuntimePrediction(self.postprocessing.labels(probs), probs)

    def _average_flips(self, batch: np.ndarray) -> np.ndarray:
        """Probabilities, float32 (N, classes, S, S), of squares, uint8 (N, 3, S, S)."""
        results = []
        for axes in flip_axes(self.postprocessing.flips):
            pixels = np.ascontiguousarray(np.flip(batch, axes))
            probs = self.session.run(None, {"image": pixels})[0]
            results.append(np.flip(probs, axes))
        return np.mean(results, axis=0)


def _read_description(session: Any, path: str | Path) -> dict[str, Any]:
    """What `ovseg export` keeps in the file's metadata."""
    text = session.get_modelmeta().custom_metadata_map.get(METADATA, "{}")
    try:
        description = json.loads(text)
    except ValueError:
        description = {}
    missing = [key for key in ("image_size", "fit", "postprocessing") if key not in description]
    if missing:
        raise InputError(
            f"The metadata of {path} have no {first_five(missing)}, as ovseg export writes them. "
            "Export the run with ovseg export."
        )
    return description


def place(picture: np.ndarray, size: int, fit: str) -> np.ndarray:
    """`ovseg.data.geometry.place` of an image without OpenCV; values differ by at most 1.

    Args:
        picture: RGB, uint8 (H, W, 3).
        size: side of the square, pixels.
        fit: see `ovseg.data.boxes.fit_box`.

    Returns:
        uint8 (size, size, 3).
    """
    height, width = picture.shape[:2]
    box = fit_box(height, width, size, fit)
    if fit == "stretch_nearest":
        return picture[nearest_pixels(height, size)][:, nearest_pixels(width, size)]
    square = np.zeros((size, size, 3), np.uint8)
    cut(square, box)[:] = resize_image(picture, box.height, box.width)
    return square


def nearest_pixels(old: int, new: int) -> np.ndarray:
    """The old pixel that OpenCV's nearest neighbour takes for each new one, int (new,)."""
    pixels = np.floor(np.arange(new) * (1 / (new / old))).astype(int)
    return np.minimum(pixels, old - 1)


def resize_image(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize (H, W, 3) uint8 as OpenCV does: by area when shrinking, cubic when enlarging."""
    old_height, old_width = picture.shape[:2]
    if (old_height, old_width) == (height, width):
        return picture
    weights = cubic_weights
    if height * width < old_height * old_width:
        weights = area_weights
        # OpenCV computes areas only where neither side grows.
        if height > old_height or width > old_width:
            weights = area_like_weights
    rows = weights(old_height, height)
    columns = weights(old_width, width)
    resized = _resample(picture.astype(np.float32), rows, columns)
    return np.clip(np.rint(resized), 0, 255).astype(np.uint8)


def restore(probs: np.ndarray, height: int, width: int, fit: str) -> np.ndarray:
    """`ovseg.data.geometry.restore` without OpenCV: float32 (S, S) to (height, width)."""
    part = cut(probs, fit_box(height, width, probs.shape[0], fit))
    rows = linear_weights(part.shape[0], height)
    columns = linear_weights(part.shape[1], width)
    return _resample(part, rows, columns)


def _resample(values: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Weight rows and columns of (H, W) or (H, W, C); the weights are (new, old)."""
    resized = np.tensordot(rows, values, (1, 0))
    return np.moveaxis(np.tensordot(columns, resized, (1, 1)), 0, 1)


def area_weights(old: int, new: int) -> np.ndarray:
    """Share of each old pixel in each new one where an axis shrinks, float32 (new, old)."""
    scale = old / new
    edges = np.arange(new + 1) * scale
    pixels = np.arange(old)
    begin = np.maximum(edges[:-1, None], pixels)
    end = np.minimum(edges[1:, None], pixels + 1)
    return (np.maximum(end - begin, 0) / scale).astype(np.float32)


def area_like_weights(old: int, new: int) -> np.ndarray:
    """What OpenCV takes for areas where one of two axes grows, float32 (new, old)."""
    inverse = new / old
    index = np.arange(new)
    left = np.floor(index / inverse).astype(int)
    shift = (index + 1) - (left + 1) * inverse
    shift = np.where(shift <= 0, 0, shift - np.floor(shift))
    return _sum_weights(old, [(left, 1 - shift), (left + 1, shift)])


def linear_weights(old: int, new: int) -> np.ndarray:
    """Weights of linear interpolation between the centres of pixels, float32 (new, old)."""
    left, shift = _find_centres(old, new)
    return _sum_weights(old, [(left, 1 - shift), (left + 1, shift)])


def cubic_weights(old: int, new: int) -> np.ndarray:
    """Weights of cubic interpolation between the centres of pixels, float32 (new, old)."""
    left, shift = _find_centres(old, new)
    parts = []
    for offset in (-1, 0, 1, 2):
        distance = np.abs(shift - offset)
        near = (CUBIC + 2) * distance**3 - (CUBIC + 3) * distance**2 + 1
        far = CUBIC * (distance**3 - 5 * distance**2 + 8 * distance - 4)
        parts.append((left + offset, np.where(distance <= 1, near, far)))
    return _sum_weights(old, parts)


def _find_centres(old: int, new: int) -> tuple[np.ndarray, np.ndarray]:
    """For each new pixel the old one to the left of its centre, and the distance from it."""
    centres = (np.arange(new) + 0.5) * (old / new) - 0.5
    left = np.floor(centres).astype(int)
    return left, centres - left


def _sum_weights(old: int, parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """A matrix, float32 (new, old), of old pixels and their weights; the border is repeated."""
    new = len(parts[0][0])
    weights = np.zeros((new, old), np.float32)
    for pixels, values in parts:
        np.add.at(weights, (np.arange(new), np.clip(pixels, 0, old - 1)), values)
    return weights


def main(arguments: Sequence[str] | None = None) -> int:
    """Write a mask `<stem>.png` for each picture.

    Returns:
        The exit code: 1 where a picture can't be read, 2 for a mistake in the options.
    """
    parser = argparse.ArgumentParser(
        prog="python -m ovseg.runtime",
        description="Write a mask for each picture, by a model.onnx of ovseg export.",
    )
    parser.add_argument("--model", required=True, type=Path, help="folder of ovseg export")
    parser.add_argument("--images", required=True, type=Path, nargs="+", help="pictures, folders")
    parser.add_argument("--output", required=True, type=Path, help="folder of the masks")
    parser.add_argument("--overwrite", action="store_true", help="replace masks that are there")
    options = parser.parse_args(arguments)
    try:
        pictures = _find_pictures(options.images)
        masks = _name_masks(pictures, options.output, options.overwrite)
        model = Model(options.model)
        failures = _write_masks(model, pictures, masks)
    except (InputError, OSError) as error:
        _print_error(error)
        return 2
    print(f"{len(pictures) - failures} masks written to {printable(options.output)}")
    return 1 if failures else 0


def _find_pictures(sources: Sequence[Path]) -> list[Path]:
    """The pictures of files and folders; a line says what of a folder is left out.

    Raises:
        InputError: a folder holds no picture.
    """
    pictures: list[Path] = []
    empty = []
    for source in sources:
        if not source.is_dir():
            pictures.append(source)
            continue
        left_out = describe_left_out(source)
        if left_out:
            print(left_out, file=sys.stderr)
        found = list_pictures(source)
        if not found:
            empty.append(source)
        pictures += found
    if empty:
        raise InputError(f"There is no picture in {first_five(empty)}. DICOM is not read here.")
    return pictures


def _name_masks(pictures: Sequence[Path], output: Path, overwrite: bool) -> list[Path]:
    """The mask of each picture.

    Raises:
        InputError: two pictures would have one mask, the folder is one of pictures or a file, or a
            mask is there already.
    """
    stems = Counter(picture.stem for picture in pictures)
    twice = [stem for stem, count in stems.items() if count > 1]
    if twice:
        raise InputError(f"Several pictures would have one mask: {first_five(twice)}. Rename them.")
    if output.resolve() in [picture.resolve().parent for picture in pictures]:
        raise InputError(f"{output} holds pictures that are read. Choose another --output.")
    if output.exists() and not output.is_dir():
        raise InputError(f"{output} is a file. Name a folder.")
    masks = [output / f"{picture.stem}.png" for picture in pictures]
    present = [mask.name for mask in masks if mask.exists()]
    if present and not overwrite:
        raise InputError(
            f"{output} holds {len(present)} of the masks already: {first_five(present)}. Choose "
            "another --output or add --overwrite."
        )
    return masks


def _write_masks(model: Model, pictures: Sequence[Path], masks: Sequence[Path]) -> int:
    """Predict pictures and write their masks, each of them whole.

    Returns:
        How many pictures can't be read; each of them is a line.

    Raises:
        OSError: a mask can't be written.
    """
    masks[0].parent.mkdir(parents=True, exist_ok=True)
    check_writable(masks[0])
    failures = 0
    for picture, mask in zip(pictures, masks, strict=True):
        try:
            prediction = model.predict(picture)
        except (InputError, OSError) as error:
            _print_error(error)
            failures += 1
            continue
        values = prediction.labels
        if len(prediction.probs) == 1:
            values = values * np.uint8(255)
        write_image(mask, values)
    return failures


def _print_error(error: Exception) -> None:
    print(f"error: {printable(error)}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
