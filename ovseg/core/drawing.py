"""Pictures of images and masks as arrays: outlines, captions and contact sheets."""

from collections.abc import Sequence

import cv2
import numpy as np

from ovseg.core.text import printable

Color = tuple[int, int, int]
TRUTH: Color = (0, 220, 60)  # outline of the reference: green
PRED: Color = (255, 60, 60)  # outline of the prediction: red
WHITE: Color = (255, 255, 255)
# Colours of categories 1, 2, ...: bright on a dark image, and distinct for colour-blind readers
# too (after Okabe and Ito, 2008).
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

FONT = cv2.FONT_HERSHEY_SIMPLEX
FONT_SCALE = 0.4
LINE_HEIGHT = 18  # pixels of a line of text
HEAT_OPACITY = 0.75  # the picture shows through
HEAT_FULL = 0.3  # the value from which colours are as opaque as they get
HEAT_BAR = 160  # pixels of a scale, where the picture is as wide


def outline(
    image: np.ndarray, mask: np.ndarray, color: Color = PRED, tint: float = 0.0
) -> np.ndarray:
    """Draw a mask's outline, and a transparent filling if asked.

    Args:
        image: RGB, uint8 (H, W, 3); it is not changed.
        mask: lesion, 0/1 or bool, (H, W).
        color: RGB.
        tint: opacity of the filling, 0..1.

    Returns:
        RGB, uint8 (H, W, 3).
    """
    picture = image.copy()
    binary = np.ascontiguousarray(mask, np.uint8)
    inside = binary.astype(bool)
    filling = (1 - tint) * picture[inside] + tint * np.array(color)
    picture[inside] = filling.astype(np.uint8)
    contours, _ = cv2.findContours(binary, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    thickness = max(1, round(max(binary.shape) / 256))
    cv2.drawContours(picture, contours, -1, color, thickness)
    return picture


def paint(
    image: np.ndarray, labels: np.ndarray, colors: Sequence[Color], tint: float = 0.3
) -> np.ndarray:
    """Outline and tint each region in its own colour.

    Args:
        image: RGB, uint8 (H, W, 3); it is not changed.
        labels: ids, (H, W), 0 for background; a lesion mask is a map of the one id 1.
        colors: id k has `colors[k - 1]`; past the last colour they start from the first again.
        tint: opacity of the filling, 0..1.
    """
    for label in np.unique(labels[labels > 0]):
        color = colors[(int(label) - 1) % len(colors)]
        image = outline(image, labels == label, color, tint)
    return image


def legend(names: Sequence[str], width: int, shown: Sequence[int] | None = None) -> np.ndarray:
    """A black strip with the colour, id and name of categories 1, 2, ...

    Args:
        names: of all categories.
        width: pixels; entries that do not fit continue on further lines.
        shown: ids to list; all by default.

    Returns:
        RGB, uint8 (H, width, 3).
    """
    texts = {}
    for category, name in enumerate(names, 1):
        if shown is None or category in shown:
            texts[category] = _drawable(f"{category} {name}")

    corners = {}  # category -> top and left of its entry
    top = 0
    left = 0
    for category, text in texts.items():
        (text_width, _), _ = cv2.getTextSize(text, FONT, FONT_SCALE, 1)
        needed = text_width + 30
        if left and left + needed > width:
            top += LINE_HEIGHT
            left = 0
        corners[category] = (top, left)
        left += needed

    strip = np.zeros((top + LINE_HEIGHT, width, 3), np.uint8)
    for category, (top, left) in corners.items():
        color = PALETTE[(category - 1) % len(PALETTE)]
        cv2.rectangle(strip, (left + 4, top + 4), (left + 14, top + 14), color, -1)
        _write(strip, texts[category], left + 20, top + 13)
    return strip


def heat_colors(values: np.ndarray) -> np.ndarray:
    """Colours of the scale viridis, which colour-blind readers can read, by OpenCV.

    Args:
        values: float (H, W) in 0..1; what is beyond gets the colour of the nearer end.

    Returns:
        RGB, uint8 (H, W, 3).
    """
    levels = np.round(values.clip(0, 1) * 255).astype(np.uint8)
    return cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB)


