"""A trained network predicts pictures of any size.

    predictor = Predictor.load("runs/unet/version_0")  # or Predictor.load(), for the one in the box
    prediction = predictor.predict("scan.png")
    prediction.labels  # uint8 (H, W), 1 where there is lesion
    prediction.overlay("scan.png")  # uint8 (H, W, 3), to be shown
    for prediction in predictor.predict("scans"):  # of a folder, one after the other
        print(prediction.path, prediction.area)

`ovseg.inference.folder.infer_folder` does the same for files and folders and writes files.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
import torch
from PIL import Image, ImageOps

from ovseg.core.checkpoints import (
    checkpoint_digest,
    fill_network,
    network_state,
    read_checkpoint,
    read_members,
)
from ovseg.core.device import choose_device
from ovseg.core.drawing import PALETTE, PRED, paint
from ovseg.core.errors import InputError
from ovseg.data.geometry import place, restore
from ovseg.data.pictures import check_eight_bits, read_image
from ovseg.inference.engine_choice import check_engine, choose_engine
from ovseg.inference.engines import Engine, arrange_for_inference
from ovseg.inference.labels import Postprocessing, expected_dice, lesion_of_classes
from ovseg.inference.model_files import FromProbabilities, is_model, open_model
from ovseg.inference.outlines import outer_contours
from ovseg.inference.pictures import list_folder
from ovseg.inference.postprocessing import flip_logits, mean_logits, read_postprocessing, to_probs
from ovseg.inference.tiles import ProbsAndVariance, check_overlap, predict_in_tiles
from ovseg.inference.uncertainty import (
    deviation_of_members,
    lesion_views,
    map_flips,
)
from ovseg.models import build_model

# A picture: the path of a file, an image of Pillow, or an array, see `load_picture`.
Picture = np.ndarray | Image.Image | str | Path
Item = TypeVar("Item")

BOX = Path(__file__).parents[1] / "weights"  # the model that comes with ovseg


@dataclass(frozen=True)
class Prediction:
    """The result for one picture, at the picture's own size.

    Attributes:
        labels: uint8 (H, W), 1 where there is lesion, or ids of categories; 0 is the background.
            The run's post-processing is applied.
        probs: probability of lesion, float32 (H, W) in 0..1, without threshold and clean-up. With
            categories it is 1 - the background's probability. A pixel of background 0.4 and two
            categories of 0.3 each has 0.6 here and the label 0. The post-processing's temperature
            is applied; labels are made of the probabilities without it.
        categories: names of the ids 1, 2, ...; empty where the network has one class.
        uncertainty: standard deviation of the probability of lesion over flips and members of an
            ensemble, without temperature, float32 (H, W) in 0..0.5; None if it was not asked for.
        path: of the picture, where a folder was predicted; else None.
        frame: of that picture, if it is DICOM, from 0; else None.
    """

    labels: np.ndarray
    probs: np.ndarray
    categories: Sequence[str] = ()
    uncertainty: np.ndarray | None = None
    path: Path | None = None
    frame: int | None = None

    @property
    def confidence(self) -> float:
        """About the Dice that the probabilities expect, 0..1, see `expected_dice`."""
        return expected_dice(self.probs, self.labels > 0)

    @property
    def area(self) -> int:
        """Pixels of lesion, whatever its category."""
        return int(np.count_nonzero(self.labels))

    @property
    def contours(self) -> list[np.ndarray]:
        """The outer outline of each connected component (8 neighbours) of the lesion.

        Returns:
            int32 (K, 2) each: column and row of the component's outermost pixels, in order;
            straight stretches are given by their ends. Holes have no outline.
        """
        return outer_contours(self.labels > 0)

    @property
    def grey(self) -> np.ndarray:
        """The mask as a picture, uint8 (H, W): ids of categories as they are, a lesion as 255."""
        return self.labels if self.categories else self.labels * np.uint8(255)

    def overlay(self, picture: Picture) -> np.ndarray:
        """Draw the labels over the picture: an outline and a transparent tint.

        Args:
            picture: the picture that was predicted.

        Returns:
            RGB, uint8 (H, W, 3). Lesion is red; category k has the colour `PALETTE[k - 1]` of
            `ovseg.core.drawing`.

        Raises:
            InputError: the picture can't be read or has another size.
        """
        image = load_picture(picture)
        if image.shape[:2] != self.labels.shape:
            raise InputError(
                f"The picture has {image.shape[0]} rows and {image.shape[1]} columns, but the "
                f"prediction has {self.labels.shape[0]} and {self.labels.shape[1]}. Give the "
                "picture that was predicted."
            )
        colors = PALETTE if self.categories else (PRED,)
        return paint(image, self.labels, colors)


@dataclass
class LoadedNetwork:
    """The network of one checkpoint, with the placement of pictures that it was trained with.

    Attributes:
        network: from plain pixels, uint8 (N, 3, S, S), to logits; in evaluation mode on `device`.
        image_size: S, the side of the square that pictures are placed in.
        fit: how they are placed, see `ovseg.data.boxes.fit_box`.
        device: where the network runs.
    """

    network: torch.nn.Module
    image_size: int
    fit: str
    device: torch.device
    _engine: Engine | None = field(default=None, init=False, repr=False)

    @torch.inference_mode()
    def predict_probs(
        self,
        images: Sequence[np.ndarray],
        engine: str,
        flips: Sequence[str],
        pictures: int | None = None,
        variance_flips: Sequence[str] | None = None,
    ) -> list[ProbsAndVariance]:
        """Probabilities at the pictures' own sizes, averaged over flips.

        Args:
            images: RGB, uint8 (H, W, 3); sizes may differ.
            engine: what runs the network; it is built on the first call and kept.
            flips: see `ovseg.inference.postprocessing.average_flips`.
            pictures: see `Predictor`.
            variance_flips: flips over which the variance is taken: `flips`, or any if `flips` is
                empty; None for no variance.

        Returns:
            For each picture its probabilities, float32 (classes, H, W) in 0..1: of one class the
            sigmoid of its logits, of several their softmax. And the variance of the lesion's
            probability, float32 (H, W), or None.
        """
        squares = np.stack([place(image, self.image_size, self.fit) for image in images])
        batch = torch.from_numpy(squares).permute(0, 3, 1, 2).to(self.device)
        if self._engine is None:
            self._engine = choose_engine(engine, self.network, batch, pictures)
        views = flip_logits(self._engine, batch, variance_flips or flips)
        averaged = views if flips else views[:1]
        square_probs = class_probs(mean_logits(averaged))
        lesions = None if variance_flips is None else lesion_views(views)

        results: list[ProbsAndVariance] = []
        for index, image in enumerate(images):
            height, width = image.shape[:2]
            probs = restore_probs(square_probs[index], height, width, self.fit)
            variance = None
            if lesions is not None:
                variance = restore_probs(lesions[index], height, width, self.fit).var(0)
            results.append((probs, variance))
        return results


@dataclass
class Predictor:
    """A trained run, or an ensemble of several, ready to predict pictures; see `load`.

    Attributes:
        members: the networks. Of several the probabilities are averaged at the pictures' own sizes,
            so each may place pictures in a square of another size.
        categories: names of the ids 1, 2, ...; empty where the networks have one class.
        postprocessing: how probabilities become labels.
        engine: what runs the networks, `auto` or a name of `ovseg.inference.engines.ENGINES`. It
            is built for the first pictures; a later change has no effect.
        pictures: how many are to come, if known: for a few, `auto` tries no engine that takes long
            to build.
        description: what a file of `ovseg export` says of itself; None for runs.
    """

    members: Sequence[LoadedNetwork]
    categories: Sequence[str] = ()
    postprocessing: Postprocessing = field(default_factory=Postprocessing)
    engine: str = "torch"
    pictures: int | None = None
    description: dict[str, Any] | None = None

    @classmethod
    def load(
        cls,
        source: str | Path | None = None,
        device: str = "auto",
        postprocessing: bool = True,
        engine: str = "torch",
    ) -> "Predictor":
        """Load a run folder, a checkpoint, an ensemble, an exported file, or the model in the box.

        Args:
            source: a run folder, a checkpoint (.ckpt) or the folder of an ensemble, see
                `ovseg.core.checkpoints.find_checkpoints`; a file that `ovseg export` wrote, or its
                folder; None for the model that comes with ovseg.
            device: `auto`, or a name such as `cpu` or `cuda`; see
                `ovseg.core.device.choose_device`. Files of ONNX and OpenVINO run on the CPU.
            postprocessing: apply the post-processing that the run folder or the file holds, if any
                (see `ovseg.inference.postprocessing.read_postprocessing`); else the threshold is
                0.5.
            engine: see `Predictor`; for files of ONNX and OpenVINO it stays `torch`.

        Raises:
            InputError: there is no such run, file, device or engine, a file is broken, the members
                of an ensemble differ in their categories, or the post-processing was chosen for
                another checkpoint.
        """
        check_engine(engine)
        path = BOX if source is None else Path(source)
        if is_model(path):
            return cls._load_file(path, device, postprocessing, engine)
        return cls._load_run(path, device, postprocessing, engine)

    @classmethod
    def _load_file(cls, path: Path, device: str, postprocessing: bool, engine: str) -> "Predictor":
        """A file of `ovseg export`, see `ovseg.inference.model_files.open_model`."""
        network, description = open_model(path)
        chosen_device = choose_device(device)
        if isinstance(network, FromProbabilities):
            if engine != "torch":
                raise InputError(
                    f"{path} is a file of one engine, which --engine {engine} can't run. Leave "
                    "--engine out, or name the run."
                )
            if device not in ("auto", "cpu"):
                raise InputError(f"{path} runs on the CPU, not on {device}. Leave --device out.")
            chosen_device = torch.device("cpu")
        member = LoadedNetwork(
            network=arrange_for_inference(network.to(chosen_device), chosen_device),
            image_size=description["image_size"],
            fit=description["fit"],
            device=chosen_device,
        )
        names = description["categories"][1:]
        categories = names if len(names) > 1 else []
        chosen = Postprocessing()
        if postprocessing:
            chosen = Postprocessing(**description["postprocessing"])
        return cls([member], categories, chosen, engine, description=description)

    @classmethod
    def _load_run(cls, path: Path, device: str, postprocessing: bool, engine: str) -> "Predictor":
        """A run folder, a checkpoint, or an ensemble."""
        chosen_device = choose_device(device)
        checkpoints = read_members(path)
        first = checkpoints[0]

        chosen = None
        if postprocessing:
            digest = checkpoint_digest(*[checkpoint.path for checkpoint in checkpoints])
            chosen = read_postprocessing(path, digest, first.classes)

        members = []
        for checkpoint in checkpoints:
            network = load_network(checkpoint.path).to(chosen_device)
            member = LoadedNetwork(
                network=arrange_for_inference(network, chosen_device),
                image_size=checkpoint.data["image_size"],
                fit=checkpoint.data["fit"],
                device=chosen_device,
            )
            members.append(member)
        return cls(members, first.categories, chosen or Postprocessing(), engine)

    @overload
    def predict(
        self,
        images: Image.Image,
        batch_size: int = 4,
        uncertainty: bool = False,
        tiles: float | None = None,
    ) -> Prediction: ...

    # The type does not tell a folder from a picture, nor a stack of pictures from one.
    @overload
    def predict(
        self,
        images: str | Path | np.ndarray,
        batch_size: int = 4,
        uncertainty: bool = False,
        tiles: float | None = None,
    ) -> Any: ...

    # A sequence is an iterable too, but gives a list.
    @overload
    def predict(  # type: ignore[overload-overlap]
        self,
        images: Sequence[Picture],
        batch_size: int = 4,
        uncertainty: bool = False,
        tiles: float | None = None,
    ) -> list[Prediction]: ...

    @overload
    def predict(
        self,
        images: Iterable[Picture],
        batch_size: int = 4,
        uncertainty: bool = False,
        tiles: float | None = None,
    ) -> Iterator[Prediction]: ...

    def predict(
        self,
        images: Picture | Iterable[Picture],
        batch_size: int = 4,
        uncertainty: bool = False,
        tiles: float | None = None,
    ) -> Prediction | list[Prediction] | Iterator[Prediction]:
        """Segment one picture or any number of them, as `ovseg infer` does.

        Each class's probabilities are interpolated to the picture's size, and labels are made from
        them there.

        Args:
            images: one picture, see `load_picture`; several of them, whose sizes may differ; or the
                path of a folder, whose pictures are taken in natural order, and of a DICOM file in
                it each frame.
            batch_size: how many of several pictures, or of the tiles of one, the networks take at a
                time.
            uncertainty: also measure where flips and members disagree. A single network without
                flips predicts each picture's mirror image too, for this alone.
            tiles: predict pictures that are larger than a network's square in tiles of its size,
                which overlap by this share of their side, 0..0.75; None places every picture in the
                square as a whole. docs/inference.md says when tiles help.

        Returns:
            Of one picture a `Prediction`. Of a list, a tuple or a stack of arrays, uint8
            (N, H, W, channels), a list of them. Of a folder, a generator or any other iterable an
            iterator, which reads pictures when they are needed and keeps at most two batches of
            them: there may be any number of pictures.

        Raises:
            InputError: a picture can't be read, an array has another shape or dtype, a folder holds
                no picture, or an argument is out of range. An iterator raises it when it comes to
                the picture, after the predictions of those before it, and ends.
        """
        check_batch_size(batch_size)
        check_overlap(tiles)
        predict = partial(
            self._predict_batch, batch_size=batch_size, uncertainty=uncertainty, tiles=tiles
        )
        if isinstance(images, str | Path) and Path(images).is_dir():
            return _predict_folder(predict, list_folder(Path(images)), batch_size)
        if isinstance(images, str | Path | Image.Image):
            return predict([load_picture(images)])[0]
        # An array of four dimensions is a stack of pictures.
        if isinstance(images, np.ndarray) and images.ndim < 4:
            return predict([load_picture(images)])[0]
        if not isinstance(images, Iterable):
            raise InputError(_describe_type(images))
        pairs = _predict_in_batches(predict, images, load_picture, batch_size)
        predictions = (prediction for _, prediction in pairs)
        if isinstance(images, Sequence | np.ndarray):
            return list(predictions)
        return predictions

    def _predict_batch(
        self,
        images: Sequence[np.ndarray],
        batch_size: int,
        uncertainty: bool,
        tiles: float | None,
    ) -> list[Prediction]:
        """Predict RGB pictures, uint8 (H, W, 3), that go through the networks together."""
        flips = self.postprocessing.flips
        variance_flips = map_flips(flips, len(self.members)) if uncertainty else None
        of_members = []
        for member in self.members:
            predict = partial(
                member.predict_probs,
                engine=self.engine,
                flips=flips,
                pictures=self.pictures,
                variance_flips=variance_flips,
            )
            if tiles is None:
                of_members.append(predict(images))
            else:
                side = member.image_size
                of_members.append(predict_in_tiles(predict, images, side, tiles, batch_size))
        predictions = []
        for index in range(len(images)):
            members = [found[index] for found in of_members]
            probs = np.mean([of_member for of_member, _ in members], axis=0)
            labels = self.postprocessing.labels(probs)
            reported = lesion_of_classes(self.postprocessing.calibrate(probs))
            deviation = None
            if uncertainty:
                lesions = np.stack([lesion_of_classes(of_member) for of_member, _ in members])
                variances = np.stack([found for _, found in members if found is not None])
                deviation = deviation_of_members(lesions, variances)
            predictions.append(Prediction(labels, reported, self.categories, deviation))
        return predictions


def _predict_in_batches(
    predict: Callable[[list[np.ndarray]], list[Prediction]],
    pictures: Iterable[Item],
    read: Callable[[Item], np.ndarray],
    batch_size: int,
) -> Iterator[tuple[Item, Prediction]]:
    """Predict any number of pictures, which are read when they are needed.

    If one can't be read, those before it are predicted, and its error is raised.
    """
    iterator = iter(pictures)
    problem = None
    while problem is None:
        batch = []
        images = []
        for picture in islice(iterator, batch_size):
            try:
                images.append(read(picture))
            except InputError as error:
                problem = error
                break
            batch.append(picture)
        if images:
            yield from zip(batch, predict(images), strict=True)
        elif problem is None:
            return
    raise problem


def _predict_folder(
    predict: Callable[[list[np.ndarray]], list[Prediction]],
    found: Sequence[tuple[Path, int | None, str]],
    batch_size: int,
) -> Iterator[Prediction]:
    """The predictions of what `list_folder` found."""

    def read(picture: tuple[Path, int | None, str]) -> np.ndarray:
        path, frame, problem = picture
        if problem:
            raise InputError(problem)
        return read_image(path, frame)

    for (path, frame, _), prediction in _predict_in_batches(predict, found, read, batch_size):
        yield replace(prediction, path=path, frame=frame)


def load_network(path: Path) -> torch.nn.Module:
    """The network of a checkpoint, on the CPU.

    Unlike `SegmentationTask.load_from_checkpoint` it needs no Lightning, whose import takes longer
    than the prediction of some pictures.

    Raises:
        InputError: the file is no whole checkpoint, or its weights are not those of its network.
    """
    checkpoint = read_checkpoint(path)
    settings = checkpoint["hyper_parameters"]
    network = build_model(settings["arch"], **(settings.get("arch_args") or {}))
    fill_network(network, network_state(checkpoint), path)
    return network


def load_picture(picture: Picture) -> np.ndarray:
    """A picture as RGB, uint8 (H, W, 3).

    Args:
        picture: a path; an image of Pillow of 8 bits a channel, which is turned as viewers show it
            (EXIF orientation); or an array that is grey, (H, W) or (H, W, 1), RGB, (H, W, 3), or
            RGBA, (H, W, 4), of uint8 or of float in 0..1. Transparency is left out.

    Raises:
        InputError: the file can't be read, or the array has another shape, dtype or range.
    """
    if isinstance(picture, str | Path):
        return read_image(Path(picture))
    if isinstance(picture, Image.Image):
        check_eight_bits(picture, "The picture")
        return np.array(ImageOps.exif_transpose(picture).convert("RGB"))

    if not isinstance(picture, np.ndarray):
        raise InputError(_describe_type(picture))
    pixels = _as_bytes(picture)
    channels = 1 if pixels.ndim == 2 else pixels.shape[-1]
    if pixels.ndim not in (2, 3) or pixels.size == 0 or channels not in (1, 3, 4):
        raise InputError(
            f"A picture has the shape {picture.shape}, expected (H, W) in grey, (H, W, 3) in RGB "
            "or (H, W, 4) with transparency."
        )
    if channels == 1:
        return np.repeat(pixels.reshape(*pixels.shape[:2], 1), 3, axis=2)
    return pixels[..., :3]


def _describe_type(picture: object) -> str:
    return (
        f"A picture is of the type {type(picture).__name__}, expected a path, an image of Pillow "
        "or an array of numpy."
    )


def _as_bytes(picture: np.ndarray) -> np.ndarray:
    """An array of a picture as uint8, same shape."""
    if picture.dtype == np.uint8:
        return picture
    if not np.issubdtype(picture.dtype, np.floating):
        raise InputError(
            f"A picture is an array of {picture.dtype}, expected uint8, or float in 0..1. Scale it "
            "to 0..255 and convert it with astype(numpy.uint8)."
        )
    # NaN is not in the range either.
    if not ((picture >= 0) & (picture <= 1)).all():
        raise InputError(
            f"A picture of {picture.dtype} has values from {picture.min():g} to {picture.max():g}, "
            "expected 0..1. Divide it by its largest possible value, such as 255."
        )
    return np.round(picture * 255).astype(np.uint8)


def class_probs(logits: torch.Tensor) -> np.ndarray:
    """`ovseg.inference.postprocessing.to_probs` as an array on the CPU.

    Args:
        logits: (N, classes, H, W).

    Returns:
        float32 in 0..1, same shape: the sigmoid for one class, the softmax for several.
    """
    return to_probs(logits).cpu().numpy()


def restore_probs(probs: np.ndarray, height: int, width: int, fit: str) -> np.ndarray:
    """Bring a square's probabilities, float32 (classes, S, S), to (classes, height, width)."""
    return np.stack([restore(channel, height, width, fit) for channel in probs])


def check_batch_size(batch_size: int) -> None:
    """Raise InputError where a batch size is below 1."""
    if not isinstance(batch_size, int) or batch_size < 1:
        raise InputError(f"batch_size is {batch_size}, expected at least 1.")
