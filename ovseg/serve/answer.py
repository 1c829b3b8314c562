"""What is answered for a picture, and which model answers."""

import base64
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from pydantic import BaseModel, Field

from ovseg import __version__
from ovseg.core.checkpoints import checkpoint_digest, read_members
from ovseg.core.runs import RunFolder
from ovseg.evaluation.calibration import expected_dice
from ovseg.inference.predictor import Prediction, Predictor


class ModelDescription(BaseModel):
    """Which model answers."""

    name: str = Field(description="Of the run: its configuration and version.")
    version: str = Field(description="Of ovseg.")
    sha256: str = Field(description="Of the checkpoint, in hexadecimal.")
    data: str = Field(description="Name of the dataset it was trained on.")
    image_sizes: list[int] = Field(
        description="Side in pixels of the square that each network sees a picture in."
    )
    categories: list[str] = Field(
        description="Names of ids 1, 2, ... in a mask; empty where there is lesion only."
    )
    threshold: float | None = Field(
        description="Lesion is where the probability is above it; null with categories, of which "
        "the most probable one counts."
    )
    cleanup: list[str] = Field(description="What is done to the mask after the threshold.")


class Answer(BaseModel):
    """What the model finds in a picture."""

    width: int = Field(description="Of the picture, pixels.")
    height: int = Field(description="Of the picture, pixels.")
    area: int = Field(description="Pixels of lesion.")
    area_percent: float = Field(description="Share of the picture's pixels, 0..100.")
    category_areas: dict[str, int] = Field(
        description="Pixels of each category; empty where the model has none."
    )
    confidence: float = Field(
        description="About the Dice score that the probabilities expect of the mask, 0..1. It is "
        "not the probability that the mask is right."
    )
    contours: list[list[tuple[int, int]]] = Field(
        description="Outline of each connected part of the lesion: points [column, row] in pixels."
    )
    mask: str | None = Field(
        description="PNG in base64, 8 bits grey: 0 and 255, or ids of categories. Asked for by "
        "mask=true."
    )
    probabilities: str | None = Field(
        description="Probability of lesion as PNG in base64, 8 bits grey, 255 is 1. Asked for by "
        "probabilities=true."
    )
    picture: str | None = Field(
        description="The picture as it was read, as PNG in base64, RGB. Asked for by picture=true."
    )
    model: ModelDescription


@dataclass(frozen=True)
class Wanted:
    """Which pictures an answer holds; see `Answer`."""

    mask: bool = False
    probabilities: bool = False
    picture: bool = False


def describe_model(run: Path, predictor: Predictor) -> ModelDescription:
    """Describe a run and its predictor.

    Raises:
        InputError: see `ovseg.core.checkpoints.read_members`.
    """
    members = read_members(run)
    first = members[0]
    postprocessing = predictor.postprocessing
    only_cleanup = replace(postprocessing, flips=(), threshold=0.5)
    folder = RunFolder.of(run.resolve())
    name = folder.path.name
    if folder.config_name != name:
        name = f"{folder.config_name}/{name}"
    return ModelDescription(
        name=name,
        version=__version__,
        sha256=checkpoint_digest(*[member.path for member in members]),
        data=Path(first.data["root"]).name,
        image_sizes=[member.image_size for member in predictor.members],
        categories=list(predictor.categories),
        threshold=None if predictor.categories else postprocessing.threshold,
        cleanup=only_cleanup.changes,
    )


def make_answer(
    image: np.ndarray, prediction: Prediction, model: ModelDescription, wanted: Wanted
) -> bytes:
    """An `Answer` as JSON.

    Args:
        image: RGB, uint8 (H, W, 3).
        prediction: of the image.
        model: that predicted it.
        wanted: which pictures the answer holds.
    """
    labels = prediction.labels
    lesion = labels > 0
    area = int(np.count_nonzero(lesion))
    category_areas = {}
    for category, name in enumerate(prediction.categories, 1):
        category_areas[name] = int(np.count_nonzero(labels == category))
    answer = Answer(
        width=labels.shape[1],
        height=labels.shape[0],
        area=area,
        area_percent=100 * area / labels.size,
        category_areas=category_areas,
        confidence=expected_dice(prediction.probs, lesion),
        contours=_find_contours(lesion),
        mask=_encode(_grey_mask(prediction)) if wanted.mask else None,
        probabilities=_encode(_grey_probs(prediction)) if wanted.probabilities else None,
        picture=_encode(cv2.cvtColor(image, cv2.COLOR_RGB2BGR)) if wanted.picture else None,
        model=model,
    )
    return answer.model_dump_json().encode()


def _find_contours(lesion: np.ndarray) -> list[list[tuple[int, int]]]:
    """The outer outline of each component (8 neighbours) of a mask, bool (H, W)."""
    found, hierarchy = cv2.findContours(
        lesion.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE
    )
    contours = []
    for index, contour in enumerate(found):
        is_hole = hierarchy[0, index, 3] >= 0
        if not is_hole:
            contours.append([(x, y) for x, y in contour[:, 0].tolist()])
    return contours


def _grey_mask(prediction: Prediction) -> np.ndarray:
    """Ids of categories as they are, and a lesion as 255, uint8 (H, W)."""
    if prediction.categories:
        return prediction.labels
    return prediction.labels * np.uint8(255)


def _grey_probs(prediction: Prediction) -> np.ndarray:
    """Probabilities of lesion, uint8 (H, W), 255 is 1."""
    return np.round(prediction.probs.clip(0, 1) * 255).astype(np.uint8)


def _encode(picture: np.ndarray) -> str:
    """A PNG in base64 of a picture, uint8 (H, W) or (H, W, 3) BGR."""
    _, content = cv2.imencode(".png", picture)
    return base64.b64encode(content.tobytes()).decode()
