"""Near-duplicates: images of one examination, found by their content and by neighbouring numbers.

The similarity of two images is the mean of two detectors: the correlation of 32 x 32 thumbnails,
highest over small shifts, and the agreement of 256-bit perceptual hashes (ImageHash). Both see a
crop without the letterbox. The correlation tolerates shifts, the hash has the finer grain;
calipers, text and gain hardly change either. A correlation that is 0.3 above the threshold is
enough by itself. The similarity is 1 for the same picture and about 0 for unrelated ones. Groups
are the connected components.

The thresholds come from the 1,218 images of OTU_2d. There are no patient ids, so wrong pairs were
counted in two ways: by chance, which is the share of the pairs more than 50 numbers apart that
reach the threshold (an upper bound, since some of those are right), and by eye on contact sheets of
the pairs near the threshold.

- Numbers at most 2 apart, 0.30: 508 of 2,097 pairs, 38 by chance; of the 48 between 0.34 and 0.40
  about 40 looked right.
- 3 to 10 apart, 0.42: 65 of 8,071 pairs, 7 by chance; 19 of the 26 between 0.42 and 0.50 looked
  right, below 13 of 22.
- Any other, 0.55: 46 of 730,985 pairs; of 22 between 0.55 and 0.72 16 looked right, of 42 between
  0.50 and 0.55 three. The wrong pairs are large cysts that look alike; grouping them only leaves
  the split less freedom.

Either detector alone is weaker: where 500 of the distant pairs pass, 227 pairs at most 2 apart pass
by the mean, 218 by the hash and 192 by the correlation. The groups do not chain: 471 images are in
no group with another, the largest group has 19 (round cysts), the next 12. What this does not find:
two frames of one examination that show different planes, and a pair where a label outside the
sector misleads the crop (104 and 105: 0.33 as they are, 0.63 at 192 pixels).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import imagehash
import numpy as np
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ovseg.core.console import map_with_progress, progress_bar
from ovseg.data.pairs import list_images
from ovseg.data.pictures import read_image

# Largest difference of two numbers -> smallest similarity of near-duplicates.
THRESHOLDS = {2: 0.30, 10: 0.42, math.inf: 0.55}

# Pixels. `prepare_data` compares images as they are and letterboxed to this side, whatever squares
# it writes: so the groups, and the split, are the same at every size. Most datasets are written so.
COMPARED_SIZE = 512
# How much a similarity changes where squares are written otherwise. Of OTU_2d's pairs across the
# split 3 pass the thresholds at 128 x 128, by 0.015, 0.005 and 0.019, and 1 at 256 x 256, by 0.002.
RESIZED = 0.02

SIDE = 32  # of thumbnails, pixels
SHIFT = 3  # pixels of a thumbnail: shifts up to a tenth of the picture
# Pixels of a thumbnail. What is smoother (the sector, depth gain) is common to unrelated images.
DETAIL = 4.0
# How much more is asked of a correlation that the hash does not support: a shift by a twentieth of
# the picture ruins the hash.
WITHOUT_HASH = 0.3
ROWS = 512  # images compared with all others at a time: bounds the memory

# Smallest correlation of a copy in another orientation; see `find_rotated_copies`.
ROTATED = 0.9
# How a copy must be moved to be the original: functions of thumbnails, (N, SIDE, SIDE).
ORIENTATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "rotated by 90": lambda thumbnails: np.rot90(thumbnails, 1, (1, 2)),
    "rotated by 180": lambda thumbnails: np.rot90(thumbnails, 2, (1, 2)),
    "rotated by 270": lambda thumbnails: np.rot90(thumbnails, 3, (1, 2)),
    "mirrored": lambda thumbnails: thumbnails[:, :, ::-1],
    "upside down": lambda thumbnails: thumbnails[:, ::-1],
    "transposed": lambda thumbnails: thumbnails.transpose(0, 2, 1),
    "transposed across": lambda thumbnails: np.rot90(thumbnails, 2, (1, 2)).transpose(0, 2, 1),
}

NearDuplicate = tuple[int, int, float]  # indices i < j of two images, and their similarity


@dataclass(frozen=True)
class Fingerprint:
    """What is compared of an image.

    Attributes:
        thumbnail: band-pass filtered, float32 (32, 32).
        bits: perceptual hash, bool (256,).
    """

    thumbnail: np.ndarray
    bits: np.ndarray


def fingerprint(image: np.ndarray) -> Fingerprint:
    """The fingerprint of an RGB image, uint8 (H, W, 3)."""
    grey = crop_letterbox(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))
    thumbnail = cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
    smooth = cv2.GaussianBlur(thumbnail, (0, 0), DETAIL)
    bits = imagehash.phash(Image.fromarray(grey), hash_size=16).hash.ravel()
    return Fingerprint(thumbnail - smooth, bits)


def fingerprint_files(paths: Sequence[Path]) -> list[Fingerprint]:
    """The fingerprints of picture files; raises as `ovseg.data.pictures.read_image`."""

    def read(path: Path) -> Fingerprint:
        return fingerprint(read_image(path))

    return map_with_progress(read, list(paths), "Comparing images")


def find_near_duplicates(
    fingerprints: Sequence[Fingerprint], stems: Sequence[str], margin: float = 0
) -> list[NearDuplicate]:
    """Find all pairs of images that are similar enough for the difference of their numbers.

    Args:
        fingerprints: of the images.
        stems: their stems. The difference of two that are whole numbers is taken as it is, any
            other as infinite.
        margin: how much more than the thresholds is asked.

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
        correlation = _correlate(thumbnails, rows)
        agreement = signs[rows] @ signs.T / signs.shape[1]
        similarity = np.maximum((correlation + agreement) / 2, correlation - WITHOUT_HASH)

        difference = np.nan_to_num(np.abs(numbers[rows, None] - numbers), nan=math.inf)
        within = [difference <= largest for largest in THRESHOLDS]
        thresholds = np.select(within, list(THRESHOLDS.values())) + margin

        for row, column in np.argwhere(similarity >= thresholds):
            i = int(start + row)
            j = int(column)
            if i < j:
                found.append((i, j, round(float(similarity[row, column]), 3)))
    return found


