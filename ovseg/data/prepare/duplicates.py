"""Near-duplicates: images of one examination, found by their content and by neighbouring numbers.

The similarity of two images is the mean of two detectors: the correlation of 32 x 32 thumbnails,
highest over small shifts, and the agreement of 256-bit perceptual hashes (ImageHash). Both see a
crop without the letterbox. The correlation tolerates shifts, the hash has the finer grain;
calipers, text and gain hardly change either. A correlation that is 0.3 above the threshold is
enough by itself. The similarity is 1 for the same picture and about 0 for unrelated ones.

Frames of one examination that show different planes share no structure, but the look of the
machine, its gain and its patient: histograms of grey levels from near the probe to far from it.
Numbers at most 10 apart gain or lose by how much more alike their looks are than either is to the
2 % of the distant images that look most like it: where many images come from one machine, its look
says nothing of them. Groups are the connected components.

The thresholds come from the 1,218 images of OTU_2d. There are no patient ids, so wrong pairs were
counted in two ways: by chance, which is the share of the pairs more than 50 numbers apart that
reach the threshold (an upper bound, since some of those are right), and by eye on contact sheets of
the pairs near the threshold.

- Numbers at most 2 apart, 0.30: 835 of 2,097 pairs, 80 by chance. Between 0.30 and 0.32 16 of 47
  are by chance, between 0.28 and 0.30 21 of 33; of 24 between 0.30 and 0.36 that the structure
  alone does not find about 19 looked right. The structure alone found 509 at 0.30, 38 by chance.
- 3 to 5 apart, 0.41: 226 of 3,036 pairs, 28 by chance. Between 0.36 and 0.41 28 of 55 are; of 24
  between 0.41 and 0.51 about 14 looked right.
- 6 to 10 apart, 0.51: 48 of 5,035 pairs, 11 by chance. Between 0.46 and 0.51 12 of 20 are.
- Any other, 0.55, by structure alone: 46 of 730,985 pairs; of 22 between 0.55 and 0.72 16 looked
  right, of 42 between 0.50 and 0.55 three. The wrong pairs are large cysts that look alike;
  grouping them only leaves the split less freedom.

Either structural detector alone is weaker: where 500 of the distant pairs pass, 227 pairs at most 2
apart pass by the mean, 218 by the hash and 192 by the correlation. 215 images are in no group with
another, the largest of the 481 groups has 38 (normal ovaries on one machine), the next 22; with the
pairs that are found in the letterboxed squares too, there are 475. What this does not find: frames
of one examination with other settings of the machine, and a pair where a label outside the sector
misleads the crop. Where a dataset holds several machines one after the other, more neighbours than
by chance seem alike: 335 images in random order, the second half of them at half the brightness,
gave 103 pairs in place of 78.
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
THRESHOLDS = {2: 0.30, 5: 0.41, 10: 0.51, math.inf: 0.55}

# Pixels. `prepare_data` compares images as they are and letterboxed to this side, whatever squares
# it writes: so the groups, and the split, are the same at every size. Most datasets are written so.
COMPARED_SIZE = 512
# How much a similarity changes where squares are written otherwise: of OTU_2d's pairs across groups
# 11 pass the thresholds at 128 x 128, by less than 0.03.
RESIZED = 0.03

SIDE = 32  # of thumbnails, pixels
SHIFT = 3  # pixels of a thumbnail: shifts up to a tenth of the picture
# Pixels of a thumbnail. What is smoother (the sector, depth gain) is common to unrelated images.
DETAIL = 4.0
# How much more is asked of a correlation that the hash does not support: a shift by a twentieth of
# the picture ruins the hash.
WITHOUT_HASH = 0.3

# The grey levels of the look: of a picture of LOOK_SIDE x LOOK_SIDE pixels, those that are not
# background, in LOOK_BANDS bands of equal area from top to bottom.
LOOK_SIDE = 64
LOOK_BANDS = 4
LOOK_BINS = 32
BACKGROUND = 16  # grey levels below it are letterbox and what is outside the sector
# Weight of -ln(1 - overlap) of two looks beside the similarity: the one that finds most pairs at
# most 2 numbers apart where 2 % of those more than 50 apart pass.
LOOK_WEIGHT = 0.32
LIKE = 98  # percentile of the distant images by likeness; 75 to 95 find as much
FEW = 20  # distant images that there must be for a percentile
# So far below the percentile a look counts neither way. It lets the thresholds suit images that are
# compared by structure alone, too, because they are few.
NEUTRAL = 0.5
LEAST_DIFFERENCE = 1e-4  # of two looks: keeps the logarithm finite
NEIGHBOURS = 10  # numbers further apart than this are compared by their structure alone

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
        look: square roots of the shares of the grey levels in each band, so that the product of two
            is the overlap of their histograms (Bhattacharyya), 0..1; float32 (128,).
    """

    thumbnail: np.ndarray
    bits: np.ndarray
    look: np.ndarray


