"""Several runs, or masks of any tool, on the same images: which is better, and is it certain?"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import wilcoxon

from ovseg.core.console import format_interval, format_score, print_table
from ovseg.core.errors import first_five
from ovseg.core.files import atomic_dir, write_json, write_table
from ovseg.core.pages import embed_file, write_page
from ovseg.core.plots import plain_text, save_figure
from ovseg.core.statistics import mean_interval
from ovseg.core.text import printable
from ovseg.data.original import OriginalSplit
from ovseg.evaluation.candidates import (
    STEM,
    Candidate,
    RunCandidate,
    name_candidates,
    open_candidates,
)
from ovseg.evaluation.page import Outlines, draw_outlines
from ovseg.evaluation.summary import pooled_iou, summarise_values

PAGE = Path(__file__).parent / "compare.html.j2"
SIGNIFICANT = 0.05  # p below which two candidates are told apart, after Holm's correction
LEAKAGE = (
    "Leakage: near-duplicates of images that are compared are in another split of the dataset, so "
    "the scores of runs that were trained on it are too high."
)
CASES = 8  # images of the page on which two candidates differ most


@dataclass(frozen=True)
class Comparison:
    """What `compare_tables` found.

    Attributes:
        table: a row an image: `stem`, and the Dice at the original size of each candidate.
        ranking: best first: `name`, `iou_pooled`, and `summarise_values` of Dice.
        pairs: of each pair, the better one first: see `compare_pair`; `p_holm`, p corrected for the
            number of pairs; `distinguishable`; `verdict`, a sentence.
        intervals: `groups` or `images`, what is resampled.
    """

    table: pd.DataFrame
    ranking: list[dict[str, Any]]
    pairs: list[dict[str, Any]]
    intervals: str


def compare_runs(
    runs: Sequence[str | Path],
    output: Path,
    split: str = "test",
    data: Path | None = None,
    masks: Path | None = None,
    common: bool = False,
    mask_threshold: int | None = None,
    device: str = "auto",
    overwrite: bool = False,
) -> dict[str, Any]:
    """Compare runs and folders of masks on one split, or on one folder of masks, image by image.

    Writes `compare.html`, `comparison.json`, `paired.csv` and `compare.png`.

    Args:
        runs: at least two: run folders, checkpoints, ensembles, or folders of masks; as paths or
            `NAME=PATH`, see `ovseg.evaluation.candidates.name_candidates`.
        output: folder to make.
        split: `train`, `valid` or `test`.
        data: dataset, by default that of the first run.
        masks: folder of reference masks to compare folders of masks with, instead of a dataset.
        common: compare the images alone that all folders have a mask of; else all must have all.
        mask_threshold: grey values of masks above it are lesion, see
            `ovseg.evaluation.candidates.open_candidates`.
        device: see `ovseg.core.device.choose_device`.
        overwrite: replace an earlier comparison.

    Returns:
        What `comparison.json` holds: `candidates`, the path of each; `references`; `images`, their
        number; `left_out`, stems; `leakage`, whether near-duplicates are in two splits; `notes`,
        lines; of `Comparison` all but the table; and `method`, on what the verdicts rest.

    Raises:
        InputError: fewer than two candidates, or what a run, folder, dataset or output lacks.
    """
    paths = name_candidates(runs)
    inputs = list(paths.values())
    if masks is not None:
        inputs.append(masks)
    with atomic_dir(output, overwrite, "comparison.json", inputs=inputs) as folder:
        opened = open_candidates(paths, split, data, masks, common, mask_threshold, device)
        tables = _score(opened.by_name, opened.originals)
        comparison = compare_tables(tables, opened.groups)
        write_table(folder / "paired.csv", comparison.table)
        content = {
            "candidates": {name: str(path) for name, path in paths.items()},
            "references": opened.references,
            "images": len(comparison.table),
            "left_out": opened.left_out,
            "leakage": opened.leakage,
            "notes": [
                *([LEAKAGE] if opened.leakage else []),
                *_describe_left_out(opened.left_out, len(comparison.table)),
                *(line for each in opened.by_name.values() for line in each.notes),
            ],
            "intervals": comparison.intervals,
            "ranking": comparison.ranking,
            "pairs": comparison.pairs,
            "method": describe_method(comparison),
        }
        write_json(folder / "comparison.json", content)
        draw_comparison(comparison, folder / "compare.png")
        cases = []
        for row in _choose_cases(comparison):
            drawn = [
                _draw_case(row, name, candidate, opened.originals)
                for name, candidate in opened.by_name.items()
            ]
            cases.append((row, drawn))
        write_page(
            folder / "compare.html",
            PAGE,
            summary=content,
            figure=embed_file(folder / "compare.png"),
            cases=cases,
            rows=comparison.table.to_dict("records"),
        )
    return content


def _score(candidates: dict[str, Candidate], originals: OriginalSplit) -> dict[str, pd.DataFrame]:
    """The table of each candidate, with the images that are compared alone."""
    # Folders come first: what is wrong with one is found before a run is evaluated for minutes.
    order = sorted(candidates, key=lambda name: isinstance(candidates[name], RunCandidate))
    scored = {}
    for name in order:
        table = candidates[name].score()
        scored[name] = table[table[STEM].isin(list(originals.pairs))]
    return {name: scored[name] for name in candidates}


def _describe_left_out(stems: Sequence[str], compared: int) -> list[str]:
    if not stems:
        return []
    count = len(stems)
    return [
        f"Only the {compared} images that all have are compared: {count} of {compared + count} are "
        f"left out, because a folder or a run lacks them ({first_five(stems)})."
    ]


def compare_tables(tables: dict[str, pd.DataFrame], groups: dict[str, int | str]) -> Comparison:
    """Rank candidates by mean Dice at the original size, and say which can be told apart.

    Args:
        tables: name -> a row an image, see `Candidate.score`; all of the same images. Where mask
            and reference are both empty, which has no Dice, it counts as 1, so that a false alarm
            of another candidate there has its weight.
        groups: stem -> group of images that are not independent; where one lacks, images are taken
            as independent.
    """
    first = next(iter(tables.values()))
    table = pd.DataFrame({STEM: first[STEM].to_numpy()})
    for name, scores in tables.items():
        by_stem = scores.set_index(STEM)["dice_original"].fillna(1.0)
        table[name] = table[STEM].map(by_stem)
    of_row = table[STEM].map(groups)
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
    for pair in pairs:
        pair["verdict"] = describe_pair(pair)
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
    """Add `p_holm`, corrected for the number of pairs, and `distinguishable`.

    Two candidates are distinguishable where the interval leaves 0 out and the corrected p is below
    `SIGNIFICANT`.

    Source: S. Holm, Scandinavian Journal of Statistics 6(2), 1979.
    """
    largest = 0.0
    for rank, pair in enumerate(sorted(pairs, key=lambda pair: pair["p"])):
        largest = max(largest, min(1.0, (len(pairs) - rank) * pair["p"]))
        pair["p_holm"] = largest
        interval = pair["ci95"]
        excludes_zero = interval is not None and (interval[0] > 0 or interval[1] < 0)
        pair["distinguishable"] = excludes_zero and pair["p_holm"] < SIGNIFICANT


def describe_pair(pair: dict[str, Any]) -> str:
    """The verdict on two candidates in a sentence."""
    better = pair["better"]
    worse = pair["worse"]
    if pair["ci95"] is None:
        return f"There are too few images to tell {better} and {worse} apart."
    if pair["higher"] == pair["lower"] == 0:
        return f"{better} and {worse} have the same Dice on every image."
    low, high = pair["ci95"]
    evidence = f"95 % interval {low:.3f} to {high:.3f}, {format_p(pair['p_holm'])}"
    difference = f"{pair['difference']:.3f}"
    if pair["distinguishable"]:
        return (
            f"{better} is better than {worse} on these images: its mean Dice is {difference} "
            f"higher ({evidence})."
        )
    return (
        f"{better} and {worse} are not distinguishable on these images: their mean Dice differs by "
        f"{difference}, which chance can explain ({evidence})."
    )


def format_p(p: float) -> str:
    """`p = 0.032`, or `p < 0.001`."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def describe_method(comparison: Comparison) -> str:
    """What the verdicts rest on."""
    units = "images, as if they were independent"
    if comparison.intervals == "groups":
        units = "groups of images of one examination, as far as their content tells"
    correction = ""
    count = len(comparison.pairs)
    if count > 1:
        correction = f", corrected for the {count} comparisons (Holm),"
    return (
        "Two are told apart where the interval of the mean difference leaves 0 out and p of "
        f"Wilcoxon's signed-rank test{correction} is below {SIGNIFICANT}. Intervals resample "
        f"{units}. Another training of the same configuration may score otherwise."
    )


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
    labels = [plain_text(name) for name in names]
    left.set_yticks(range(len(names)), labels)
    left.invert_yaxis()
    left.margins(y=0.2)
    left.grid(axis="x", alpha=0.3)
    left.set(xlabel="mean Dice, original size, and its 95 % interval")
    right.plot([0, 1], [0, 1], color="gray", linewidth=1)
    right.scatter(comparison.table[names[1]], comparison.table[names[0]], s=14, color="#0072B2")
    right.set(
        xlabel=f"Dice of {labels[1]}",
        ylabel=f"Dice of {labels[0]}",
        xlim=(-0.02, 1.02),
        ylim=(-0.02, 1.02),
        title="a point an image",
    )
    save_figure(figure, path)


def _choose_cases(comparison: Comparison) -> list[dict[str, Any]]:
    """Rows of the images on which the Dice of the candidates is furthest apart."""
    scores = comparison.table.drop(columns=STEM).fillna(1.0)
    spread = scores.max(axis=1) - scores.min(axis=1)
    order = spread.sort_values(ascending=False, kind="stable").index[:CASES]
    return comparison.table.loc[order].to_dict("records")


def _draw_case(
    row: dict[str, Any], name: str, candidate: Candidate, originals: OriginalSplit
) -> tuple[str, float, Outlines]:
    stem = row[STEM]
    outlines = draw_outlines(
        originals.picture(stem), originals.mask(stem) > 0, candidate.labels(stem) > 0
    )
    return name, row[name], outlines


def print_comparison(content: dict[str, Any]) -> None:
    """The notes, the ranking and the verdicts of `compare_runs` on the terminal."""
    for line in content["notes"]:
        print(printable(line))
    rows = []
    for row in content["ranking"]:
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
        f"{content['references']}: best first, original size",
    )
    for pair in content["pairs"]:
        print(printable(pair["verdict"]))
    print(content["method"])
