"""Read datasets whose labels are outlines: COCO, LabelMe, YOLO, CVAT and DDTI."""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree

import numpy as np

from ovseg.core.errors import InputError, first_five
from ovseg.core.limits import MAX_TEXT_BYTES
from ovseg.core.schema import read_text
from ovseg.core.yaml_files import read_yaml
from ovseg.data.prepare.files import SourceFiles
from ovseg.data.prepare.polygons import (
    Drawing,
    Polygon,
    Runs,
    Shape,
    make_ellipse,
    make_points,
    make_sources,
    take,
    take_size,
)
from ovseg.data.prepare.sources import (
    LESION,
    Found,
    PictureNames,
    Reading,
    Source,
    no_lesion,
    path_in,
    split_of_folders,
    split_of_name,
    unique_stems,
)

NO_YOLO_LABELS = ("classes", "labels", "notes", "obj", "train", "val", "valid", "test", "README")
LARGEST_SHARE = 1.01  # of a picture: boxes are rounded


# What precedes a picture of its local storage in files of Label Studio.
LABEL_STUDIO_URL = "/data/local-files/?d="
# What to export in place of boxes, by the suffix of the annotation file.
OUTLINES = {
    ".json": "polygons: in COCO a `segmentation` of each annotation",
    ".txt": "polygons: YOLO's segmentation format, a line of class x1 y1 x2 y2 x3 y3 and so on",
    ".xml": "polygons or masks",
}


class Collection:
    """The pictures of a dataset and what its annotation files say of them.

    Args:
        files: of the dataset.
    """

    def __init__(self, files: SourceFiles):
        self.root = files.root
        self.picture_root = files.picture_root
        self.found = Found(files.picture_root)
        self._pictures = files.pictures
        self._stems = unique_stems(self.picture_root, self._pictures)
        self._names = PictureNames(self._pictures)
        self._annotations: dict[Path, list[str]] = {}
        self._drawings: dict[Path, Drawing] = {}
        self._broken: set[Path] = set()
        self._left_out: dict[Path, Counter[str]] = {}

    def picture(self, name: str, beside: Path) -> Path | None:
        """The picture that an annotation file names.

        Args:
            name: see `PictureNames.find`.
            beside: the annotation file; of several pictures one in its folder is meant, or else one
                of its split.

        Raises:
            InputError: several pictures could be meant.
        """
        candidates = self._names.find(name)
        split = split_of_folders(self.root, beside) or split_of_name(beside.stem)

        def is_beside(path: Path) -> bool:
            return path.is_relative_to(beside.parent)

        def has_split(path: Path) -> bool:
            return split_of_folders(self.picture_root, path) == split

        for is_meant in (is_beside, has_split):
            if len(candidates) > 1:
                candidates = [path for path in candidates if is_meant(path)] or candidates
        if len(candidates) > 1:
            raise InputError(
                f"{beside} names {name}, which could be {first_five(candidates)}. Keep one of them."
            )
        return candidates[0] if candidates else None

    def claim(self, name: str, beside: Path) -> Path | None:
        """The picture of an annotation, which must be its only one (see `finish`).

        Args:
            name: see `picture`; one without a picture is noted.
            beside: see `picture`.

        Raises:
            InputError: several pictures could be meant.
        """
        path = self.picture(name, beside)
        annotation = f"{path_in(self.root, beside)}: {name}"
        if path is None:
            self.found.without_image.append(annotation)
        else:
            self._annotations.setdefault(path, []).append(annotation)
        return path

    def add(
        self,
        name: str,
        beside: Path,
        shapes: list[Shape],
        size: tuple[int, int] | None = None,
        others: Iterable[str] = (),
        patient: str = "",
        split: str = "",
    ) -> None:
        """Take the shapes of a picture.

        Args:
            name: see `picture`.
            beside: see `picture`.
            shapes: what to draw.
            size: (height, width) of the picture by the annotation file.
            others: the types of its shapes that are no outlines, which are left out.
            patient: patient or examination of the picture.
            split: of the picture, where its folders say none.
        """
        path = self.claim(name, beside)
        if path is None:
            return

        left_out = Counter(others)
        if left_out:
            self._left_out.setdefault(beside, Counter()).update(left_out)
        if left_out and not shapes:
            types = describe_types(left_out)
            self.fail(f"{beside} has no outline of {path.name}, only {types}.", path)
            return

        own_split = split_of_folders(self.picture_root, path) or split
        source = Source(
            self._stems[path], path, (beside,), no_lesion, split=own_split, patient=patient
        )
        self._drawings[path] = Drawing(source, shapes, size)

    def fail(self, problem: str, *pictures: Path | None) -> None:
        """Note that an annotation file can't be used, which is that of these pictures."""
        self.found.failures.append(problem)
        self._broken.update(picture for picture in pictures if picture is not None)

    def finish(self, reading: Reading) -> Found:
        """All that was found.

        Raises:
            InputError: pictures have several annotations each; no picture has an outline, but some
                have boxes; see `make_sources`.
        """
        self._refuse_several()
        if self._left_out:
            self._judge_left_out()
        self.found.read |= self._broken
        drawings = []
        for path in self._pictures:
            if path in self._broken:
                continue
            if path in self._drawings:
                drawings.append(self._drawings[path])
            else:
                split = split_of_folders(self.picture_root, path)
                source = Source(self._stems[path], path, (), no_lesion, split=split)
                self.found.without_labels.append(source)
        return make_sources(drawings, self.found, reading)

    def _refuse_several(self) -> None:
        """Refuse annotations that share a picture: some may be another picture's of its name."""
        shared = []
        for path, annotations in self._annotations.items():
            if len(annotations) > 1:
                name = path_in(self.picture_root, path)
                shared.append(f"{name} ({first_five(annotations)})")
        if shared:
            raise InputError(
                f"{len(shared)} pictures in {self.picture_root} have several annotations each: "
                f"{first_five(shared)}. Some may be of pictures in other folders, or older. Name "
                "the folder of all these pictures with --images, or only the annotations that you "
                "mean, their folder or file, with --source."
            )

    def _judge_left_out(self) -> None:
        """Say what is no outline, and refuse a dataset that has nothing else."""
        total: Counter[str] = Counter()
        for left_out in self._left_out.values():
            total += left_out
        files = [path_in(self.root, path) for path in self._left_out]
        counts = f"{describe_types(total)} in {len(files)} files ({first_five(files)})"
        advice = OUTLINES[next(iter(self._left_out)).suffix.lower()]
        if not any(drawing.shapes for drawing in self._drawings.values()):
            raise InputError(
                f"{self.root} has no outlines, only {counts}. A mask can't be drawn of boxes and "
                f"marks. Export {advice}."
            )
        self.found.notes.append(
            f"What is no outline was left out: {counts}. If these are lesions, export {advice}."
        )


