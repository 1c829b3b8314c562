"""A run and a split as a table with a row for each image, and its summary."""

import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.utils.data import ConcatDataset

from ovseg import __version__
from ovseg.core.checkpoints import (
    Member,
    check_evaluable,
    checkpoint_digest,
    dataset_folder,
    find_dataset,
    is_cross_validation,
    read_members,
)
from ovseg.core.console import THREADS, one_late, progress_bar
from ovseg.core.device import choose_device
from ovseg.core.registry import check_arguments
from ovseg.core.runs import RunFolder
from ovseg.core.versions import installed_versions
from ovseg.data.boxes import fit_box
from ovseg.data.datamodule import OvarianTumorDataModule
from ovseg.data.manifest import image_categories, image_groups, prepared_items
from ovseg.data.original import OriginalSplit
from ovseg.evaluation.calibration import Reliability
from ovseg.evaluation.cases import (
    TOLERANCE,
    TOLERANCE_MM,
    area_counts,
    describe_picture,
    score_case,
)
from ovseg.evaluation.spacing import read_spacings
from ovseg.evaluation.summary import (
    pooled_iou,
    pooled_miou,
    summarise_categories,
    summarise_confidence,
    summarise_failures,
    summarise_flags,
    summarise_subgroups,
    summarise_values,
)
from ovseg.inference.engines import arrange_for_inference
from ovseg.inference.labels import Postprocessing, lesion_of_classes, to_dict
from ovseg.inference.postprocessing import (
    average_flips,
    flip_logits,
    mean_logits,
    read_postprocessing,
)
from ovseg.inference.predictor import check_batch_size, class_probs, restore_probs
from ovseg.inference.uncertainty import lesion_views, map_flips
from ovseg.metrics import (
    HARD_SCORES,
    ORIGINAL_SCORES,
    POOLED_SCORES,
    SURFACE_SCORES,
    SURFACE_SCORES_MM,
    OnlineScores,
    category_scores,
    confusion,
    hard_scores,
    main_category,
)
from ovseg.training.task import SegmentationTask, load_task

# Settings of training that an evaluation does not use; files that they name may be missing by now.
UNUSED = {"augmentation": "none", "augmentation_args": None, "mini_test": None, "phantoms": 0}


@dataclass(frozen=True)
class Part:
    """Images of a split, and the networks that predict them together."""

    datamodule: OvarianTumorDataModule
    tasks: list[SegmentationTask]


