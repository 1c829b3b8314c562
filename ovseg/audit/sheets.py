"""The pictures of an audit: plots, and contact sheets of copies, samples and colour Doppler."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ovseg.audit.files import Entry
from ovseg.audit.findings import Audit, Copy
from ovseg.core.drawing import TRUTH, caption, contact_sheet, outline, shrink_to
from ovseg.core.files import write_image
from ovseg.core.plots import draw_bars, draw_distributions
from ovseg.data.masks import binarise
from ovseg.data.pictures import open_picture, read_image
from ovseg.data.tree import SPLITS

TILE = 200  # side of a picture on a sheet, pixels
# Pictures on a sheet at most:
SAMPLES = 12  # images of a split
PICTURED_COPIES = 48  # pairs
PICTURED_DOPPLER = 40  # images


def draw_numbers(audit: Audit, folder: Path) -> dict[str, str]:
    """Draw `Statistics.png` and the box plots.

    Returns:
        Title -> name of the file.
    """
    counts = dict.fromkeys(SPLITS, 0)
    lesions: dict[str, list[float]] = {split: [] for split in SPLITS}
    brightness: dict[str, list[float]] = {split: [] for split in SPLITS}
    for entry in audit.entries:
        counts[entry.split] += 1
        if entry.lesion is not None:
            lesions[entry.split].append(100 * entry.lesion)
        if entry.brightness is not None:
            brightness[entry.split].append(entry.brightness)
    draw_bars(counts, audit.root.resolve().name, "images", folder / "Statistics.png")
    draw_distributions(lesions, "lesion area, % of the picture", folder / "lesion.png")
    draw_distributions(brightness, "mean grey level", folder / "brightness.png")
    return {
        "Images per split": "Statistics.png",
        "Lesion area, % of the picture": "lesion.png",
        "Mean grey level": "brightness.png",
    }


def draw_sheets(audit: Audit, threshold: int, folder: Path, invert: bool = False) -> dict[str, str]:
    """Draw contact sheets of copies, samples and colour Doppler; what cannot be read is left out.

    Args:
        audit: what was found.
        threshold: grey values of masks above it are lesion.
        folder: where the sheets are written.
        invert: see `ovseg.data.masks.read_mask`.

    Returns:
        Title -> name of the file, for the sheets that show something.
    """
    sheets = {}
    across = [copy for copy in audit.copies if copy.across_splits]
    within = [copy for copy in audit.copies if not copy.across_splits]
    for name, title, copies in (
        ("leakage.jpg", "Copies across splits", across),
        ("duplicates.jpg", "Copies within a split", within),
    ):
        shown = copies[:PICTURED_COPIES]
        if shown:
            rows = [_copy_row(audit.root, copy) for copy in shown]
            write_image(folder / name, contact_sheet(rows, columns=3))
            sheets[_count(title, shown, copies)] = name

    for split in SPLITS:
        usable = [entry for entry in audit.entries if entry.split == split and entry.usable]
        chosen = _choose_evenly(usable, SAMPLES)
        if chosen:
            name = f"samples_{split}.jpg"
            rows = [_sample_row(audit.root, entry, threshold, invert) for entry in chosen]
            write_image(folder / name, contact_sheet(rows, columns=3))
            sheets[_count(f"Images and masks of {split}", chosen, usable)] = name

    doppler = [entry for entry in audit.entries if entry.doppler]
    pictured = doppler[:PICTURED_DOPPLER]
    if pictured:
        tiles = [_tile(audit.root, entry, entry.name) for entry in pictured]
        write_image(folder / "doppler.jpg", contact_sheet(tiles, columns=6))
        sheets[_count("Colour Doppler", pictured, doppler)] = "doppler.jpg"
    return sheets


def _choose_evenly(entries: Sequence[Entry], count: int) -> list[Entry]:
    """At most `count` entries, evenly from first to last."""
    indices = np.linspace(0, len(entries) - 1, min(count, len(entries))).astype(int)
    return [entries[index] for index in indices]


def _count(title: str, shown: Sequence, found: Sequence) -> str:
    text = f"{title}: {len(found)}"
    if len(shown) < len(found):
        text = f"{text}, {len(shown)} of them shown"
    return text


def _tile(root: Path, entry: Entry, text: str) -> np.ndarray:
    return caption(shrink_to(read_image(root / entry.image), TILE), text)


def _copy_row(root: Path, copy: Copy) -> np.ndarray:
    """Both images side by side with split, stem and similarity."""
    first = _tile(root, copy.first, f"{copy.first.name}  {copy.similarity:.2f}")
    second = _tile(root, copy.second, f"{copy.second.name}  {copy.rotation or copy.kind}")
    return _side_by_side(first, second)


def _sample_row(root: Path, entry: Entry, threshold: int, invert: bool) -> np.ndarray:
    """The image with the lesion's outline beside its mask."""
    assert entry.mask is not None  # as of every usable entry
    image = read_image(root / entry.image)
    grey = np.array(open_picture(root / entry.mask).convert("L"))
    lesion = binarise(grey, threshold, invert)
    white = lesion[..., None] * np.uint8(255)
    mask = np.repeat(white, 3, axis=2)
    return _side_by_side(
        caption(shrink_to(outline(image, lesion, TRUTH), TILE), entry.name),
        caption(shrink_to(mask, TILE), f"lesion {entry.lesion:.1%}"),
    )


def _side_by_side(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Two pictures of one height, with a white line to the right."""
    line = np.full((left.shape[0], 4, 3), 255, np.uint8)
    return np.concatenate([left, right, line], axis=1)