def fingerprint(image: np.ndarray) -> Fingerprint:
    """The fingerprint of an RGB image, uint8 (H, W, 3)."""
    grey = crop_letterbox(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))
    thumbnail = cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
    smooth = cv2.GaussianBlur(thumbnail, (0, 0), DETAIL)
    bits = imagehash.phash(Image.fromarray(grey), hash_size=16).hash.ravel()
    return Fingerprint(thumbnail - smooth, bits, _look(grey))


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
    looks = np.stack([each.look for each in fingerprints])
    signs = np.stack([each.bits for each in fingerprints]).astype(np.float32) * 2 - 1
    numbers = np.array([float(stem) if stem.isdecimal() else math.nan for stem in stems])
    usual = _usual_likeness(looks, numbers)

    found = []
    for start in progress_bar(range(0, len(stems), ROWS), "Finding near-duplicates"):
        rows = slice(start, start + ROWS)
        correlation = _correlate(thumbnails, rows)
        agreement = signs[rows] @ signs.T / signs.shape[1]
        similarity = np.maximum((correlation + agreement) / 2, correlation - WITHOUT_HASH)

        difference = np.nan_to_num(np.abs(numbers[rows, None] - numbers), nan=math.inf)
        alike = _compare_looks(looks, rows) - (usual[rows, None] + usual) / 2 + NEUTRAL
        is_compared = (difference <= NEIGHBOURS) & ~np.isnan(alike)
        similarity += np.where(is_compared, LOOK_WEIGHT * alike, 0)
        np.minimum(similarity, 1, out=similarity)

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


def _look(grey: np.ndarray) -> np.ndarray:
    """The `look` of a `Fingerprint`; grey is uint8 (H, W)."""
    small = cv2.resize(grey, (LOOK_SIDE, LOOK_SIDE), interpolation=cv2.INTER_AREA)
    levels = small[small >= BACKGROUND]  # in the order of the rows
    if not len(levels):
        levels = np.full(LOOK_BANDS, BACKGROUND)
    shares = []
    for band in np.array_split(levels, LOOK_BANDS):
        counts, _ = np.histogram(band, LOOK_BINS, (BACKGROUND, 256))
        shares.append(counts / max(len(band), 1) / LOOK_BANDS)
    return np.sqrt(np.concatenate(shares)).astype(np.float32)


def _compare_looks(looks: np.ndarray, rows: slice) -> np.ndarray:
    """-ln(1 - overlap) of each two looks, float32 (rows, all): 0 without overlap, 9.2 if equal."""
    overlap = np.clip(looks[rows] @ looks.T, 0, 1)
    return -np.log(1 - overlap + LEAST_DIFFERENCE)


def _usual_likeness(looks: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """How much the distant images that look most like an image do so, see `_compare_looks`.

    Returns:
        Their `LIKE` percentile, float (N,); NaN where fewer than `FEW` numbers are too far apart to
        be neighbours.
    """
    usual = np.full(len(looks), np.nan)
    for start in range(0, len(looks), ROWS):
        likeness = _compare_looks(looks, slice(start, start + ROWS))
        is_far = np.abs(numbers[start : start + ROWS, None] - numbers) > NEIGHBOURS
        for row in np.flatnonzero(is_far.sum(1) >= FEW):
            usual[start + row] = np.percentile(likeness[row, is_far[row]], LIKE)
    return usual


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
