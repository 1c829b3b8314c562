"""Scores at the pictures' original sizes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from ovseg.data.prepare.dataset import prepare_dataset
from ovseg.data.prepare.phantoms import make_phantom
from ovseg.evaluation.evaluate import Evaluation
from ovseg.evaluation.summary import pooled_iou


@pytest.fixture(scope="module")
def run(make_run, tmp_path_factory) -> Path:
    """A tiny run. Not to be changed."""
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def plain(tmp_path, save_png) -> Path:
    """A tree of pictures of different sizes without a manifest; only its test split."""
    folder = tmp_path / "plain" / "test"
    for number, (height, width) in enumerate([(64, 40), (33, 64), (64, 64)]):
        image, mask = make_phantom(50 + number, 64)
        save_png(folder / "images" / f"{number}.png", image[:height, :width])
        save_png(folder / "masks" / f"{number}.png", mask[:height, :width] * np.uint8(255))
    return tmp_path / "plain"


@pytest.fixture
def prepared(tmp_path, save_png) -> Path:
    """32 x 32 letterboxed squares of 32 pictures, in turns 32 high and 64 wide, and 64 by 32."""
    images = tmp_path / "raw" / "images"
    annotations = tmp_path / "raw" / "annotations"
    images.mkdir(parents=True)

    rng = np.random.default_rng(0)
    for number in range(32):
        shape = (32, 64, 3) if number % 2 == 0 else (64, 32, 3)
        image = rng.integers(0, 255, shape, np.uint8)
        annotation = np.zeros(shape, np.uint8)
        annotation[4:20, 4:20] = (0, 0, 64)
        Image.fromarray(image).save(images / f"{number}.jpg")
        save_png(annotations / f"{number}.png", annotation)

    prepare_dataset(tmp_path / "raw", tmp_path / "prepared", size=32)
    return tmp_path / "prepared"


@pytest.fixture
def evaluate(run_command) -> Callable[..., pd.DataFrame]:
    """A function that runs `ovseg evaluate` and returns the table of images."""

    def run(run: Path, root: Path, output: Path, *more: object) -> pd.DataFrame:
        options = ["--run", run, "--data", root, "--output", output, "--device", "cpu", *more]
        assert run_command("evaluate", *options) == 0
        return pd.read_csv(output / "per_image.csv")

    return run


def read_mask(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.array(picture) > 0


def test_scores_at_the_original_size_are_those_of_the_masks_that_infer_writes(
    run, plain, tmp_path, evaluate, run_command
):
    table = evaluate(run, plain, tmp_path / "out").set_index("stem")
    images = plain / "test" / "images"
    options = ["--run", run, "--images", images, "--output", tmp_path / "masks", "--device", "cpu"]
    assert run_command("infer", *options) == 0

    for stem in (0, 1, 2):
        pred = read_mask(tmp_path / "masks" / f"{stem}.png")
        mask = read_mask(plain / "test" / "masks" / f"{stem}.png")
        hit = (pred & mask).sum()
        both = pred.sum() + mask.sum()
        assert table["dice_original"][stem] == pytest.approx(2 * hit / both)
        assert table["iou_original"][stem] == pytest.approx(hit / (both - hit))
        assert table["lesion_pixels_original"][stem] == mask.sum()

    assert table["pred_pixels_original"].min() > 0
    assert (table["dice"] != table["dice_original"]).any()


def test_summary_and_table_have_the_scores_at_the_original_size(
    run, plain, tmp_path, evaluate, capsys
):
    table = evaluate(run, plain, tmp_path / "out")
    scores = json.loads((tmp_path / "out" / "summary.json").read_text())["scores"]
    assert scores["dice_original"]["mean"] == pytest.approx(table["dice_original"].mean())
    assert scores["iou_original"]["images"] == 3
    assert len(scores["iou_original"]["ci95"]) == 2

    hit = table["hit_pixels_original"].sum()
    both = table["lesion_pixels_original"].sum() + table["pred_pixels_original"].sum()
    assert scores["iou_pooled_original"] == pytest.approx(hit / (both - hit))

    printed = capsys.readouterr().out
    assert "Dice, original size, per image" in printed
    assert "IoU pooled, original size" in printed


def test_size_of_prepared_pictures_comes_from_the_manifest(run, prepared):
    evaluation = Evaluation(run, "test", prepared, device="cpu")
    batch = next(iter(evaluation.datamodule.eval_dataloader("test")))

    perfect = batch["mask"].float() * 20 - 10  # logits
    for image in evaluation.postprocess(batch["stem"], perfect)[1]:
        # The edges are even: halved and doubled by nearest neighbour they are as annotated.
        assert image.row["lesion_pixels_original"] == 16 * 16
        assert image.row["dice_original"] > 0.95

    for image in evaluation.postprocess(batch["stem"], perfect.flip(2))[1]:
        assert image.row["dice_original"] < 0.7


def test_lesion_of_all_categories_is_scored_at_the_original_size(
    make_run, phantom_root, tmp_path, evaluate
):
    run = make_run(tmp_path / "run", classes=5)
    table = evaluate(run, phantom_root, tmp_path / "out", "--split", "valid")
    assert table["dice_original"].notna().all()

    evaluation = Evaluation(run, "valid", device="cpu")
    stem = evaluation.datamodule.pairs("valid")[0].stem
    logits = torch.zeros(1, 5, 32, 32)
    logits[:, 3, :, :16] = 1  # the left half is of category 3, the right half background
    logits[:, 0, :, 16:] = 1
    row = evaluation.postprocess([stem], logits)[1][0].row
    assert row["pred_pixels_original"] == 64 * 32


def test_pooled_iou_of_nothing_is_none():
    columns = ["lesion_pixels", "pred_pixels", "hit_pixels"]
    assert pooled_iou(pd.DataFrame(0, [0, 1], columns)) is None


def test_tree_without_a_manifest_is_scored_at_its_own_size(run, phantom_root, tmp_path, evaluate):
    root = shutil.copytree(phantom_root, tmp_path / "tree")
    (root / "manifest.json").unlink()
    with_manifest = evaluate(run, phantom_root, tmp_path / "with")
    without = evaluate(run, root, tmp_path / "without")
    assert without["dice_original"].equals(with_manifest["dice_original"])
