"""What `manifest.json` says about a dataset: how it was prepared, and which category each image shows."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from ovseg.core.errors import InputError, first_five
from ovseg.data.geometry import Box
from ovseg.data.pairs import Pair


def read_manifest(root: Path) -> dict[str, Any]:
    """The manifest of a dataset; empty where there is none, as in the baseline's layout.

    Raises:
        InputError: it is not the JSON that our commands write.
    """
    path = Path(root) / "manifest.json"
    if not path.is_file():
        return {}
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        manifest = None
    if not isinstance(manifest, dict):
        raise InputError(
            f"{path} is not the JSON that prepare_data writes. Prepare the dataset again."
        )
    return manifest


def prepared_items(root: Path) -> dict[str, dict[str, Any]]:
    """Stem -> what the manifest says of a picture that was placed in a square (`height`, `width`, `box`).

    Empty for a tree of pictures as they are: the baseline's layout, phantoms.
    """
    return {item["stem"]: item for item in read_manifest(root).get("items", []) if "box" in item}


def check_manifest(root: Path, fit: str, classes: int) -> None:
    """Refuse settings that do not go with a dataset.

    Raises:
        InputError: it has other categories, or stretched pictures are to be letterboxed: inference would place
            pictures otherwise than training did.
    """
    category_names(root, classes)
    prepared = read_manifest(root).get("fit", fit)
    if prepared != fit and prepared != "letterbox":
        raise InputError(
            f"{root} was prepared with --fit {prepared}, but data.fit is {fit}. Set data.fit: {prepared}."
        )


def cut_borders(pairs: list[Pair], root: Path, fit: str) -> list[Pair]:
    """Pairs of a dataset that was prepared with letterbox, with the box of each picture if another `fit` is wanted.

    So the picture alone is stretched, as inference does with the original; the border was none of its own.

    Raises:
        InputError: the manifest does not say where a picture lies.
    """
    prepared = read_manifest(root).get("fit", fit)
    if prepared == fit:
        return pairs
    boxes = {stem: Box(**item["box"]) for stem, item in prepared_items(root).items()}
    unknown = [pair.stem for pair in pairs if pair.stem not in boxes]
    if unknown:
        raise InputError(
            f"manifest.json of {root} does not tell where the pictures of {len(unknown)} stems lie: "
            f"{first_five(unknown)}. Prepare the dataset again, or set data.fit: {prepared}."
        )
    return [replace(pair, box=boxes[pair.stem]) for pair in pairs]


def check_bordered(images: Path, fit: str) -> None:
    """Refuse pictures that `prepare_data` letterboxed where a run stretches: it would stretch their borders too.

    Args:
        images: a folder of pictures, which may be `{train,valid,test}/images` of a prepared dataset.
        fit: of the run.

    Raises:
        InputError: they are such pictures.
    """
    root = Path(images).absolute().parent.parent
    prepared = read_manifest(root).get("fit", fit)
    if prepared != fit:
        raise InputError(
            f"{images} holds pictures that were prepared with --fit {prepared}, but the run places pictures with "
            f"{fit}. Give the original pictures, or score the dataset with ovseg evaluate."
        )


def labels_dir(root: Path, split: str, classes: int) -> Path:
    """The folder of a split's masks, or of its category maps.

    Raises:
        InputError: there are no category maps.
    """
    folder = Path(root) / split / ("masks" if classes == 1 else "categories")
    if classes > 1 and not folder.is_dir():
        raise InputError(
            f"data.classes is {classes}, but there is no folder {folder} of category maps. Prepare the dataset again, "
            "from colour annotations, or set data.classes: 1."
        )
    return folder


def category_names(root: Path, classes: int) -> list[str]:
    """The names of categories 1, 2, ... of a dataset that is used with this many classes; none for one class.

    Raises:
        InputError: the manifest does not name categories, or another number of them.
    """
    if classes == 1:
        return []
    names = read_manifest(root).get("categories")
    if not names:
        raise InputError(
            f"data.classes is {classes}, but {root} has no manifest.json that names categories. Prepare the dataset "
            "again, from colour annotations, or set data.classes: 1."
        )
    if len(names) != classes - 1:
        raise InputError(
            f"data.classes is {classes}, but {root} has {len(names)} categories. "
            f"Set data.classes: {len(names) + 1} (background and categories) or 1 (lesion)."
        )
    return list(names)


def image_categories(root: Path, *splits: str) -> dict[str, str]:
    """Stem -> name of its lesion's category (`none` for an empty mask), of the images whose manifest tells it."""
    manifest = read_manifest(root)
    names = ["none", *manifest.get("categories", [])]
    items = [
        item for item in manifest.get("items", []) if item["split"] in splits and "category" in item
    ]
    return {item["stem"]: names[item["category"]] for item in items}


def read_folds(root: Path, count: int | None = None) -> dict[tuple[str, str], int]:
    """(split, stem) -> fold, 0, 1, ..., of every image of train and valid.

    Args:
        root: a dataset prepared with folds.
        count: how many folds are expected; any by default.

    Raises:
        InputError: no manifest, no folds in it, or another number of them; the message has the command to run.
    """
    manifest = read_manifest(root)
    items = [item for item in manifest.get("items", []) if item.get("fold") is not None]
    folds = {(item["split"], item["stem"]): int(item["fold"]) for item in items}
    found, wanted = len(set(folds.values())), count or 5
    if found and found == (count or found):
        return folds
    what = f"{found} folds, expected {count}" if found else "no folds"
    what = what if manifest else "no manifest.json, which tells the folds"
    command = f"prepare_data.py --source OTU_2d --output {root} --folds {wanted}"
    if manifest.get("made_by") == "phantoms":
        options = " ".join(f"--{name} {manifest[name]}" for name in ("count", "size", "seed"))
        command = f"make_phantoms.py --output {root} {options} --folds {wanted}"
    raise InputError(
        f"{root} has {what}. Make it with folds: python scripts/{command} --overwrite."
    )