def blend_heat(image: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Lay the colours of values over an image, the more opaque the higher they are.

    Args:
        image: RGB, uint8 (H, W, 3); it is not changed.
        values: float (H, W) in 0..1.

    Returns:
        RGB, uint8 (H, W, 3).
    """
    opacity = heat_opacity(values)[..., None]
    blended = (1 - opacity) * image + opacity * heat_colors(values)
    return blended.round().astype(np.uint8)


def heat_opacity(values: np.ndarray) -> np.ndarray:
    """Opacity of a value in 0..1: 0 at 0, `HEAT_OPACITY` from `HEAT_FULL` on."""
    return HEAT_OPACITY * (values / HEAT_FULL).clip(0, 1)


def heat_legend(width: int, low: str, high: str, title: str) -> np.ndarray:
    """A black strip with the scale of `heat_colors`, its ends, and below what it shows.

    Args:
        width: pixels; a title that does not fit is cut off.
        low: text of the lower end.
        high: text of the upper end.
        title: what the colours are.

    Returns:
        RGB, uint8 (2 * LINE_HEIGHT, width, 3).
    """
    strip = np.zeros((2 * LINE_HEIGHT, width, 3), np.uint8)
    (low_width, _), _ = cv2.getTextSize(low, FONT, FONT_SCALE, 1)
    (high_width, _), _ = cv2.getTextSize(high, FONT, FONT_SCALE, 1)
    left = low_width + 8
    right = max(left + 1, min(width - high_width - 8, left + HEAT_BAR))
    bar = np.linspace(0, 1, right - left)[None].repeat(10, axis=0)
    part = strip[4:14, left:right]
    part[:] = heat_colors(bar)[:, : part.shape[1]]
    _write(strip, low, 4, 13)
    _write(strip, high, right + 4, 13)
    _write(strip, _drawable(title), 4, LINE_HEIGHT + 13)
    return strip


def caption(picture: np.ndarray, text: str) -> np.ndarray:
    """The picture (H, W, 3) with a line of text on a black strip above it."""
    strip = np.zeros((LINE_HEIGHT, picture.shape[1], 3), np.uint8)
    _write(strip, _drawable(text), 3, 13)
    return np.concatenate([strip, picture])


def _drawable(text: str) -> str:
    """A text in ASCII, all that OpenCV draws; it crashes on names that are not UTF-8."""
    return printable(text).encode("ascii", "replace").decode("ascii")


def _write(picture: np.ndarray, text: str, left: int, baseline: int) -> None:
    cv2.putText(picture, text, (left, baseline), FONT, FONT_SCALE, WHITE, 1, cv2.LINE_AA)


def shrink_to(picture: np.ndarray, side: int) -> np.ndarray:
    """Resize a picture (H, W, 3) into a black (side, side, 3) square, keeping its aspect ratio."""
    scale = side / max(picture.shape[:2])
    height = max(1, round(picture.shape[0] * scale))
    width = max(1, round(picture.shape[1] * scale))
    resized = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
    square = np.zeros((side, side, 3), np.uint8)
    top = (side - height) // 2
    left = (side - width) // 2
    square[top : top + height, left : left + width] = resized
    return square


def case_row(
    image: np.ndarray,
    mask: np.ndarray | None,
    pred: np.ndarray,
    title: str,
    side: int = 256,
    classes: int = 1,
) -> np.ndarray:
    """Image, reference and prediction side by side with captions.

    Args:
        image: RGB, uint8 (H, W, 3).
        mask: reference, (H, W); None leaves its tile out.
        pred: prediction, (H, W).
        title: caption of the image, such as its stem.
        side: of each tile, pixels.
        classes: 1 for lesion masks, reference green and prediction red; more for maps of ids in the
            colours of `legend`.
    """
    truth_colors = (TRUTH,) if classes == 1 else PALETTE
    pred_colors = (PRED,) if classes == 1 else PALETTE
    tiles = [caption(shrink_to(image, side), title)]
    if mask is not None:
        reference = paint(image, mask, truth_colors)
        tiles.append(caption(shrink_to(reference, side), "reference"))
    prediction = paint(image, pred, pred_colors)
    tiles.append(caption(shrink_to(prediction, side), "prediction"))
    return np.concatenate(tiles, axis=1)


def contact_sheet(
    pictures: list[np.ndarray], columns: int = 2, categories: Sequence[str] = ()
) -> np.ndarray:
    """Put pictures of one size in a grid on black.

    Args:
        pictures: at least one, each (H, W, 3).
        columns: of the grid.
        categories: names for a legend below; none leaves it out.
    """
    columns = min(columns, len(pictures))
    blank = np.zeros_like(pictures[0])
    lines = []
    for start in range(0, len(pictures), columns):
        line = pictures[start : start + columns]
        missing = columns - len(line)
        lines.append(np.concatenate([*line, *[blank] * missing], axis=1))
    sheet = np.concatenate(lines)
    if not categories:
        return sheet
    return np.concatenate([sheet, legend(categories, sheet.shape[1])])
