"""Pictures of images and masks as arrays: overlays and contact sheets."""

import cv2
import numpy as np

TRUTH, PRED = (0, 220, 60), (255, 60, 60)  # outlines: reference green, prediction red


def outline(image: np.ndarray, mask: np.ndarray, color: tuple[int, int, int] = PRED, tint: float = 0.0) -> np.ndarray:
    """Draw a mask's outline, and a transparent filling if asked.

    Args:
        image: RGB, uint8 (H, W, 3); it is not changed.
        mask: lesion, 0/1 or bool, (H, W).
        color: RGB.
        tint: opacity of the filling, 0..1.
    """
    picture, mask = image.copy(), np.ascontiguousarray(mask, np.uint8)
    inside = mask.astype(bool)
    picture[inside] = ((1 - tint) * picture[inside] + tint * np.array(color)).astype(np.uint8)
    contours, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(picture, contours, -1, color, max(1, round(max(mask.shape) / 256)))


def caption(picture: np.ndarray, text: str) -> np.ndarray:
    """The picture (H, W, 3) with a line of text on a black strip above it."""
    strip = np.zeros((18, picture.shape[1], 3), np.uint8)
    cv2.putText(strip, text, (3, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (255, 255, 255), 1, cv2.LINE_AA)
    return np.concatenate([strip, picture])


def shrink_to(picture: np.ndarray, side: int) -> np.ndarray:
    """Put a picture (H, W, 3) into a black (side, side, 3) square, keeping its aspect ratio."""
    scale = side / max(picture.shape[:2])
    height, width = (max(1, round(n * scale)) for n in picture.shape[:2])
    square = np.zeros((side, side, 3), np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
    return square


def case_row(image: np.ndarray, mask: np.ndarray | None, pred: np.ndarray, title: str, side: int = 256) -> np.ndarray:
    """Image, reference and prediction side by side with captions; without a mask the middle one is left out.

    Args:
        image: RGB, uint8 (H, W, 3).
        mask: reference, (H, W), or None.
        pred: prediction, (H, W).
        title: caption of the image, such as its stem.
        side: of each of the tiles, pixels.
    """
    tiles = [(title, image)]
    if mask is not None:
        tiles.append(("reference", outline(image, mask, TRUTH, tint=0.3)))
    tiles.append(("prediction", outline(image, pred, PRED, tint=0.3)))
    return np.concatenate([caption(shrink_to(tile, side), text) for text, tile in tiles], axis=1)


def contact_sheet(rows: list[np.ndarray], columns: int = 2) -> np.ndarray:
    """Stack pictures of one size, (H, W, 3), in `columns` columns on black."""
    blank = np.zeros_like(rows[0])
    lines = [rows[i : i + columns] for i in range(0, len(rows), columns)]
    filled = [line + [blank] * (min(columns, len(rows)) - len(line)) for line in lines]
    return np.concatenate([np.concatenate(line, axis=1) for line in filled])