def describe_types(types: Counter[str]) -> str:
    """How many shapes there are of each type: `3 x box, 1 x line`."""
    return ", ".join(f"{count} x {kind}" for kind, count in types.items())


def find_coco(files: SourceFiles, reading: Reading) -> Found:
    """COCO: a JSON with `images`, `annotations` and `categories`, or several of them.

    Raises:
        InputError: a file is malformed, or names several pictures in one.
    """
    collection = Collection(files)
    for path in files.with_suffix(".json"):
        content = files.read(path)
        if is_coco(content):
            collection.found.read.add(path)
            _read_coco(path, content, collection)
    return collection.finish(reading)


def is_coco(content: object) -> bool:
    """Whether the content of a JSON file is that of COCO."""
    if not isinstance(content, dict):
        return False
    return all(isinstance(content.get(key), list) for key in ("images", "annotations"))


def _read_coco(path: Path, content: dict[str, Any], collection: Collection) -> None:
    names = {}
    for record in take(content, "categories", list, str(path)):
        number = take(record, "id", int, f"{path}: a category")
        names[number] = take(record, "name", str, f"{path}: category {number}")

    shapes_of: dict[int, list[Shape]] = {}
    others_of: dict[int, list[str]] = {}
    for place, record in enumerate(content["annotations"]):
        where = f"{path}: annotation {place}"
        image = take(record, "image_id", (int, str), where)
        category = take(record, "category_id", int, where)
        if category not in names:
            raise InputError(
                f"{where} has the category_id {category}, which is none of the categories: "
                f"{first_five(names)}. Export it again."
            )
        shapes = _coco_shapes(record, names[category], where)
        if shapes:
            shapes_of.setdefault(image, []).extend(shapes)
        else:
            others_of.setdefault(image, []).append("box")

    known = set()
    for place, record in enumerate(content["images"]):
        where = f"{path}: image {place}"
        image = take(record, "id", (int, str), where)
        name = take(record, "file_name", str, where)
        if LABEL_STUDIO_URL in name:
            name = unquote(name.partition(LABEL_STUDIO_URL)[2])
        known.add(image)
        if image in shapes_of or image in others_of:
            size = take_size(record, "height", "width", where)
            shapes = shapes_of.get(image, [])
            split = split_of_name(path.stem)
            collection.add(name, path, shapes, size, others_of.get(image, ()), split=split)
        else:
            collection.claim(name, path)
    unknown = (shapes_of.keys() | others_of.keys()) - known
    if unknown:
        raise InputError(
            f"{path} has annotations of {len(unknown)} images that it does not list: "
            f"{first_five(sorted(unknown, key=str))}. Export it again."
        )


