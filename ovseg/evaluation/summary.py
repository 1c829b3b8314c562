"""What the table of an evaluation says about all of its images."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from ovseg.core.statistics import mean_interval
from ovseg.evaluation.calibration import count_flags, risk_coverage
from ovseg.evaluation.cases import TOLERANCE
from ovseg.evaluation.failures import KINDS, describe_kinds
from ovseg.inference.labels import Postprocessing

# Shares of the picture between which lesions are grouped by size.
SIZE_EDGES = (0.0, 0.03, 0.08, 0.2, 1.0)
# Longer sides of the original picture, pixels, between which pictures are grouped.
SIDE_EDGES = (0, 500, 800, 100_000)
FEW_UNITS = 5  # groups, or independent images, below which the interval of a subgroup would mislead


def summarise(table: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """`summarise_values` of each column of a table of scores."""
    return {name: summarise_values(table[name]) for name in table}


def pooled_iou(table: pd.DataFrame, suffix: str = "") -> float | None:
    """Summed intersections over summed unions of the images of a table.

    Args:
        table: see `Evaluation.run`.
        suffix: of the columns of areas; `_original` for those at the original sizes.

    Returns:
        None where no map has a lesion.
    """
    lesion = table[f"lesion_pixels{suffix}"].sum()
    pred = table[f"pred_pixels{suffix}"].sum()
    hit = table[f"hit_pixels{suffix}"].sum()
    union = lesion + pred - hit
    return float(hit / union) if union else None


def pooled_miou(table: pd.DataFrame) -> float | None:
    """Mean of the pooled IoU of lesion and of background at the original sizes.

    It is the mIoU of the MMOTU paper (arXiv 2207.06799).

    Returns:
        None where no map has a lesion.
    """
    of_lesion = pooled_iou(table, "_original")
    if of_lesion is None:
        return None
    pixels = (table["height"] * table["width"]).sum()
    lesion = table["lesion_pixels_original"].sum()
    pred = table["pred_pixels_original"].sum()
    hit = table["hit_pixels_original"].sum()
    neither = pixels - lesion - pred + hit
    of_background = neither / (pixels - hit) if pixels > hit else 1.0
    return float((of_lesion + of_background) / 2)


def summarise_values(scores: pd.Series, groups: pd.Series | None = None) -> dict[str, Any]:
    """A score over images.

    Args:
        scores: of each image; NaN (see `ovseg.metrics`) is left out.
        groups: the group of each image, whose members are not independent; None takes images as
            independent.

    Returns:
        `mean`; `ci95`, the bootstrap's percentile interval of the mean, which resamples whole
        groups where they are known, None for fewer than two; `sd`, of a sample, None for fewer than
        two; `median`, `q1` and `q3`; `images`, the number of images that have a score.
    """
    known = scores.notna().to_numpy()
    values = scores.to_numpy(float)[known]
    found: dict[str, Any] = {
        "mean": None,
        "ci95": None,
        "sd": None,
        "median": None,
        "q1": None,
        "q3": None,
        "images": len(values),
    }
    if len(values) == 0:
        return found
    members = None if groups is None else groups.to_numpy()[known]
    found["mean"] = float(values.mean())
    found["ci95"] = mean_interval(values, members)
    if len(values) > 1:
        found["sd"] = float(values.std(ddof=1))
    for name, share in (("q1", 25), ("median", 50), ("q3", 75)):
        found[name] = float(np.percentile(values, share))
    return found


def summarise_categories(
    table: pd.DataFrame, categories: Sequence[str] = (), groups: pd.Series | None = None
) -> list[dict[str, Any]]:
    """The scores of each category of a table that has a column `category`.

    Args:
        table: see `Evaluation.run`.
        categories: names of ids 1, 2, ... of a run for categories; empty for one class.
        groups: see `summarise_values`.

    Returns:
        For each category: `name`, `images` that show it, and `dice`, `iou` and `iou_pooled` of the
        lesion in these images at the original size, whatever category was predicted. For a run for
        categories also `recognised`, the number of these images that are predicted as mostly that
        category, and `category_dice` and `category_iou` at the network's size: the category against
        all else, over the images that have it in mask or prediction, so that a false one counts as
        0. `Evaluation.run` adds `category_iou_pooled`.
    """
    others = set(table["category"].unique()) - set(categories)
    rows = []
    for name in [*categories, *sorted(others)]:
        chosen = table["category"] == name
        part = table[chosen]
        members = None if groups is None else groups[chosen]
        row = {
            "name": name,
            "images": len(part),
            "dice": summarise_values(part["dice_original"], members),
            "iou": summarise_values(part["iou_original"], members),
            "iou_pooled": pooled_iou(part, "_original"),
        }
        if categories:
            row["recognised"] = int((part["pred_category"] == name).sum())
        if name in categories:
            category = categories.index(name) + 1
            row["category_dice"] = summarise_values(table[f"dice_{category}"], groups)
            row["category_iou"] = summarise_values(table[f"iou_{category}"], groups)
        rows.append(row)
    return rows


def summarise_failures(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Of each kind of `failures.KINDS`: `kind`, what it `means`, number and `share` of images."""
    means = describe_kinds(f"{TOLERANCE:g} pixels")
    rows = []
    for kind in KINDS:
        count = int((table["failure"] == kind).sum())
        row = {"kind": kind, "means": means[kind], "images": count, "share": count / len(table)}
        rows.append(row)
    return rows


