"""Outline the lesion whose ends a person has marked.

What a network gets wrong most is which structure is the lesion, see docs/recipes.md. Its ends tell.
"""

from collections.abc import Sequence
from dataclasses import replace

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
# Of a second pair: the least width of the ellipse by its length.
LEAST_ASPECT = 0.1


def predict_guided(predictor: Predictor, picture: Picture, calipers: Sequence[Ends]) -> Prediction:
    """Segment a picture on which a person has marked the ends of the lesion.

    The network gets the picture with a yellow caliper between each pair of ends, as sonographers
    leave it. To its logits `PULL` * (1 - r) is added, where r is the distance from the middle of
    the ellipse through the ends, 1 on its edge.

    Args:
        predictor: of lesion alone, without categories.
        picture: see `ovseg.inference.predictor.load_picture`.
        calipers: one or two pairs of opposite points on the lesion's edge, each ((column, row),
            (column, row)), pixels in the picture. The second pair lies across the first; without it
            the ellipse is `ASPECT` as wide as long.

    Returns:
        A prediction whose `probs`, and what is made of them, are the guided ones. Its confidence is
        not comparable with that of other predictions.

    Raises:
        InputError: the picture can't be read, the network is one for categories, or the ends are
            not two points in the picture, or not across the others.
    """
    if predictor.categories:
        raise InputError(
            "The model tells categories of lesions, which the ends of a lesion don't guide. Take a "
            "model of lesion alone."
        )
    image = load_picture(picture)
    height, width = image.shape[:2]
    _check_calipers(calipers, height, width)
    distance = measure_distance(calipers, height, width)

    for ends in calipers:
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


def measure_distance(calipers: Sequence[Ends], height: int, width: int) -> np.ndarray:
    """Distance of each pixel from the middle of the ellipse through the ends; 1 is its edge.

    Args:
        calipers: see `predict_guided`.
        height: of the picture, pixels.
        width: of the picture, pixels.

    Returns:
        float32 (height, width).

    Raises:
        InputError: the ends of a pair are one point, or the second pair lies along the first.
    """
    first, last = np.array(calipers[0], np.float32)
    length = float(np.hypot(*(last - first)))
    if length == 0:
        raise InputError("The two ends of the lesion are the same point; mark opposite ones.")
    along = (last - first) / length
    across = np.array([-along[1], along[0]])
    middle = (first + last) / 2
    breadth = ASPECT * length
    if len(calipers) > 1:
        one, other = np.array(calipers[1], np.float32) @ across
        breadth = abs(float(other - one))
        if breadth < LEAST_ASPECT * length:
            raise InputError(
                "The second pair of ends lies along the first. Mark it across, where the lesion is "
                "wide."
            )
        middle = middle + ((one + other) / 2 - middle @ across) * across

    columns = np.arange(width, dtype=np.float32)[None] - middle[0]
    rows = np.arange(height, dtype=np.float32)[:, None] - middle[1]
    lengthwise = (columns * along[0] + rows * along[1]) / (length / 2)
    sideways = (columns * across[0] + rows * across[1]) / (breadth / 2)
    return np.hypot(lengthwise, sideways)


def _check_calipers(calipers: Sequence[Ends], height: int, width: int) -> None:
    shapes = {np.shape(ends) for ends in calipers}
    if shapes != {(2, 2)} or len(calipers) > MOST_CALIPERS:
        raise InputError(
            f"The ends of a lesion are {calipers}, expected one or two pairs of points: "
            "[((column, row), (column, row))]."
        )
    for ends in calipers:
        for column, row in ends:
            if not (0 <= column < width and 0 <= row < height):
                raise InputError(
                    f"An end of the lesion is at column {column}, row {row}, which lies outside "
                    f"the picture of {width} x {height} pixels."
                )
