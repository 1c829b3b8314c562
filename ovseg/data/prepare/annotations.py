"""Read datasets whose labels are outlines: COCO, LabelMe, YOLO, CVAT and DDTI."""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from ovseg.core.errors import InputError, first_five
from ovseg.core.yaml_files import read_yaml
from ovseg.data.pairs import normal_stem
from ovseg.data.pictures import SUFFIXES, has_suffix
from ovseg.data.prepare.polygons import (
    Drawing,
    Polygon,
    Runs,
    Shape,
    make_ellipse,
    make_points,
    make_sources,
    read_json,
    take,
    take_size,
)
from ovseg.data.prepare.sources import (
    LESION,
    Found,
    Reading,
    Source,
    list_files,
    no_lesion,
    path_in,
    split_of_folders,
    split_of_name,
    unique_stems,
)

MAX_XML = 200_000_000  # bytes
NO_YOLO_LABELS = ("classes", "labels", "notes", "obj", "train", "val", "valid", "test", "README")


class Collection:
    """The pictures of a dataset and what its annotation files say of them.

    Args:
        root: the folder of the dataset.
    """

    def __init__(self, root: Path):
        self.root = root
        self.files = list_files(root)
        self.found = Found(root)
        self._pictures = [path for path in self.files if has_suffix(path)]
        self._stems = unique_stems(root, self._pictures)
        self._named: dict[str, list[Path]] = {}
        for path in self._pictures:
            for name in {normal_stem(path.name), normal_stem(path.stem)}:
                self._named.setdefault(name, []).append(path)
        self._drawings: dict[Path, Drawing] = {}
        self._broken: set[Path] = set()
        self._left_out: Counter[str] = Counter()

    def with_suffix(self, *suffixes: str) -> list[Path]:
        """The files of the dataset that have one of these suffixes."""
        return [path for path in self.files if path.suffix.lower() in suffixes]

    def picture(self, name: str, beside: Path) -> Path | None:
        """The picture that an annotation file names.

        Args:
            name: its name or stem; folders may come first, and narrow the choice where they fit.
            beside: the annotation file; of several pictures one in its folder is meant, or else one
                of its split.

        Raises:
            InputError: several pictures could be meant.
        """
        parts = [normal_stem(part) for part in re.split(r"[\\/]+", name) if part.strip(".")]
        candidates = self._named.get(parts[-1], []) if parts else []
        split = split_of_folders(self.root, beside) or split_of_name(beside.stem)

        def has_folders(path: Path) -> bool:
            folders = [normal_stem(part) for part in path.parts[:-1]]
            return folders[len(folders) - len(parts) + 1 :] == parts[:-1]

        def is_beside(path: Path) -> bool:
            return path.is_relative_to(beside.parent)

        def has_split(path: Path) -> bool:
            return split_of_folders(self.root, path) == split

        for is_meant in (has_folders, is_beside, has_split):
            if len(candidates) > 1:
                candidates = [path for path in candidates if is_meant(path)] or candidates
        if len(candidates) > 1:
            raise InputError(
                f"{beside} names {name}, which could be {first_five(candidates)}. Keep one of them."
            )
        return candidates[0] if candidates else None

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
        """Take the shapes of a picture, after those that it has already.

        Args:
            name: see `picture`.
            beside: see `picture`.
            shapes: what to draw.
            size: (height, width) of the picture by the annotation file.
            others: the types of its shapes that enclose no area, which are left out.
            patient: patient or examination of the picture.
            split: of the picture, where its folders say none.
        """
        path = self.picture(name, beside)
        if path is None:
            self.found.without_image.append(f"{path_in(self.root, beside)}: {name}")
            return

        left_out = Counter(others)
        if left_out and not shapes:
            types = ", ".join(f"{count} {kind}" for kind, count in left_out.items())
            self.fail(f"{beside} has no outline of {path.name}, only {types}. Draw polygons.", path)
            return
        self._left_out += left_out

        drawing = self._drawings.get(path)
        if drawing is None:
            own_split = split_of_folders(self.root, path) or split
            source = Source(
                self._stems[path], path, (beside,), no_lesion, split=own_split, patient=patient
            )
            self._drawings[path] = Drawing(source, shapes, size)
            return
        label_paths = drawing.source.label_paths
        if beside not in label_paths:
            label_paths = (*label_paths, beside)
        source = replace(drawing.source, label_paths=label_paths)
        self._drawings[path] = Drawing(source, drawing.shapes + shapes, drawing.size or size)

    def fail(self, problem: str, *pictures: Path | None) -> None:
        """Note that an annotation file can't be used, which is that of these pictures."""
        self.found.failures.append(problem)
        self._broken.update(picture for picture in pictures if picture is not None)

    def finish(self, reading: Reading) -> Found:
        """All that was found; raises as `make_sources`."""
        drawings = []
        for path in self._pictures:
            if path in self._broken:
                continue
            if path in self._drawings:
                drawings.append(self._drawings[path])
            else:
                split = split_of_folders(self.root, path)
                source = Source(self._stems[path], path, (), no_lesion, split=split)
                self.found.without_labels.append(source)
        if self._left_out:
            types = ", ".join(f"{count} {kind}" for kind, count in self._left_out.items())
            self.found.notes.append(f"Shapes that enclose no area were left out: {types}.")
        return make_sources(drawings, self.found, reading)


