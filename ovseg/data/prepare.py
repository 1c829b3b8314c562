"""The official OTU_2d download to a dataset tree: squares, binary masks, category ids, a split and a manifest."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ovseg.data.geometry import FITS, fit_box, place
from ovseg.data.pairs import list_images, map_with_progress, natural_key, open_picture, read_image, read_mask
from ovseg.errors import InputError, choose, first_five
from ovseg.files import atomic_dir, check_output_dir, write_image, write_json

# The colours and the order of the download's own label files (labels 0..7); ids in our masks are one higher, 0 is none.
CATEGORIES = {
    (64, 0, 0): "chocolate cyst",
    (0, 64, 0): "serous cystadenoma",
    (0, 0, 64): "teratoma",
    (64, 0, 64): "theca cell tumour",
    (64, 64, 0): "simple cyst",
    (64, 64, 64): "normal ovary",
    (0, 128, 0): "mucinous cystadenoma",
    (0, 0, 128): "high-grade serous cystadenoma",
}
FRACTIONS = {"train": 0.8, "valid": 0.1, "test": 0.1}
KINDS = ("images", "masks", "categories")
BLOCK = 20  # neighbouring numbers kept together: three quarters of the near-duplicates are at most 2 apart


@dataclass(frozen=True)
class Source:
    """One image of the download: its annotation in colours, and the binary one where it is present."""

    stem: str
    image_path: Path
    annotation_path: Path
    binary_path: Path | None


def prepare_dataset(
    source: Path,
    output: Path,
    size: int = 512,
    fit: str = "letterbox",
    split: str = "auto",
    seed: int = 42,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write `{train,valid,test}/{images,masks,categories}/<stem>.png` and `manifest.json`.

    Images are RGB (area when shrinking, cubic when enlarging), masks 0/255, category maps 0 (none) and 1..8 (nearest).
    A file that can't be used is named in the manifest's `failures` and stops nothing else.

    Args:
        source: folder with `images/N.JPG` and `annotations/N.PNG`; `N_binary.PNG`, `train.txt`, `val.txt` if present.
        output: folder to make; it appears when it is whole. Run again with the same source and settings, nothing is
            done and the manifest is returned.
        size: side of the squares, pixels, 16..8192.
        fit: see `ovseg.data.geometry.fit_box`.
        split: `blocks` deals blocks of neighbouring numbers 80 : 10 : 10; `official` takes val.txt as test and an
            eighth of train.txt, in blocks, as valid; `auto` is official where both lists are present.
        seed: of the dealing.
        overwrite: replace an earlier dataset.

    Returns:
        The manifest.

    Raises:
        InputError: the source is not that layout, a setting is out of range, no pair is usable, or output exists.
    """
    source, output = Path(source), Path(output)
    if not 16 <= size <= 8192:
        raise InputError(f"--size is {size}, expected 16..8192.")
    if not 0 <= seed < 2**32:
        raise InputError(f"--seed is {seed}, expected 0..{2**32 - 1}.")
    choose("fit", fit, FITS)
    items, alone = find_sources(source)
    split = split if split != "auto" else "official" if _has_lists(source) else "blocks"
    splits = choose("split", split, SPLITTERS)(source, [item.stem for item in items], seed)
    settings = {"size": size, "fit": fit, "split": split, "seed": seed, "source_files": _fingerprint(items)}
    if not overwrite and _settings_of(output) == settings:
        return json.loads((output / "manifest.json").read_text(encoding="utf-8"))
    check_output_dir(output, overwrite, marker="manifest.json")
    with atomic_dir(output, overwrite, "manifest.json", inputs=[source]) as folder:
        results = map_with_progress(_writer(folder, splits, size, fit), items, "Preparing pairs")
        entries = [result for result in results if isinstance(result, dict)]
        if not entries:
            raise InputError(f"None of the {len(items)} pairs in {source} can be used: {first_five(results)}")
        failures = [*alone, *(result for result in results if isinstance(result, str))]
        manifest = {"made_by": "prepare_data", **settings, "categories": list(CATEGORIES.values())}
        manifest.update(failures=failures, items=entries)
        write_json(folder / "manifest.json", manifest)
    return manifest


def find_sources(source: Path) -> tuple[list[Source], list[str]]:
    """Match images and annotations of the download by stem.

    Returns:
        The pairs in natural order, and a message for each file without its partner.

    Raises:
        InputError: a folder is missing or empty, or nothing matches.
    """
    if not source.is_dir():
        raise InputError(
            f"There is no folder {source}. Name the unpacked download, which holds images and annotations."
        )
    images, annotations = list_images(source / "images"), list_images(source / "annotations")
    binary = {stem.removesuffix("_binary"): path for stem, path in annotations.items() if stem.endswith("_binary")}
    colour = {stem: path for stem, path in annotations.items() if not stem.endswith("_binary")}
    alone = [f"{path} has no annotation of its stem." for stem, path in images.items() if stem not in colour]
    alone += [f"{path} has no image of its stem." for stem, path in colour.items() if stem not in images]
    items = [Source(stem, path, colour[stem], binary.get(stem)) for stem, path in images.items() if stem in colour]
    if not items:
        raise InputError(f"No image in {source} has an annotation of its stem: {first_five(alone)}")
    return items, alone


