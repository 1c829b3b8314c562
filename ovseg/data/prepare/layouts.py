"""The layouts of datasets that `prepare_data` reads, and how one is told from another.

A layout is a reader: it finds the images and how the labels of each are read.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ovseg.core.errors import InputError, join_problems
from ovseg.core.registry import choose
from ovseg.data.prepare.annotations import (
    find_coco,
    find_cvat,
    find_ddti,
    find_labelme,
    find_yolo,
    is_coco,
    is_cvat,
    is_ddti,
    is_labelme,
    is_yolo,
)
from ovseg.data.prepare.files import SourceFiles
from ovseg.data.prepare.folders import find_folders, find_spots, find_tn3k, has_classes, holds_masks
from ovseg.data.prepare.otu2d import find_otu2d, is_otu2d
from ovseg.data.prepare.sources import MMOTU_KINDS, Found, Reading

LOOKED_AT = 20  # annotation files that are opened to recognise a layout, the largest ones
MAX_WRAPPERS = 3  # folders that hold only one folder, as archives make them


@dataclass(frozen=True)
class Layout:
    """One layout.

    Attributes:
        description: for the list of layouts.
        find: reads a dataset of it.
        takes: which of the options of `Reading` it follows.
    """

    description: str
    find: Callable[[SourceFiles, Reading], Found]
    takes: tuple[str, ...]


MASK_OPTIONS = ("mask_suffix", "categories", "invert_masks")
OUTLINE_OPTIONS = ("images", "labels", "categories")
LAYOUTS = {
    "otu2d": Layout("OTU_2d of MMOTU: images, and annotations in colours", find_otu2d, ("kind",)),
    "cvat": Layout("CVAT for images 1.1: annotations.xml", find_cvat, OUTLINE_OPTIONS),
    "ddti": Layout("DDTI: N.xml with the outlines of N_1.jpg", find_ddti, OUTLINE_OPTIONS),
    "coco": Layout("COCO: a JSON for all images", find_coco, OUTLINE_OPTIONS),
    "labelme": Layout("LabelMe: a JSON for each image", find_labelme, OUTLINE_OPTIONS),
    "yolo": Layout("YOLO: images, and labels as .txt", find_yolo, OUTLINE_OPTIONS),
    "tn3k": Layout(
        "TN3K: trainval-image, trainval-mask, test-image, test-mask",
        find_tn3k,
        MASK_OPTIONS,
    ),
    "busi": Layout(
        "BUSI: a folder of each class, with images and their masks",
        find_folders,
        MASK_OPTIONS,
    ),
    "folders": Layout(
        "folders: images and masks, or both in one folder",
        find_folders,
        MASK_OPTIONS,
    ),
}


def find_dataset(source: Path | None, layout: str, reading: Reading) -> tuple[str, Found]:
    """The images of a dataset, read by its layout.

    Args:
        source: its folder, or that of its annotation files where `reading` names that of its
            images; None where `reading` names the folders of images and masks.
        layout: a name in `LAYOUTS`, or `auto`.
        reading: how labels are to be read.

    Returns:
        The name of the layout, and what it found.

    Raises:
        InputError: the folders are named in part or twice, the layout isn't recognised, is another
            one, or does not follow an option; the dataset is malformed.
    """
    choose("layout", layout, {"auto": None, **LAYOUTS})
    choose("kind", reading.kind, MMOTU_KINDS)
    is_ceus = reading.kind == "ceus"
    if reading.masks is not None:
        if reading.images is None or source is not None:
            raise InputError(
                "Name a dataset with --source, or its two folders with --images and --masks."
            )
        if layout not in ("auto", "folders"):
            raise InputError(f"--layout {layout} needs --source in place of --images and --masks.")
        if is_ceus:
            raise InputError("--kind ceus needs --source in place of --images and --masks.")
        return "folders", find_folders(SourceFiles(Path()), reading)
    if source is None:
        raise InputError("Name a dataset with --source, or two folders with --images and --masks.")
    if not source.is_dir():
        raise InputError(
            f"There is no folder {source}. Name the folder of a dataset: its images and their "
            "masks or annotations."
        )

    if reading.images is not None and not reading.images.is_dir():
        raise InputError(f"There is no folder {reading.images}. Check the path.")
    files = SourceFiles(unwrap(source), reading.images)
    name = layout
    if layout == "auto" and is_ceus:
        name = "otu2d"  # with other colours
    elif layout == "auto":
        name = recognise(files, reading.mask_suffix)
        if not name:
            raise InputError(f"{source} has no layout that is known. {_list_layouts(files)}")
    chosen = LAYOUTS[name]
    given = {
        "images": reading.images is not None,
        "mask_suffix": reading.mask_suffix is not None,
        "labels": bool(reading.labels),
        "categories": reading.categories,
        "invert_masks": reading.invert_masks,
        "kind": is_ceus,
    }
    for option, is_given in given.items():
        if is_given and option not in chosen.takes:
            raise InputError(f"--{option} has no meaning for the layout {name}. Leave it out.")
    return name, chosen.find(files, reading)


def _list_layouts(files: SourceFiles) -> str:
    """The layouts for an error message, and which annotation files can't be read."""
    lines = [f"{name} ({layout.description})" for name, layout in LAYOUTS.items()]
    text = f"Known are: {'; '.join(lines)}. Name two folders with --images and --masks, or a layout"
    text += " with --layout."
    problems = []
    for path in _largest(files, ".json", ".xml"):
        try:
            files.read(path)
        except InputError as error:
            problems.append(str(error))
    return f"{text} {join_problems(problems)}".strip()


