"""Several runs, or masks of other tools, on the same images: which is better, and is it certain?"""

import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import wilcoxon

from ovseg.core.console import THREADS, format_interval, format_score, print_table
from ovseg.core.errors import InputError, first_five
from ovseg.core.files import atomic_dir, write_json, write_table
from ovseg.core.pages import embed_file, write_page
from ovseg.core.plots import save_figure
from ovseg.core.statistics import mean_interval
from ovseg.data.datamodule import OvarianTumorDataModule
from ovseg.data.geometry import resize_labels
from ovseg.data.manifest import image_groups, prepared_items
from ovseg.data.original import OriginalSplit
from ovseg.data.pairs import list_images, read_image
from ovseg.evaluation.cases import score_case
from ovseg.evaluation.evaluate import Evaluation
from ovseg.evaluation.page import Outlines, draw_outlines
from ovseg.evaluation.summary import pooled_iou, summarise_values

PAGE = Path(__file__).parent / "compare.html.j2"
CERTAIN = 0.05  # p below which a difference is called certain, after Holm's correction
CASES = 8  # images of the page on which two candidates differ most


class Candidate(Protocol):
    """What is compared."""

    def score(self) -> pd.DataFrame:
        """A row an image: `stem` and the columns of `score_case`."""

    def labels(self, stem: str) -> np.ndarray:
        """Predicted labels at the original size, uint8 (height, width)."""


class RunCandidate:
    """A run.

    Args:
        evaluation: of it.
    """

    def __init__(self, evaluation: Evaluation):
        self.evaluation = evaluation

    def score(self) -> pd.DataFrame:
        return self.evaluation.run()[0]

    def labels(self, stem: str) -> np.ndarray:
        return self.evaluation.postprocessing.labels(self.evaluation.predict_again(stem))


