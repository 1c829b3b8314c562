"""Pictures of images and masks as arrays: overlays and contact sheets."""

from collections.abc import Sequence

import cv2
import numpy as np

Color = tuple[int, int, int]
TRUTH, PRED = (0, 220, 60), (255, 60, 60)  # outlines: reference green, prediction red
# Of categories 1, 2, ...: bright on a dark image, and apart for colour-blind eyes too (after Okabe and Ito, 2008).
PALETTE: tuple[Color, ...] = (
    (240, 150, 0),  # orange
    (90, 190, 255),  # sky
    (0, 190, 110),  # green
    (245, 235, 70),  # yellow
    (70, 100, 255),  # blue
    (255, 255, 255),  # white
    (255, 70, 50),  # vermilion
    (235, 110, 225),  # pink
)


def outline(
    image: np.ndarray, mask: np.ndarray, color: Color = PRED, tint: float = 0.0
) -> np.ndarray:
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


def paint(
    image: np.ndarray, labels: np.ndarray, colors: Sequence[Color], tint: float = 0.3
) -> np.ndarray:
    """Outline and tint the regions of labels (H, W), each in its own colour; label k has `colors[k - 1]`.

    A lesion is a map of one label; there are as many colours as labels, or they are used again from the first.
    """
    for label in np.unique(labels[labels > 0]):
        image = outline(image, labels == label, colors[(int(label) - 1) % len(colors)], tint)
    return image


def legend(names: Sequence[str], width: int, shown: Sequence[int] | None = None) -> np.ndarray:
    """A black strip (H, width, 3) with the colour, id and name of categories 1, 2, ...

    Args:
        names: of all categories.
        width: pixels; entries that do not fit go to further lines.
        shown: ids to list; all by default.
    """
    font, scale, line = cv2.FONT_HERSHEY_SIMPLEX, 0.4, 18
    texts = {i: f"{i} {name}" for i, name in enumerate(names, 1) if shown is None or i in shown}
    places, left, row = {}, 0, 0
    for i, text in texts.items():
        needed = cv2.getTextSize(text, font, scale, 1)[0][0] + 30
        if left and left + needed > width:
            left, row = 0, row + 1
        places[i], left = (row * line, left), left + needed
    strip = np.zeros(((row + 1) * line, width, 3), np.uint8)
    for i, (top, start) in places.items():
        cv2.rectangle(
            strip, (start + 4, top + 4), (start + 14, top + 14), PALETTE[(i - 1) % len(PALETTE)], -1
        )
        cv2.putText(
            strip, texts[i], (start + 20, top + 13), font, scale, (255, 255, 255), 1, cv2.LINE_AA
        )
    return strip


def caption(picture: np.ndarray, text: str) -> np.ndarray:
    """The picture (H, W, 3) with a line of text on a black strip above it."""
    strip = np.zeros((18, picture.shape[1], 3), np.uint8)
    cv2.putText(
        strip, text, (3, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (255, 255, 255), 1, cv2.LINE_AA
    )
    return np.concatenate([strip, picture])


def shrink_to(picture: np.ndarray, side: int) -> np.ndarray:
    """Put a picture (H, W, 3) into a black (side, side, 3) square, keeping its aspect ratio."""
    scale = side / max(picture.shape[:2])
    height, width = (max(1, round(n * scale)) for n in picture.shape[:2])
    square = np.zeros((side, side, 3), np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = cv2.resize(
        picture, (width, height), interpolation=cv2.INTER_AREA
    )
    return square


def case_row(
    image: np.ndarray,
    mask: np.ndarray | None,
    pred: np.ndarray,
    title: str,
    side: int = 256,
    classes: int = 1,
) -> np.ndarray:
    """Image, reference and prediction side by side with captions; without a mask the middle one is left out.

    Args:
        image: RGB, uint8 (H, W, 3).
        mask: reference, (H, W), or None.
        pred: prediction, (H, W).
        title: caption of the image, such as its stem.
        side: of each of the tiles, pixels.
        classes: 1 for lesions, reference green and prediction red; more for maps of ids in the colours of `legend`.
    """
    tiles = [(title, image)]
    if mask is not None:
        tiles.append(("reference", paint(image, mask, (TRUTH,) if classes == 1 else PALETTE)))
    tiles.append(("prediction", paint(image, pred, (PRED,) if classes == 1 else PALETTE)))
    return np.concatenate([caption(shrink_to(tile, side), text) for text, tile in tiles], axis=1)


def contact_sheet(
    rows: list[np.ndarray], columns: int = 2, categories: Sequence[str] = ()
) -> np.ndarray:
    """Stack pictures of one size, (H, W, 3), in `columns` columns on black, over a legend of the categories, if any."""
    blank = np.zeros_like(rows[0])
    lines = [rows[i : i + columns] for i in range(0, len(rows), columns)]
    filled = [line + [blank] * (min(columns, len(rows)) - len(line)) for line in lines]
    sheet = np.concatenate([np.concatenate(line, axis=1) for line in filled])
    return np.concatenate([sheet, legend(categories, sheet.shape[1])]) if categories else sheet
