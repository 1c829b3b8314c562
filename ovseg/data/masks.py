"""Binary masks and category maps: what a file must hold, and what the masks of a split must show.

A mask that looks legal alone, such as an empty one, can be a mistake where all masks of a split are
like it. So `MaskFacts` of each mask are kept, and judged together.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from ovseg.core.errors import InputError, first_five
from ovseg.data.pictures import is_lossy, open_picture

LOSSY_NOISE = 32  # grey levels that compression may leave in the black of a lossy mask
# A mask of so few values is one of labels, drawn on purpose.
FEW_VALUES = 8
# Of the pixels brighter than a quarter of the brightest value, the largest share that may lie below
# three quarters of it. Of 200 images of OTU_2d all have more than 0.69. Of 200 masks, blurred by 5
# pixels at their own size, all have less than 0.42.
SOFT_SHARE = 0.6
# So small a share of the pixels, brighter than a quarter of the brightest value, may all be soft: a
# lesion of a few pixels has nothing but edges. All 1,218 images of OTU_2d have more than 0.05.
SMALL_SHARE = 0.01
# A lesion that fills all four corners of a picture is rare; of nearly all pictures of a split it is
# the background.
WHITE_CORNERS_SHARE = 0.9


@dataclass(frozen=True)
class MaskFacts:
    """What a mask tells about the masks of its split.

    Attributes:
        brightest: grey value that a tenth of the pixels that are not black reach, so that the noise
            of a compression does not count; 0 where all are black. Of a category map the largest
            id.
        lesion: whether a pixel is lesion.
        full: whether every pixel is lesion.
        white_corners: whether all four corners are white, but not all is. The black bars of a
            letterbox are left out: the corners are those of what is white, where that spans the
            whole width or height.
        soft: pixels whose grey value is neither the smallest nor the largest; 0 in a lossy file,
            where compression makes such values.
    """

    brightest: int
    lesion: bool
    full: bool
    white_corners: bool
    soft: int


def read_mask(path: Path, threshold: int = 127, invert: bool = False) -> np.ndarray:
    """Read a binary mask, uint8 (H, W) of 0 and 1; grey values above `threshold` are lesion.

    Args:
        path: the file.
        threshold: 0..254.
        invert: take the values up to the threshold as lesion instead.

    Raises:
        InputError: unreadable, or its grey values are not those of a binary mask (see
            `mask_problem`).
    """
    return read_mask_with_facts(path, threshold, invert)[0]


def read_mask_with_facts(
    path: Path, threshold: int, invert: bool = False, blur: int = 0
) -> tuple[np.ndarray, MaskFacts]:
    """`read_mask`, with `blur` of `binarise`, and what the mask tells about its split."""
    picture = open_picture(path)
    grey = np.array(picture.convert("L"))
    lossy = is_lossy(picture)
    refuse_mask(path, picture, grey, threshold)
    return binarise(grey, threshold, invert, blur), mask_facts(grey, threshold, invert, lossy)


def refuse_mask(path: Path, picture: Image.Image, grey: np.ndarray, threshold: int) -> None:
    """Refuse a picture that is no mask.

    Args:
        path: for the message.
        picture: as it was decoded.
        grey: its grey values, uint8 (H, W).
        threshold: see `read_mask`.

    Raises:
        InputError: see `alpha_problem` and `mask_problem`.
    """
    problem = alpha_problem(picture, grey) or mask_problem(grey, threshold, is_lossy(picture))
    if problem:
        raise InputError(f"{path} {problem}")


def binarise(grey: np.ndarray, threshold: int, invert: bool = False, blur: int = 0) -> np.ndarray:
    """Grey values, uint8 (H, W), as 0 and 1.

    Args:
        grey: values.
        threshold: see `read_mask`.
        invert: see `read_mask`.
        blur: side of a box, pixels; 0 for none. The values above the threshold are averaged over
            it, the others as black, and all that is not black afterwards is lesion, as in the
            TensorFlow baseline: a lesion grows by half the side.
    """
    if invert:
        return (grey <= threshold).astype(np.uint8)
    lesion = grey > threshold
    if blur:
        lesion = cv2.blur(grey * lesion, (blur, blur)) > 0
    return lesion.astype(np.uint8)


def read_category_map(path: Path, classes: int) -> np.ndarray:
    """Read a category map, uint8 (H, W) of ids 0 (background) to `classes` - 1.

    Raises:
        InputError: unreadable, several channels, a lossy format (compression changes ids), or an id
            out of range.
    """
    picture = open_picture(path)
    ids = np.array(picture)
    if ids.ndim != 2 or is_lossy(picture):
        raise InputError(
            f"{path} is {picture.format} of mode {picture.mode}, expected a PNG with one channel "
            "of category ids. Save the ids as such a PNG."
        )

    unknown = np.unique(ids[ids >= classes])
    if len(unknown):
        raise InputError(
            f"{path} holds the ids {first_five(unknown)}, expected 0 (background) to "
            f"{classes - 1}. Set data.classes to the number of categories and one more."
        )
    return ids.astype(np.uint8)


def read_labels(path: Path, threshold: int, classes: int, invert: bool = False) -> np.ndarray:
    """Read a mask for one class (`read_mask`), a category map for more (`read_category_map`)."""
    return read_labels_with_facts(path, threshold, classes, invert)[0]


def read_labels_with_facts(
    path: Path, threshold: int, classes: int, invert: bool = False, blur: int = 0
) -> tuple[np.ndarray, MaskFacts]:
    """`read_labels`, with `blur` of `binarise`, and what the labels tell about their split."""
    if classes == 1:
        return read_mask_with_facts(path, threshold, invert, blur)
    ids = read_category_map(path, classes)
    lesion = bool(ids.any())
    full = bool(ids.all())
    return ids, MaskFacts(int(ids.max()), lesion, full, white_corners=False, soft=0)


def alpha_problem(picture: Image.Image, grey: np.ndarray) -> str:
    """Why a mask is not in the grey values, uint8 (H, W), of its file; empty where it is."""
    if not picture.has_transparency_data or grey.min() != grey.max():
        return ""
    lowest, highest = picture.convert("RGBA").getchannel("A").getextrema()
    if lowest == highest:
        return ""
    return (
        f"has the mask in its alpha channel (its grey value is {grey.min()} everywhere). Save the "
        "lesion as white on black, without transparency."
    )


def mask_problem(grey: np.ndarray, threshold: int, lossy: bool) -> str:
    """Why grey values are not a binary mask.

    A mask may have soft edges, of a compression or of a resize: most of what is not black must
    still be near its brightest value.

    Args:
        grey: uint8 (H, W).
        threshold: grey values above it are lesion.
        lossy: the file's compression changes values. Then small values alone can be noise in an
            empty mask; `refuse_implausible` judges them by the whole split.

    Returns:
        What is wrong and what to do, to follow the name of the file; empty for a binary mask.
    """
    counts = np.bincount(grey.ravel(), minlength=256)
    values = np.flatnonzero(counts)
    largest = int(values[-1])
    if lossy and largest <= LOSSY_NOISE:
        return ""

    if len(values) > FEW_VALUES and not _is_nearly_binary(counts):
        return (
            f"holds {len(values)} grey values ({first_five(values)}), expected a binary mask of "
            "two. Save the lesion as one value on black."
        )
    if len(values) > 1 and values[0] > threshold:
        return (
            f"has only values above the threshold {threshold} ({first_five(values)}), so all of it "
            "would be lesion."
        )
    if 0 < largest <= threshold:
        return (
            f"has no value above the threshold {threshold} (its largest is {largest}), so its "
            f"lesion would be lost. {_advise_threshold(largest)}"
        )
    return ""


def _is_nearly_binary(counts: np.ndarray) -> bool:
    """Whether grey values can be those of a binary mask with soft edges.

    Args:
        counts: pixels of each grey value, (256,).
    """
    largest = np.flatnonzero(counts)[-1]
    values = np.arange(256)
    bright = counts[values > 0.25 * largest].sum()
    brightest = counts[values > 0.75 * largest].sum()
    small = bright <= SMALL_SHARE * counts.sum()
    return bool(small or bright - brightest <= SOFT_SHARE * bright)


def _advise_threshold(largest: int) -> str:
    return (
        f"Set the mask threshold to {largest // 2} (data.mask_threshold in train, "
        "--mask_threshold in other commands)."
    )


def mask_facts(grey: np.ndarray, threshold: int, invert: bool, lossy: bool) -> MaskFacts:
    """`MaskFacts` of the grey values, uint8 (H, W), of a mask."""
    counts = np.bincount(grey.ravel(), minlength=256)
    values = np.flatnonzero(counts)
    not_black = np.cumsum(counts[1:])
    brightest = 0
    if not_black[-1]:
        brightest = 1 + int(np.searchsorted(not_black, 0.9 * not_black[-1]))
    white = int(counts[threshold + 1 :].sum())
    lesion = grey.size - white if invert else white
    soft = 0
    if not lossy:
        soft = int(counts[values[1:-1]].sum())
    return MaskFacts(
        brightest=brightest,
        lesion=lesion > 0,
        full=lesion == grey.size,
        white_corners=has_white_corners(grey > threshold),
        soft=soft,
    )


def has_white_corners(white: np.ndarray) -> bool:
    """See `MaskFacts`; `white` is bool (H, W)."""
    rows = np.flatnonzero(white.any(1))
    columns = np.flatnonzero(white.any(0))
    if len(rows) == 0:
        return False
    inner = white[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    spans = inner.shape[0] == white.shape[0] or inner.shape[1] == white.shape[1]
    corners = inner[[0, 0, -1, -1], [0, -1, 0, -1]]
    return bool(spans and corners.all() and not inner.all())


def refuse_implausible(
    split: str, facts: Sequence[MaskFacts], threshold: int, needs_lesion: bool
) -> None:
    """Refuse the masks of a split that can't be meant, however legal each is alone.

    Args:
        split: its name.
        facts: of all masks of the split.
        threshold: see `mask_problem`.
        needs_lesion: whether empty masks alone are refused; nothing can be trained on them, but a
            run may be scored on images without a lesion.

    Raises:
        InputError: all lesions would be lost, no mask has one though it is needed, or all masks are
            lesion everywhere.
    """
    count = len(facts)
    brightest = max((mask.brightest for mask in facts), default=0)
    if count and not any(mask.lesion for mask in facts):
        if 0 < brightest <= threshold:
            raise InputError(
                f"None of the {count} masks in {split} has a value above the threshold {threshold} "
                f"(their brightest parts have {brightest}), so all lesions would be lost. "
                f"{_advise_threshold(brightest)}"
            )
        if needs_lesion:
            raise InputError(
                f"All {count} masks in {split} are empty, expected some with a lesion. "
                "Check how they were exported."
            )
    if count and all(mask.full for mask in facts):
        raise InputError(
            f"All {count} masks in {split} are lesion everywhere, expected a lesion on background. "
            "Check how they were exported."
        )


def describe_oddities(
    split: str, stems: Sequence[str], facts: Sequence[MaskFacts], threshold: int, invert: bool
) -> list[str]:
    """Lines on what is legal but may be a mistake.

    Args:
        split: its name.
        stems: of its pairs.
        facts: of their masks, in the same order.
        threshold: see `mask_problem`.
        invert: whether the masks are read inverted.
    """
    count = len(facts)
    lines = []
    empty = [stem for stem, mask in zip(stems, facts, strict=True) if not mask.lesion]
    if empty:
        lines.append(f"{len(empty)} of {count} masks in {split} are empty: {first_five(empty)}")
    full = [stem for stem, mask in zip(stems, facts, strict=True) if mask.full]
    if full:
        lines.append(
            f"{len(full)} of {count} masks in {split} are lesion everywhere: {first_five(full)}"
        )
    if not invert and are_inverted(facts):
        white = sum(mask.white_corners for mask in facts)
        lines.append(
            f"{white} of {count} masks in {split} are white at all four corners: is the lesion "
            "drawn in black? Then set data.invert_masks: true."
        )
    soft = [mask.soft for mask in facts if mask.soft]
    if soft:
        lines.append(
            f"{len(soft)} of {count} masks in {split} have values between black and white: "
            f"{sum(soft):,} pixels, which are lesion above {threshold}."
        )
    return lines


def are_inverted(facts: Sequence[MaskFacts]) -> bool:
    """Whether nearly all masks that show a boundary are white at all four corners."""
    drawn = [mask for mask in facts if mask.lesion and not mask.full]
    white = sum(mask.white_corners for mask in drawn)
    return bool(drawn) and white >= WHITE_CORNERS_SHARE * len(drawn)
