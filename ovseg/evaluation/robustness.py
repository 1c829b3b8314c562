"""Scores under graded disturbances: what a network stands before it fails."""

import random
import textwrap
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from ovseg.core.console import progress_bar
from ovseg.core.errors import InputError
from ovseg.core.plots import PANEL_WIDTH
from ovseg.data.augment import ultrasound
from ovseg.data.augment.calipers import YELLOWS, caliper_ends, draw_caliper, remove_calipers
from ovseg.data.augment.sector import find_sector
from ovseg.evaluation.evaluate import Evaluation
from ovseg.evaluation.figures import BLUE
from ovseg.inference.predictor import class_probs
from ovseg.metrics import hard_scores

SEED = 0
# Changes an image, RGB uint8 (S, S, 3), and its mask, uint8 (S, S), by a level.
Change = Callable[[np.ndarray, np.ndarray, float, int], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Disturbance:
    """An entry of `DISTURBANCES`.

    Attributes:
        change: of image and mask by level and a seed.
        levels: from weak to strong.
        unit: of the levels.
    """

    change: Change
    levels: tuple[float, ...]
    unit: str


def measure_robustness(evaluation: Evaluation, images: int) -> pd.DataFrame:
    """Score a run on disturbed images, at the network's size.

    Args:
        evaluation: of the run.
        images: how many of the split, spread evenly; all where it has fewer.

    Returns:
        A row a disturbance and level: `disturbance`, `level`, `unit`, and the mean `dice` over the
        `images` that have one. The first row, `none`, is of the images as they are.

    Raises:
        InputError: `images` is below 1.
    """
    if images < 1:
        raise InputError(f"robustness is {images}, expected at least 1 image.")
    total = len(evaluation.dataset)
    count = min(images, total)
    indices = np.linspace(0, total - 1, count).round().astype(int)
    cases: list[tuple[str, float, str, Change]] = [("none", 0.0, "", _keep)]
    for name, entry in DISTURBANCES.items():
        cases += [(name, level, entry.unit, entry.change) for level in entry.levels]

    scores: dict[tuple[str, float], list[float]] = {case[:2]: [] for case in cases}
    for index in progress_bar(indices, "Disturbing images", count):
        item = evaluation.dataset[int(index)]
        image = item["image"].permute(1, 2, 0).numpy()
        mask = item["mask"][0].numpy()
        for name, level, _, change in cases:
            changed = change(image, mask, level, SEED + int(index))
            dice = _score(evaluation, item["stem"], *changed)
            scores[name, level].append(dice)
    rows = []
    for name, level, unit, _ in cases:
        values = np.array(scores[name, level])
        known = values[~np.isnan(values)]
        mean = float(known.mean()) if len(known) else None
        row = {"disturbance": name, "level": level, "unit": unit, "dice": mean}
        rows.append({**row, "images": len(known)})
    return pd.DataFrame(rows)


def _score(evaluation: Evaluation, stem: str, image: np.ndarray, mask: np.ndarray) -> float:
    """Dice of one image of this stem, as changed; NaN where both maps are empty."""
    batch = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None]
    logits = evaluation.logits([stem], batch.to(evaluation.device), evaluation.postprocessing.flips)
    labels = evaluation.postprocessing.labels(class_probs(logits)[0])
    pred = torch.from_numpy(labels > 0)[None, None]
    return hard_scores(pred, torch.from_numpy(mask > 0)[None, None])["dice"].item()


