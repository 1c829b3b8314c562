"""A run and a split to a table with a row for each image, and their summary."""

import hashlib
import importlib.metadata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import bootstrap

from ovseg import __version__
from ovseg.data.datamodule import OvarianTumorDataModule
from ovseg.errors import InputError
from ovseg.inference import choose_device, find_checkpoint, read_checkpoint
from ovseg.metrics import HARD_SCORES, OnlineScores, hard_scores, lesion
from ovseg.progress import progress_bar
from ovseg.task import SegmentationTask


class Evaluation:
    """One checkpoint on one split, at the size the network was trained at, on one device.

    Args:
        run: run folder or checkpoint.
        split: `train`, `valid` or `test`.
        root: the dataset's folder where it is not the one of training.
        batch_size: images at a time; the soft `dice_coef` is a mean over batches, which the baseline takes of 4.
        device: see `ovseg.inference.choose_device`.

    Raises:
        InputError: run, dataset or device can't be used.
    """

    def __init__(
        self, run: Path, split: str = "test", root: Path | None = None, batch_size: int = 4, device: str = "auto"
    ):
        if batch_size < 1:
            raise InputError(f"--batch-size is {batch_size}, expected at least 1.")
        self.split, self.device, self.checkpoint_path = split, choose_device(device), find_checkpoint(run)
        checkpoint = read_checkpoint(self.checkpoint_path)
        unused = {"augmentation": "none", "mini_test": None, "phantoms": 0}  # files of training may be gone
        settings = {**checkpoint["datamodule_hyper_parameters"], **unused, "batch_size": batch_size}
        settings["root"] = str(root or settings["root"])
        self.datamodule = OvarianTumorDataModule(**settings)
        self.datamodule.verify([split])
        self.epoch = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
        with open(self.checkpoint_path, "rb") as file:
            self.digest = hashlib.file_digest(file, "sha256").hexdigest()
        task = SegmentationTask.load_from_checkpoint(self.checkpoint_path, map_location=self.device, weights_only=True)
        self.task = task.eval()

    @torch.inference_mode()
    def batches(self) -> Iterator[tuple[dict, torch.Tensor]]:
        """Every batch of the split, on the device, with its logits (N, 1, S, S)."""
        for batch in progress_bar(self.datamodule.eval_dataloader(self.split), f"Evaluating {self.split}"):
            on_device = {name: batch[name].to(self.device) for name in ("image", "mask")}
            yield {**batch, **on_device}, self.task(on_device["image"])

    def run(self) -> tuple[pd.DataFrame, dict[str, Any]]:
        """Score the split.

        Returns:
            A table with a row for each image (`stem`, the hard scores, lesion and predicted area in pixels), and the
            summary (see `summarise`).
        """
        online, rows = OnlineScores(sync=False).to(self.device), []
        for batch, logits in self.batches():
            online.update(self.task.loss(logits, batch["mask"]), logits, batch["mask"])
            rows += image_rows(batch, logits)
        table = pd.DataFrame(rows)
        pooled = {name: float(value) for name, value in online.compute().items() if name not in HARD_SCORES}
        return table, {**self.describe(), "scores": {**pooled, **summarise(table)}}

    def describe(self) -> dict[str, Any]:
        """What was evaluated and with what: the part of the summary that is known before any image is scored."""
        packages = ("torch", "torchmetrics", "numpy")
        return {
            "checkpoint": self.checkpoint_path.name,
            "checkpoint_sha256": self.digest,
            "epoch": self.epoch,
            "data": str(self.datamodule.root),
            "split": self.split,
            "leakage": self.datamodule.leakage,
            "images": len(self.datamodule.pairs(self.split)),
            "image_size": self.datamodule.hparams.image_size,
            "threshold": 0.5,
            "batch_size": self.datamodule.hparams.batch_size,
            "versions": {"ovseg": __version__, **{name: importlib.metadata.version(name) for name in packages}},
        }


def image_rows(batch: dict, logits: torch.Tensor) -> list[dict[str, Any]]:
    """A row for each image of a batch: stem, hard scores, areas in pixels."""
    pred = lesion(logits)
    columns = {name: values.cpu().tolist() for name, values in hard_scores(pred, batch["mask"]).items()}
    columns["lesion_pixels"] = batch["mask"].flatten(1).sum(1).cpu().tolist()
    columns["pred_pixels"] = pred.flatten(1).sum(1).cpu().tolist()
    return [
        dict(zip(["stem", *columns], row, strict=True)) for row in zip(batch["stem"], *columns.values(), strict=True)
    ]


def summarise(table: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Mean, median and 95 % interval of each hard score over the images that have it.

    NaN scores (see `ovseg.metrics`) are left out; `images` says how many are behind the mean. The interval is the
    bootstrap's percentile interval of the mean, resampling images (9,999 times, seeded); null for fewer than two.
    """
    summary = {}
    for name in HARD_SCORES:
        values = table[name].dropna().to_numpy()
        summary[name] = {"mean": None, "median": None, "ci95": None, "images": len(values)}
        if len(values):
            summary[name].update(mean=float(values.mean()), median=float(np.median(values)))
        if len(values) > 1:
            result = bootstrap((values,), np.mean, method="percentile", rng=np.random.default_rng(0))
            summary[name]["ci95"] = [float(bound) for bound in result.confidence_interval]
    return summary
