"""Distances between the outlines of two masks.

The definitions are those of MONAI 1.6 (`compute_hausdorff_distance(percentile=95)`,
`compute_average_surface_distance(symmetric=True)`, `compute_surface_dice` without subvoxels), with
which the values agree. Other tools define outlines and percentiles in other ways, and differ by
many pixels on the same masks (G. Podobnik and T. Vrtovec, arXiv:2410.02630).

Where a mask is empty MONAI leaves the image out, so that missed lesions improve the mean. Here an
image with one empty mask of two counts with the image's diagonal, and one with both empty as exact.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from scipy.ndimage import distance_transform_edt

CROSS = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.uint8)  # neighbours by a side


@dataclass(frozen=True)
class SurfaceDistances:
    """How far two outlines are apart.

    Attributes:
        hd95: 95th percentile of the distances from one outline to the other, of the worse
            direction; in the unit of the spacing, pixels by default.
        assd: mean of the distances in both directions; in the same unit.
        nsd: share of both outlines within the tolerance of the other, 0..1.
    """

    hd95: float
    assd: float
    nsd: float


def surface_distances(
    pred: np.ndarray,
    mask: np.ndarray,
    tolerance: float,
    spacing: tuple[float, float] = (1.0, 1.0),
) -> SurfaceDistances:
    """Compare the outlines of two masks of one image.

    Args:
        pred: predicted lesion, bool (H, W).
        mask: reference lesion, bool (H, W).
        tolerance: of `nsd`, in the unit of the spacing.
        spacing: distance of two rows, and of two columns; (1, 1) gives pixels, millimetres give
            millimetres.

    Returns:
        The image's diagonal as distance, and `nsd` 0, where one mask is empty; 0 and 1 where both
        are.

    Raises:
        ValueError: the shapes differ.
    """
    if pred.shape != mask.shape:
        raise ValueError(f"pred is {pred.shape} and mask {mask.shape}, expected one shape.")
    found = pred.any()
    present = mask.any()
    if not found and not present:
        return SurfaceDistances(0.0, 0.0, 1.0)
    if not found or not present:
        height, width = mask.shape
        diagonal = float(np.hypot(height * spacing[0], width * spacing[1]))
        return SurfaceDistances(diagonal, diagonal, 0.0)

    # Both outlines lie in this part, and so do all distances between them.
    box = _bounding_box(pred | mask)
    pred_outline = outline(pred[box])
    mask_outline = outline(mask[box])
    to_mask = _distance_from(mask_outline, spacing)[pred_outline]
    to_pred = _distance_from(pred_outline, spacing)[mask_outline]
    both = np.concatenate([to_mask, to_pred])
    return SurfaceDistances(
        hd95=float(max(np.percentile(to_mask, 95), np.percentile(to_pred, 95))),
        assd=float(both.mean()),
        nsd=float((both <= tolerance).mean()),
    )


def outline(mask: np.ndarray) -> np.ndarray:
    """The pixels of a mask, bool (H, W), that have a side in common with a pixel outside of it.

    What lies outside of the image is outside of the mask.
    """
    inner = cv2.erode(mask.astype(np.uint8), CROSS, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return mask & (inner == 0)


def _distance_from(pixels: np.ndarray, spacing: tuple[float, float]) -> np.ndarray:
    """Distance of every pixel to the nearest of these, bool (H, W) and not empty; float (H, W)."""
    others = (~pixels).astype(np.uint8)
    if spacing[0] != spacing[1]:
        return distance_transform_edt(others, sampling=spacing)
    # OpenCV is quicker, and knows square pixels only.
    return spacing[0] * cv2.distanceTransform(others, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)


def _bounding_box(mask: np.ndarray) -> tuple[slice, slice]:
    rows = np.flatnonzero(mask.any(1))
    columns = np.flatnonzero(mask.any(0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
