"""The files of an evaluation, and when an earlier one is replaced."""

import json
import math
import shutil
from pathlib import Path

import pandas as pd
import pytest

from ovseg import evaluate
from ovseg.core.errors import InputError
from ovseg.evaluation.summary import summarise_values


@pytest.fixture(scope="module")
def run(make_run, tmp_path_factory) -> Path:
    """A run of one class. Not to be changed."""
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def evaluation(run, tmp_path_factory) -> Path:
    """The evaluation of `run` on test. Not to be changed."""
    folder = tmp_path_factory.mktemp("evaluation") / "out"
    evaluate(run, output=folder, device="cpu")
    return folder


def test_files_of_an_evaluation_agree(evaluation):
    table = pd.read_csv(evaluation / "per_image.csv")
    summary = json.loads((evaluation / "summary.json").read_text())
    scores = summary["scores"]
    baseline = pd.read_csv(evaluation / "evaluation.csv")
    assert list(baseline) == ["loss", "dice_coef"]
    assert len(baseline) == 1
    assert baseline["dice_coef"][0] == pytest.approx(scores["dice_coef"])

    assert len(table) == summary["images"] == 3
    assert scores["dice"]["mean"] == pytest.approx(table["dice"].mean())
    areas = table["lesion_pixels"] + table["pred_pixels"]
    hits = table["dice"] * areas / 2
    pooled = hits.sum() / (areas - hits).sum()
    assert scores["iou_pooled"] == pytest.approx(pooled, abs=1e-6)


def test_scores_of_the_lesion_are_split_by_the_category_of_the_image(evaluation, phantom_root):
    table = pd.read_csv(evaluation / "per_image.csv")
    items = json.loads((phantom_root / "manifest.json").read_text())["items"]
    names = ["none", "cyst", "haze", "solid", "mixed"]
    expected = {item["stem"]: names[item["category"]] for item in items}
    assert table["category"].to_list() == [expected[stem] for stem in table["stem"]]

    summary = json.loads((evaluation / "summary.json").read_text())
    counts = {row["name"]: row["images"] for row in summary["per_category"]}
    assert counts == table["category"].value_counts().to_dict()
    assert (evaluation / "dice_categories.png").is_file()


def test_tree_without_a_manifest_is_scored_without_categories(run, phantom_root, tmp_path):
    root = shutil.copytree(phantom_root, tmp_path / "plain")
    (root / "manifest.json").unlink()
    output = tmp_path / "out"
    summary = evaluate(run, data=root, output=output, device="cpu")
    assert "per_category" not in summary
    assert "category" not in pd.read_csv(output / "per_image.csv")
    assert not (output / "dice_categories.png").exists()


def test_another_evaluation_is_replaced_only_with_overwrite(run, phantom_root, tmp_path):
    other = shutil.copytree(phantom_root, tmp_path / "other")
    output = tmp_path / "out"
    first = evaluate(run, output=output, device="cpu")
    assert evaluate(run, output=output, device="cpu") == first
    with pytest.raises(InputError, match="add --overwrite"):
        evaluate(run, data=other, output=output, device="cpu")
    replaced = evaluate(run, data=other, output=output, device="cpu", overwrite=True)
    assert replaced["data"] == str(other)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "val"}, "Unknown split 'val'"),
        ({"data": "gone"}, "There is no dataset folder gone"),
    ],
)
def test_mistake_is_an_error_that_leaves_no_output(run, tmp_path, arguments, message):
    with pytest.raises(InputError, match=message):
        evaluate(run, output=tmp_path / "out", device="cpu", **arguments)
    assert not (tmp_path / "out").exists()


def test_summary_leaves_nan_out_and_counts():
    dice = summarise_values(pd.Series([1.0, 0.5, math.nan]))
    assert dice["mean"] == 0.75
    assert dice["images"] == 2
    assert dice["ci95"] == pytest.approx([0.5, 1.0])


def test_summary_of_nothing_is_none():
    nothing = dict.fromkeys(("mean", "ci95", "sd", "median", "q1", "q3")) | {"images": 0}
    assert summarise_values(pd.Series([math.nan])) == nothing
