"""Outline the lesion whose ends a person has marked.

What a network gets wrong most is which structure is the lesion, see docs/recipes.md. Its ends tell.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ovseg.core.errors import InputError
from ovseg.data.augment.calipers import YELLOWS, Point, draw_caliper
from ovseg.inference.predictor import Picture, Prediction, Predictor, load_picture

Ends = tuple[Point, Point]
MOST_CALIPERS = 2
# Width of a lesion by its length: the median of the 1,218 of OTU_2d.
ASPECT = 0.73
# Logits that the middle of the ellipse gets, its edge none, and a place twice as far as the edge as
# many less. Of 2, 4, 8 and 16 the best on one fold of OTU_2d were 8 with one pair, 16 with two.
PULL = 12.0
FAR = 3.0  # distance beyond which a place is as far as any
SURE = 1e-4  # no probability of a network counts as nearer to 0 or 1
# What is refused as a slip: ends nearer to each other than this share of the picture's longer side,
# a second pair that makes the ellipse narrower than this share of its length, and one that leaves
# an end farther out than this, where the ellipse's edge is 1.
LEAST_LENGTH = 0.01
LEAST_ASPECT = 0.1
FARTHEST_END = 1.6


@dataclass(frozen=True)
class Ellipse:
    """An ellipse by its two half axes.

    Attributes:
        middle: column and row, float (2,).
        lengthwise: unit vector along the length, float (2,).
        length: half of it, pixels.
        width: half of the extent across the length, pixels.
    """

    middle: np.ndarray
    lengthwise: np.ndarray
    length: float
    width: float

    def measure_distance(self, columns: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Distance of points from the middle; it is 1 on the ellipse.

        Args:
            columns: of the points, float32, of any shape that goes with that of `rows`.
            rows: of the points, float32.
        """
        right = columns - self.middle[0]
        down = rows - self.middle[1]
        along = (right * self.lengthwise[0] + down * self.lengthwise[1]) / self.length
        across = (down * self.lengthwise[0] - right * self.lengthwise[1]) / self.width
        return np.hypot(along, across)


def predict_guided(predictor: Predictor, picture: Picture, calipers: Sequence[Ends]) -> Prediction:
    """Segment a picture on which a person has marked the ends of the lesion.

    The network gets the picture with a yellow caliper between each pair of ends, as sonographers
    leave it. To its logits `PULL` * (1 - r) is added, where r is the distance from the middle of
    the ellipse of `fit_ellipse`, 1 on its edge. There is one lesion: what the network finds beyond
    an r of 1.8 is left out, however sure it is.

    Args:
        predictor: of lesion alone, without categories.
        picture: see `ovseg.inference.predictor.load_picture`.
        calipers: one or two pairs of opposite points on the lesion's edge, each ((column, row),
            (column, row)), in pixels of the picture. The second pair crosses the first.

    Returns:
        A prediction whose `probs`, and what is made of them, are the guided ones. Its confidence
        trusts the ends, and is not comparable with that of other predictions.

    Raises:
        InputError: the picture can't be read, the network is one for categories, or the ends are
            no points in the picture, too near each other, or pairs that don't cross.
    """
    if predictor.categories:
        raise InputError(
            "The model tells categories of lesions, which the ends of a lesion don't guide. Take a "
            "model of lesion alone."
        )
    image = load_picture(picture)
    height, width = image.shape[:2]
    pairs = _read_pairs(calipers, height, width)
    ellipse = fit_ellipse(pairs, height, width)
    columns = np.arange(width, dtype=np.float32)[None]
    rows = np.arange(height, dtype=np.float32)[:, None]
    distance = ellipse.measure_distance(columns, rows)

    for ends in pairs:
        image = draw_caliper(image, ends, YELLOWS[0])
    alone = predictor.predict(image)
    safe = alone.probs.clip(SURE, 1 - SURE)
    logits = np.log(safe / (1 - safe)) + np.float32(PULL) * (1 - distance.clip(max=FAR))
    probs = 1 / (1 + np.exp(-logits))

    postprocessing = predictor.postprocessing
    # The reported probabilities have its temperature already.
    of_reported = replace(
        postprocessing, threshold=postprocessing.reported_threshold, temperature=1.0
    )
    return replace(alone, labels=of_reported.labels(probs[None]), probs=probs)


def fit_ellipse(pairs: Sequence[Ends], height: int, width: int) -> Ellipse:
    """The ellipse that is as long as the first pair of ends, and between them.

    Across its length it reaches as far as a second pair does; without one it is `ASPECT` as wide
    as long.

    Args:
        pairs: one or two, see `predict_guided`.
        height: of the picture, pixels.
        width: of the picture, pixels.

    Raises:
        InputError: the ends of a pair are too near each other, or the pairs don't cross.
    """
    points = np.array(pairs, np.float32)
    least = max(2.0, LEAST_LENGTH * max(height, width))
    lengths = np.hypot(*(points[:, 1] - points[:, 0]).T)
    if lengths.min() < least:
        raise InputError(
            f"Two ends of the lesion are {lengths.min():.0f} pixels from each other, expected at "
            f"least {least:.0f}. Mark opposite ends."
        )
    lengthwise = (points[0, 1] - points[0, 0]) / lengths[0]
    crosswise = np.array([-lengthwise[1], lengthwise[0]])
    middle = points[0].mean(0)
    half = float(lengths[0]) / 2
    if len(pairs) == 1:
        return Ellipse(middle, lengthwise, half, ASPECT * half)

    offsets = (points[1] - middle) @ crosswise
    middle = middle + offsets.mean() * crosswise
    half_width = float(np.ptp(offsets)) / 2
    # An ellipse without width would divide by 0.
    ellipse = Ellipse(middle, lengthwise, half, max(half_width, LEAST_ASPECT * half))
    farthest = ellipse.measure_distance(points[..., 0], points[..., 1]).max()
    if half_width < LEAST_ASPECT * half or farthest > FARTHEST_END:
        raise InputError(
            "The second pair of ends doesn't cross the first. Mark it across, where the lesion is "
            "wide; there is one lesion at a time."
        )
    return ellipse


def _read_pairs(calipers: Sequence[Ends], height: int, width: int) -> list[Ends]:
    """The ends as whole numbers."""
    try:
        points = np.array(calipers, float)
    except (TypeError, ValueError):
        points = np.zeros(0)
    if points.shape not in ((1, 2, 2), (MOST_CALIPERS, 2, 2)):
        raise InputError(
            f"The ends of a lesion are {calipers}, expected one or two pairs of points: "
            "[((column, row), (column, row))]."
        )
    inside = (points >= 0) & (points <= (width - 1, height - 1))
    if not inside.all():
        column, row = points[~inside.all(-1)][0]
        raise InputError(
            f"An end of the lesion is at column {column:g}, row {row:g}, which lies outside the "
            f"picture of {width} x {height} pixels."
        )
    pairs = []
    for (first_column, first_row), (last_column, last_row) in points.round().astype(int).tolist():
        pairs.append(((first_column, first_row), (last_column, last_row)))
    return pairs