def find_rotated_copies(fingerprints: Sequence[Fingerprint]) -> list[tuple[int, int, float, str]]:
    """Find all pairs of an image and its copy, flipped or rotated by a multiple of 90 degrees.

    Only copies are found, not frames of one examination: the whole thumbnails must correlate
    without a shift. Of the 741,153 pairs of OTU_2d at 512 x 512 none correlates above 0.854 (a
    round cyst that is its own mirror image); of 150 such copies, halved in size and saved as JPEG
    of quality 60, 149 correlate above 0.93.

    Returns:
        (i, j, correlation, how j must be moved to be i), i < j, in order of i and j. A pair that is
        more alike without a move is left out.
    """
    if not fingerprints:
        return []
    upright = np.stack([each.thumbnail for each in fingerprints])
    vectors = _unit_vectors(upright)
    moved = [_unit_vectors(move(upright)) for move in ORIENTATIONS.values()]
    names = list(ORIENTATIONS)

    found = []
    for start in progress_bar(range(0, len(upright), ROWS), "Finding rotated copies"):
        rows = vectors[start : start + ROWS]
        correlation = np.stack([rows @ each.T for each in moved])
        best = correlation.max(0)
        is_copy = (best >= ROTATED) & (best > rows @ vectors.T)

        for row, column in np.argwhere(is_copy):
            i = int(start + row)
            j = int(column)
            if i < j:
                name = names[int(correlation[:, row, column].argmax())]
                found.append((i, j, round(float(best[row, column]), 3), name))
    return found


