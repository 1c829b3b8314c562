"""How sure a prediction is: the confidence of a picture, and a map of where its views disagree."""

from collections.abc import Sequence

import cv2
import numpy as np
from torch import Tensor

from ovseg.core.drawing import blend_heat, heat_legend
from ovseg.inference.labels import lesion_of_classes
from ovseg.inference.postprocessing import to_probs

# The deviation that gets the last colour. It is at most 0.5; of two views that means 0 and 1.
LAST_COLOR = 0.3


def map_flips(flips: Sequence[str], networks: int) -> Sequence[str]:
    """The flips whose predictions a map of uncertainty compares.

    Args:
        flips: of the post-processing.
        networks: members of the ensemble; 1 for a run.

    Returns:
        `flips`; the horizontal one where a single network predicts each picture once, which would
        leave nothing to compare.
    """
    if networks == 1 and not flips:
        return ("horizontal",)
    return flips


def lesion_views(views: Sequence[Tensor]) -> np.ndarray:
    """The lesion's probability in each view of each picture.

    Args:
        views: logits (N, classes, S, S) of each of V views, see `flip_logits`.

    Returns:
        float32 (N, V, S, S) in 0..1.
    """
    lesions = []
    for logits in views:
        probs = to_probs(logits).cpu().numpy()
        lesions.append([lesion_of_classes(of_picture) for of_picture in probs])
    return np.stack(lesions, axis=1)


def deviation_of_members(lesions: np.ndarray, variances: np.ndarray) -> np.ndarray:
    """Standard deviation over all views of all members, of as many views each.

    Args:
        lesions: mean lesion probability of each member over its views, float32 (M, H, W).
        variances: of each member over its views, float32 (M, H, W).

    Returns:
        float32 (H, W) in 0..0.5: the root of the mean variance + the variance of the means.
    """
    variance = variances.mean(0) + lesions.var(0)
    return np.sqrt(variance.clip(0))


def draw_uncertainty(picture: np.ndarray, uncertainty: np.ndarray) -> np.ndarray:
    """The picture in grey, the uncertainty in colours over it, and their legend below.

    Args:
        picture: RGB, uint8 (H, W, 3).
        uncertainty: float32 (H, W) in 0..0.5.

    Returns:
        RGB, uint8 (H + height of the legend, W, 3).
    """
    grey = cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    shown = blend_heat(grey, uncertainty / LAST_COLOR)
    strip = heat_legend(shown.shape[1], "0", f"{LAST_COLOR:g}+", "SD of the probability")
    return np.concatenate([shown, strip])