def read_categories(path: Path) -> tuple[np.ndarray, int]:
    """A colour annotation as ids.

    Returns:
        Category map, uint8 (H, W), 0 or the id; and that id, 1..8, or 0 where the annotation is empty.

    Raises:
        InputError: unreadable, a colour that is no category's, or two categories.
    """
    rgb = np.array(open_picture(path).convert("RGB"))
    codes = rgb.astype(np.uint32) @ np.array([65536, 256, 1], np.uint32)
    colours = [(int(code) >> 16, int(code) >> 8 & 255, int(code) & 255) for code in np.unique(codes) if code]
    unknown = [colour for colour in colours if colour not in CATEGORIES]
    if unknown:
        raise InputError(f"{path} has {len(unknown)} colours of no category: {first_five(unknown)}. Mend or remove it.")
    if len(colours) > 1:
        names = first_five(CATEGORIES[colour] for colour in colours)
        raise InputError(f"{path} has {len(colours)} categories, expected one: {names}. Mend or remove it.")
    category = list(CATEGORIES).index(colours[0]) + 1 if colours else 0
    return (codes > 0).astype(np.uint8) * np.uint8(category), category


def _writer(folder: Path, splits: dict[str, str], size: int, fit: str) -> Callable[[Source], dict[str, Any] | str]:
    """A function that writes one pair and returns its manifest entry, or why the pair can't be used."""

    def write(item: Source) -> dict[str, Any] | str:
        try:
            image, (categories, category) = read_image(item.image_path), read_categories(item.annotation_path)
            mask = read_mask(item.binary_path, 0) if item.binary_path else (categories > 0).astype(np.uint8)
        except InputError as error:
            return str(error)
        if not image.shape[:2] == categories.shape == mask.shape:
            sizes = f"{image.shape[:2]}, {categories.shape}, {mask.shape}"
            return f"{item.image_path}, its annotation and its mask differ in size ({sizes}). Mend or remove them."
        split = splits[item.stem]
        for kind, picture in zip(KINDS, (image, mask * np.uint8(255), categories), strict=True):
            write_image(folder / split / kind / f"{item.stem}.png", place(picture, size, fit))
        return {
            "stem": item.stem,
            "split": split,
            "source": f"images/{item.image_path.name}",
            "height": image.shape[0],
            "width": image.shape[1],
            "box": asdict(fit_box(*image.shape[:2], size, fit)),
            "category": category,
        }

    return write


def _fingerprint(items: list[Source]) -> dict[str, int]:
    """Number and total size in bytes of the source files: changes when files come, go or are mended."""
    paths = [p for item in items for p in (item.image_path, item.annotation_path, item.binary_path) if p]
    return {"count": len(paths), "bytes": sum(path.stat().st_size for path in paths)}


def _settings_of(output: Path) -> dict[str, Any] | None:
    """The settings that an earlier, undamaged dataset was made with, or None."""
    try:
        manifest = json.loads((output / "manifest.json").read_text(encoding="utf-8"))
        items = [(output / item["split"], f"{item['stem']}.png") for item in manifest["items"]]
        if not all((folder / kind / name).is_file() for folder, name in items for kind in KINDS):
            return None
        return {name: manifest[name] for name in ("size", "fit", "split", "seed", "source_files")}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _has_lists(source: Path) -> bool:
    found = [name for name in ("train.txt", "val.txt") if (source / name).is_file()]
    if len(found) == 1:
        raise InputError(f"{source} has {found[0]} but not the other of train.txt and val.txt. Add it or remove both.")
    return bool(found)


def _deal_blocks(stems: list[str], fractions: dict[str, float], seed: int) -> dict[str, str]:
    """Deal blocks of neighbouring stems to splits, seeded: always to the split that is furthest below its share."""
    ordered = sorted(stems, key=natural_key)
    size = min(BLOCK, max(1, len(ordered) // 10))
    blocks = [ordered[i : i + size] for i in range(0, len(ordered), size)]
    np.random.default_rng(seed).shuffle(blocks)
    counts, result = dict.fromkeys(fractions, 0), {}
    for block in blocks:
        split = max(fractions, key=lambda name: fractions[name] * len(stems) - counts[name])
        counts[split] += len(block)
        result.update(dict.fromkeys(block, split))
    return result


def _split_blocks(source: Path, stems: list[str], seed: int) -> dict[str, str]:
    return _deal_blocks(stems, FRACTIONS, seed)


def _split_official(source: Path, stems: list[str], seed: int) -> dict[str, str]:
    """val.txt is test; an eighth of train.txt, in blocks, is valid."""
    if not _has_lists(source):
        raise InputError(f"--split official needs train.txt and val.txt in {source}. Use --split blocks.")
    lists = {name: (source / name).read_text(encoding="utf-8").split() for name in ("train.txt", "val.txt")}
    listed = [Path(stem).stem if "." in stem else stem for names in lists.values() for stem in names]
    wrong = sorted((set(listed) ^ set(stems)) | {stem for stem in listed if listed.count(stem) > 1}, key=natural_key)
    if wrong:
        raise InputError(
            f"{len(wrong)} stems in {source} are not in exactly one of train.txt and val.txt, or have no image: "
            f"{first_five(wrong)}. Mend the lists or use --split blocks."
        )
    train = [stem for stem in stems if stem in set(listed[: len(lists["train.txt"])])]
    return _deal_blocks(train, {"train": 7 / 8, "valid": 1 / 8}, seed) | {
        stem: "test" for stem in stems if stem not in set(train)
    }


SPLITTERS: dict[str, Callable[[Path, list[str], int], dict[str, str]]] = {
    "blocks": _split_blocks,
    "official": _split_official,
}
