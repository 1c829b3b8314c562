"""Scores at the pictures' original sizes."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from ovseg.cli.main import main
from ovseg.core.errors import InputError
from ovseg.data.manifest import prepared_items
from ovseg.data.original import original_mask
from ovseg.data.pairs import Pair
from ovseg.data.prepare.otu2d import prepare_dataset
from ovseg.data.prepare.phantoms import make_phantom
from ovseg.evaluation.evaluate import Evaluation, pooled_iou


@pytest.fixture(scope="module")
def run(make_run, tmp_path_factory):
    """Not to be changed."""
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def plain(tmp_path, save_png):
    """A tree of pictures of different sizes without a manifest; only its test split."""
    for number, (height, width) in enumerate([(64, 40), (33, 64), (64, 64)]):
        image, mask = make_phantom(50 + number, 64)
        save_png(tmp_path / "plain" / "test" / "images" / f"{number}.png", image[:height, :width])
        save_png(
            tmp_path / "plain" / "test" / "masks" / f"{number}.png",
            mask[:height, :width] * np.uint8(255),
        )
    return tmp_path / "plain"


@pytest.fixture
def prepared(tmp_path, save_png):
    """32 x 32 letterboxed squares of 32 pictures, alternately 64 high and 32 wide, and the other way round."""
    rng = np.random.default_rng(0)
    for number in range(32):
        height, width = (64, 32) if number % 2 else (32, 64)
        image, annotation = (
            rng.integers(0, 255, (height, width, 3), np.uint8),
            np.zeros((height, width, 3), np.uint8),
        )
        annotation[4:20, 4:20] = (0, 0, 64)
        Image.fromarray(image).save(
            save_png(tmp_path / "raw" / "images" / "x.png", image).with_name(f"{number}.jpg")
        )
        (tmp_path / "raw" / "images" / "x.png").unlink()
        save_png(tmp_path / "raw" / "annotations" / f"{number}.png", annotation)
    prepare_dataset(tmp_path / "raw", tmp_path / "prepared", size=32)
    return tmp_path / "prepared"


def evaluate(run, root, output, *more: str) -> pd.DataFrame:
    where = ["--run", str(run), "--data", str(root), "--output", str(output), "--device", "cpu"]
    assert main(["evaluate", *where, *more]) == 0
    return pd.read_csv(output / "per_image.csv")


def test_mask_is_cut_out_of_its_box_and_gets_the_pictures_size(tmp_path, save_png):
    square = np.zeros((8, 8), np.uint8)
    square[3, 0:2] = 255
    path = save_png(tmp_path / "m.png", square)
    item = {"height": 8, "width": 16, "box": {"top": 2, "left": 0, "height": 4, "width": 8}}
    mask = original_mask(Pair("m", path, path), item, 127, 1)
    expected = np.zeros((8, 16), np.uint8)
    expected[2:4, 0:4] = 1
    assert np.array_equal(mask, expected)
    assert np.array_equal(original_mask(Pair("m", path, path), None, 127, 1), square // 255)


def test_mask_that_is_not_the_manifests_square_is_an_error(tmp_path, save_png):
    path = save_png(tmp_path / "m.png", np.zeros((8, 8), np.uint8))
    item = {"height": 8, "width": 16, "box": {"top": 4, "left": 0, "height": 8, "width": 16}}
    with pytest.raises(
        InputError, match=r"m.png has 8 rows and 8 columns, but .* ends at row 12, column 16"
    ):
        original_mask(Pair("m", path, path), item, 127, 1)


def test_phantoms_have_no_boxes(phantom_root):
    assert prepared_items(phantom_root) == {}


def test_scores_at_the_original_size_are_those_of_the_masks_that_infer_writes(run, plain, tmp_path):
    table = evaluate(run, plain, tmp_path / "out").set_index("stem")
    where = [
        "--run",
        str(run),
        "--images",
        str(plain / "test" / "images"),
        "--output",
        str(tmp_path / "masks"),
    ]
    assert main(["infer", *where, "--device", "cpu"]) == 0
    for stem in (0, 1, 2):
        pred, mask = (
            np.array(Image.open(folder / f"{stem}.png")) > 0
            for folder in (tmp_path / "masks", plain / "test/masks")
        )
        hit, both = (pred & mask).sum(), pred.sum() + mask.sum()
        assert table["dice_original"][stem] == pytest.approx(2 * hit / both)
        assert table["iou_original"][stem] == pytest.approx(hit / (both - hit))
        assert table["lesion_pixels_original"][stem] == mask.sum()
    assert (
        table["pred_pixels_original"].min() > 0 and (table["dice"] != table["dice_original"]).any()
    )


def test_summary_and_table_tell_the_scores_at_the_original_size(run, plain, tmp_path, capsys):
    table = evaluate(run, plain, tmp_path / "out")
    scores = json.loads((tmp_path / "out" / "summary.json").read_text())["scores"]
    assert scores["dice_original"]["mean"] == pytest.approx(table["dice_original"].mean())
    assert scores["iou_original"]["images"] == 3 and len(scores["iou_original"]["ci95"]) == 2
    hit, both = (
        table["hit_pixels_original"].sum(),
        table[["lesion_pixels_original", "pred_pixels_original"]].sum().sum(),
    )
    assert scores["iou_pooled_original"] == pytest.approx(hit / (both - hit))
    printed = capsys.readouterr().out
    assert "Dice, original size, per image" in printed and "IoU pooled, original size" in printed


def test_size_of_prepared_pictures_comes_from_the_manifest(run, prepared):
    evaluation = Evaluation(run, "test", prepared, device="cpu")
    batch = next(iter(evaluation.datamodule.eval_dataloader("test")))
    rows = evaluation.postprocess(batch["stem"], batch["mask"].float() * 20 - 10)[1]
    for (
        row
    ) in rows:  # even edges: halving and doubling by nearest neighbour gives the annotation back
        assert row["lesion_pixels_original"] == 16 * 16 and row["dice_original"] > 0.95
    upside_down = evaluation.postprocess(batch["stem"], batch["mask"].flip(2).float() * 20 - 10)[1]
    assert max(row["dice_original"] for row in upside_down) < 0.7


def test_lesion_of_all_categories_is_scored_at_the_original_size(make_run, phantom_root, tmp_path):
    run = make_run(tmp_path / "run", classes=5)
    table = evaluate(run, phantom_root, tmp_path / "out", "--split", "valid")
    evaluation = Evaluation(run, "valid", device="cpu")
    logits = torch.zeros(1, 5, 32, 32)
    logits[:, 3, :, :16] = 1
    logits[:, 0, :, 16:] = 1
    row = evaluation.postprocess([evaluation.datamodule.pairs("valid")[0].stem], logits)[1][0]
    assert row["pred_pixels_original"] == 64 * 32 and table["dice_original"].notna().all()


def test_pooled_iou_of_nothing_is_none():
    assert (
        pooled_iou(pd.DataFrame(0, [0, 1], ["lesion_pixels", "pred_pixels", "hit_pixels"])) is None
    )


def test_tree_without_a_manifest_is_scored_at_its_own_size(run, phantom_root, tmp_path):
    root = shutil.copytree(phantom_root, tmp_path / "tree")
    (root / "manifest.json").unlink()
    with_manifest, without = (
        evaluate(run, r, tmp_path / f"{r.name}_out") for r in (phantom_root, root)
    )
    assert without["dice_original"].equals(with_manifest["dice_original"])