def group_images(count: int, pairs: Sequence[NearDuplicate]) -> np.ndarray:
    """Group images that near-duplicates connect, directly or through others.

    Args:
        count: number of images.
        pairs: near-duplicates among them.

    Returns:
        Group id of each image, int (count,).
    """
    first = [pair[0] for pair in pairs]
    second = [pair[1] for pair in pairs]
    graph = coo_array((np.ones(len(pairs)), (first, second)), shape=(count, count))
    _, groups = connected_components(graph, directed=False)
    return groups


def find_leakage(pairs: Sequence[NearDuplicate], splits: Sequence[str]) -> list[NearDuplicate]:
    """The near-duplicates whose two images are in different splits, most similar first.

    Args:
        pairs: all near-duplicates. Where a group is in two splits, at least one of its pairs is,
            too.
        splits: of each image.
    """
    leaks = [pair for pair in pairs if splits[pair[0]] != splits[pair[1]]]
    return sorted(leaks, key=lambda pair: -pair[2])


def find_tree_leakage(root: Path) -> list[tuple[Path, Path, float]]:
    """Near-duplicates across the splits of a dataset tree `root/{train,valid,test}/images`, most
    similar first.

    Raises:
        InputError: a folder is missing or empty, or a picture can't be read.
    """
    paths: list[Path] = []
    splits: list[str] = []
    for split in ("train", "valid", "test"):
        images = list_images(Path(root) / split / "images")
        paths += images.values()
        splits += [split] * len(images)

    pairs = find_near_duplicates(fingerprint_files(paths), [path.stem for path in paths])
    leaks = find_leakage(pairs, splits)
    return [(paths[i], paths[j], similarity) for i, j, similarity in leaks]


def crop_letterbox(grey: np.ndarray) -> np.ndarray:
    """Cut off outer rows and columns in which at most 2 % of the pixels are brighter than 20.

    Args:
        grey: uint8 (H, W).

    Returns:
        The rest; the whole picture where all rows or columns are like that.
    """
    _, bright = cv2.threshold(grey, 20, 1, cv2.THRESH_BINARY)
    # Sums of OpenCV take a quarter of the time of means of numpy.
    in_rows = cv2.reduce(bright, 1, cv2.REDUCE_SUM, dtype=cv2.CV_32S).ravel()
    in_columns = cv2.reduce(bright, 0, cv2.REDUCE_SUM, dtype=cv2.CV_32S).ravel()
    height, width = grey.shape
    rows = np.flatnonzero(in_rows / width > 0.02)
    columns = np.flatnonzero(in_columns / height > 0.02)
    if not len(rows) or not len(columns):
        return grey
    cropped = grey[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return np.ascontiguousarray(cropped)


def _correlate(thumbnails: np.ndarray, rows: slice) -> np.ndarray:
    """Highest correlation of the middle of one thumbnail with a shifted window of the other.

    Returns:
        float32 (rows, all). It is symmetric: each of two thumbnails is shifted in turn.
    """
    middle = _windows(thumbnails, SHIFT, SHIFT)
    best = np.full((len(middle[rows]), len(middle)), -1, np.float32)
    for top in range(2 * SHIFT + 1):
        for left in range(2 * SHIFT + 1):
            window = _windows(thumbnails, top, left)
            np.maximum(best, middle[rows] @ window.T, out=best)
            np.maximum(best, window[rows] @ middle.T, out=best)
    return best


def _windows(thumbnails: np.ndarray, top: int, left: int) -> np.ndarray:
    """A window of each thumbnail as `_unit_vectors`."""
    side = SIDE - 2 * SHIFT
    return _unit_vectors(thumbnails[:, top : top + side, left : left + side])


def _unit_vectors(thumbnails: np.ndarray) -> np.ndarray:
    """Each thumbnail as a vector of mean 0 and length 1 (or 0 where it is flat), (N, pixels)."""
    vectors = thumbnails.reshape(len(thumbnails), -1)
    vectors = vectors - vectors.mean(1, keepdims=True)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)
