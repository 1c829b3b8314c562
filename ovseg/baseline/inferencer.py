"""`ovseg infer --as_baseline`: the files that the TensorFlow baseline's inferencer would write.

It resizes a picture by nearest neighbour to the network's size and writes the probabilities times
255, resized to the picture's size and coloured if asked, as `<stem>.jpg`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

from ovseg.baseline.config_data import feeds_bgr, image_size, normalizes
from ovseg.baseline.config_infer import InferSettings, read_infer
from ovseg.baseline.ini import open_baseline_config
from ovseg.core.console import progress_bar
from ovseg.core.errors import InputError, first_five
from ovseg.core.files import atomic_dir, atomic_path, check_output_dir, write_image
from ovseg.core.runs import RunFolder
from ovseg.data.augment.baseline import sharpen
from ovseg.inference.folder import MARKER
from ovseg.inference.pictures import find_pictures, read_pictures
from ovseg.inference.predictor import Predictor, check_batch_size

MERGED = "merged"  # folder of the pictures with their predictions added
MERGED_SUFFIXES = (".jpg", ".png", ".tif", ".bmp")  # that the baseline reads, and writes merged


def infer_as_baseline(
    run: Path | None,
    images: Sequence[Path],
    output: Path,
    batch_size: int = 4,
    engine: str = "torch",
    device: str = "auto",
    overwrite: bool = False,
    others: Mapping[str, bool] | None = None,
) -> tuple[int, list[str]]:
    """Write `<stem>.jpg` for every picture, and with `[infer] merged_dir` `merged/<name>`.

    Args:
        run: a run with the baseline's configuration, as `ovseg import_baseline` makes it.
        images: pictures and folders of pictures.
        output: folder to make.
        batch_size: pictures at a time.
        engine: see `ovseg.inference.predictor.Predictor`.
        device: see `ovseg.core.device.choose_device`.
        overwrite: replace earlier output of `ovseg infer`.
        others: options of `ovseg infer` that the baseline has not, and whether they are given.

    Returns:
        How many pictures were predicted, and a message for each that can't be read.

    Raises:
        InputError: run, configuration, images or output can't be used.
    """
    given = [f"--{name}" for name, is_given in (others or {}).items() if is_given]
    if given:
        raise InputError(f"The baseline has no {first_five(given)}. Leave out --as_baseline or it.")
    settings, size, reversed_channels = _read_config(run)
    check_batch_size(batch_size)
    check_output_dir(output, overwrite, MARKER)
    pictures = find_pictures(images, False, False, False, False)
    predictor = Predictor.load(run, device, postprocessing=False, engine=engine)
    other_sizes = [member.image_size for member in predictor.members if member.image_size != size]
    if other_sizes:
        raise InputError(
            f"{run} takes squares of {other_sizes[0]} pixels, but its configuration of the "
            f"baseline has {size}. Import the configuration that it was trained with."
        )

    count = 0
    failures = []
    with atomic_dir(output, overwrite, MARKER, inputs=images) as folder:
        (folder / MARKER).touch()
        starts = range(0, len(pictures), batch_size)
        for start in progress_bar(starts, "Predicting", len(starts)):
            found, problems = read_pictures(pictures[start : start + batch_size])
            failures += [message for _, message in problems]
            batch = [(picture, change_colors(image, settings)) for picture, image in found]
            squares = [
                cv2.resize(pixels, (size, size), interpolation=cv2.INTER_NEAREST)
                for _, pixels in batch
            ]
            inputs = [square[..., ::-1] if reversed_channels else square for square in squares]
            predictions = predictor.predict(inputs, batch_size)
            for (picture, pixels), square, prediction in zip(
                batch, squares, predictions, strict=True
            ):
                drawn = draw_probs(prediction.probs, pixels.shape[1::-1], settings)
                write_image(folder / picture.mask.with_suffix(".jpg"), drawn)
                if settings.merged:
                    _write_merged(folder / MERGED, picture.path, square, pixels.shape, drawn)
            count += len(batch)
        if count == 0:
            raise InputError(f"None of the {len(pictures)} pictures can be read: {failures[0]}")
    return count, failures


def _read_config(run: Path | None) -> tuple[InferSettings, int, bool]:
    """Settings, side of the network's square, and whether our network takes the channels reversed.

    A network for BGR was made one for RGB at the import.
    """
    if run is None:
        raise InputError("--as_baseline needs --run with a run of ovseg import_baseline.")
    path = RunFolder.of(run).baseline_config
    if not path.is_file():
        raise InputError(
            f"{run} has no {path.name}, which says what the baseline writes. Name a run of ovseg "
            f"import_baseline, or copy the baseline's configuration to {path}."
        )
    file = open_baseline_config(path)
    settings = read_infer(file)
    height, width = image_size(file)
    if height != width:
        raise InputError(
            f"{path}: the network takes {width} x {height} pixels, expected a square: others are "
            "not ported."
        )
    if settings.mask_colorize:
        raise InputError(f"{path}: [infer] mask_colorize = True is not ported. Set it to False.")
    if normalizes(file):
        raise InputError(
            f"{path}: [dataset] image_normalize = True divides pictures by 255 in training, which "
            "the baseline's inferencer leaves out, so what it writes means nothing. Leave out "
            "--as_baseline."
        )
    return settings, height, feeds_bgr(file)


def change_colors(rgb: np.ndarray, settings: InferSettings) -> np.ndarray:
    """What the baseline's inferencer makes of a picture, RGB, uint8 (H, W, 3), of its own size."""
    pixels = rgb if settings.rgb else np.ascontiguousarray(rgb[..., ::-1])
    if settings.gamma > 0:
        table = (np.arange(256) / 255) ** settings.gamma * 255
        pixels = cv2.LUT(pixels, np.clip(table, 0, 255).astype(np.uint8))
    if settings.sharpening > 0:
        pixels = sharpen(pixels, settings.sharpening)
    if settings.color_converter is not None:
        pixels = cv2.cvtColor(pixels, settings.color_converter)
    return pixels


def draw_probs(probs: np.ndarray, size: tuple[int, int], settings: InferSettings) -> np.ndarray:
    """The picture that the baseline writes.

    Args:
        probs: float32 (S, S), 0..1.
        size: width and height of the picture.
        settings: of the inferencer.

    Returns:
        RGB, uint8 (H, W, 3).
    """
    if settings.blur is not None:
        probs = cv2.GaussianBlur(probs, ksize=settings.blur, sigmaX=0)
    picture = Image.fromarray(probs * np.float32(255)).convert("RGB")  # it truncates
    if settings.threshold is not None:
        white = np.array(picture) >= settings.threshold
        picture = Image.fromarray(white * np.uint8(255))
    picture = picture.resize(size)
    if settings.colors is not None:
        black, white_name = settings.colors
        picture = ImageOps.colorize(picture.convert("L"), black=black, white=white_name)
    return np.array(picture)


def _write_merged(
    folder: Path, path: Path, square: np.ndarray, shape: Sequence[int], drawn: np.ndarray
) -> None:
    """The network's picture at its own size with the prediction added, modulo 256.

    The baseline takes RGB for BGR here.
    """
    bgr = np.ascontiguousarray(square[..., ::-1])
    merged = cv2.resize(bgr, shape[1::-1], interpolation=cv2.INTER_NEAREST) + drawn
    suffix = path.suffix if path.suffix.lower() in MERGED_SUFFIXES else ".png"
    with atomic_path(folder / f"{path.stem}{suffix}") as temporary:
        temporary.write_bytes(cv2.imencode(suffix.lower(), merged)[1].tobytes())
