"""A trained run on new pictures of any size; nothing but its checkpoint is needed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from ovseg.core.checkpoints import checkpoint_digest, read_members
from ovseg.core.console import progress_bar
from ovseg.core.device import choose_device
from ovseg.core.drawing import PALETTE, PRED, legend, paint
from ovseg.core.errors import InputError
from ovseg.core.files import atomic_dir, write_image, write_json
from ovseg.core.registry import choose
from ovseg.data.geometry import place, restore
from ovseg.data.manifest import check_bordered
from ovseg.data.pairs import list_images, read_image
from ovseg.inference.engines import ENGINES, Engine, choose_engine, print_engines
from ovseg.inference.postprocessing import Postprocessing, average_flips, read_postprocessing
from ovseg.training.task import SegmentationTask


@dataclass(frozen=True)
class Prediction:
    """What a network says of one picture, at the picture's own size.

    Attributes:
        labels: uint8 (H, W), 0 and 1, or category ids, as the run's post-processing has them (see `ovseg.inference.postprocessing.Postprocessing`).
        probs: lesion probability, float32 (H, W) in 0..1; for categories 1 - that of the background, so where two
            categories compete it can be above 0.5 in a pixel whose label is 0.
    """

    labels: np.ndarray
    probs: np.ndarray


@dataclass
class Predictor:
    """A network with the placement of pictures that it was trained with.

    Attributes:
        network: from plain pixels (N, 3, S, S) to logits, in evaluation mode on `device`.
        image_size: S, side of the square that pictures are placed in.
        fit: see `ovseg.data.geometry.fit_box`.
        device: where the network runs.
        categories: names of ids 1, 2, ...; empty for a network of one class.
        engine: what runs it, `auto` or a name of `ovseg.inference.engines.ENGINES`; settled on the first pictures.
        postprocessing: how its probabilities become labels.
        others: further members of an ensemble. Probabilities are averaged at the pictures' own sizes, so members may
            place pictures in squares of their own; engine and post-processing are this one's.
    """

    network: torch.nn.Module
    image_size: int
    fit: str
    device: torch.device
    categories: Sequence[str] = ()
    engine: str = "torch"
    postprocessing: Postprocessing = field(default_factory=Postprocessing)
    others: Sequence["Predictor"] = ()
    _run: Engine | None = None

    @classmethod
    def from_run(cls, run: Path, device: str = "auto", postprocessing: bool = True) -> "Predictor":
        """From a run folder, a checkpoint or the folder of an ensemble.

        Args:
            run: see `ovseg.core.checkpoints.find_checkpoints`.
            device: see `choose_device`.
            postprocessing: with the post-processing that the run folder holds (see `ovseg.inference.postprocessing.read_postprocessing`), if any.

        Raises:
            InputError: no such run, a broken checkpoint, members that differ in their categories, another checkpoint's
                post-processing, or no such device.
        """
        device, members = choose_device(device), read_members(run)
        chosen, predictors = None, []
        if postprocessing:
            chosen = read_postprocessing(
                run, checkpoint_digest(*(m.path for m in members)), members[0].classes
            )
        for member in members:
            task = SegmentationTask.load_from_checkpoint(
                member.path, map_location=device, weights_only=True
            ).eval()
            settings = member.data["image_size"], member.data["fit"], device, member.categories
            predictors.append(
                cls(task.network, *settings, postprocessing=chosen or Postprocessing())
            )
        return replace(predictors[0], others=predictors[1:])

    def predict(self, images: list[np.ndarray]) -> list[np.ndarray]:
        """Lesion probabilities of pictures at their own sizes, float32 (H, W) in 0..1; see `segment`."""
        return [prediction.probs for prediction in self.segment(images)]

    def segment(self, images: list[np.ndarray]) -> list[Prediction]:
        """Labels and lesion probabilities of pictures at their own sizes.

        Probabilities are interpolated to the picture's size first, of each class; labels are taken from them there.

        Args:
            images: RGB, uint8 (H, W, 3), sizes may differ.
        """
        views = [
            member.class_probs(images, self.engine, self.postprocessing.flips)
            for member in (self, *self.others)
        ]
        return [self._postprocess(np.mean(probs, axis=0)) for probs in zip(*views, strict=True)]

    @torch.inference_mode()
    def class_probs(
        self, images: list[np.ndarray], engine: str, flips: Sequence[str]
    ) -> list[np.ndarray]:
        """What this network alone says of pictures, averaged over flips: float32 (classes, H, W) each."""
        squares = np.stack([place(image, self.image_size, self.fit) for image in images])
        batch = torch.from_numpy(squares).permute(0, 3, 1, 2).to(self.device)
        if self._run is None:
            self._run = choose_engine(engine, self.network, batch, print_engines)
        probs = class_probs(average_flips(self._run, batch, flips))
        return [
            restore_probs(p, *image.shape[:2], self.fit)
            for p, image in zip(probs, images, strict=True)
        ]

    def _postprocess(self, probs: np.ndarray) -> Prediction:
        return Prediction(
            self.postprocessing.labels(probs), probs[0] if len(probs) == 1 else 1 - probs[0]
        )


def class_probs(logits: torch.Tensor) -> np.ndarray:
    """Probabilities, float32 of the shape of the logits (N, classes, H, W): of the lesion, or of each class."""
    logits = logits.float()
    return (logits.softmax(1) if logits.shape[1] > 1 else logits.sigmoid()).cpu().numpy()


def restore_probs(probs: np.ndarray, height: int, width: int, fit: str) -> np.ndarray:
    """Probabilities of a square, float32 (classes, S, S), to its picture's size, (classes, height, width)."""
    return np.stack([restore(channel, height, width, fit) for channel in probs])


