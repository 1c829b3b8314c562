"""The pictures of an audit: plots, and contact sheets of copies, samples and colour Doppler."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ovseg.audit.files import Entry
from ovseg.audit.findings import Audit, Copy
from ovseg.core.drawing import TRUTH, caption, contact_sheet, outline, shrink_to
from ovseg.core.files import write_image
from ovseg.core.plots import draw_bars, draw_distributions, save_figure
from ovseg.data.masks import binarise
from ovseg.data.pictures import open_picture, read_image
from ovseg.data.tree import SPLITS

TILE = 200  # side of a picture on a sheet, pixels
# Pictures on a sheet at most:
SAMPLES = 12  # images of a split
PICTURED_COPIES = 48  # pairs
PICTURED_DOPPLER = 40  # images


@dataclass(frozen=True)
class Shown:
    """A picture of a sheet.

    Attributes:
        picture: RGB, uint8 (H, W, 3), with captions.
        text: what it shows.
    """

    picture: np.ndarray
    text: str


def draw_numbers(audit: Audit, folder: Path) -> dict[str, Figure]:
    """Draw `Statistics.png` and the box plots.

    Returns:
        Title -> the figure.
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
    bars = draw_bars(counts, audit.root.resolve().name, "images")
    lesion_boxes = draw_distributions(lesions, "lesion area, % of the picture")
    brightness_boxes = draw_distributions(brightness, "mean grey level")
    save_figure(bars, folder / "Statistics.png")
    save_figure(lesion_boxes, folder / "lesion.png")
    save_figure(brightness_boxes, folder / "brightness.png")
    return {
        "Images per split": bars,
        "Lesion area, % of the picture": lesion_boxes,
        "Mean grey level": brightness_boxes,
    }


def draw_sheets(
    audit: Audit, threshold: int, folder: Path, invert: bool = False
) -> dict[str, list[Shown]]:
    """Draw contact sheets of copies, samples and colour Doppler; what cannot be read is left out.

    Args:
        audit: what was found.
        threshold: grey values of masks above it are lesion.
        folder: where the sheets are written.
        invert: see `ovseg.data.masks.read_mask`.

    Returns:
        Title -> the pictures of the sheet, for the sheets that show something.
    """
    sheets = {}
    across = [copy for copy in audit.copies if copy.across_splits]
    within = [copy for copy in audit.copies if not copy.across_splits]
    for name, title, copies in (
        ("leakage.jpg", "Copies across splits", across),
        ("duplicates.jpg", "Copies within a split", within),
    ):
        rows = [_copy_row(audit.root, copy) for copy in copies[:PICTURED_COPIES]]
        if rows:
            _write_sheet(folder / name, rows, 3)
            sheets[_count(title, rows, copies)] = rows

    for split in SPLITS:
        usable = [entry for entry in audit.entries if entry.split == split and entry.usable]
        chosen = _choose_evenly(usable, SAMPLES)
        rows = [_sample_row(audit.root, entry, threshold, invert) for entry in chosen]
        if rows:
            _write_sheet(folder / f"samples_{split}.jpg", rows, 3)
            sheets[_count(f"Images and masks of {split}", rows, usable)] = rows

    doppler = [entry for entry in audit.entries if entry.doppler]
    tiles = []
    for entry in doppler[:PICTURED_DOPPLER]:
        tiles.append(Shown(_tile(audit.root, entry, entry.name), entry.name))
    if tiles:
        _write_sheet(folder / "doppler.jpg", tiles, 6)
        sheets[_count("Colour Doppler", tiles, doppler)] = tiles
    return sheets


def _write_sheet(path: Path, shown: Sequence[Shown], columns: int) -> None:
    write_image(path, contact_sheet([one.picture for one in shown], columns))


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


def _copy_row(root: Path, copy: Copy) -> Shown:
    """Both images side by side with split, stem and similarity."""
    how = copy.rotation or copy.kind
    first = _tile(root, copy.first, f"{copy.first.name}  {copy.similarity:.2f}")
    second = _tile(root, copy.second, f"{copy.second.name}  {how}")
    text = f"{copy.first.name} and {copy.second.name}: {how}, similarity {copy.similarity:.2f}"
    return Shown(_side_by_side(first, second), text)


def _sample_row(root: Path, entry: Entry, threshold: int, invert: bool) -> Shown:
    """The image with the lesion's outline beside its mask."""
    assert entry.mask is not None  # as of every usable entry
    image = read_image(root / entry.image)
    grey = np.array(open_picture(root / entry.mask).convert("L"))
    lesion = binarise(grey, threshold, invert)
    white = lesion[..., None] * np.uint8(255)
    mask = np.repeat(white, 3, axis=2)
    area = f"lesion {entry.lesion:.1%}"
    picture = _side_by_side(
        caption(shrink_to(outline(image, lesion, TRUTH), TILE), entry.name),
        caption(shrink_to(mask, TILE), area),
    )
    return Shown(picture, f"{entry.name}, {area}")


def _side_by_side(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Two pictures of one height, with a white line to the right."""
    line = np.full((left.shape[0], 4, 3), 255, np.uint8)
    return np.concatenate([left, right, line], axis=1)
