"""Another tool's masks and ours against the same reference, image by image."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import wilcoxon

from ovseg.core.errors import InputError, first_five
from ovseg.core.files import atomic_dir, write_json
from ovseg.core.plots import draw_paired
from ovseg.core.statistics import mean_interval
from ovseg.data.geometry import resize_labels
from ovseg.data.pairs import list_images, read_image, read_mask
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

    Args:
        predictions: the other tool's masks; colours count by their brightest channel (the baseline's are green). They
            decide which images are scored.
        ours: our masks, as `infer` writes them; more than `predictions` has are left out.
        masks: reference masks, likewise. Predictions of another size are resized to the reference's (nearest).
        output: folder to make.
        threshold: grey values of `predictions` above it are lesion; 127 is probability 0.5 on a linear ramp.
        overwrite: replace an earlier comparison.

    Returns:
        Number of images, mean Dice `theirs` and `ours`, the mean difference (ours - theirs) with its 95 % bootstrap
        interval over images, Wilcoxon's signed-rank p; pairs with a NaN (both maps empty) are left out and counted.

    Raises:
        InputError: a folder is missing, a prediction has no partner, a file can't be read, or output exists.
    """
    theirs, other, references = list_images(predictions), list_images(ours), list_images(masks)
    for folder, found in ((ours, other), (masks, references)):
        alone = [stem for stem in theirs if stem not in found]
        if alone:
            raise InputError(
                f"{len(alone)} of {len(theirs)} predictions have no mask in {folder}: {first_five(alone)}."
            )
    with atomic_dir(output, overwrite, marker="paired.json") as folder:
        table = pd.DataFrame(
            [
                _score(stem, path, other[stem], references[stem], threshold)
                for stem, path in theirs.items()
            ]
        )
        summary = summarise_pairs(table)
        table.to_csv(folder / "paired.csv", index=False)
        draw_paired(table["theirs"].to_numpy(), table["ours"].to_numpy(), folder / "paired.png")
        write_json(folder / "paired.json", summary)
    return summary


def _score(stem: str, theirs: Path, ours: Path, reference: Path, threshold: int) -> dict[str, Any]:
    mask = read_mask(reference)
    scores = {
        "theirs": _dice(read_image(theirs).max(axis=2) > threshold, mask),
        "ours": _dice(read_mask(ours), mask),
    }
    return {"stem": stem, **scores, "difference": scores["ours"] - scores["theirs"]}


def summarise_pairs(table: pd.DataFrame) -> dict[str, Any]:
    """Means, mean difference with interval and p of a table of `theirs`, `ours`, `difference`; NaN rows left out."""
    valid = table.dropna()
    means = {
        name: float(valid[name].mean()) if len(valid) else None
        for name in ("theirs", "ours", "difference")
    }
    summary = {
        "images": len(valid),
        "left_out": len(table) - len(valid),
        **means,
        "ci95": None,
        "wilcoxon_p": None,
    }
    difference = valid["difference"].to_numpy()
    if len(valid) > 1:
        summary["ci95"] = mean_interval(difference)
        summary["wilcoxon_p"] = float(wilcoxon(difference).pvalue) if difference.any() else 1.0
    return summary


def _dice(pred: np.ndarray, reference: np.ndarray) -> float:
    pred = resize_labels(pred.astype(np.uint8), *reference.shape)
    pair = (torch.from_numpy(array)[None, None] for array in (pred, reference))
    return hard_scores(*pair)["dice"].item()