def unwrap(source: Path) -> Path:
    """The folder that holds a dataset: `source`, or the only thing in it, if that is a folder."""
    folder = source
    for _ in range(MAX_WRAPPERS):
        inner = [path for path in folder.iterdir() if not path.name.startswith(".")]
        inner = [path for path in inner if path.name != "__MACOSX"]
        if len(inner) != 1 or not inner[0].is_dir():
            return folder
        folder = inner[0]
    return folder


def recognise(files: SourceFiles, mask_suffix: str | None = None) -> str:
    """The layout of a dataset by its content; empty where it is none of `LAYOUTS`.

    Raises:
        InputError: folders of masks are there twice.
    """
    root = files.root
    if is_otu2d(root):
        return "otu2d"
    if not files.pictures:
        return ""

    trees = _readable(files, ".xml")
    contents = _readable(files, ".json")
    texts = _largest(files, ".txt")
    matches = {
        "cvat": any(is_cvat(tree) for tree in trees),
        "ddti": any(is_ddti(tree) for tree in trees),
        "coco": any(is_coco(content) for content in contents),
        "labelme": any(is_labelme(content) for content in contents),
        "yolo": any(is_yolo(path) for path in texts),
    }
    for name, is_it in matches.items():
        if is_it:
            return name

    if (root / "trainval-image").is_dir() and (root / "trainval-mask").is_dir():
        return "tn3k"
    spots = find_spots(root)
    if any(spot.images != spot.masks for spot in spots):
        return "folders"
    if any(holds_masks(spot, mask_suffix) for spot in spots):
        return "busi" if has_classes(spots) else "folders"
    # Boxes are looked for last: other lists of numbers look like them.
    if any(is_yolo(path, boxes=True) for path in texts):
        return "yolo"
    return ""


def _largest(files: SourceFiles, *suffixes: str) -> list[Path]:
    """The `LOOKED_AT` largest files with one of these suffixes."""
    chosen = files.with_suffix(*suffixes)
    chosen.sort(key=lambda path: -path.stat().st_size)
    return chosen[:LOOKED_AT]


def _readable(files: SourceFiles, suffix: str) -> list[Any]:
    """The content of those of the largest files that can be read; it is kept for their reader."""
    contents = []
    for path in _largest(files, suffix):
        try:
            contents.append(files.read(path, keep=True))
        except InputError:
            continue
    return contents
