"""What `infer --format` writes for programs and annotation tools, made of the masks it wrote.

A writer is a context manager: it gives a function that takes each result, and its files are whole
when it ends. Those of all pictures are written as they go, so none is kept in memory.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO
from urllib.parse import quote

import numpy as np

from ovseg import __version__
from ovseg.core.files import atomic_path, write_json
from ovseg.inference.outlines import Component, find_components, outer_contours
from ovseg.inference.pictures import InferPicture

COCO_FILE = "predictions.coco.json"
LABEL_STUDIO_FILE = "predictions.labelstudio.json"
# Of the JSON; programs of another first number warn that they may not read it.
LABELME_VERSION = "6.3.1"


@dataclass(frozen=True)
class Place:
    """Where files are written, and what all of them say.

    Attributes:
        folder: the unfinished output folder.
        output: where it will be.
        names: of the ids 1, 2, ... in labels.
    """

    folder: Path
    output: Path
    names: Sequence[str]


@dataclass(frozen=True)
class Result:
    """What is predicted of a picture.

    Attributes:
        picture: the picture and its mask.
        labels: uint8 (H, W), 0 or an id of `Place.names`.
        confidence: of the prediction, 0..1.
    """

    picture: InferPicture
    labels: np.ndarray
    confidence: float

    @property
    def file_name(self) -> str:
        """The picture, by its path in the folder that `infer` was given."""
        return (self.picture.mask.parent / self.picture.path.name).as_posix()

    @property
    def name_with_folder(self) -> str:
        """`file_name` after the name of the folder that `infer` was given."""
        path = Path(os.path.abspath(self.picture.path))
        folder = path.parents[len(self.picture.mask.parent.parts)]
        return f"{folder.name}/{self.file_name}"

    @property
    def masks(self) -> Iterator[tuple[int, np.ndarray]]:
        """The ids in the labels, and the mask of each, bool (H, W)."""
        for number in range(1, int(self.labels.max()) + 1):
            mask = self.labels == number
            if mask.any():
                yield number, mask

    @cached_property
    def components(self) -> list[tuple[int, Component]]:
        """The connected components of each id, with the id."""
        found = []
        for number, mask in self.masks:
            found += [(number, component) for component in find_components(mask)]
        return found


Add = Callable[[Result], None]
Writer = Callable[[Place], AbstractContextManager[Add]]


@contextmanager
def write_npy(place: Place) -> Iterator[Add]:
    """`npy/<stem>.npy`: labels, uint8 (H, W)."""

    def add(result: Result) -> None:
        path = place.folder / "npy" / result.picture.mask.with_suffix(".npy")
        with atomic_path(path) as temporary:
            np.save(temporary, result.labels)

    yield add


@contextmanager
def write_contours(place: Place) -> Iterator[Add]:
    """`contours/<stem>.json`: see `outer_contours`, those of each category."""

    def add(result: Result) -> None:
        contours = []
        for number, mask in result.masks:
            for points in outer_contours(mask):
                contours.append({"category": place.names[number - 1], "points": points.tolist()})
        height, width = result.labels.shape
        frame = result.picture.frame
        content = {
            "picture": result.file_name,
            "frame": None if frame is None else frame + 1,
            "width": width,
            "height": height,
            "contours": contours,
        }
        write_json(place.folder / "contours" / _json_of(result), content)

    yield add


@contextmanager
def write_labelme(place: Place) -> Iterator[Add]:
    """`labelme/<stem>.json`: polygons as LabelMe has them; those of one component share a group."""

    def add(result: Result) -> None:
        name = Path("labelme") / _json_of(result)
        shapes = []
        for group, (number, component) in enumerate(result.components, start=1):
            for polygon in component.polygons:
                shape = {
                    "label": place.names[number - 1],
                    "points": polygon.tolist(),
                    "group_id": group,
                    "description": "",
                    "shape_type": "polygon",
                    "flags": {},
                    "mask": None,
                }
                shapes.append(shape)
        height, width = result.labels.shape
        content = {
            "version": LABELME_VERSION,
            "flags": {},
            "shapes": shapes,
            "imagePath": _path_from(place.output / name, result.picture.path),
            "imageData": None,
            "imageHeight": height,
            "imageWidth": width,
        }
        write_json(place.folder / name, content)

    yield add


@contextmanager
def write_coco(place: Place) -> Iterator[Add]:
    """`predictions.coco.json`: COCO's instances, a component each, with `score`."""
    categories = [{"id": number, "name": name} for number, name in enumerate(place.names, start=1)]
    begin = {
        "info": {"description": "Predictions of ovseg", "version": __version__},
        "licenses": [],
        "categories": categories,
    }
    with (
        atomic_path(place.folder / COCO_FILE) as temporary,
        open(temporary, "w", encoding="utf-8") as file,
        TemporaryFile("w+", encoding="utf-8", dir=place.folder) as pictures,
    ):
        annotations = _ListWriter(file)
        images = _ListWriter(pictures)

        def add(result: Result) -> None:
            height, width = result.labels.shape
            image = images.count + 1
            images.add(
                {"id": image, "file_name": result.file_name, "width": width, "height": height}
            )
            for number, component in result.components:
                annotation = {
                    "id": annotations.count + 1,
                    "image_id": image,
                    "category_id": number,
                    "segmentation": [polygon.ravel().tolist() for polygon in component.polygons],
                    "area": component.area,
                    "bbox": component.box,
                    "iscrowd": 0,
                    "score": result.confidence,
                }
                annotations.add(annotation)

        file.write(f'{json.dumps(begin)[:-1]}, "annotations": [')
        yield add
        file.write('\n], "images": [')
        pictures.seek(0)
        shutil.copyfileobj(pictures, file)
        file.write("\n]}\n")


