"""A run and a split as a table with a row for each image, and its summary."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from ovseg import __version__
from ovseg.core.checkpoints import (
    check_evaluable,
    checkpoint_digest,
    find_dataset,
    read_members,
)
from ovseg.core.console import progress_bar
from ovseg.core.device import choose_device
from ovseg.core.registry import check_arguments
from ovseg.core.runs import RunFolder
from ovseg.core.statistics import mean_interval
from ovseg.core.versions import installed_versions
from ovseg.data.datamodule import OvarianTumorDataModule
from ovseg.data.geometry import fit_box
from ovseg.data.manifest import image_categories, prepared_items
from ovseg.data.original import original_mask
from ovseg.inference.engines import arrange_for_inference
from ovseg.inference.postprocessing import (
    Postprocessing,
    average_flips,
    mean_logits,
    read_postprocessing,
    to_dict,
)
from ovseg.inference.predictor import check_batch_size, class_probs, restore_probs
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
from ovseg.training.task import load_task

# Settings of training that an evaluation does not use; files that they name may be missing by now.
UNUSED = {"augmentation": "none", "mini_test": None, "phantoms": 0}


class Evaluation:
    """A run on one split, at the network's image size and at the pictures' original sizes.

    Args:
        run: run folder, checkpoint, or the folder of an ensemble, whose loss is the first member's.
        split: `train`, `valid` or `test`.
        root: the dataset's folder, if it is not the one of training.
        batch_size: images at a time. The soft `dice_coef` is a mean over batches; the baseline's
            batches have 4 images.
        device: see `ovseg.core.device.choose_device`.
        postprocessing: use the post-processing that the run folder holds, if any; see
            `ovseg.inference.postprocessing.read_postprocessing`.
        mask_threshold: grey values of masks above it are lesion; None takes that of training.

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
        mask_threshold: int | None = None,
    ):
        check_batch_size(batch_size)
        self.split = split
        self.device = choose_device(device)
        self.members = read_members(run)
        check_evaluable(self.members, split, root)
        self.paths = [member.path for member in self.members]
        self.digest = checkpoint_digest(*self.paths)

        first = self.members[0]
        settings = {**first.data, **UNUSED, "batch_size": batch_size}
        check_arguments(f"the dataset of {first.path}", OvarianTumorDataModule, settings)
        settings["root"] = str(root or find_dataset(first))
        if mask_threshold is not None:
            settings["mask_threshold"] = mask_threshold
        self.datamodule = OvarianTumorDataModule(**settings)
        self.datamodule.verify([split])
        state: dict[str, Any] = {"categories": first.categories}
        if split != "test":
            state["held_out"] = first.held_out
        self.datamodule.load_state_dict(state)
        self._pairs = {pair.stem: pair for pair in self.datamodule.pairs(split)}
        self._items = prepared_items(self.datamodule.root)

        self.postprocessing = Postprocessing()
        self.postprocessing_file: str | None = None
        if postprocessing:
            found = read_postprocessing(run, self.digest, first.classes)
            if found is not None:
                self.postprocessing = found
                self.postprocessing_file = RunFolder(run).postprocessing.name

        self.tasks = []
        for path in self.paths:
            task = load_task(path).to(self.device)
            arrange_for_inference(task.network, self.device)
            self.tasks.append(task.eval())
        self.task = self.tasks[0]

    def loader(self) -> Iterator[dict]:
        """Every batch of the split once, with a progress bar."""
        return progress_bar(self.datamodule.eval_dataloader(self.split), f"Evaluating {self.split}")

    @torch.inference_mode()
    def batches(self) -> Iterator[tuple[dict, torch.Tensor]]:
        """Every batch of the split, on the device, with its logits (N, classes, S, S)."""
        for batch in self.loader():
            image = batch["image"].to(self.device)
            mask = batch["mask"].to(self.device)
            logits = self.logits(image, self.postprocessing.flips)
            yield {**batch, "image": image, "mask": mask}, logits

    @torch.inference_mode()
    def logits(self, image: torch.Tensor, flips: Sequence[str]) -> torch.Tensor:
        """Logits of the average probabilities over flips and members.

        Args:
            image: pictures on the device, uint8 (N, 3, S, S).
            flips: see `ovseg.inference.postprocessing.Postprocessing`.

        Returns:
            (N, classes, S, S).
        """
        return mean_logits([average_flips(task, image, flips) for task in self.tasks])

    def original_probs(self, stem: str, square: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities and reference of one picture at its original size.

        Args:
            stem: of an image of the split.
            square: probabilities, float32 (classes, S, S); they are interpolated as `Predictor`
                does.

        Returns:
            Probabilities, float32 (classes, height, width), and mask, uint8 (height, width).
        """
        settings = self.datamodule.hparams
        mask = original_mask(
            self._pairs[stem],
            self._items.get(stem),
            settings["mask_threshold"],
            self.task.classes,
            settings["invert_masks"],
        )
        height, width = mask.shape
        return restore_probs(square, height, width, settings["fit"]), mask

    def postprocess(
        self, stems: Sequence[str], logits: torch.Tensor
    ) -> tuple[torch.Tensor, list[dict[str, float]]]:
        """Labels at the network's size, and scores at the original size.

        Args:
            stems: of N images of the split.
            logits: (N, classes, S, S).

        Returns:
            Labels, uint8 (N, 1, S, S) on the device, and `original_row` of each image.
        """
        settings = self.datamodule.hparams
        preds = []
        rows = []
        for stem, square in zip(stems, class_probs(logits), strict=True):
            probs, mask = self.original_probs(stem, square)
            height, width = mask.shape
            box = fit_box(height, width, settings["image_size"], settings["fit"])
            preds.append(self.postprocessing.labels(square, box.height * box.width))
            rows.append(original_row(self.postprocessing.labels(probs), mask))
        labels = torch.from_numpy(np.stack(preds)[:, None]).to(self.device)
        return labels, rows

    def run(self) -> tuple[pd.DataFrame, dict[str, Any]]:
        """Score the split.

        Returns:
            A table with a row for each image (see `image_rows`; of a run for one class also
            `category`, where the dataset's manifest has it), and the summary: `describe`, `scores`,
            and `per_category` where categories are known (see `summarise_categories`).
        """
        names = self.datamodule.categories
        online = OnlineScores(self.task.classes, sync=False).to(self.device)
        rows = []
        for batch, logits in self.batches():
            mask = batch["mask"]
            pred, original_rows = self.postprocess(batch["stem"], logits)
            online.update(self.task.loss(logits, mask), logits, mask, pred=pred)
            for row, original in zip(image_rows(batch, pred, names), original_rows, strict=True):
                rows.append({**row, **original})
        table = pd.DataFrame(rows)
        if not names:
            self._add_categories(table)

        scores: dict[str, Any] = {}
        for name, value in online.compute().items():
            if name in POOLED_SCORES:
                scores[name] = to_number(value)
        scores["iou_pooled_original"] = pooled_iou(table, "_original")
        for name in (*HARD_SCORES, *ORIGINAL_SCORES):
            scores[name] = summarise_values(table[name])
        summary = {**self.describe(), "scores": scores}
        if "category" in table:
            summary["per_category"] = summarise_categories(table, names)
        if online.categories is not None:
            of_categories = online.categories.compute()["iou_pooled"]
            # Rows of images without a category may follow those of the categories.
            for row, iou in zip(summary["per_category"], of_categories, strict=False):
                row["category_iou_pooled"] = to_number(iou)
        return table, summary

    def _add_categories(self, table: pd.DataFrame) -> None:
        """Add `category` to the table of a run for one class, where the manifest has it."""
        folders = self.datamodule.tree.folders(self.split)
        known = image_categories(self.datamodule.root, *folders)
        if known:
            table.insert(1, "category", table["stem"].map(known).fillna("unknown"))

    def describe(self) -> dict[str, Any]:
        """What is evaluated and with what: the summary's part that needs no scores."""
        checkpoint = self.paths[0].name
        epoch: int | list[int] = self.members[0].epoch
        if len(self.paths) > 1:
            checkpoint = f"ensemble of {len(self.paths)}"
            epoch = [member.epoch for member in self.members]
        # With more classes the most probable one counts.
        threshold = self.postprocessing.threshold if self.task.classes == 1 else None
        versions = installed_versions(["torch", "torchmetrics", "numpy"])
        return {
            "checkpoint": checkpoint,
            "checkpoint_sha256": self.digest,
            "members": [str(path) for path in self.paths],
            "epoch": epoch,
            "data": str(self.datamodule.root),
            "split": self.split,
            "leakage": self.datamodule.leakage,
            "images": len(self.datamodule.pairs(self.split)),
            "image_size": self.datamodule.hparams["image_size"],
            "classes": self.task.classes,
            "threshold": threshold,
            "mask_threshold": self.datamodule.hparams["mask_threshold"],
            "postprocessing": to_dict(self.postprocessing),
            "postprocessing_file": self.postprocessing_file,
            "batch_size": self.datamodule.hparams["batch_size"],
            "versions": {"ovseg": __version__, **versions},
        }


def to_number(value: torch.Tensor) -> float | None:
    """A scalar for JSON; NaN, which JSON does not have, is None."""
    return None if value.isnan() else float(value)


def image_rows(
    batch: dict, pred: torch.Tensor, categories: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """A row for each image of a batch.

    Args:
        batch: `stem`, and `mask` of ids, uint8 (N, 1, S, S).
        pred: labels, (N, 1, S, S).
        categories: names of ids 1, 2, ...; empty for one class.

    Returns:
        Rows of `stem`, hard scores of the lesion, and areas in pixels. With categories also
        `category` and `pred_category`, the name of the category that covers most of the mask and of
        the prediction (`none` where it is empty), and `dice_<id>` and `iou_<id>` of each category
        against all else.
    """
    mask = batch["mask"]
    columns: dict[str, list] = {"stem": list(batch["stem"])}
    by_category: dict[str, torch.Tensor] = {}
    if categories:
        names = ["none", *categories]
        counts = confusion(pred, mask, len(names))
        columns["category"] = [names[i] for i in main_category(counts.sum(2)).tolist()]
        columns["pred_category"] = [names[i] for i in main_category(counts.sum(1)).tolist()]
        by_category = category_scores(counts)
    for name, values in {**hard_scores(pred, mask), **area_counts(pred, mask)}.items():
        columns[name] = values.tolist()
    for name, scores in by_category.items():
        for category, values in enumerate(scores.T, 1):
            columns[f"{name}_{category}"] = values.tolist()
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def original_row(labels: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """`ORIGINAL_SCORES` of the lesion of one picture, and its areas in pixels.

    Args:
        labels: predicted ids, uint8 (height, width).
        mask: reference ids, uint8 (height, width).
    """
    pred = torch.from_numpy(labels > 0)[None, None]
    lesion = torch.from_numpy(mask > 0)[None, None]
    scores = hard_scores(pred, lesion)
    row: dict[str, float] = {}
    for name in ORIGINAL_SCORES:
        row[name] = scores[name.removesuffix("_original")].item()
    for name, count in area_counts(pred, lesion).items():
        row[f"{name}_original"] = int(count)
    return row


def area_counts(pred: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
    """Lesion pixels of each image in its mask, its prediction and both.

    Args:
        pred: predicted ids, (N, 1, H, W).
        mask: reference ids, (N, 1, H, W).

    Returns:
        `lesion_pixels`, `pred_pixels`, `hit_pixels`, each int64 (N,).
    """
    lesion = mask.flatten(1) > 0
    found = pred.flatten(1) > 0
    return {
        "lesion_pixels": lesion.sum(1),
        "pred_pixels": found.sum(1),
        "hit_pixels": (found & lesion).sum(1),
    }


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


def summarise_values(scores: pd.Series) -> dict[str, Any]:
    """Mean, median and 95 % interval of a score over images.

    Args:
        scores: of each image; NaN (see `ovseg.metrics`) is left out.

    Returns:
        `mean`, `median`, `ci95`, and `images`, the number of images that have a score. The interval
        is the bootstrap's percentile interval of the mean over images, None for fewer than two.
    """
    values = scores.dropna().to_numpy()
    return {
        "mean": float(values.mean()) if len(values) else None,
        "median": float(np.median(values)) if len(values) else None,
        "ci95": mean_interval(values),
        "images": len(values),
    }


def summarise_categories(
    table: pd.DataFrame, categories: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """The scores of each category of a table that has a column `category`.

    Args:
        table: see `Evaluation.run`.
        categories: names of ids 1, 2, ... of a run for categories; empty for one class.

    Returns:
        For each category: `name`, `images` that show it, and `dice`, `iou` and `iou_pooled` of the
        lesion in these images, whatever category was predicted. For a run for categories also
        `recognised`, the number of these images that are predicted as mostly that category, and
        `category_dice` and `category_iou`: the category against all else, over the images that have
        it in mask or prediction, so that a false one counts as 0. `Evaluation.run` adds
        `category_iou_pooled`.
    """
    others = set(table["category"].unique()) - set(categories)
    rows = []
    for name in [*categories, *sorted(others)]:
        part = table[table["category"] == name]
        row = {
            "name": name,
            "images": len(part),
            "dice": summarise_values(part["dice"]),
            "iou": summarise_values(part["iou"]),
            "iou_pooled": pooled_iou(part),
        }
        if categories:
            row["recognised"] = int((part["pred_category"] == name).sum())
        if name in categories:
            category = categories.index(name) + 1
            row["category_dice"] = summarise_values(table[f"dice_{category}"])
            row["category_iou"] = summarise_values(table[f"iou_{category}"])
        rows.append(row)
    return rows