def _coco_shapes(record: dict[str, Any], label: str, where: str) -> list[Shape]:
    """The outlines or the run lengths of an annotation; empty where it is a box only."""
    segmentation = record.get("segmentation")
    if not segmentation:
        return []
    if isinstance(segmentation, list):
        if all(isinstance(value, (int, float)) for value in segmentation):
            segmentation = [segmentation]
        return [Polygon(label, make_points(outline, where)) for outline in segmentation]

    size = take(segmentation, "size", list, where)
    if len(size) != 2 or not all(isinstance(value, int) for value in size):
        raise InputError(f"{where} has run lengths of the size {size}. Export it again.")
    counts = take(segmentation, "counts", (list, str), where)
    if isinstance(counts, str):
        counts = decode_counts(counts, where)
    return [Runs(label, check_counts(counts, where), size[0], size[1], by_columns=True)]


def check_counts(counts: list[Any], where: str) -> list[int]:
    """Run lengths as whole numbers, 0 or more.

    Raises:
        InputError: they are not; `where` begins the message.
    """
    wrong = [count for count in counts if type(count) is not int or count < 0]
    if wrong:
        raise InputError(f"{where} has the run lengths {first_five(wrong)}. Export it again.")
    return counts


def decode_counts(text: str, where: str) -> list[int]:
    """The run lengths of COCO's compressed form.

    Each number is written in groups of 5 bits, lowest first, as a character from "0" on; a sixth
    bit says that more follow, the last group holds the sign. From the fourth number on it is the
    difference to the number two places before.

    Raises:
        InputError: another character, or the text ends within a number.

    Source: rleFrString in maskApi.c of pycocotools.
    """
    counts: list[int] = []
    value = 0
    shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise InputError(f"{where} has run lengths with {character!r}. Export it again.")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        if len(counts) > 2:
            value += counts[-2]
        counts.append(value)
        value = 0
        shift = 0
    if shift:
        raise InputError(f"{where} has run lengths that end too early. Export it again.")
    return counts


def find_labelme(files: SourceFiles, reading: Reading) -> Found:
    """LabelMe: a JSON with `shapes` for each image."""
    collection = Collection(files)
    for path in files.with_suffix(".json"):
        try:
            content = files.read(path)
            if is_labelme(content):
                collection.found.read.add(path)
                _read_labelme(path, content, collection)
        except InputError as error:
            collection.found.read.add(path)
            collection.fail(str(error), collection.picture(path.stem, path))
    return collection.finish(reading)


def is_labelme(content: object) -> bool:
    """Whether the content of a JSON file is that of LabelMe."""
    return isinstance(content, dict) and isinstance(content.get("shapes"), list)


def _read_labelme(path: Path, content: dict[str, Any], collection: Collection) -> None:
    shapes: list[Shape] = []
    others = []
    for place, record in enumerate(content["shapes"]):
        where = f"{path}: shape {place}"
        label = take(record, "label", str, where)
        kind = record.get("shape_type", "polygon")
        points = take(record, "points", list, where)
        if kind == "polygon":
            shapes.append(Polygon(label, make_points(points, where)))
        elif kind in ("rectangle", "circle"):
            shapes.append(Polygon(label, _outline_of_two(kind, points, where)))
        elif kind in ("line", "linestrip", "point", "points"):
            others.append(kind)
        else:
            raise InputError(f"{where} is of type {kind!r}. Draw it as a polygon.")

    size = take_size(content, "imageHeight", "imageWidth", str(path))
    name = content.get("imagePath")
    if not isinstance(name, str) or collection.picture(name, path) is None:
        name = path.stem
    collection.add(name, path, shapes, size, others)


def _outline_of_two(kind: str, points: list[Any], where: str) -> np.ndarray:
    """The outline of a rectangle of two corners, or of a circle of centre and border."""
    first, second = make_points(points, where, least=2)[:2]
    if kind == "rectangle":
        corners = [first, (second[0], first[1]), second, (first[0], second[1])]
        return np.array(corners, float)
    radius = math.dist(first, second)
    return make_ellipse(first[0], first[1], radius, radius)