class Evaluation:
    """A run on one split, at the network's image size and at the pictures' original sizes.

    The split `valid` of a cross-validation is scored out of fold: each image by the one network
    that held it out. Any other ensemble predicts every image together.

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
        spacing: millimetres per pixel of the original pictures, or a file of them, see
            `ovseg.evaluation.spacing.read_spacings`; None for distances in pixels only.

    Attributes:
        trained_on: whether the network was trained on these images.
        dataset_changed: whether the dataset has other images for training than when the network
            was trained, so that it may have been trained on these.
        parts: images and their networks; several only out of fold, else one.

    Raises:
        InputError: run, dataset, device or spacing can't be used.
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
        spacing: str | float | Path | None = None,
    ):
        check_batch_size(batch_size)
        self.split = split
        self.device = choose_device(device)
        self.members = read_members(run)
        if root and all(root.resolve() == dataset_folder(member) for member in self.members):
            root = None
        out_of_fold = split == "valid" and root is None and is_cross_validation(self.members)
        if not out_of_fold:
            check_evaluable(self.members, split, root)
        self.paths = [member.path for member in self.members]
        self.digest = checkpoint_digest(*self.paths)

        first = self.members[0]
        changed: dict[str, Any] = {**UNUSED, "batch_size": batch_size}
        if mask_threshold is not None:
            changed["mask_threshold"] = mask_threshold
        tasks = [self._load(path) for path in self.paths]
        if out_of_fold:
            self.parts = [
                Part(self._open(member, root, changed), [task])
                for member, task in zip(self.members, tasks, strict=True)
            ]
        else:
            self.parts = [Part(self._open(first, root, changed), tasks)]
        self.datamodule = self.parts[0].datamodule
        self.task = tasks[0]
        trained_splits = ["train", "valid"] if first.data.get("train_on_valid") else ["train"]
        is_own = root is None
        has_trained_images = None
        if is_own or split in trained_splits:
            has_trained_images = _has_trained_images(first, self.datamodule)
        self.trained_on = split in trained_splits and (is_own or has_trained_images is True)
        self.dataset_changed = is_own and has_trained_images is False
        self._part_of: dict[str, Part] = {}
        pairs = {}
        for part in self.parts:
            for pair in part.datamodule.pairs(split):
                pairs[pair.stem] = pair
                self._part_of[pair.stem] = part
        self.originals = OriginalSplit(
            pairs,
            prepared_items(self.datamodule.root),
            self.datamodule.hparams["mask_threshold"],
            self.datamodule.hparams["classes"],
            self.datamodule.hparams["invert_masks"],
        )
        self.spacing = None if spacing is None else str(spacing)
        self.spacings = read_spacings(spacing, list(self.originals.pairs))

        self.postprocessing = Postprocessing()
        self.postprocessing_file: str | None = None
        if postprocessing:
            found = read_postprocessing(run, self.digest, first.classes)
            if found is not None:
                self.postprocessing = found
                self.postprocessing_file = RunFolder(run).postprocessing.name

    def _load(self, path: Path) -> SegmentationTask:
        """The network of a checkpoint, ready to predict."""
        task = load_task(path).to(self.device)
        arrange_for_inference(task.network, self.device)
        return task.eval()

    def _open(
        self, member: Member, root: Path | None, changed: dict[str, Any]
    ) -> OvarianTumorDataModule:
        """The verified dataset of a member.

        Args:
            member: of the run.
            root: the dataset's folder; None is that of training.
            changed: arguments that are not those of training.
        """
        settings = {**member.data, **changed}
        check_arguments(f"the dataset of {member.path}", OvarianTumorDataModule, settings)
        settings["root"] = str(root or find_dataset(member))
        datamodule = OvarianTumorDataModule(**settings)
        datamodule.verify([self.split])
        state: dict[str, Any] = {"categories": member.categories}
        if self.split != "test":
            state["held_out"] = member.held_out
        datamodule.load_state_dict(state)
        return datamodule

    @property
    def out_of_fold(self) -> bool:
        """Whether each image is predicted by the one network that held it out."""
        return len(self.parts) > 1

    @cached_property
    def dataset(self) -> ConcatDataset:
        """The images of the split, one by one, in the order of `originals`."""
        return ConcatDataset([part.datamodule.dataset(self.split) for part in self.parts])

    def folds(self, stems: Iterable[str]) -> list[int]:
        """The fold that held out each image, out of fold."""
        return [self._part_of[stem].datamodule.hparams["fold"] for stem in stems]

    def loader(self) -> Iterator[dict]:
        """Every batch of the split once, with a progress bar; a batch has images of one part."""
        for part in self.parts:
            batches = part.datamodule.eval_dataloader(self.split)
            yield from progress_bar(batches, f"Evaluating {self.split}")

    def _tasks(self, stems: Sequence[str]) -> list[SegmentationTask]:
        """The networks that predict some images of one part."""
        return self._part_of[stems[0]].tasks

    @torch.inference_mode()
    def batches(self) -> Iterator[tuple[dict, torch.Tensor]]:
        """Every batch of the split, on the device, with its logits (N, classes, S, S).

        A batch also has `seconds`, what the network took for an image of it.
        """
        for batch in self.loader():
            image = batch["image"].to(self.device)
            mask = batch["mask"].to(self.device)
            began = time.perf_counter()
            logits = self.logits(batch["stem"], image, self.postprocessing.flips)
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            seconds = (time.perf_counter() - began) / len(image)
            yield {**batch, "image": image, "mask": mask, "seconds": seconds}, logits

    @torch.inference_mode()
    def logits(
        self, stems: Sequence[str], image: torch.Tensor, flips: Sequence[str]
    ) -> torch.Tensor:
        """Logits of the average probabilities over flips and members.

        Args:
            stems: of N images of one part.
            image: pictures on the device, uint8 (N, 3, S, S).
            flips: see `ovseg.inference.labels.Postprocessing`.

        Returns:
            (N, classes, S, S).
        """
        tasks = self._tasks(stems)
        return mean_logits([average_flips(task, image, flips) for task in tasks])

    def original_probs(self, stem: str, square: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities and reference of one picture at its original size.

        Args:
            stem: of an image of the split.
            square: probabilities, float32 (classes, S, S); they are interpolated as `Predictor`
                does.

        Returns:
            Probabilities, float32 (classes, height, width), and mask, uint8 (height, width).
        """
        mask = self.originals.mask(stem)
        height, width = mask.shape
        return restore_probs(square, height, width, self.datamodule.hparams["fit"]), mask

    def predict_again(self, stem: str) -> np.ndarray:
        """Probabilities of one image at its original size, float32 (classes, height, width)."""
        index = list(self.originals.pairs).index(stem)
        image = self.dataset[index]["image"][None].to(self.device)
        logits = self.logits([stem], image, self.postprocessing.flips)
        return self.original_probs(stem, class_probs(logits)[0])[0]

    @torch.inference_mode()
    def uncertainty(self, stem: str) -> np.ndarray:
        """Where flips and members disagree about one image, see `Prediction.uncertainty`.

        Returns:
            float32 (height, width) in 0..0.5, at the original size.
        """
        index = list(self.originals.pairs).index(stem)
        image = self.dataset[index]["image"][None].to(self.device)
        tasks = self._tasks([stem])
        flips = map_flips(self.postprocessing.flips, len(tasks))
        views = []
        for task in tasks:
            views += flip_logits(task, image, flips)
        return self.original_probs(stem, lesion_views(views)[0])[0].std(0)

    def postprocess(
        self, stems: Sequence[str], logits: torch.Tensor
    ) -> tuple[torch.Tensor, list["ScoredImage"]]:
        """Labels at the network's size, and scores at the original size.

        Args:
            stems: of N images of the split.
            logits: (N, classes, S, S).

        Returns:
            Labels, uint8 (N, 1, S, S) on the device, and each image.
        """
        squares = class_probs(logits)
        images = [self._score(stem, square) for stem, square in zip(stems, squares, strict=True)]
        return self._stack_labels(images), images

    def _score(self, stem: str, square: np.ndarray) -> "ScoredImage":
        """Score one image from its probabilities, float32 (classes, S, S)."""
        settings = self.datamodule.hparams
        probs, mask = self.original_probs(stem, square)
        height, width = mask.shape
        box = fit_box(height, width, settings["image_size"], settings["fit"])
        raw = Reliability()
        raw.add(lesion_of_classes(probs), mask > 0)
        reported = lesion_of_classes(self.postprocessing.calibrate(probs))
        reliability = raw
        if self.postprocessing.temperature != 1:
            reliability = Reliability()
            reliability.add(reported, mask > 0)
        row = score_case(
            reported,
            self.postprocessing.labels(probs),
            mask,
            spacing=self.spacings.of(stem),
        )
        row.update(describe_picture(self.originals.picture(stem), mask > 0))
        labels = self.postprocessing.labels(square, box.height * box.width)
        return ScoredImage(labels, row, reliability, raw)

    def _stack_labels(self, images: Sequence["ScoredImage"]) -> torch.Tensor:
        labels = np.stack([image.labels for image in images])
        return torch.from_numpy(labels[:, None]).to(self.device)

    def _scored_batches(self) -> Iterator[tuple[dict, torch.Tensor, list["ScoredImage"]]]:
        """Every batch with its logits and scored images.

        Images are scored in threads, while the network computes the next batch.
        """
        with ThreadPoolExecutor(THREADS) as pool:
            begun = (
                # Unlike a call, `map` of an executor begins at once.
                (batch, logits, pool.map(self._score, batch["stem"], class_probs(logits)))
                for batch, logits in self.batches()
            )
            for batch, logits, scored in one_late(begun):
                yield batch, logits, list(scored)

    def run(self) -> tuple[pd.DataFrame, dict[str, Any]]:
        """Score the split.

        Returns:
            A table with a row for each image: see `image_rows` and `score_case`; `seconds` of the
            network; `flagged` where the post-processing has a confidence to flag by; `category` and
            `group` where the dataset's manifest has them. And the summary: `describe`, `scores`,
            `failures`, `calibration` of the probabilities that are reported, with `raw`, that of
            those without temperature; `confidence`, `flags`, `subgroups`, and `per_category` where
            categories are known, see `ovseg.evaluation.summary`.
        """
        names = self.datamodule.categories
        online = OnlineScores(self.task.classes, sync=False).to(self.device)
        reliability = Reliability()
        raw = Reliability()
        rows = []
        for batch, logits, images in self._scored_batches():
            mask = batch["mask"]
            pred = self._stack_labels(images)
            online.update(self.task.loss(logits, mask), logits, mask, pred=pred)
            for row, image in zip(image_rows(batch, pred, names), images, strict=True):
                rows.append({**row, **image.row, "seconds": batch["seconds"]})
                reliability.merge(image.reliability)
                raw.merge(image.raw)
        table = pd.DataFrame(rows)
        flag_confidence = self.postprocessing.flag_confidence
        if flag_confidence is not None:
            table["flagged"] = table["confidence"] <= flag_confidence
        if not names:
            self._add_categories(table)
        groups = self._add_groups(table)

        scores: dict[str, Any] = {}
        for name, value in online.compute().items():
            if name in POOLED_SCORES:
                scores[name] = to_number(value)
        scores["iou_pooled_original"] = pooled_iou(table, "_original")
        scores["miou_pooled_original"] = pooled_miou(table)
        for name in (*HARD_SCORES, *ORIGINAL_SCORES, *SURFACE_SCORES):
            scores[name] = summarise_values(table[name], groups)
        for name in SURFACE_SCORES_MM:
            if name in table:
                scores[name] = summarise_values(table[name], groups)
        summary = {
            **self.describe(),
            "intervals": "images" if groups is None else "groups",
            "scores": scores,
            "failures": summarise_failures(table),
            "calibration": {**reliability.summary(), "raw": raw.summary()},
            "confidence": summarise_confidence(table),
            "flags": summarise_flags(table, self.postprocessing),
            "subgroups": summarise_subgroups(table, groups),
        }
        if "category" in table:
            summary["per_category"] = summarise_categories(table, names, groups)
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

    def _add_groups(self, table: pd.DataFrame) -> pd.Series | None:
        """Add `group` to the table, where the manifest has it for every image, and return it."""
        groups = table["stem"].map(image_groups(self.datamodule.root))
        if groups.isna().any():
            return None
        table.insert(1, "group", groups)
        return table["group"]

    def describe(self) -> dict[str, Any]:
        """What is evaluated and with what: the summary's part that needs no scores."""
        checkpoint = self.paths[0].name
        epoch: int | list[int] = self.members[0].epoch
        if len(self.paths) > 1:
            checkpoint = f"ensemble of {len(self.paths)}"
            if self.out_of_fold:
                checkpoint = f"out of fold, {len(self.paths)} networks"
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
            "trained_on": self.trained_on,
            "dataset_changed": self.dataset_changed,
            "images": len(self.originals.pairs),
            "image_size": self.datamodule.hparams["image_size"],
            "classes": self.task.classes,
            "threshold": threshold,
            "mask_threshold": self.datamodule.hparams["mask_threshold"],
            "nsd_tolerance": TOLERANCE,
            "nsd_tolerance_mm": TOLERANCE_MM,
            "spacing": self.spacing,
            "postprocessing": to_dict(self.postprocessing),
            "postprocessing_file": self.postprocessing_file,
            "batch_size": self.datamodule.hparams["batch_size"],
            "versions": {"ovseg": __version__, **versions},
        }


def _has_trained_images(member: Member, datamodule: OvarianTumorDataModule) -> bool | None:
    """Whether a dataset's folders for training have the content of when a member was trained.

    None where this is not known: of an older checkpoint, or where one of the folders is gone.
    """
    if member.digests is None:
        return None
    for split, digest in member.digests.items():
        if not (datamodule.root / split / "images").is_dir():
            return None
        if datamodule.digest(split) != digest:
            return False
    return True


@dataclass(frozen=True)
class ScoredImage:
    """What `Evaluation` finds out about one image.

    Attributes:
        labels: at the network's size, uint8 (S, S).
        row: see `score_case` and `describe_picture`.
        reliability: of the probabilities that are reported, at the original size.
        raw: of the probabilities without temperature.
    """

    labels: np.ndarray
    row: dict[str, Any]
    reliability: Reliability
    raw: Reliability


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
