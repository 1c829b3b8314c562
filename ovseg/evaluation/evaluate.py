"""A run and a split to a table with a row for each image, and their summary."""

import importlib.metadata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from ovseg import __version__
from ovseg.core.checkpoints import check_evaluable, checkpoint_digest, read_members
from ovseg.core.console import progress_bar
from ovseg.core.device import choose_device
from ovseg.core.errors import InputError
from ovseg.core.runs import RunFolder
from ovseg.core.statistics import mean_interval
from ovseg.data.datamodule import OvarianTumorDataModule
from ovseg.data.geometry import fit_box
from ovseg.data.manifest import image_categories, prepared_items
from ovseg.data.original import original_mask
from ovseg.inference.postprocessing import (
    Postprocessing,
    average_flips,
    mean_logits,
    read_postprocessing,
    to_dict,
)
from ovseg.inference.predictor import class_probs, restore_probs
from ovseg.metrics import (
    HARD_SCORES,
    ORIGINAL_SCORES,
    POOLED_SCORES,
    OnlineScores,
    category_scores,
    confusion,
    hard_scores,
    main_category,
)
from ovseg.training.task import SegmentationTask


class Evaluation:
    """A run on one split, at the size the network was trained at and at the pictures' original sizes.

    Args:
        run: run folder, checkpoint, or the folder of an ensemble; its loss is the first member's.
        split: `train`, `valid` or `test`.
        root: the dataset's folder where it is not the one of training.
        batch_size: images at a time; the soft `dice_coef` is a mean over batches, which the baseline takes of 4.
        device: see `ovseg.inference.predictor.choose_device`.
        postprocessing: with the post-processing that the run folder holds (see `ovseg.inference.postprocessing`), if any.

    Raises:
        InputError: run, dataset or device can't be used.
    """

    def __init__(
        self,
        run: Path,
        split: str = "test",
        root: Path | None = None,
        batch_size: int = 4,
        device: str = "auto",
        postprocessing: bool = True,
    ):
        if batch_size < 1:
            raise InputError(f"--batch_size is {batch_size}, expected at least 1.")
        self.split, self.device, self.members = split, choose_device(device), read_members(run)
        check_evaluable(self.members, split, root)
        first, self.paths = self.members[0], [member.path for member in self.members]
        unused = {
            "augmentation": "none",
            "mini_test": None,
            "phantoms": 0,
        }  # files of training may be gone
        settings = {**first.data, **unused, "batch_size": batch_size}
        settings["root"] = str(root or settings["root"])
        self.datamodule = OvarianTumorDataModule(**settings)
        self.datamodule.verify([split])
        held_out = {} if split == "test" else {"held_out": first.held_out}
        self.datamodule.load_state_dict({"categories": first.categories, **held_out})
        self._pairs = {pair.stem: pair for pair in self.datamodule.pairs(split)}
        self._items = prepared_items(self.datamodule.root)
        self.digest = checkpoint_digest(*self.paths)
        found = read_postprocessing(run, self.digest, first.classes) if postprocessing else None
        self.postprocessing, self.postprocessing_file = (
            found or Postprocessing(),
            RunFolder(run).postprocessing.name if found else None,
        )
        options = {"map_location": self.device, "weights_only": True}
        self.tasks = [
            SegmentationTask.load_from_checkpoint(path, **options).eval() for path in self.paths
        ]
        self.task = self.tasks[0]

    def loader(self) -> Iterator[dict]:
        """Every batch of the split once, with a bar on a terminal."""
        return progress_bar(self.datamodule.eval_dataloader(self.split), f"Evaluating {self.split}")

    @torch.inference_mode()
    def batches(self) -> Iterator[tuple[dict, torch.Tensor]]:
        """Every batch of the split, on the device, with its logits (N, classes, S, S)."""
        for batch in self.loader():
            on_device = {name: batch[name].to(self.device) for name in ("image", "mask")}
            yield {**batch, **on_device}, self.logits(on_device["image"], self.postprocessing.flips)

    @torch.inference_mode()
    def logits(self, image: torch.Tensor, flips: Sequence[str]) -> torch.Tensor:
        """Logits (N, classes, S, S) of pictures on the device, uint8 (N, 3, S, S), over flips and members."""
        return mean_logits([average_flips(task, image, flips) for task in self.tasks])

    def original_probs(self, stem: str, square: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities (classes, height, width) and mask (height, width) at the picture's original size.

        Args:
            stem: of the split.
            square: probabilities, float32 (classes, S, S); they are taken out as `Predictor.segment` does.
        """
        settings = self.datamodule.hparams
        pair, item = self._pairs[stem], self._items.get(stem)
        mask = original_mask(pair, item, settings.mask_threshold, self.task.classes)
        return restore_probs(square, *mask.shape, settings.fit), mask

    def postprocess(
        self, stems: Sequence[str], logits: torch.Tensor
    ) -> tuple[torch.Tensor, list[dict[str, float]]]:
        """Labels at the network's size, uint8 (N, 1, S, S) on the device, and `original_row` of each image."""
        settings, preds, rows = self.datamodule.hparams, [], []
        for stem, square in zip(stems, class_probs(logits), strict=True):
            probs, mask = self.original_probs(stem, square)
            box = fit_box(*mask.shape, settings.image_size, settings.fit)
            preds.append(self.postprocessing.labels(square, box.height * box.width))
            rows.append(original_row(self.postprocessing.labels(probs), mask))
        return torch.from_numpy(np.stack(preds)[:, None]).to(self.device), rows

    def run(self) -> tuple[pd.DataFrame, dict[str, Any]]:
        """Score the split.

        Returns:
            A table with a row for each image (see `image_rows`; for one class, `category` where the dataset's manifest
            tells it), and the summary (see `summarise` and `summarise_categories`).
        """
        names = self.datamodule.categories
        online, rows = OnlineScores(self.task.classes, sync=False).to(self.device), []
        for batch, logits in self.batches():
            pred, added = self.postprocess(batch["stem"], logits)
            online.update(self.task.loss(logits, batch["mask"]), logits, batch["mask"], pred=pred)
            rows += [
                row | more for row, more in zip(image_rows(batch, pred, names), added, strict=True)
            ]
        table = pd.DataFrame(rows)
        known = (
            {}
            if names
            else image_categories(self.datamodule.root, *self.datamodule.tree.folders(self.split))
        )
        if known:
            table.insert(1, "category", table["stem"].map(known).fillna("unknown"))
        pooled = {
            name: number(value) for name, value in online.compute().items() if name in POOLED_SCORES
        }
        pooled["iou_pooled_original"] = pooled_iou(table, "_original")
        summary = {
            **self.describe(),
            "scores": {**pooled, **summarise(table[[*HARD_SCORES, *ORIGINAL_SCORES]])},
        }
        if "category" in table:
            summary["per_category"] = summarise_categories(table, names)
        if names:
            for row, iou in zip(
                summary["per_category"], online.categories.compute()["iou_pooled"], strict=False
            ):
                row["category_iou_pooled"] = number(iou)
        return table, summary

    def describe(self) -> dict[str, Any]:
        """What was evaluated and with what: the part of the summary that is known before any image is scored."""
        packages = ("torch", "torchmetrics", "numpy")
        return {
            "checkpoint": self.paths[0].name
            if len(self.paths) == 1
            else f"ensemble of {len(self.paths)}",
            "checkpoint_sha256": self.digest,
            "members": [str(path) for path in self.paths],
            "epoch": self.members[0].epoch
            if len(self.paths) == 1
            else [member.epoch for member in self.members],
            "data": str(self.datamodule.root),
            "split": self.split,
            "leakage": self.datamodule.leakage,
            "images": len(self.datamodule.pairs(self.split)),
            "image_size": self.datamodule.hparams.image_size,
            "classes": self.task.classes,
            "threshold": self.postprocessing.threshold
            if self.task.classes == 1
            else None,  # else the most probable class
            "postprocessing": to_dict(self.postprocessing),
            "postprocessing_file": self.postprocessing_file,
            "batch_size": self.datamodule.hparams.batch_size,
            "versions": {
                "ovseg": __version__,
                **{name: importlib.metadata.version(name) for name in packages},
            },
        }


def number(value: torch.Tensor) -> float | None:
    """A scalar for JSON, which has no NaN."""
    return None if value.isnan() else float(value)


def image_rows(
    batch: dict, pred: torch.Tensor, categories: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """A row for each image of a batch and its labels (N, 1, S, S): stem, hard scores of the lesion, areas in pixels.

    With categories also the name of the one that covers most of the mask and of the prediction (`none` where it is
    empty), and `dice_<id>`, `iou_<id>` of each category against all else.
    """
    mask, columns = batch["mask"], {}
    if categories:
        counts, names = confusion(pred, mask, len(categories) + 1), ["none", *categories]
        columns["category"] = [names[i] for i in main_category(counts.sum(2)).tolist()]
        columns["pred_category"] = [names[i] for i in main_category(counts.sum(1)).tolist()]
    columns |= {name: values.tolist() for name, values in hard_scores(pred, mask).items()}
    columns |= {name: values.tolist() for name, values in area_counts(pred, mask).items()}
    if categories:
        for name, values in category_scores(counts).items():
            columns |= {f"{name}_{i}": column for i, column in enumerate(values.T.tolist(), 1)}
    return [
        dict(zip(["stem", *columns], row, strict=True))
        for row in zip(batch["stem"], *columns.values(), strict=True)
    ]


def original_row(labels: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """`ORIGINAL_SCORES` of the lesion of one picture, and areas in pixels, from ids, uint8 (height, width)."""
    pred, mask = (torch.from_numpy(ids > 0)[None, None] for ids in (labels, mask))
    scores = hard_scores(pred, mask)
    row = {name: scores[name.removesuffix("_original")].item() for name in ORIGINAL_SCORES}
    return row | {f"{name}_original": int(count) for name, count in area_counts(pred, mask).items()}


def area_counts(pred: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
    """Lesion pixels of each image in its mask, its prediction and both, int64 (N,), from ids (N, 1, H, W)."""
    areas = {
        "lesion_pixels": mask > 0,
        "pred_pixels": pred > 0,
        "hit_pixels": (pred > 0) & (mask > 0),
    }
    return {name: area.flatten(1).sum(1) for name, area in areas.items()}


def summarise(table: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Mean, median and 95 % interval of each column of scores over the images that have it; see `summarise_values`."""
    return {name: summarise_values(table[name]) for name in table}


def pooled_iou(table: pd.DataFrame, suffix: str = "") -> float | None:
    """Summed intersections over summed unions of the images of a table; None where the lesion is in no map.

    Args:
        table: see `Evaluation.run`.
        suffix: of the columns of areas; `_original` are those at the pictures' original sizes.
    """
    lesion, pred, hit = (
        table[f"{name}_pixels{suffix}"].sum() for name in ("lesion", "pred", "hit")
    )
    union = lesion + pred - hit
    return float(hit / union) if union else None


def summarise_values(scores: pd.Series) -> dict[str, Any]:
    """Mean, median and 95 % interval of a score over images.

    NaN scores (see `ovseg.metrics`) are left out; `images` says how many are behind the mean. The interval is the
    bootstrap's percentile interval of the mean, resampling images (9,999 times, seeded); null for fewer than two.
    """
    values = scores.dropna().to_numpy()
    summary = {"mean": None, "median": None, "ci95": None, "images": len(values)}
    if len(values):
        summary.update(mean=float(values.mean()), median=float(np.median(values)))
    summary["ci95"] = mean_interval(values)
    return summary


def summarise_categories(
    table: pd.DataFrame, categories: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """The scores of each category of a table that has a column `category`.

    Args:
        table: see `Evaluation.run`.
        categories: names of ids 1, 2, ... of a run for categories; empty for one class.

    Returns:
        For each category: `name`, `images` that show it, `dice`, `iou` and `iou_pooled` of the lesion in these images,
        whatever was predicted as its category. For a run for categories also `recognised`, how many of these images
        are predicted as mostly that category, and `category_dice`, `category_iou`: the category against all else, over
        the images that have it in mask or prediction, so that a false one counts as 0 (`Evaluation.run` adds
        `category_iou_pooled`).
    """
    found = table["category"].unique()
    rows = []
    for name in [*categories, *sorted(set(found) - set(categories))]:
        part = table[table["category"] == name]
        row = {"name": name, "images": len(part)}
        row |= {score: summarise_values(part[score]) for score in ("dice", "iou")}
        row["iou_pooled"] = pooled_iou(part)
        if categories:
            row["recognised"] = int((part["pred_category"] == name).sum())
        if name in categories:
            number = categories.index(name) + 1
            row |= {
                f"category_{s}": summarise_values(table[f"{s}_{number}"]) for s in ("dice", "iou")
            }
        rows.append(row)
    return rows
