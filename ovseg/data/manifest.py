"""What `manifest.json` says about a dataset: how it was prepared, and what each image shows.

The only reader of the file. What it holds, all of it optional:
    made_by: "prepare_data" or "phantoms"; phantoms also have their `count`, `size` and `seed`.
    fit: how pictures were placed in their square, see `ovseg.data.boxes.FITS`.
    leakage: whether near-duplicates of one examination are in two splits.
    categories: the names of categories 1, 2, ...
    items: one entry an image, with its `stem` and `split`; where known, also `category` (an id, 0
        for an empty mask), `fold` (None in test), `group` (of near-duplicates), and the original
        `height` and `width` with the `box` that the picture fills in its square; `class`, that of
        its folder, and `patient`.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct, UnsetType

from ovseg.core.errors import InputError, first_five
from ovseg.core.schema import read_json
from ovseg.data.boxes import Box, has_border
from ovseg.data.pairs import Pair, normal_stem

FILE_NAME = "manifest.json"
DEFAULT_FOLDS = 5

Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Size = Annotated[int, Meta(ge=1, le=2**31 - 1)]


class BoxEntry(Struct):
    """Where the picture lies in its square, see `ovseg.data.boxes.Box`."""

    top: Count
    left: Count
    height: Size
    width: Size


class Item(Struct):
    """An image. What is not known is absent, not null; only `fold` is null in test."""

    stem: str
    split: str
    category: Count | UnsetType = UNSET
    fold: Count | None = None
    group: int | str | UnsetType = UNSET
    height: Size | UnsetType = UNSET
    width: Size | UnsetType = UNSET
    box: BoxEntry | UnsetType = UNSET


class Manifest(Struct):
    """The whole file, see above."""

    made_by: str | UnsetType = UNSET
    count: Size | UnsetType = UNSET
    size: Size | UnsetType = UNSET
    seed: Count | UnsetType = UNSET
    fit: str | UnsetType = UNSET
    leakage: bool | UnsetType = UNSET
    categories: list[str] = []
    items: list[Item] = []


def read_manifest(root: Path) -> dict[str, Any]:
    """The manifest of a dataset; empty where there is none, as in the baseline's layout.

    Raises:
        InputError: it can't be read, or is not what our commands write.
    """
    path = Path(root) / FILE_NAME
    if not path.exists():
        return {}

    remedy = "Prepare the dataset again."
    manifest = read_json(path, Manifest, "prepare_data", remedy)
    if manifest.get("made_by") == "phantoms" and not {"count", "size", "seed"} <= manifest.keys():
        raise InputError(
            f"{path} is not what make_phantoms writes (no count, size or seed). Make them again."
        )
    known = len(manifest.get("categories", []))
    for number, item in enumerate(manifest.get("items", [])):
        item["stem"] = normal_stem(item["stem"])
        category = item.get("category", 0)
        if category > known:
            raise InputError(
                f"{path} is not what prepare_data writes (item {number} has the category "
                f"{category}, expected 0..{known}). {remedy}"
            )
        if "box" in item and not {"height", "width"} <= item.keys():
            raise InputError(
                f"{path} is not what prepare_data writes (item {number} has a box, but not the "
                f"picture's height and width). {remedy}"
            )
    return manifest


def prepared_items(root: Path) -> dict[str, dict[str, Any]]:
    """Stem -> manifest entry of each picture that was placed in a square.

    An entry has `height`, `width` and `box`. Empty for a tree of pictures as they are: the
    baseline's layout, phantoms.
    """
    items = read_manifest(root).get("items", [])
    return {item["stem"]: item for item in items if "box" in item}


def image_groups(root: Path) -> dict[str, int | str]:
    """Stem -> group of near-duplicates, of a dataset whose manifest has groups; else empty."""
    items = read_manifest(root).get("items", [])
    return {item["stem"]: item["group"] for item in items if "group" in item}


def check_manifest(root: Path, fit: str, classes: int, names: Sequence[str] | None = None) -> None:
    """Refuse settings that do not go with a dataset.

    Args:
        root: the dataset's folder.
        fit: how pictures are to be placed.
        classes: 1, or the number of background and categories.
        names: see `category_names`.

    Raises:
        InputError: it has other categories, or stretched pictures are to be letterboxed: inference
            would place pictures otherwise than training did.
    """
    category_names(root, classes, names)

    prepared = read_manifest(root).get("fit", fit)
    if has_border(fit) and not has_border(prepared):
        raise InputError(
            f"{root} was prepared with --fit {prepared}, but data.fit is {fit}. "
            f"Set data.fit: {prepared}."
        )


def count_phantoms(root: Path) -> int | None:
    """How many phantoms a dataset has; None for a dataset of other pictures."""
    manifest = read_manifest(root)
    return manifest["count"] if manifest.get("made_by") == "phantoms" else None


def cut_borders(pairs: list[Pair], root: Path, fit: str) -> list[Pair]:
    """Leave out the borders of a letterboxed dataset where another `fit` is wanted.

    So the picture alone is stretched, as inference does with the original.

    Returns:
        The pairs, each with the box of its picture; without boxes where borders are wanted or
        there are none.

    Raises:
        InputError: the manifest does not say where a picture lies.
    """
    prepared = read_manifest(root).get("fit", fit)
    if has_border(fit) or not has_border(prepared):
        return pairs

    items = prepared_items(root)
    unknown = [pair.stem for pair in pairs if pair.stem not in items]
    if unknown:
        raise InputError(
            f"{FILE_NAME} of {root} does not say where the pictures of {len(unknown)} stems lie: "
            f"{first_five(unknown)}. Prepare the dataset again, or set data.fit: {prepared}."
        )

    pairs_with_box = []
    for pair in pairs:
        box = Box(**items[pair.stem]["box"])
        pairs_with_box.append(replace(pair, box=box))
    return pairs_with_box


def refuse_borders(images: Path, fit: str) -> None:
    """Refuse letterboxed pictures where a run stretches: it would stretch their borders too.

    Args:
        images: a folder of pictures, which may be `{train,valid,test}/images` of a prepared
            dataset.
        fit: of the run.

    Raises:
        InputError: they are such pictures.
    """
    root = Path(images).absolute().parent.parent
    prepared = read_manifest(root).get("fit", fit)
    if has_border(prepared) != has_border(fit):
        raise InputError(
            f"{images} holds pictures that were prepared with --fit {prepared}, but the run places "
            f"pictures with {fit}. Give the original pictures, or score the dataset with "
            "ovseg evaluate."
        )


def labels_dir(root: Path, split: str, classes: int) -> Path:
    """The folder of a split's masks, or of its category maps.

    Raises:
        InputError: there are no category maps.
    """
    if classes == 1:
        return Path(root) / split / "masks"

    folder = Path(root) / split / "categories"
    if not folder.is_dir():
        raise InputError(
            f"data.classes is {classes}, but there is no folder {folder} of category maps. Put a "
            f"PNG of ids there for each image, 0 (background) to {classes - 1}, or set "
            "data.classes: 1."
        )
    return folder


def category_names(root: Path, classes: int, names: Sequence[str] | None = None) -> list[str]:
    """The names of categories 1, 2, ... of a dataset used with `classes` classes; none for one.

    Args:
        root: the dataset's folder.
        classes: 1, or the number of background and categories.
        names: given by the user; None takes those of the manifest, or `category 1`, `category 2`,
            ... where it has none.

    Raises:
        InputError: there is another number of names, or a name is given twice.
    """
    if names is not None:
        if len(names) != classes - 1:
            raise InputError(
                f"data.category_names has {len(names)} names, but data.classes is {classes}. "
                f"Set data.classes: {len(names) + 1} (background and categories)."
            )
        if len(set(names)) < len(names):
            raise InputError("data.category_names has a name twice. Give each category its own.")
        return list(names)
    if classes == 1:
        return []

    found = read_manifest(root).get("categories", [])
    if not found:
        return default_names(classes - 1)
    if len(found) != classes - 1:
        raise InputError(
            f"data.classes is {classes}, but {root} has {len(found)} categories. "
            f"Set data.classes: {len(found) + 1} (background and categories) or 1 (lesion)."
        )
    return found


def default_names(count: int) -> list[str]:
    """The names of categories that nobody has named."""
    return [f"category {number}" for number in range(1, count + 1)]


def image_categories(root: Path, *splits: str) -> dict[str, str]:
    """Stem -> name of its lesion's category, `none` for an empty mask.

    Args:
        root: a dataset.
        splits: the folders whose images are wanted; images without a category are left out.
    """
    manifest = read_manifest(root)
    names = ["none", *manifest.get("categories", [])]

    categories = {}
    for item in manifest.get("items", []):
        if item["split"] in splits and "category" in item:
            categories[item["stem"]] = names[item["category"]]
    return categories


def read_folds(root: Path, count: int | None = None) -> dict[tuple[str, str], int]:
    """(split, stem) -> fold, 0, 1, ..., of every image of train and valid.

    Args:
        root: a dataset prepared with folds.
        count: how many folds are expected; any by default.

    Raises:
        InputError: no manifest, no folds in it, or another number of them; the message has the
            command to run.
    """
    manifest = read_manifest(root)

    folds = {}
    for item in manifest.get("items", []):
        if item.get("fold") is not None:
            folds[item["split"], item["stem"]] = item["fold"]

    found = len(set(folds.values()))
    if found and count in (None, found):
        return folds

    if found:
        problem = f"{found} folds, expected {count}"
    elif manifest:
        problem = "no folds"
    else:
        problem = f"no {FILE_NAME}, which lists the folds"
    command = _preparing_command(root, manifest)
    raise InputError(
        f"{root} has {problem}. Make it with folds: {command} --folds {count or DEFAULT_FOLDS} "
        "--overwrite."
    )


def _preparing_command(root: Path, manifest: dict[str, Any]) -> str:
    """The command that makes a dataset."""
    if manifest.get("made_by") != "phantoms":
        return f"ovseg prepare_data --source OTU_2d --output {root}"

    command = f"ovseg make_phantoms --output {root}"
    for name in ("count", "size", "seed"):
        command += f" --{name} {manifest[name]}"
    return command
