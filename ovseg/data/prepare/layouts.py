"""The layouts of datasets that `prepare_data` reads, and how one is told from another.

A layout is a reader: it finds the images and how the labels of each are read.
"""

from collections import Counter
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
from ovseg.data.prepare.sources import MMOTU_KINDS, Found, Reading, path_in

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


# The layouts of annotation files: their suffix, and whether the content of one is of the layout.
# One such file is a dataset too.
IS_OF_LAYOUT: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "cvat": (".xml", is_cvat),
    "ddti": (".xml", is_ddti),
    "coco": (".json", is_coco),
    "labelme": (".json", is_labelme),
}


def find_dataset(source: Path | None, layout: str, reading: Reading) -> tuple[str, Found]:
    """The images of a dataset, read by its layout.

    Args:
        source: its folder, or that of its annotation files where `reading` names that of its
            images; or one annotation file; None where `reading` names the folders of images and
            masks.
        layout: a name in `LAYOUTS`, or `auto`.
        reading: how labels are to be read.

    Returns:
        The name of the layout, and what it found.

    Raises:
        InputError: the folders are named in part or twice, the layout isn't recognised, is one of
            several, is another one, or does not follow an option; the dataset is malformed.
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
    if not source.is_dir() and not source.is_file():
        raise InputError(
            f"There is no folder or file {source}. Name the folder of a dataset, its images and "
            "their masks or annotations, or a file of annotations."
        )

    if reading.images is not None and not reading.images.is_dir():
        raise InputError(f"There is no folder {reading.images}. Check the path.")
    files = SourceFiles(unwrap(source), reading.images)
    name = layout
    if layout == "auto" and is_ceus:
        name = "otu2d"  # with other colours
    elif layout == "auto":
        name = recognise(files, reading.mask_suffix)
    if files.only and name not in IS_OF_LAYOUT:
        raise InputError(
            f"{source} is a file, but of a dataset only a file of annotations is read "
            f"({', '.join(IS_OF_LAYOUT)}). Name such a file or the folder of the dataset; unpack "
            f"archives. {_list_problems(files)}".strip()
        )
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
    """The layouts for an error message, and what `_list_problems` says."""
    lines = [f"{name} ({layout.description})" for name, layout in LAYOUTS.items()]
    text = f"Known are: {'; '.join(lines)}. Name two folders with --images and --masks, or a layout"
    text += " with --layout."
    return f"{text} {_list_problems(files)}".strip()


def _list_problems(files: SourceFiles) -> str:
    """Which annotation files can't be read, for an error message; empty where all can."""
    problems = []
    for path in _largest(files, ".json", ".xml"):
        try:
            files.read(path)
        except InputError as error:
            problems.append(str(error))
    return join_problems(problems)


def unwrap(source: Path) -> Path:
    """Where a dataset is: `source`, or the only thing in it, if that is a folder."""
    if not source.is_dir():
        return source
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
        InputError: folders of masks are there twice, or annotation files of several layouts.
    """
    root = files.root
    if files.only:
        return _recognise_annotations(files)
    if is_otu2d(root):
        return "otu2d"
    if not files.pictures:
        return ""

    name = _recognise_annotations(files)
    if name:
        return name
    texts = _largest(files, ".txt")
    if any(is_yolo(path) for path in texts):
        return "yolo"

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


def _recognise_annotations(files: SourceFiles) -> str:
    """The layout of the annotation files; empty where they are of none in `IS_OF_LAYOUT`.

    Raises:
        InputError: they are of several: what was corrected in one may be as it was in another.
    """
    readable = {suffix: _readable(files, suffix) for suffix in (".xml", ".json")}
    found = {}
    for name, (suffix, is_it) in IS_OF_LAYOUT.items():
        paths = [path for path, content in readable[suffix].items() if is_it(content)]
        if paths:
            found[name] = path_in(files.root, paths[0])
    if len(found) > 1:
        examples = [f"{name} (such as {path})" for name, path in found.items()]
        raise InputError(
            f"{files.root} holds annotations of {len(found)} layouts: {', '.join(examples)}. Say "
            "which to read: name their folder or file as --source of prepare_data, or add "
            f"--layout {' or '.join(found)}."
        )
    return next(iter(found), "")


def _largest(files: SourceFiles, *suffixes: str) -> list[Path]:
    """`LOOKED_AT` files with one of these suffixes, the largest ones.

    The folders in the dataset take turns, so that large files of one do not hide another's.
    """
    chosen = files.with_suffix(*suffixes)
    chosen.sort(key=lambda path: -path.stat().st_size)
    turns: Counter[tuple[str, ...]] = Counter()
    turn_of = {}
    for path in chosen:
        folder = path.relative_to(files.root).parts[:-1][:1]
        turn_of[path] = turns[folder]
        turns[folder] += 1
    chosen.sort(key=lambda path: turn_of[path])
    return chosen[:LOOKED_AT]


def _readable(files: SourceFiles, suffix: str) -> dict[Path, Any]:
    """The content of those of the largest files that can be read; it is kept for their reader."""
    contents = {}
    for path in _largest(files, suffix):
        try:
            contents[path] = files.read(path, keep=True)
        except InputError:
            continue
    return contents