def find_yolo(files: SourceFiles, reading: Reading) -> Found:
    """YOLO: a text file for each image, a line of class and outline in shares of the picture.

    The classes are named in a YAML (`names`) or `classes.txt`, if there is one.

    Raises:
        InputError: the list of names is malformed, or a name could mean several pictures.
    """
    collection = Collection(files)
    names = _yolo_names(files, collection.found)
    for path in files.with_suffix(".txt"):
        relative = path.relative_to(files.root).with_suffix("")
        parts = ["images" if part == "labels" else part for part in relative.parts]
        name = "/".join(parts)
        in_labels = "labels" in relative.parts
        if path.stem in NO_YOLO_LABELS or not (in_labels or collection.picture(name, path)):
            continue
        collection.found.read.add(path)
        try:
            collection.add(name, path, *_read_yolo(path, names))
        except InputError as error:
            collection.fail(str(error), collection.picture(name, path))
    return collection.finish(reading)


def _yolo_names(files: SourceFiles, found: Found) -> dict[int, str]:
    """The names of the classes by their number; empty where the dataset says none."""
    for path in files.with_suffix(".yaml", ".yml"):
        content = read_yaml(path)
        names = content.get("names") if isinstance(content, dict) else None
        if isinstance(names, (list, dict)):
            found.read.add(path)
        if isinstance(names, list):
            return {number: str(name) for number, name in enumerate(names)}
        if isinstance(names, dict):
            return {number: str(name) for number, name in names.items() if type(number) is int}
    for path in files.with_suffix(".txt"):
        if path.name == "classes.txt":
            found.read.add(path)
            lines = read_text(path, MAX_TEXT_BYTES).splitlines()
            return {number: line.strip() for number, line in enumerate(lines) if line.strip()}
    return {}


def _read_yolo(path: Path, names: dict[int, str]) -> tuple[list[Shape], None, list[str]]:
    """The outlines of a file, no size, and what encloses no area (boxes).

    Raises:
        InputError: a line is malformed, or a class has no name though others have.
    """
    shapes: list[Shape] = []
    others = []
    for number, line in enumerate(read_text(path, MAX_TEXT_BYTES).splitlines(), 1):
        where = f"{path}, line {number}"
        values = line.split()
        if not values:
            continue
        if not values[0].isdecimal():
            raise InputError(f"{where} begins with {values[0][:40]!r}, expected a class number.")
        category = int(values[0])
        if names and category not in names:
            raise InputError(f"{where} has the class {category}, which has no name. Correct it.")
        if len(values) == 5:
            _check_box(values[1:], where)
            others.append("box")
            continue
        if len(values) % 2 == 0:
            raise InputError(f"{where} has {len(values) - 1} coordinates, expected pairs.")
        label = names.get(category, f"class {category}")
        shapes.append(Polygon(label, make_points(values[1:], where), relative=True))
    return shapes, None, others


def _check_box(values: list[str], where: str) -> None:
    """Refuse what is no box of YOLO: centre and size in shares of the picture.

    Raises:
        InputError: it is none; `where` begins the message.
    """
    points = make_points(values, where, least=2)
    if points.min() < 0 or points.max() > LARGEST_SHARE:
        raise InputError(
            f"{where} has the box {first_five(values)}, expected shares of the picture, 0 to 1. "
            "Export it again."
        )


def is_yolo(path: Path, boxes: bool = False) -> bool:
    """Whether a text file holds outlines of YOLO, or with `boxes` its boxes."""
    try:
        shapes, _, others = _read_yolo(path, {})
    except InputError:
        return False
    return bool(others if boxes else shapes)


def find_cvat(files: SourceFiles, reading: Reading) -> Found:
    """CVAT for images 1.1: an XML with `image`, in it `polygon`, `mask` and `ellipse`.

    Raises:
        InputError: a file is malformed, or a name could mean several pictures.
    """
    collection = Collection(files)
    for path in files.with_suffix(".xml"):
        tree = files.read(path)
        if is_cvat(tree):
            collection.found.read.add(path)
            for image in tree.iter("image"):
                _read_cvat(path, image, collection)
    return collection.finish(reading)


def is_cvat(tree: ElementTree.Element) -> bool:
    """Whether an XML is that of CVAT."""
    return tree.tag == "annotations" and tree.find("image") is not None