def draw_robustness(table: pd.DataFrame, columns: int) -> Figure:
    """Mean Dice against the level of each disturbance, see `measure_robustness`.

    Args:
        table: of the measurement.
        columns: panels side by side: 4 on a screen or sheet, 2 on a phone.
    """
    undisturbed = table["dice"].iloc[0]
    names = list(DISTURBANCES)
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(PANEL_WIDTH * columns / 2, 2 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for axes, name in zip(grid.flat, names, strict=False):
        part = table[table["disturbance"] == name]
        axes.axhline(undisturbed, color="gray", linewidth=1)
        axes.plot(range(len(part)), part["dice"], marker="o", color=BLUE)
        axes.set_xticks(range(len(part)), [f"{level:g}" for level in part["level"]])
        axes.set_title(name, fontsize="medium")
        axes.set_xlabel(textwrap.fill(part["unit"].iloc[0], 18))  # a panel is narrow
        axes.set_ylim(0, 1)
        axes.grid(axis="y", alpha=0.3)
    for axes in list(grid.flat)[len(names) :]:
        axes.set_visible(False)
    for axes in grid[:, 0]:
        axes.set_ylabel("mean Dice")
    figure.suptitle(f"{table['images'].iloc[0]} images; grey: undisturbed", fontsize="medium")
    return figure


def _keep(
    image: np.ndarray, mask: np.ndarray, level: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    return image, mask


def change_gain(
    image: np.ndarray, mask: np.ndarray, level: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Change the gain by `level` decibel."""
    return ultrasound.change_gain(image, find_sector(image), np.full(8, level)), mask


def add_speckle(
    image: np.ndarray, mask: np.ndarray, level: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Add speckle of strength `level`."""
    sector = find_sector(image)
    generator = np.random.default_rng(seed)
    texture = ultrasound.speckle_texture(generator, sector.height, sector.width)
    return ultrasound.add_speckle(image, sector, texture, level), mask


def blur(
    image: np.ndarray, mask: np.ndarray, level: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Blur by a Gaussian of `level` thousandths of the side."""
    return cv2.GaussianBlur(image, (0, 0), level * image.shape[0] / 1000), mask


def compress(
    image: np.ndarray, mask: np.ndarray, level: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Write and read as a JPEG of quality `level`."""
    options = [cv2.IMWRITE_JPEG_QUALITY, int(level)]
    _, content = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    decoded = cv2.imdecode(content, cv2.IMREAD_COLOR)
    assert decoded is not None  # it was just encoded
    return cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB), mask


def lower_resolution(
    image: np.ndarray, mask: np.ndarray, level: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Shrink by a factor of `level`, and enlarge again."""
    height, width = image.shape[:2]
    small = (max(1, round(width / level)), max(1, round(height / level)))
    shrunk = cv2.resize(image, small, interpolation=cv2.INTER_AREA)
    return cv2.resize(shrunk, (width, height), interpolation=cv2.INTER_CUBIC), mask


def rotate(
    image: np.ndarray, mask: np.ndarray, level: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rotate image and mask about the middle by `level` degrees."""
    height, width = mask.shape
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), level, 1)
    rotated = cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR)
    return rotated, cv2.warpAffine(mask, matrix, (width, height), flags=cv2.INTER_NEAREST)


def cover(
    image: np.ndarray, mask: np.ndarray, level: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Cover a black square of `level` percent of the side, anywhere."""
    height, width = mask.shape
    side = max(1, round(level / 100 * height))
    generator = random.Random(seed)
    top = generator.randrange(height - side + 1)
    left = generator.randrange(width - side + 1)
    covered = image.copy()
    covered[top : top + side, left : left + side] = 0
    return covered, mask


def draw_calipers(
    image: np.ndarray, mask: np.ndarray, level: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw `level` calipers away from the lesion's edge, where they mislead."""
    generator = random.Random(seed)
    sector = find_sector(image)
    for _ in range(int(level)):
        ends = caliper_ends(generator, mask, sector, on_lesion=False)
        image = draw_caliper(image, ends, YELLOWS[0])
    return image, mask


def erase_calipers(
    image: np.ndarray, mask: np.ndarray, level: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Erase the yellow marks, which may have shown where the lesion is."""
    return remove_calipers(image), mask


DISTURBANCES = {
    "higher gain": Disturbance(change_gain, (3, 6, 12), "decibel"),
    "lower gain": Disturbance(change_gain, (-3, -6, -12), "decibel"),
    "speckle": Disturbance(add_speckle, (0.2, 0.4, 0.8), "strength"),
    "blur": Disturbance(blur, (4, 8, 16), "deviation, 1/1000 of the side"),
    "JPEG": Disturbance(compress, (50, 25, 10), "quality"),
    "lower resolution": Disturbance(lower_resolution, (2, 4, 8), "factor"),
    "rotation": Disturbance(rotate, (5, 10, 20), "degrees"),
    "occlusion": Disturbance(cover, (10, 20, 30), "% of the side"),
    "misplaced calipers": Disturbance(draw_calipers, (1, 2, 4), "number"),
    "calipers erased": Disturbance(erase_calipers, (1,), "1: all yellow marks"),
}
