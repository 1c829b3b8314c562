"""The files of a dataset tree, one by one: what each image and mask is, what is wrong with it, and colour Doppler.

Colour Doppler is told by red (or blue) that stands out from both other channels by more than 60 of 255 grey levels.
In the 1,218 images of OTU_2d at 512 x 512, 159 have at least 0.005 % red, in their flow or in the velocity scale beside
the sector; each of the next has at most 0.002 %: one is colour Doppler without flow, the others looked at are B-mode.
Blue needs 0.5 %: the scanners write settings in blue, which reaches 0.23 %; one image of blue flow alone has 0.79 %.
Yellow calipers and green frames are neither. Images whose colour box shows no flow and no scale are not found.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ovseg.core.errors import InputError, first_five
from ovseg.data.pairs import SUFFIXES, mask_problem, natural_key, open_picture, read_image
from ovseg.data.prepare.duplicates import Fingerprint, crop_letterbox, fingerprint
from ovseg.data.prepare.otu2d import CATEGORIES

SPLITS = ("train", "valid", "test")
BROKEN = {  # kinds of faults; a tree that has one can't be trained on as it is
    "missing folder": "the layout needs images and masks of train, valid and test",
    "unreadable": "not a whole 8-bit picture",
    "image without mask": "no mask of its stem",
    "mask without image": "no image of its stem",
    "two of one stem": "which one is meant is unknown",
    "sizes differ": "the picture does not lie on its image",
    "no binary mask": "many values, or none that counts as lesion",
    "bad categories": "not ids of the lesion alone",
    "manifest differs": "the manifest names other images than the tree has",
}
REMARKS = {
    "empty mask": "no lesion: legal, counted",
    "full mask": "all lesion",
    "no picture": "a file that is not used",
}
EXCESS, RED_SHARE, BLUE_SHARE = 60, 5e-5, 5e-3  # see above


@dataclass(frozen=True)
class Problem:
    """One fault or remark: its kind, the file relative to the tree, and what to know about it."""

    kind: str
    file: str
    message: str


@dataclass
class Entry:
    """One image of the tree; what could not be read stays None.

    Lesion is the share of the picture, 0..1; brightness the mean grey level, 0..255, without the letterbox; colours
    the shares of red and of blue.
    """

    split: str
    stem: str
    image: str
    mask: str | None
    height: int | None = None
    width: int | None = None
    category: str | None = None
    lesion: float | None = None
    brightness: float | None = None
    red: float = 0.0
    blue: float = 0.0
    doppler: bool = False
    file_sha256: str = ""
    pixel_sha256: str = ""
    usable: bool = False
    fingerprint: Fingerprint | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        return f"{self.split}/{self.stem}"


def list_tree(root: Path) -> tuple[list[Entry], list[Problem]]:
    """The images of the tree with their masks by stem, and what does not fit."""
    entries, problems = [], []
    for split in SPLITS:
        images, masks = (
            _list_folder(root, f"{split}/{kind}", problems) for kind in ("images", "masks")
        )
        for stem, image in images.items():
            entries.append(Entry(split, stem, image, masks.get(stem)))
            if stem not in masks:
                problems.append(
                    Problem("image without mask", image, f"no {stem}.* in {split}/masks")
                )
        for stem in (stem for stem in masks if stem not in images):
            problems.append(
                Problem("mask without image", masks[stem], f"no {stem}.* in {split}/images")
            )
    return entries, problems


def _list_folder(root: Path, folder: str, problems: list[Problem]) -> dict[str, str]:
    """Stem -> path relative to the root, in natural order; what is no picture or a second one becomes a problem."""
    if not (root / folder).is_dir():
        problems.append(Problem("missing folder", folder, BROKEN["missing folder"]))
        return {}
    found: dict[str, str] = {}
    for path in sorted(
        (root / folder).iterdir(), key=lambda path: (natural_key(path.stem), path.suffix)
    ):
        name = f"{folder}/{path.name}"
        if path.name.startswith(".") or path.suffix.lower() not in SUFFIXES:
            problems.append(Problem("no picture", name, f"expected {', '.join(SUFFIXES)}"))
        elif path.stem in found:
            problems.append(
                Problem("two of one stem", name, f"{found[path.stem]} has the same stem")
            )
        else:
            found[path.stem] = name
    return found


def read_manifest(root: Path, entries: Sequence[Entry], problems: list[Problem]) -> dict[str, Any]:
    """The tree's manifest, or {}; adds the images that only it or only the tree has to the problems."""
    path = root / "manifest.json"
    if not path.exists():
        return {}
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        listed = {f"{item['split']}/{item['stem']}" for item in manifest.get("items", ())}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        problems.append(Problem("unreadable", "manifest.json", f"{type(error).__name__}: {error}"))
        return {}
    for name in (
        sorted(listed ^ {entry.name for entry in entries}, key=natural_key) if listed else ()
    ):
        problems.append(
            Problem("manifest differs", name, f"{'listed' if name in listed else 'there'} only")
        )
    return manifest


