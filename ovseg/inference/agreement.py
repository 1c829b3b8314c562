"""How far a network's file is from the run it was made of, on the run's validation images."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ovseg.core.checkpoints import Member, find_dataset
from ovseg.core.console import progress_bar
from ovseg.core.errors import InputError
from ovseg.data.pairs import read_pair
from ovseg.data.prepare.phantoms import make_phantom
from ovseg.data.tree import DatasetTree
from ovseg.inference.labels import Postprocessing, lesion_of_classes
from ovseg.inference.predictor import LoadedNetwork

IMAGES = 32  # that are compared, spread over the split
PHANTOMS = 8


@dataclass(frozen=True)
class Sample:
    """Images to compare on.

    Attributes:
        source: what they are, in words.
        pictures: RGB, uint8 (H, W, 3).
        masks: reference labels, uint8 (H, W), 0 is background.
    """

    source: str
    pictures: Sequence[np.ndarray]
    masks: Sequence[np.ndarray]

    @property
    def is_real(self) -> bool:
        """Whether they are images of a dataset, not phantoms."""
        return not self.source.startswith("phantoms")


@dataclass(frozen=True)
class Agreement:
    """The result of `compare`.

    Attributes:
        images: what was compared, in words.
        difference: largest difference of a probability of lesion.
        dice_between_masks: the least Dice between two masks of an image; 1 where both are empty.
        dice: mean Dice of the run's masks against the reference.
        dice_of_file: that of the file's masks.
        seconds: median time of the run's network for an image.
        seconds_of_file: that of the file.
    """

    images: str
    difference: float
    dice_between_masks: float
    dice: float
    dice_of_file: float
    seconds: float
    seconds_of_file: float

    def without_times(self) -> dict[str, Any]:
        """What another comparison on the same machine finds again."""
        times = ("seconds", "seconds_of_file")
        return {name: value for name, value in asdict(self).items() if name not in times}


def choose_images(member: Member, root: Path | None, count: int = IMAGES) -> Sample:
    """Images of a run's validation split; where its dataset is not at hand, phantoms.

    Args:
        member: of the run.
        root: the dataset's folder, if it is not that of training.
        count: how many.

    Raises:
        InputError: `root` can't be used.
    """
    try:
        folder = root or Path(find_dataset(member))
    except InputError:
        made = [make_phantom(seed) for seed in range(PHANTOMS)]
        pictures = [image for image, _ in made]
        masks = [mask for _, mask in made]
        return Sample(f"phantoms 0 to {PHANTOMS - 1}, as the dataset is not here", pictures, masks)

    settings = member.data
    tree = DatasetTree(
        folder,
        settings.get("exclude"),
        member.classes,
        settings.get("fold"),
        settings["fit"],
        settings.get("valid_share", 0.0),
        settings.get("train_on_valid", False),
    )
    pairs = tree.pairs("valid")
    places = np.linspace(0, len(pairs) - 1, min(count, len(pairs))).round().astype(int)
    pictures = []
    masks = []
    for place in places:
        picture, mask = read_pair(
            pairs[place],
            settings.get("mask_threshold", 127),
            member.classes,
            settings.get("invert_masks", False),
        )
        pictures.append(picture)
        masks.append(mask)
    return Sample(f"{len(places)} images of valid", pictures, masks)


def compare(
    run: LoadedNetwork, file: LoadedNetwork, postprocessing: Postprocessing, sample: Sample
) -> Agreement:
    """Predict the same images by a run's network and by a file of it.

    Flips and post-processing are those of the run, one image at a time.
    """
    differences = []
    between = []
    scores: dict[str, list[float]] = {"run": [], "file": []}
    seconds: dict[str, list[float]] = {"run": [], "file": []}
    images = list(zip(sample.pictures, sample.masks, strict=True))
    for picture, mask in progress_bar(images, "Comparing with torch"):
        probs = {}
        labels = {}
        for name, network in (("run", run), ("file", file)):
            began = time.perf_counter()
            predicted = network.predict_probs([picture], "torch", postprocessing.flips)
            probs[name] = predicted[0][0]
            seconds[name].append(time.perf_counter() - began)
            labels[name] = postprocessing.labels(probs[name])
            scores[name].append(dice_between(labels[name] > 0, mask > 0))
        difference = lesion_of_classes(probs["run"]) - lesion_of_classes(probs["file"])
        differences.append(float(np.abs(difference).max()))
        between.append(dice_between(labels["run"] > 0, labels["file"] > 0))
    return Agreement(
        images=sample.source,
        difference=float(np.max(differences)),  # NaN stays NaN
        dice_between_masks=min(between),
        dice=statistics.mean(scores["run"]),
        dice_of_file=statistics.mean(scores["file"]),
        seconds=statistics.median(seconds["run"]),
        seconds_of_file=statistics.median(seconds["file"]),
    )


def dice_between(first: np.ndarray, second: np.ndarray) -> float:
    """Dice of two masks, bool (H, W); 1 where both are empty."""
    total = int(first.sum()) + int(second.sum())
    if total == 0:
        return 1.0
    return 2 * int((first & second).sum()) / total