def find_coco(root: Path, reading: Reading) -> Found:
    """COCO: a JSON with `images`, `annotations` and `categories`, or several of them.

    Raises:
        InputError: a file is malformed, or names several pictures in one.
    """
    collection = Collection(root)
    for path in collection.with_suffix(".json"):
        content = read_json(path)
        if is_coco(content):
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
        known.add(image)
        if image in shapes_of or image in others_of:
            size = take_size(record, "height", "width", where)
            shapes = shapes_of.get(image, [])
            split = split_of_name(path.stem)
            collection.add(name, path, shapes, size, others_of.get(image, ()), split=split)
        elif collection.picture(name, path) is None:
            collection.found.without_image.append(f"{path_in(collection.root, path)}: {name}")
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


def find_labelme(root: Path, reading: Reading) -> Found:
    """LabelMe: a JSON with `shapes` for each image."""
    collection = Collection(root)
    for path in collection.with_suffix(".json"):
        try:
            content = read_json(path)
            if is_labelme(content):
                _read_labelme(path, content, collection)
        except InputError as error:
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


def find_yolo(root: Path, reading: Reading) -> Found:
    """YOLO: a text file for each image, a line of class and outline in shares of the picture.

    The classes are named in a YAML (`names`) or `classes.txt`, if there is one.

    Raises:
        InputError: the list of names is malformed, or a name could mean several pictures.
    """
    collection = Collection(root)
    names = _yolo_names(collection)
    for path in collection.with_suffix(".txt"):
        relative = path.relative_to(root).with_suffix("")
        parts = ["images" if part == "labels" else part for part in relative.parts]
        name = "/".join(parts)
        in_labels = "labels" in relative.parts
        if path.stem in NO_YOLO_LABELS or not (in_labels or collection.picture(name, path)):
            continue
        try:
            collection.add(name, path, *_read_yolo(path, names))
        except InputError as error:
            collection.fail(str(error), collection.picture(name, path))
    return collection.finish(reading)


def _yolo_names(collection: Collection) -> dict[int, str]:
    """The names of the classes by their number; empty where the dataset says none."""
    for path in collection.with_suffix(".yaml", ".yml"):
        content = read_yaml(path)
        names = content.get("names") if isinstance(content, dict) else None
        if isinstance(names, list):
            return {number: str(name) for number, name in enumerate(names)}
        if isinstance(names, dict):
            return {number: str(name) for number, name in names.items() if type(number) is int}
    for path in collection.with_suffix(".txt"):
        if path.name == "classes.txt":
            lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
            return {number: line.strip() for number, line in enumerate(lines) if line.strip()}
    return {}


def _read_yolo(path: Path, names: dict[int, str]) -> tuple[list[Shape], None, list[str]]:
    """The outlines of a file, no size, and what encloses no area (boxes).

    Raises:
        InputError: a line is malformed, or a class has no name though others have.
    """
    shapes: list[Shape] = []
    others = []
    for number, line in enumerate(_read_lines(path), 1):
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
            others.append("box")
            continue
        if len(values) % 2 == 0:
            raise InputError(f"{where} has {len(values) - 1} coordinates, expected pairs.")
        label = names.get(category, f"class {category}")
        shapes.append(Polygon(label, make_points(values[1:], where), relative=True))
    return shapes, None, others


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is no text ({error}). Export it again.") from None


def is_yolo(path: Path) -> bool:
    """Whether a text file holds outlines of YOLO."""
    try:
        shapes, _, _ = _read_yolo(path, {})
    except InputError:
        return False
    return bool(shapes)


class _Builder(ElementTree.TreeBuilder):
    """Builds the tree of an XML without DOCTYPE, which could define entities without end."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise InputError("has a DOCTYPE")


def read_xml(path: Path) -> ElementTree.Element:
    """The root of an XML file.

    Raises:
        InputError: it is none, has a DOCTYPE, or is larger than `MAX_XML`.
    """
    try:
        if path.stat().st_size > MAX_XML:
            raise InputError(f"is larger than {MAX_XML // 10**6} MB")
        return ElementTree.parse(path, ElementTree.XMLParser(target=_Builder())).getroot()
    except (OSError, ValueError, LookupError, ElementTree.ParseError) as error:
        raise InputError(f"{path} is no XML that is read ({error}). Export it again.") from None


def find_cvat(root: Path, reading: Reading) -> Found:
    """CVAT for images 1.1: an XML with `image`, in it `polygon`, `mask` and `ellipse`.

    Raises:
        InputError: a file is malformed, or a name could mean several pictures.
    """
    collection = Collection(root)
    for path in collection.with_suffix(".xml"):
        tree = read_xml(path)
        if is_cvat(tree):
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
        if collection.picture(name, path) is None:
            collection.found.without_image.append(f"{path_in(collection.root, path)}: {name}")
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


def find_ddti(root: Path, reading: Reading) -> Found:
    """DDTI: an XML for each case, `7.xml`, with outlines of its images, `7_1.jpg`, `7_2.jpg`.

    A case is a patient.
    """
    collection = Collection(root)
    for path in collection.with_suffix(".xml"):
        try:
            tree = read_xml(path)
            if is_ddti(tree):
                _read_ddti(path, tree, collection)
        except InputError as error:
            pictures = collection.with_suffix(*SUFFIXES)
            of_case = [each for each in pictures if each.stem.rpartition("_")[0] == path.stem]
            collection.fail(str(error), *of_case)
    return collection.finish(reading)


def is_ddti(tree: ElementTree.Element) -> bool:
    """Whether an XML is that of DDTI."""
    return tree.tag == "case" and tree.find("mark") is not None


def _read_ddti(path: Path, tree: ElementTree.Element, collection: Collection) -> None:
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
        shapes: list[Shape] = []
        for record in records:
            points = []
            for point in take(record, "points", list, where):
                points.append([take(point, axis, (int, float), where) for axis in ("x", "y")])
            shapes.append(Polygon(LESION, make_points(points, where)))
        collection.add(f"{path.stem}_{number}", path, shapes, patient=path.stem)