def examiner(
    root: Path, threshold: int, names: Sequence[str] | None = None
) -> Callable[[Entry], list[Problem]]:
    """A function that fills an entry and returns its problems.

    Args:
        root: dataset folder.
        threshold: grey values of masks above it are lesion.
        names: of the categories 1, 2, ...; None for those of OTU_2d.
    """
    names = list(names or CATEGORIES.values())

    def examine(entry: Entry) -> list[Problem]:
        problems = [*_examine_image(root, entry), *_examine_mask(root, entry, threshold)]
        problems += _examine_categories(root, entry, names)
        entry.usable = entry.lesion is not None and not any(
            problem.kind in BROKEN for problem in problems
        )
        return problems

    return examine


def _examine_image(root: Path, entry: Entry) -> list[Problem]:
    path = root / entry.image
    try:
        image = read_image(path)
        entry.file_sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    except (InputError, OSError) as error:
        return [Problem("unreadable", entry.image, str(error))]
    entry.height, entry.width = image.shape[:2]
    entry.pixel_sha256 = hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()
    entry.brightness = float(crop_letterbox(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)).mean())
    entry.red, entry.blue = measure_colours(image)
    entry.doppler = is_doppler(entry.red, entry.blue)
    entry.fingerprint = fingerprint(image)
    return []


def _examine_mask(root: Path, entry: Entry, threshold: int) -> list[Problem]:
    if not entry.mask:
        return []
    try:
        grey = np.array(open_picture(root / entry.mask).convert("L"))
    except InputError as error:
        return [Problem("unreadable", entry.mask, str(error))]
    lossy = Path(entry.mask).suffix.lower() in (".jpg", ".jpeg")
    found = mask_problem(grey, threshold, lossy)
    if found:
        return [Problem("no binary mask", entry.mask, found)]
    if entry.height and grey.shape != (entry.height, entry.width):
        sizes = f"{grey.shape[1]} x {grey.shape[0]}, its image {entry.width} x {entry.height}"
        return [Problem("sizes differ", entry.mask, sizes)]
    entry.lesion = float((grey > threshold).mean())
    kind = {0: "empty mask", 1: "full mask"}.get(entry.lesion)
    return [Problem(kind, entry.mask, REMARKS[kind])] if kind else []


def _examine_categories(root: Path, entry: Entry, names: Sequence[str]) -> list[Problem]:
    """Take the category from the map of ids, `categories/<stem>.png`, if there is one."""
    name = f"{entry.split}/categories/{entry.stem}.png"
    if not (root / name).is_file():
        return []
    try:
        ids = np.array(open_picture(root / name))
    except InputError as error:
        return [Problem("unreadable", name, str(error))]
    if entry.height and ids.shape[:2] != (entry.height, entry.width):
        return [
            Problem("sizes differ", name, f"{ids.shape[1]} x {ids.shape[0]}, its image differs")
        ]
    values = [int(value) for value in np.unique(ids) if value]
    if ids.ndim != 2 or len(values) > 1 or max(values, default=0) > len(names):
        return [
            Problem(
                "bad categories",
                name,
                f"holds {first_five(values)}, expected one of 1..{len(names)}",
            )
        ]
    if entry.lesion is not None and bool(values) != (entry.lesion > 0):
        return [Problem("bad categories", name, "its mask is empty and it is not, or the reverse")]
    entry.category = names[values[0] - 1] if values else None
    return []


def measure_colours(image: np.ndarray) -> tuple[float, float]:
    """Share of the pixels of an RGB image, uint8 (H, W, 3), that are saturated red, and blue."""
    red, green, blue = cv2.split(image)
    return (
        float((cv2.subtract(red, cv2.max(green, blue)) > EXCESS).mean()),
        float((cv2.subtract(blue, cv2.max(red, green)) > EXCESS).mean()),
    )


def is_doppler(red: float, blue: float) -> bool:
    """Whether so much of a picture is colour Doppler's red or blue; see the module."""
    return red >= RED_SHARE or blue >= BLUE_SHARE