def predict_files(
    predictor: Predictor, paths: list[Path], batch_size: int, failures: list[str]
) -> Iterator[tuple[Path, np.ndarray, Prediction]]:
    """(path, image, prediction) of every readable file; the messages of the others are added to `failures`."""
    for start in progress_bar(range(0, len(paths), batch_size), "Predicting"):
        images = {}
        for path in paths[start : start + batch_size]:
            try:
                images[path] = read_image(path)
            except InputError as error:
                failures.append(str(error))
        if images:
            yield from zip(
                images, images.values(), predictor.segment(list(images.values())), strict=True
            )


def draw_prediction(
    image: np.ndarray, labels: np.ndarray, categories: Sequence[str] = ()
) -> np.ndarray:
    """The labels (H, W) over the image (H, W, 3); for categories with a legend of those it shows below."""
    picture = paint(image, labels, PALETTE if categories else (PRED,))
    if not categories:
        return picture
    return np.concatenate([picture, legend(categories, picture.shape[1], np.unique(labels))])


def infer_folder(
    run: Path,
    images: Path,
    output: Path,
    overlays: bool = False,
    probabilities: bool = False,
    batch_size: int = 4,
    device: str = "auto",
    overwrite: bool = False,
    engine: str = "torch",
    postprocessing: bool = True,
) -> tuple[int, list[str]]:
    """Write a mask `<stem>.png` at the image's own size for every picture of a folder.

    Masks are 0/255; of a network for categories they hold ids, which `categories.json` names.

    Args:
        run: run folder, checkpoint, or the folder of an ensemble.
        images: folder of pictures.
        output: folder to make; it appears when all masks are written.
        overlays: also `overlays/<stem>.png`, the mask over the image, for categories with a legend below it.
        probabilities: also `probabilities/<stem>.png`, that of a lesion (see `Prediction`), 16 bits, 65535 is 1.
        batch_size: pictures at a time.
        device: see `choose_device`.
        overwrite: replace masks that this function wrote before.
        engine: what runs the network, see `Predictor`.
        postprocessing: see `Predictor.from_run`; it is named on the terminal.

    Returns:
        How many masks were written, and the message of every picture that could not be read.

    Raises:
        InputError: run, images or output can't be used.
    """
    paths, failures, count = list(list_images(images).values()), [], 0
    if batch_size < 1:
        raise InputError(f"--batch-size is {batch_size}, expected at least 1.")
    choose("engine", engine, {"auto": None, **ENGINES})
    with atomic_dir(output, overwrite, ".ovseg_masks", inputs=(run, images)) as folder:
        (folder / ".ovseg_masks").touch()
        predictor = Predictor.from_run(run, device, postprocessing)
        if predictor.postprocessing.changes:
            print(f"Post-processing of the run: {predictor.postprocessing}")
        for fit in {member.fit for member in (predictor, *predictor.others)}:
            check_bordered(images, fit)
        predictor.engine, names = engine, predictor.categories
        if names:
            write_json(folder / "categories.json", dict(enumerate(["background", *names])))
        for path, image, prediction in predict_files(predictor, paths, batch_size, failures):
            labels = prediction.labels
            write_image(folder / f"{path.stem}.png", labels if names else labels * np.uint8(255))
            if overlays:
                write_image(
                    folder / "overlays" / f"{path.stem}.png", draw_prediction(image, labels, names)
                )
            if probabilities:
                scaled = np.round(prediction.probs.clip(0, 1) * 65535).astype(np.uint16)
                write_image(folder / "probabilities" / f"{path.stem}.png", scaled)
            count += 1
        if not count:
            raise InputError(
                f"None of the {len(paths)} pictures in {images} can be read: {failures[0]}"
            )
    return count, failures
