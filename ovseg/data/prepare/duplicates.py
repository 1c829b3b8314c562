"""Near-duplicates: images of one examination, found by their content and by neighbouring numbers.

The similarity of two images is the mean of two detectors, both on a crop without the letterbox: the correlation of
32 x 32 thumbnails, highest over small shifts, and the agreement of 256-bit perceptual hashes (ImageHash). The first
bears shifts, the second has the finer grain; calipers, text and gain hardly move either. A correlation that is 0.3
above the threshold is enough alone. Similarity is 1 for the same picture and about 0 for strangers. Groups are the
connected components.

The thresholds come from the 1,218 images of OTU_2d at hand. There are no patient ids, so wrong pairs were counted in
two ways: by chance, which is the share of the pairs more than 50 numbers apart that reach the threshold (an upper
bound, since some of those are right), and by eye on contact sheets of the pairs next to it.

- Numbers at most 2 apart, 0.30: 508 of 2,097 pairs, 38 by chance; of the 48 between 0.34 and 0.40 about 40 looked
  right.
- 3 to 10 apart, 0.42: 65 of 8,071 pairs, 7 by chance; 19 of the 26 between 0.42 and 0.50 looked right, below 13 of 22.
- Any other, 0.55: 46 of 730,985 pairs; of 22 between 0.55 and 0.72 16 looked right, of 42 between 0.50 and 0.55 three.
  What is wrong there are large cysts that look alike; grouping them costs nothing but freedom of the split.

Either detector alone is weaker: where 500 of the distant pairs pass, 227 pairs at most 2 apart pass by the mean, 218 by
the hash and 192 by the correlation. The groups do not chain: 471 images are alone, the largest group has 19 (round
cysts), the next 12. Two frames of one examination that show different planes are not found by any of this, nor a pair
of which a label outside the sector misleads the crop (104 and 105: 0.33 as they are, 0.63 at 192 pixels).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import imagehash
import numpy as np
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ovseg.core.console import progress_bar
from ovseg.data.pairs import list_images, map_with_progress, read_image

THRESHOLDS = {
    2: 0.30,
    10: 0.42,
    math.inf: 0.55,
}  # largest difference of two numbers -> smallest similarity
SIDE, SHIFT = 32, 3  # of thumbnails, pixels: shifts up to a tenth of the picture
DETAIL = (
    4.0  # pixels of a thumbnail; what is smoother (the sector, depth gain) is common to strangers
)
ALONE = 0.3  # what a correlation loses that the hash does not support: a shift by a twentieth of the picture ruins it
ROWS = 512  # images compared with all others at a time: bounds the memory

TURNED = 0.9  # smallest correlation of a copy in another orientation; see `find_turned_copies`
ORIENTATIONS = {
    "turned by 90": lambda thumbnails: np.rot90(thumbnails, 1, (1, 2)),
    "turned by 180": lambda thumbnails: np.rot90(thumbnails, 2, (1, 2)),
    "turned by 270": lambda thumbnails: np.rot90(thumbnails, 3, (1, 2)),
    "mirrored": lambda thumbnails: thumbnails[:, :, ::-1],
    "upside down": lambda thumbnails: thumbnails[:, ::-1],
    "transposed": lambda thumbnails: thumbnails.transpose(0, 2, 1),
    "transposed across": lambda thumbnails: np.rot90(thumbnails, 2, (1, 2)).transpose(0, 2, 1),
}

NearDuplicate = tuple[int, int, float]


@dataclass(frozen=True)
class Fingerprint:
    """What is compared of an image: a band-pass thumbnail, float32 (32, 32), and a perceptual hash, bool (256,)."""

    thumbnail: np.ndarray
    bits: np.ndarray


def fingerprint(image: np.ndarray) -> Fingerprint:
    """The fingerprint of an RGB image, uint8 (H, W, 3)."""
    grey = crop_letterbox(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))
    thumbnail = cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
    bits = imagehash.phash(Image.fromarray(grey), hash_size=16).hash.ravel()
    return Fingerprint(thumbnail - cv2.GaussianBlur(thumbnail, (0, 0), DETAIL), bits)


def fingerprint_files(paths: Sequence[Path]) -> list[Fingerprint]:
    """The fingerprints of picture files; raises as `ovseg.data.pairs.read_image`."""
    return map_with_progress(
        lambda path: fingerprint(read_image(path)), list(paths), "Comparing images"
    )


def find_near_duplicates(
    fingerprints: Sequence[Fingerprint], stems: Sequence[str]
) -> list[NearDuplicate]:
    """All pairs of images that are similar enough for how far apart their numbers are.

    Args:
        fingerprints: of the images.
        stems: their stems; two that are numbers are that far apart, others infinitely far.

    Returns:
        (i, j, similarity), i < j, in order of i and j.
    """
    if not fingerprints:
        return []
    thumbnails = np.stack([each.thumbnail for each in fingerprints])
    signs = np.stack([each.bits for each in fingerprints]).astype(np.float32) * 2 - 1
    numbers = np.array([float(stem) if stem.isdecimal() else math.nan for stem in stems])
    found = []
    for start in progress_bar(range(0, len(stems), ROWS), "Finding near-duplicates"):
        rows = slice(start, start + ROWS)
        correlation, agreement = (
            _correlation(thumbnails, rows),
            signs[rows] @ signs.T / signs.shape[1],
        )
        similarity = np.maximum((correlation + agreement) / 2, correlation - ALONE)
        gap = np.nan_to_num(np.abs(numbers[rows, None] - numbers), nan=math.inf)
        limits = np.select([gap <= reach for reach in THRESHOLDS], list(THRESHOLDS.values()))
        for row, column in np.argwhere(similarity >= limits):
            if start + row < column:
                found.append(
                    (int(start + row), int(column), round(float(similarity[row, column]), 3))
                )
    return found


def find_turned_copies(fingerprints: Sequence[Fingerprint]) -> list[tuple[int, int, float, str]]:
    """All pairs of which one image is a copy of the other, flipped or rotated by a multiple of 90 degrees.

    Only copies are found, not frames of one examination: the whole thumbnails must correlate without a shift.
    Of the 741,153 pairs of OTU_2d at 512 x 512 none correlates above 0.854 (a round cyst that is its own mirror image);
    of 150 turned copies, halved in size and saved as JPEG of quality 60, 149 correlate above 0.93.

    Returns:
        (i, j, correlation, how j must be moved to be i), i < j, in order of i and j; a pair that looks more alike
        upright is left out.
    """
    if not fingerprints:
        return []
    upright = np.stack([each.thumbnail for each in fingerprints])
    vectors = _unit_vectors(upright)
    turned = [_unit_vectors(turn(upright)) for turn in ORIENTATIONS.values()]
    found = []
    for start in progress_bar(range(0, len(upright), ROWS), "Finding turned copies"):
        rows = vectors[start : start + ROWS]
        similarity = np.stack([rows @ each.T for each in turned])
        best = similarity.max(0)
        for row, column in np.argwhere((best >= TURNED) & (best > rows @ vectors.T)):
            if start + row < column:
                name = list(ORIENTATIONS)[int(similarity[:, row, column].argmax())]
                found.append(
                    (int(start + row), int(column), round(float(best[row, column]), 3), name)
                )
    return found


def group_images(count: int, pairs: Sequence[NearDuplicate]) -> np.ndarray:
    """Group id of each of `count` images: images that near-duplicates connect, however indirectly, share one."""
    first, second = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    graph = coo_array((np.ones(len(pairs)), (first, second)), shape=(count, count))
    return connected_components(graph, directed=False)[1]


def find_leakage(pairs: Sequence[NearDuplicate], splits: Sequence[str]) -> list[NearDuplicate]:
    """The near-duplicates whose two images are in different splits, most similar first.

    A group is in two splits exactly where this names at least one of its pairs.
    """
    return sorted(
        (pair for pair in pairs if splits[pair[0]] != splits[pair[1]]), key=lambda pair: -pair[2]
    )


def find_tree_leakage(root: Path) -> list[tuple[Path, Path, float]]:
    """Near-duplicates across the splits of any dataset tree `root/{train,valid,test}/images`, most similar first.

    Raises:
        InputError: a folder is missing or empty, or a picture can't be read.
    """
    found = {
        split: list_images(Path(root) / split / "images") for split in ("train", "valid", "test")
    }
    paths = [path for images in found.values() for path in images.values()]
    splits = [split for split, images in found.items() for _ in images]
    pairs = find_near_duplicates(fingerprint_files(paths), [path.stem for path in paths])
    return [(paths[i], paths[j], similarity) for i, j, similarity in find_leakage(pairs, splits)]


def crop_letterbox(grey: np.ndarray) -> np.ndarray:
    """Without the outer rows and columns in which at most 2 % of the pixels are brighter than 20; all where all are."""
    bright = grey > 20
    rows, columns = (np.flatnonzero(bright.mean(axis) > 0.02) for axis in (1, 0))
    if not len(rows) or not len(columns):
        return grey
    return np.ascontiguousarray(grey[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])


def _correlation(thumbnails: np.ndarray, rows: slice) -> np.ndarray:
    """Highest correlation of the middle of one thumbnail with a shifted window of the other, (rows, all), symmetric."""
    reach = range(2 * SHIFT + 1)
    middle = _windows(thumbnails, SHIFT, SHIFT)
    best = np.full((len(middle[rows]), len(middle)), -1, np.float32)
    for window in (_windows(thumbnails, top, left) for top in reach for left in reach):
        for product in (middle[rows] @ window.T, window[rows] @ middle.T):
            np.maximum(best, product, out=best)
    return best


def _windows(thumbnails: np.ndarray, top: int, left: int) -> np.ndarray:
    """A window of every thumbnail as `_unit_vectors`."""
    side = SIDE - 2 * SHIFT
    return _unit_vectors(thumbnails[:, top : top + side, left : left + side])


def _unit_vectors(thumbnails: np.ndarray) -> np.ndarray:
    """Each thumbnail as a vector of mean 0 and length 1 (or 0 where it is flat), (N, pixels)."""
    vectors = thumbnails.reshape(len(thumbnails), -1)
    vectors = vectors - vectors.mean(1, keepdims=True)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)