class MaskCandidate:
    """A folder of masks of any tool.

    Colours count by their brightest channel. A mask of another size is resized by nearest
    neighbour.

    Args:
        folder: of pictures of the stems of the split.
        originals: the split.
        threshold: grey values above it are lesion.

    Raises:
        InputError: an image of the split has no mask.
    """

    def __init__(self, folder: Path, originals: OriginalSplit, threshold: int):
        self.folder = folder
        self.originals = originals
        self.threshold = threshold
        self.paths = list_images(folder)
        missing = [stem for stem in originals.pairs if stem not in self.paths]
        if missing:
            raise InputError(
                f"{len(missing)} of {len(originals.pairs)} images have no mask in {folder}: "
                f"{first_five(missing)}."
            )

    def score(self) -> pd.DataFrame:
        with ThreadPoolExecutor(THREADS) as pool:
            table = pd.DataFrame(list(pool.map(self._score, self.originals.pairs)))
        brightest = table.pop("brightest").max()
        if 0 < brightest <= self.threshold:
            raise InputError(
                f"No mask in {self.folder} has a value above the threshold {self.threshold} (the "
                f"largest is {brightest}). Set --threshold {brightest // 2}."
            )
        return table

    def _score(self, stem: str) -> dict[str, Any]:
        grey = self._read(stem)
        mask = self.originals.mask(stem)
        labels = self._threshold(grey, mask)
        scores = score_case(labels.astype(float), labels, mask)
        return {"stem": stem, "brightest": int(grey.max()), **scores}

    def labels(self, stem: str) -> np.ndarray:
        return self._threshold(self._read(stem), self.originals.mask(stem))

    def _read(self, stem: str) -> np.ndarray:
        return read_image(self.paths[stem]).max(axis=2)

    def _threshold(self, grey: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return resize_labels((grey > self.threshold).astype(np.uint8), *mask.shape)


@dataclass(frozen=True)
class Comparison:
    """What `compare_runs` found.

    Attributes:
        table: a row an image: `stem`, and the Dice at the original size of each candidate.
        ranking: best first: `name`, `iou_pooled`, and `summarise_values` of Dice.
        pairs: of each pair, the better one first: see `compare_pair`.
        intervals: `groups` or `images`, what is resampled.
    """

    table: pd.DataFrame
    ranking: list[dict[str, Any]]
    pairs: list[dict[str, Any]]
    intervals: str


def compare_runs(
    runs: Sequence[Path],
    output: Path,
    split: str = "test",
    data: Path | None = None,
    threshold: int = 127,
    device: str = "auto",
    overwrite: bool = False,
) -> Comparison:
    """Compare runs and folders of masks on one split, image by image.

    Writes `compare.html`, `comparison.json`, `paired.csv` and `compare.png`.

    Args:
        runs: at least two: run folders, checkpoints, ensembles, or folders of masks.
        output: folder to make.
        split: `train`, `valid` or `test`.
        data: dataset, by default that of the first run; folders of masks alone need it.
        threshold: of folders of masks, grey values above it are lesion.
        device: see `ovseg.core.device.choose_device`.
        overwrite: replace an earlier comparison.

    Raises:
        InputError: fewer than two candidates, or what a run, folder, dataset or output lacks.
    """
    if len(runs) < 2:
        raise InputError(f"{len(runs)} run to compare, expected two or more.")
    with atomic_dir(output, overwrite, "comparison.json", inputs=runs) as folder:
        candidates, originals, root = _open(runs, split, data, threshold, device)
        tables = {name: candidate.score() for name, candidate in candidates.items()}
        comparison = compare_tables(tables, image_groups(root))
        write_table(folder / "paired.csv", comparison.table)
        content = {
            "data": str(root),
            "split": split,
            "images": len(comparison.table),
            "intervals": comparison.intervals,
            "ranking": comparison.ranking,
            "pairs": comparison.pairs,
        }
        write_json(folder / "comparison.json", content)
        draw_comparison(comparison, folder / "compare.png")
        cases = _choose_cases(comparison)
        write_page(
            folder / "compare.html",
            PAGE,
            summary=content,
            figure=embed_file(folder / "compare.png"),
            cases=[
                (row, [_draw_case(row, name, candidates[name], originals) for name in candidates])
                for row in cases
            ],
            names=list(candidates),
            rows=comparison.table.to_dict("records"),
        )
    return comparison


def _open(
    runs: Sequence[Path], split: str, data: Path | None, threshold: int, device: str
) -> tuple[dict[str, Candidate], OriginalSplit, Path]:
    """The candidates by their names, the split that they are compared on, and its dataset."""
    names = name_candidates(runs)
    masks = [_is_mask_folder(run) for run in runs]
    candidates: dict[str, Candidate] = {}
    originals: OriginalSplit | None = None
    root = data
    for run, name, is_masks in zip(runs, names, masks, strict=True):
        if is_masks:
            continue
        evaluation = Evaluation(run, split, root, device=device)
        root = root or evaluation.datamodule.root
        originals = originals or evaluation.originals
        candidates[name] = RunCandidate(evaluation)
    if originals is None:
        if root is None:
            raise InputError("Folders of masks alone don't tell the dataset. Add --data.")
        module = OvarianTumorDataModule(str(root))
        module.verify([split])
        pairs = {pair.stem: pair for pair in module.pairs(split)}
        originals = OriginalSplit(pairs, prepared_items(root), module.hparams["mask_threshold"])
    for run, name, is_masks in zip(runs, names, masks, strict=True):
        if is_masks:
            candidates[name] = MaskCandidate(run, originals, threshold)
    assert root is not None
    return {name: candidates[name] for name in names}, originals, root


def _is_mask_folder(path: Path) -> bool:
    """Whether what a user names is a folder with pictures in it; a run's folder has none."""
    if not path.is_dir() or (path / "checkpoints").is_dir() or (path / "ensemble.json").is_file():
        return False
    try:
        return bool(list_images(path))
    except InputError:
        return False


def name_candidates(paths: Sequence[Path]) -> list[str]:
    """A short name for each path: as many of its last parts as tell it from the others.

    Last parts that are the same of all, such as `version_0`, are left out.

    Raises:
        InputError: a path is named twice.
    """
    parts = [list(path.resolve().parts) for path in paths]
    if len({tuple(of_path) for of_path in parts}) < len(paths):
        raise InputError("A run is named twice. Name each once.")
    while len({of_path[-1] for of_path in parts}) == 1:
        for of_path in parts:
            of_path.pop()
    count = 1
    names = [of_path[-1] for of_path in parts]
    while len(set(names)) < len(names):
        count += 1
        names = ["/".join(of_path[-count:]) for of_path in parts]
    return names


def compare_tables(tables: dict[str, pd.DataFrame], groups: dict[str, int | str]) -> Comparison:
    """Rank candidates by mean Dice at the original size, and say which differences are certain.

    Args:
        tables: name -> a row an image, see `Candidate.score`; all of the same images.
        groups: stem -> group of images that are not independent; where one lacks, images are taken
            as independent.
    """
    first = next(iter(tables.values()))
    table = pd.DataFrame({"stem": first["stem"]})
    for name, scores in tables.items():
        by_stem = scores.set_index("stem")["dice_original"]
        table[name] = table["stem"].map(by_stem)
    of_row = table["stem"].map(groups)
    known = None if of_row.isna().any() else of_row

    ranking = []
    for name, scores in tables.items():
        found = summarise_values(table[name], known)
        iou = pooled_iou(scores, "_original")
        ranking.append({"name": name, "iou_pooled": iou, **found})
    ranking.sort(key=lambda row: -1.0 if row["mean"] is None else row["mean"], reverse=True)

    order = [row["name"] for row in ranking]
    pairs = [
        compare_pair(table, better, worse, known)
        for better, worse in itertools.combinations(order, 2)
    ]
    _correct(pairs)
    return Comparison(table, ranking, pairs, "images" if known is None else "groups")


def compare_pair(
    table: pd.DataFrame, better: str, worse: str, groups: pd.Series | None
) -> dict[str, Any]:
    """Two candidates, image by image.

    Args:
        table: see `Comparison`.
        better: the one of the higher mean.
        worse: the other.
        groups: the group of each row; None takes images as independent.

    Returns:
        The two names; `difference`, the mean of better - worse, and its `ci95`; `higher` and
        `lower`, the numbers of images on which the first has the higher and the lower Dice; `p` of
        Wilcoxon's signed-rank test, which takes images as independent; `images` that both score.
    """
    difference = table[better] - table[worse]
    known = difference.notna()
    values = difference[known].to_numpy()
    members = None if groups is None else groups[known].to_numpy()
    p = 1.0
    if len(values) > 1 and values.any():
        p = float(wilcoxon(values).pvalue)
    return {
        "better": better,
        "worse": worse,
        "difference": float(values.mean()) if len(values) else None,
        "ci95": mean_interval(values, members),
        "higher": int((values > 0).sum()),
        "lower": int((values < 0).sum()),
        "p": p,
        "images": len(values),
    }


def _correct(pairs: list[dict[str, Any]]) -> None:
    """Add `p_holm`, corrected for the number of pairs, and `certain`.

    A difference is certain where the interval leaves 0 out and the corrected p is below `CERTAIN`.

    Source: S. Holm, Scandinavian Journal of Statistics 6(2), 1979.
    """
    largest = 0.0
    for rank, pair in enumerate(sorted(pairs, key=lambda pair: pair["p"])):
        largest = max(largest, min(1.0, (len(pairs) - rank) * pair["p"]))
        pair["p_holm"] = largest
        interval = pair["ci95"]
        excludes_zero = interval is not None and (interval[0] > 0 or interval[1] < 0)
        pair["certain"] = excludes_zero and pair["p_holm"] < CERTAIN


def draw_comparison(comparison: Comparison, path: Path) -> None:
    """Mean Dice of each candidate, and the Dice of each image of the two best."""
    figure = Figure(figsize=(10, 4.3), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    for height, row in enumerate(comparison.ranking):
        if row["mean"] is None:
            continue
        left.plot(row["mean"], height, "o", color="#0072B2")
        if row["ci95"] is not None:
            left.plot(row["ci95"], [height, height], color="#0072B2")
    names = [row["name"] for row in comparison.ranking]
    left.set_yticks(range(len(names)), names)
    left.invert_yaxis()
    left.margins(y=0.2)
    left.grid(axis="x", alpha=0.3)
    left.set(xlabel="mean Dice, original size, and its 95 % interval")
    first, second = names[:2]
    right.plot([0, 1], [0, 1], color="gray", linewidth=1)
    right.scatter(comparison.table[second], comparison.table[first], s=14, color="#0072B2")
    right.set(
        xlabel=f"Dice of {second}",
        ylabel=f"Dice of {first}",
        xlim=(-0.02, 1.02),
        ylim=(-0.02, 1.02),
        title="a point an image",
    )
    save_figure(figure, path)


def _choose_cases(comparison: Comparison) -> list[dict[str, Any]]:
    """Rows of the images on which the Dice of the candidates is furthest apart."""
    scores = comparison.table.drop(columns="stem").fillna(1.0)
    spread = scores.max(axis=1) - scores.min(axis=1)
    order = spread.sort_values(ascending=False, kind="stable").index[:CASES]
    return comparison.table.loc[order].to_dict("records")


def _draw_case(
    row: dict[str, Any], name: str, candidate: Candidate, originals: OriginalSplit
) -> tuple[str, float, Outlines]:
    stem = row["stem"]
    outlines = draw_outlines(
        originals.picture(stem), originals.mask(stem) > 0, candidate.labels(stem) > 0
    )
    return name, row[name], outlines


def print_comparison(comparison: Comparison) -> None:
    """The ranking and the pairs as tables on the terminal."""
    rows = []
    for row in comparison.ranking:
        rows.append(
            (
                row["name"],
                format_score(row["mean"]),
                format_interval(row["ci95"]),
                format_score(row["median"]),
                format_score(row["iou_pooled"]),
                str(row["images"]),
            )
        )
    print_table(
        ("", "mean Dice", "95 % interval", "median", "IoU pooled", "images"),
        rows,
        "best first, original size",
    )
    differences = []
    for pair in comparison.pairs:
        differences.append(
            (
                f"{pair['better']} - {pair['worse']}",
                format_score(pair["difference"]),
                format_interval(pair["ci95"]),
                f"{pair['p_holm']:.2g}",
                "certain" if pair["certain"] else "not distinguishable",
            )
        )
    print_table(
        ("pair", "mean difference", "95 % interval", "p (Wilcoxon, Holm)", ""),
        differences,
        "differences of the same images",
    )
