"""Scores of outlines between marked ends, on the images that a run has not seen.

    python docs/guided_scores.py RUN DATA FOLD [ERROR]

The ends are those of the reference: its longest diameter, and its width across that. Each is
displaced at random, by a standard deviation of ERROR times the picture's longer side (0.006), and
displaced anew where they are refused. The ends that a person marks may lie elsewhere. The result is
in docs/recipes.md.
"""

import sys
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from ovseg import OvarianTumorDataModule, Predictor, predict_guided
from ovseg.core.console import progress_bar
from ovseg.core.errors import InputError
from ovseg.core.statistics import mean_interval
from ovseg.data.boxes import cut
from ovseg.data.manifest import image_groups
from ovseg.data.masks import read_mask
from ovseg.data.pairs import Pair
from ovseg.data.pictures import read_image
from ovseg.inference.agreement import dice_between
from ovseg.inference.guided import Ends, fit_ellipse

DRAWS = 20  # of the ends of an image


def main(run: Path, data: Path, fold: int, error: float = 0.006) -> pd.DataFrame:
    predictor = Predictor.load(run)
    pairs = OvarianTumorDataModule(root=str(data), fold=fold).pairs("valid")
    groups = image_groups(data)
    found = []
    for number, pair in enumerate(progress_bar(pairs, "Predicting", len(pairs))):
        image, mask = read(pair)
        ends = draw_ends(mask, error, np.random.default_rng(number))
        if ends is None:
            print(f"{pair.stem} has no lesion, or one too small for ends.")
            continue
        row: dict[str, object] = {"group": groups.get(pair.stem, pair.stem)}
        row["the network alone"] = dice_between(predictor.predict(image).labels > 0, mask)
        for name, calipers in (("2 ends", ends[:1]), ("4 ends", ends)):
            guided = predict_guided(predictor, image, calipers)
            ellipse = fill_ellipse(calipers, mask.shape)
            row[f"the ellipse of {name} alone"] = dice_between(ellipse, mask)
            row[f"the network with {name}"] = dice_between(guided.labels > 0, mask)
        found.append(row)

    table = pd.DataFrame(found)
    for name in table.columns.drop("group"):
        scores = table[name]
        low, high = mean_interval(scores.to_numpy(), table["group"].to_numpy()) or (np.nan, np.nan)
        print(
            f"{name}: Dice {scores.mean():.3f} ({low:.3f} .. {high:.3f}), median "
            f"{scores.median():.3f}, {(scores < 0.7).sum()} of {len(scores)} images below 0.7"
        )
    return table


def read(pair: Pair) -> tuple[np.ndarray, np.ndarray]:
    """Image, RGB uint8 (H, W, 3), and mask, bool (H, W), without the black border."""
    assert pair.mask_path is not None
    image = read_image(pair.image_path)
    mask = read_mask(pair.mask_path) > 0
    if pair.box is None:
        return image, mask
    return cut(image, pair.box), cut(mask, pair.box)


def draw_ends(mask: np.ndarray, error: float, generator: np.random.Generator) -> list[Ends] | None:
    """Displaced ends of the largest component's length and width; None without a lesion."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    if not contours:
        return None
    corners = cv2.convexHull(max(contours, key=cv2.contourArea))[:, 0]
    squares = ((corners[:, None] - corners[None]) ** 2).sum(-1)
    first, last = np.unravel_index(squares.argmax(), squares.shape)
    column, row = corners[last] - corners[first]
    across = corners @ np.array([-row, column])
    ends = corners[[[first, last], [across.argmin(), across.argmax()]]]
    height, width = mask.shape
    for _ in range(DRAWS):
        moved = ends + generator.normal(0, error * max(mask.shape), ends.shape)
        pairs = moved.round().clip(0, [width - 1, height - 1]).tolist()
        try:
            fit_ellipse(pairs, height, width)
        except InputError:
            continue
        return pairs
    return None


def fill_ellipse(pairs: list[Ends], shape: tuple[int, ...]) -> np.ndarray:
    """What the ends tell without a network, bool (H, W)."""
    height, width = shape
    rows, columns = np.indices(shape, np.float32)
    return fit_ellipse(pairs, height, width).measure_distance(columns, rows) <= 1


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), *map(float, sys.argv[4:]))
