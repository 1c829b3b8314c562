"""Another tool's masks and ours against the same reference, image by image."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import wilcoxon

from ovseg.core.errors import InputError, first_five
from ovseg.core.files import atomic_dir, write_json, write_table
from ovseg.core.plots import draw_paired
from ovseg.core.statistics import mean_interval
from ovseg.data.geometry import resize_labels
from ovseg.data.masks import read_mask
from ovseg.data.pairs import list_images
from ovseg.data.pictures import read_image
from ovseg.metrics import hard_scores


def compare_masks(
    predictions: Path,
    ours: Path,
    masks: Path,
    output: Path,
    threshold: int = 127,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Score another tool's masks and ours; writes `paired.csv`, `paired.json` and `paired.png`.

    Predictions of another size than the reference are resized to it (nearest neighbour).

    Args:
        predictions: the other tool's masks, which decide which images are scored. Colours count by
            their brightest channel (the baseline's masks are green).
        ours: our masks, as `infer` writes them; those without a prediction are left out.
        masks: reference masks; those without a prediction are left out.
        output: folder to make.
        threshold: grey values of `predictions` above it are lesion; 127 is probability 0.5 where
            grey is proportional to probability.
        overwrite: replace an earlier comparison.

    Returns:
        See `summarise_pairs`.

    Raises:
        InputError: a folder is missing, a prediction has no mask of the same stem, a file can't be
            read, or output exists.
    """
    their_paths = list_images(predictions)
    our_paths = list_images(ours)
    reference_paths = list_images(masks)
    _check_partners(their_paths, our_paths, ours)
    _check_partners(their_paths, reference_paths, masks)
    with atomic_dir(output, overwrite, marker="paired.json") as folder:
        rows = []
        for stem, path in their_paths.items():
            mask = read_mask(reference_paths[stem])
            theirs = dice_of(read_image(path).max(axis=2) > threshold, mask)
            our_dice = dice_of(read_mask(our_paths[stem]), mask)
            difference = our_dice - theirs
            row = {"stem": stem, "theirs": theirs, "ours": our_dice, "difference": difference}
            rows.append(row)
        table = pd.DataFrame(rows)
        summary = summarise_pairs(table)
        write_table(folder / "paired.csv", table)
        draw_paired(table["theirs"].to_numpy(), table["ours"].to_numpy(), folder / "paired.png")
        write_json(folder / "paired.json", summary)
    return summary


def _check_partners(predictions: dict[str, Path], masks: dict[str, Path], folder: Path) -> None:
    missing = [stem for stem in predictions if stem not in masks]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(predictions)} predictions have no mask in {folder}: "
            f"{first_five(missing)}."
        )


def summarise_pairs(table: pd.DataFrame) -> dict[str, Any]:
    """The comparison of two tools.

    Args:
        table: a row an image: Dice `theirs` and `ours`, and `difference` (ours - theirs).

    Returns:
        `images`; `left_out`, the number of rows with a NaN (both maps empty); mean `theirs`, `ours`
        and `difference`; `ci95`, the 95 % bootstrap interval of the difference over images;
        `wilcoxon_p` of Wilcoxon's signed-rank test. What too few images leave undefined is None.
    """
    valid = table.dropna()
    summary: dict[str, Any] = {"images": len(valid), "left_out": len(table) - len(valid)}
    for name in ("theirs", "ours", "difference"):
        summary[name] = float(valid[name].mean()) if len(valid) else None
    summary["ci95"] = None
    summary["wilcoxon_p"] = None
    if len(valid) > 1:
        difference = valid["difference"].to_numpy()
        summary["ci95"] = mean_interval(difference)
        # Wilcoxon's test is undefined where all differences are zero.
        summary["wilcoxon_p"] = 1.0
        if difference.any():
            summary["wilcoxon_p"] = float(wilcoxon(difference).pvalue)
    return summary


def dice_of(pred: np.ndarray, reference: np.ndarray) -> float:
    """Dice of two masks, 0/1 or bool (H, W) of any sizes; NaN where both are empty."""
    resized = resize_labels(pred.astype(np.uint8), *reference.shape)
    scores = hard_scores(
        torch.from_numpy(resized)[None, None], torch.from_numpy(reference)[None, None]
    )
    return scores["dice"].item()