@contextmanager
def write_label_studio(place: Place) -> Iterator[Add]:
    """`predictions.labelstudio.json`: tasks of Label Studio with predictions to be corrected."""
    with (
        atomic_path(place.folder / LABEL_STUDIO_FILE) as temporary,
        open(temporary, "w", encoding="utf-8") as file,
    ):
        tasks = _ListWriter(file)

        def add(result: Result) -> None:
            height, width = result.labels.shape
            regions: list[dict[str, object]] = []
            for number, component in result.components:
                for polygon in component.polygons:
                    # 1e-6 % of a picture of 10,000 pixels is a ten thousandth of a pixel.
                    percent = (polygon * 100.0 / np.array((width, height))).round(6)
                    value = {
                        "points": percent.tolist(),
                        "closed": True,
                        "polygonlabels": [place.names[number - 1]],
                    }
                    region = {
                        "id": f"region{len(regions) + 1}",
                        "type": "polygonlabels",
                        "from_name": "label",
                        "to_name": "image",
                        "original_width": width,
                        "original_height": height,
                        "image_rotation": 0,
                        "value": value,
                    }
                    regions.append(region)
            prediction = {
                "model_version": f"ovseg {__version__}",
                "score": result.confidence,
                "result": regions,
            }
            # From the parent of the pictures' folder: Label Studio refuses a storage that is the
            # root of all local files (`validate_connection` in its io_storages/localfiles).
            url = f"/data/local-files/?d={quote(result.name_with_folder)}"
            tasks.add({"data": {"image": url}, "predictions": [prediction]})

        file.write("[")
        yield add
        file.write("\n]\n")


class _ListWriter:
    """Writes the entries of a JSON list to an open text file, one a line."""

    def __init__(self, file: IO[str]):
        self.file = file
        self.count = 0

    def add(self, entry: object) -> None:
        separator = ",\n" if self.count else "\n"
        self.file.write(separator + json.dumps(entry))
        self.count += 1


def _json_of(result: Result) -> Path:
    """The JSON of a picture, as its mask is called."""
    return result.picture.mask.with_suffix(".json")


def _path_from(file: Path, picture: Path) -> str:
    """The relative path of a picture from the folder of a file, with `/`; links are kept."""
    target = picture.parent.resolve() / picture.name
    return Path(os.path.relpath(target, file.parent.resolve())).as_posix()