def _read_cvat(path: Path, image: ElementTree.Element, collection: Collection) -> None:
    name = image.get("name", "")
    where = f"{path}: image {name!r}"
    height, width = _numbers(image, ("height", "width"), where)
    shapes: list[tuple[float, Shape]] = []
    others = []
    for element in image:
        if "label" not in element.attrib:
            continue  # a tag's attributes, or what later versions add
        if element.tag in CVAT_SHAPES:
            shape = CVAT_SHAPES[element.tag](element, where)
            shapes.append((_numbers(element, ("z_order",), where, default="0")[0], shape))
        elif element.tag != "tag":
            others.append(element.tag)
    if not shapes and not others:
        collection.claim(name, path)
        return
    shapes.sort(key=lambda pair: pair[0])
    split = split_of_name(image.get("subset", ""))
    ordered = [shape for _, shape in shapes]
    collection.add(name, path, ordered, (int(height), int(width)), others, split=split)


def _cvat_polygon(element: ElementTree.Element, where: str) -> Shape:
    values = re.split("[,;]", element.get("points", ""))
    return Polygon(element.attrib["label"], make_points(values, where))


def _cvat_ellipse(element: ElementTree.Element, where: str) -> Shape:
    x, y, radius_x, radius_y = _numbers(element, ("cx", "cy", "rx", "ry"), where)
    degrees = _numbers(element, ("rotation",), where, default="0")[0]
    return Polygon(element.attrib["label"], make_ellipse(x, y, radius_x, radius_y, degrees))


def _cvat_mask(element: ElementTree.Element, where: str) -> Shape:
    numbers = _numbers(element, ("height", "width", "top", "left"), where)
    height, width, top, left = [int(number) for number in numbers]
    counts = []
    for text in element.get("rle", "").split(","):
        if not text.strip().isdecimal():
            raise InputError(f"{where} has the run length {text[:40]!r}. Export it again.")
        counts.append(int(text))
    return Runs(element.attrib["label"], counts, height, width, top, left)


CVAT_SHAPES: dict[str, Callable[[ElementTree.Element, str], Shape]] = {
    "polygon": _cvat_polygon,
    "ellipse": _cvat_ellipse,
    "mask": _cvat_mask,
}


def _numbers(
    element: ElementTree.Element, names: tuple[str, ...], where: str, default: str = ""
) -> list[float]:
    """Attributes of an element as finite numbers.

    Raises:
        InputError: one is missing or no number; `where` begins the message.
    """
    numbers = []
    for name in names:
        text = element.get(name, default)
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise InputError(f"{where} has {text[:40]!r} as {name}. Export it again.")
        numbers.append(number)
    return numbers


def find_ddti(files: SourceFiles, reading: Reading) -> Found:
    """DDTI: an XML for each case, `7.xml`, with outlines of its images, `7_1.jpg`, `7_2.jpg`.

    A case is a patient.
    """
    collection = Collection(files)
    for path in files.with_suffix(".xml"):
        try:
            tree = files.read(path)
            if is_ddti(tree):
                collection.found.read.add(path)
                _read_ddti(path, tree, collection)
        except InputError as error:
            collection.found.read.add(path)
            of_case = [each for each in files.pictures if each.stem.rpartition("_")[0] == path.stem]
            collection.fail(str(error), *of_case)
    return collection.finish(reading)


def is_ddti(tree: ElementTree.Element) -> bool:
    """Whether an XML is that of DDTI."""
    return tree.tag == "case" and tree.find("mark") is not None


def _read_ddti(path: Path, tree: ElementTree.Element, collection: Collection) -> None:
    shapes_of: dict[str, list[Shape]] = {}
    for mark in tree.iter("mark"):
        number = (mark.findtext("image") or "").strip()
        where = f"{path}: image {number}"
        text = (mark.findtext("svg") or "").strip()
        if not text:
            continue  # an image without outline
        try:
            records = json.loads(text)
        except (ValueError, RecursionError):
            raise InputError(f"{where} has an outline that is no JSON. Correct it.") from None
        if not isinstance(records, list):
            raise InputError(f"{where} has an outline that is no list. Correct it.")
        shapes = shapes_of.setdefault(number, [])
        for record in records:
            points = []
            for point in take(record, "points", list, where):
                points.append([take(point, axis, (int, float), where) for axis in ("x", "y")])
            shapes.append(Polygon(LESION, make_points(points, where)))
    for number, shapes in shapes_of.items():
        collection.add(f"{path.stem}_{number}", path, shapes, patient=path.stem)
