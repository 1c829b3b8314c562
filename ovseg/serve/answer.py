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
from ovseg.inference.guided import Ends
from ovseg.inference.labels import Postprocessing
from ovseg.inference.predictor import Prediction, Predictor
from ovseg.serve.decode import Picture


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
    area_mm2: float | None = Field(
        description="Square millimetres of lesion; null where the size of a pixel is unknown."
    )
    pixel_height_mm: float | None = Field(
        description="Millimetres that a pixel is high; null where that is unknown."
    )
    pixel_width_mm: float | None = Field(
        description="Millimetres that a pixel is wide; null where that is unknown."
    )
    calibration: str = Field(
        description="Where the size of a pixel is from: `region` or `PixelSpacing` of a DICOM "
        "file; `no lesion` where the file gives it by region and no lesion lies in one; or "
        "`unknown:` and why."
    )
    frames: int = Field(description="How many frames the file has; other than 1 only in DICOM.")
    category_areas: dict[str, int] = Field(
        description="Pixels of each category; empty where the model has none."
    )
    confidence: float = Field(
        description="About the Dice score that the probabilities expect of the mask, 0..1. It is "
        "not the probability that the mask is right. With `ends` it trusts them, and is not "
        "comparable."
    )
    ends: list[Ends] = Field(
        description="Pairs of points [column, row] between which the outline was asked for; empty "
        "without `ends` in the address."
    )
    flag: bool | None = Field(
        description="Whether a person should look at the mask: its confidence is among those at "
        "which most failures were found on validation images. Null where the model has no such "
        "confidence, and with `ends`."
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
    """What to answer of a file: its frame, from 1, and which pictures; see `Answer`.

    `calipers` are across the lesion, see `ovseg.inference.guided.predict_guided`.
    """

    frame: int = 1
    calipers: tuple[Ends, ...] = ()
    mask: bool = False
    probabilities: bool = False
    picture: bool = False


def describe_model(source: Path | None, predictor: Predictor) -> ModelDescription:
    """Describe a predictor.

    Args:
        source: that it was loaded from, see `Predictor.load`.
        predictor: of the model.

    Raises:
        InputError: see `ovseg.core.checkpoints.read_members`.
    """
    if predictor.description is not None:
        name = "the model in the box" if source is None else source.resolve().name
        sha256 = predictor.description["checkpoint_sha256"]
        data = predictor.description["dataset"]
    else:
        assert source is not None  # a run
        members = read_members(source)
        name = _name_run(source)
        sha256 = checkpoint_digest(*[member.path for member in members])
        data = Path(members[0].data["root"]).name

    postprocessing = predictor.postprocessing
    only_cleanup = replace(postprocessing, flips=(), threshold=0.5, temperature=1.0)
    return ModelDescription(
        name=name,
        version=__version__,
        sha256=sha256,
        data=data,
        image_sizes=[member.image_size for member in predictor.members],
        categories=list(predictor.categories),
        threshold=None if predictor.categories else round(postprocessing.reported_threshold, 6),
        cleanup=only_cleanup.changes,
    )


def _name_run(run: Path) -> str:
    folder = RunFolder.of(run.resolve())
    name = folder.path.name
    if folder.config_name == name:
        return name
    return f"{folder.config_name}/{name}"


def make_answer(
    sent: Picture,
    prediction: Prediction,
    postprocessing: Postprocessing,
    model: ModelDescription,
    wanted: Wanted,
) -> bytes:
    """An `Answer` as JSON.

    Args:
        sent: the picture.
        prediction: of its image.
        postprocessing: of the predictor.
        model: that predicted it.
        wanted: which pictures the answer holds.
    """
    labels = prediction.labels
    confidence = prediction.confidence
    category_areas = {}
    for category, name in enumerate(prediction.categories, 1):
        category_areas[name] = int(np.count_nonzero(labels == category))
    size, calibration = sent.find_pixel_size(labels > 0)
    area_mm2 = None if size is None else prediction.area * size.height * size.width
    answer = Answer(
        width=labels.shape[1],
        height=labels.shape[0],
        area=prediction.area,
        area_percent=100 * prediction.area / labels.size,
        area_mm2=area_mm2,
        pixel_height_mm=None if size is None else size.height,
        pixel_width_mm=None if size is None else size.width,
        calibration=calibration,
        frames=sent.frames,
        category_areas=category_areas,
        confidence=confidence,
        ends=list(wanted.calipers),
        flag=None if wanted.calipers else postprocessing.is_flagged(confidence),
        contours=[contour.tolist() for contour in prediction.contours],
        mask=_encode(prediction.grey) if wanted.mask else None,
        probabilities=_encode(_grey_probs(prediction)) if wanted.probabilities else None,
        picture=_encode(cv2.cvtColor(sent.image, cv2.COLOR_RGB2BGR)) if wanted.picture else None,
        model=model,
    )
    return answer.model_dump_json().encode()


def _grey_probs(prediction: Prediction) -> np.ndarray:
    """Probabilities of lesion, uint8 (H, W), 255 is 1."""
    return np.round(prediction.probs.clip(0, 1) * 255).astype(np.uint8)


def _encode(picture: np.ndarray) -> str:
    """A PNG in base64 of a picture, uint8 (H, W) or (H, W, 3) BGR."""
    _, content = cv2.imencode(".png", picture)
    return base64.b64encode(content.tobytes()).decode()