def summarise_confidence(table: pd.DataFrame) -> dict[str, Any]:
    """The risk-coverage curve of Dice at the original size by `confidence`, see `risk_coverage`.

    Images in which both maps are empty count as exact.
    """
    dice = table["dice_original"].fillna(1.0)
    return asdict(risk_coverage(dice.to_numpy(), table["confidence"].to_numpy()))


def summarise_flags(table: pd.DataFrame, postprocessing: Postprocessing) -> dict[str, Any] | None:
    """What the flags of a post-processing find among the images of a table, see `count_flags`.

    Images in which both maps are empty count as exact.

    Returns:
        None where the post-processing has no confidence to flag by.
    """
    if postprocessing.flag_confidence is None:
        return None
    return count_flags(
        table["dice_original"].fillna(1.0).to_numpy(),
        table["confidence"].to_numpy(),
        postprocessing.flag_confidence,
        postprocessing.failure_dice,
    )


def summarise_subgroups(table: pd.DataFrame, groups: pd.Series | None) -> list[dict[str, Any]]:
    """Dice at the original size of images that have something in common.

    Args:
        table: see `Evaluation.run`.
        groups: see `summarise_values`.

    Returns:
        For each subgroup that has an image: `by`, `name`, `failed` (images that are no good, see
        `failures.KINDS`), and `summarise_values` of Dice.
    """
    rows = []
    for by, name, chosen in _list_subgroups(table):
        if not chosen.any():
            continue
        members = None if groups is None else groups[chosen]
        failed = int((table.loc[chosen, "failure"] != "good").sum())
        found = summarise_values(table.loc[chosen, "dice_original"], members)
        units = found["images"] if members is None else members.nunique()
        if units < FEW_UNITS:
            found["ci95"] = None
        rows.append({"by": by, "name": name, "failed": failed, **found})
    return rows


def _list_subgroups(table: pd.DataFrame) -> Iterator[tuple[str, str, pd.Series]]:
    """What images are grouped by, the name of a subgroup, and which rows are in it."""
    share = table["lesion_pixels_original"] / (table["height"] * table["width"])
    yield "lesion", "none", share == 0
    for low, high in itertools.pairwise(SIZE_EDGES):
        name = f"{low:.0%} to {high:.0%} of the picture"
        yield "lesion", name, (share > low) & (share <= high)
    if "category" in table:
        for category in sorted(table["category"].unique()):
            yield "category", category, table["category"] == category
    for column, names in (
        ("doppler", ("no colour Doppler", "colour Doppler")),
        ("marked", ("no mark on the lesion", "yellow mark on the lesion")),
    ):
        for value, name in zip((False, True), names, strict=True):
            yield column, name, table[column] == value
    side = table[["height", "width"]].max(axis=1)
    for low, high in itertools.pairwise(SIDE_EDGES):
        name = f"{low + 1} to {high} pixels"
        if low == 0:
            name = f"up to {high} pixels"
        elif high == SIDE_EDGES[-1]:
            name = f"more than {low} pixels"
        yield "longer side", name, (side > low) & (side <= high)
