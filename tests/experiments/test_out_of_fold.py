"""The summary of a cross-validation, on hand-worked numbers."""

import pandas as pd
import pytest

from ovseg.experiments.out_of_fold import BEST_EPOCH_NOTE, print_folds, summarise_folds

GROUPS = {"a": 0, "b": 0, "c": 1, "d": 2}


@pytest.fixture
def table() -> pd.DataFrame:
    """Two folds of two images; the mask and the prediction of d are empty."""
    columns = {
        "stem": list("abcd"),
        "fold": [0, 0, 1, 1],
        "dice": [0.9, 0.9, 0.1, None],
        "iou": [0.8, 0.8, 0.05, 0.0],
        "lesion_pixels": [10, 10, 10, 0],
        "pred_pixels": [10, 10, 2, 0],
        "hit_pixels": [9, 9, 1, 0],
    }
    for name in ("sensitivity", "specificity", "precision"):
        columns[name] = [1.0] * 4
    return pd.DataFrame(columns)


def test_scores_are_over_the_images_of_all_folds(table):
    summary = summarise_folds(table, GROUPS)
    assert summary["images"] == 4
    assert summary["scores"]["dice"]["mean"] == pytest.approx(1.9 / 3)
    assert summary["scores"]["iou_pooled"]["value"] == pytest.approx(19 / 33)


def test_scores_of_each_fold(table):
    assert summarise_folds(table, GROUPS)["per_fold"][1] == {
        "images": 2,
        "dice": pytest.approx(0.1),
        "iou": 0.025,
        "iou_pooled": 1 / 11,
    }


def test_fold_without_a_lesion_has_no_dice(table):
    only_empty = table[table["stem"] == "d"]
    fold = summarise_folds(only_empty, {})["per_fold"][0]
    assert fold["dice"] is None
    assert fold["iou_pooled"] is None


def test_interval_resamples_whole_groups_if_they_are_known(table):
    scores = summarise_folds(table, GROUPS)["scores"]
    assert scores["iou_pooled"]["ci95_groups"] == pytest.approx([1 / 11, 18 / 22])
    assert scores["dice"]["ci95_groups"] == pytest.approx([0.1, 0.9])
    assert "ci95_groups" not in summarise_folds(table, {})["scores"]["dice"]


@pytest.mark.parametrize("leakage", [False, True])
def test_printed_table_has_folds_and_intervals(table, capsys, leakage):
    summary = summarise_folds(table, GROUPS)
    for number, fold in enumerate(summary["per_fold"]):
        fold["fold"] = number
    print_folds({**summary, "data": "phantoms", "leakage": leakage, "note": BEST_EPOCH_NOTE})
    printed = " ".join(capsys.readouterr().out.split())
    assert "fold 1" in printed
    assert "0.1000 .. 0.9000" in printed
    assert "95 % interval over groups" in printed
    assert ("LEAKAGE" in printed) == leakage
