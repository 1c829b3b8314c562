"""Evaluate and infer from a run folder alone."""

import csv
import json
import math
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from pytorch_lightning import Trainer

from ovseg.cli.main import main
from ovseg.core.checkpoints import find_checkpoint
from ovseg.core.device import choose_device
from ovseg.core.errors import InputError
from ovseg.data.datamodule import OvarianTumorDataModule
from ovseg.data.prepare.phantoms import make_phantom
from ovseg.evaluation.evaluate import summarise
from ovseg.inference.engines import ENGINES
from ovseg.inference.predictor import Predictor
from ovseg.training.task import SegmentationTask


@pytest.fixture(scope="module")
def run(phantom_root, tmp_path_factory):
    """A run folder with a checkpoint that has seen one batch. Not to be changed."""
    folder = tmp_path_factory.mktemp("run")
    data = OvarianTumorDataModule(str(phantom_root), image_size=32, num_workers=0)
    task = SegmentationTask(
        arch_args={"base_filters": 2, "num_layers": 3}, optimizer_args={"lr": 0.003}
    )
    trainer = Trainer(
        max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu",
        default_root_dir=folder, limit_val_batches=0, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(task, data)
    trainer.save_checkpoint(folder / "checkpoints" / "last.ckpt")
    return folder


@pytest.fixture
def images(tmp_path, save_png):
    """Four pictures of different sizes and formats."""
    image = make_phantom(9, 64)[0]
    save_png(tmp_path / "in" / "a.png", image)
    save_png(tmp_path / "in" / "b.jpg", image[:50])
    save_png(tmp_path / "in" / "c.bmp", image[:, :37])
    save_png(tmp_path / "in" / "d.tif", image[..., 0])
    return tmp_path / "in"


def read(path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.array(picture)


def infer(run, images, output, *more: str) -> int:
    where = ["--run", str(run), "--images", str(images), "--output", str(output)]
    return main(["infer", *where, "--device", "cpu", *more])


def evaluate(run, *more: str) -> int:
    return main(["evaluate", "--run", str(run), "--device", "cpu", *more])


def test_one_mask_per_picture_at_its_own_size(run, images, tmp_path):
    assert (
        infer(run, images, tmp_path / "out", "--overlays", "--probabilities", "--batch-size", "3")
        == 0
    )
    for path in images.iterdir():
        mask, probs = (
            read(tmp_path / "out" / sub / f"{path.stem}.png") for sub in (".", "probabilities")
        )
        overlay = read(tmp_path / "out" / "overlays" / f"{path.stem}.png")
        assert mask.shape == probs.shape == overlay.shape[:2] == read(path).shape[:2]
        probs = probs / 65535
        assert set(np.unique(mask)) <= {0, 255}
        assert (
            np.array_equal(mask > 0, probs > 0.5)
            or np.abs(probs - 0.5)[(mask > 0) != (probs > 0.5)].max() < 1e-4
        )


def test_batches_do_not_change_the_prediction(run, images):
    predictor = Predictor.from_run(run, "cpu")
    pictures = [make_phantom(1, 64)[0], make_phantom(2, 64)[0][:40]]
    together = predictor.predict(pictures)
    alone = [predictor.predict([picture])[0] for picture in pictures]
    assert all(np.allclose(a, b, atol=1e-6) for a, b in zip(together, alone, strict=True))


def test_unreadable_picture_is_named_and_stops_nothing_else(run, images, tmp_path, capsys):
    (images / "bad.png").write_bytes(b"")
    assert infer(run, images, tmp_path / "out") == 1
    assert len(list((tmp_path / "out").glob("*.png"))) == 4
    assert "bad.png cannot be read" in capsys.readouterr().err


def test_only_unreadable_pictures_leave_nothing(run, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "bad.png").write_bytes(b"")
    assert infer(run, tmp_path / "in", tmp_path / "out") == 2
    assert "None of the 1 pictures" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_earlier_masks_are_kept_unless_told(run, images, tmp_path, capsys):
    assert infer(run, images, tmp_path / "out") == 0
    assert (
        infer(run, images, tmp_path / "out") == 2 and "add --overwrite" in capsys.readouterr().err
    )
    assert infer(run, images, tmp_path / "out", "--overwrite") == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch-size", "0"], "--batch-size is 0"),
        (["--device", "quantum"], "Device 'quantum' cannot be used"),
        (["--images", "gone"], "There is no folder gone"),
        (["--run", "gone"], "gone: not there"),
        (["--speed", "9"], "no option --speed"),
    ],
)
def test_infer_mistakes_are_one_line(run, images, tmp_path, capsys, arguments, message):
    import re

    assert infer(run, images, tmp_path / "out", *arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert (
        error[-1].startswith("error: ")
        and re.search(message, error[-1])
        and not (tmp_path / "out").exists()
    )


def test_best_is_preferred_to_last(run, tmp_path):
    folder = shutil.copytree(run, tmp_path / "run")
    assert find_checkpoint(folder).name == "last.ckpt"
    shutil.copy(folder / "checkpoints" / "last.ckpt", folder / "checkpoints" / "best.ckpt")
    assert find_checkpoint(folder).name == "best.ckpt"
    with pytest.raises(InputError, match="no checkpoints/best.ckpt or last.ckpt"):
        find_checkpoint(tmp_path)


def test_auto_device_is_there():
    torch.zeros(1, device=choose_device("auto"))


def test_evaluation_files_agree(run, tmp_path, capsys):
    assert evaluate(run, "--output", str(tmp_path / "out")) == 0
    table = pd.read_csv(tmp_path / "out" / "per_image.csv")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    with open(tmp_path / "out" / "evaluation.csv", encoding="utf-8") as file:
        baseline = list(csv.DictReader(file))
    assert list(baseline[0]) == ["loss", "dice_coef"] and len(baseline) == 1
    assert float(baseline[0]["dice_coef"]) == pytest.approx(summary["scores"]["dice_coef"])
    assert len(table) == summary["images"] == 3
    assert summary["scores"]["dice"]["mean"] == pytest.approx(table["dice"].mean())
    hits = table["dice"] * (table["lesion_pixels"] + table["pred_pixels"]) / 2
    pooled = hits.sum() / (table["lesion_pixels"] + table["pred_pixels"] - hits).sum()
    assert summary["scores"]["iou_pooled"] == pytest.approx(pooled, abs=1e-6)
    assert "Dice per image" in capsys.readouterr().out


def test_lesion_scores_are_split_by_category_where_the_manifest_tells_it(
    run, phantom_root, tmp_path, capsys
):
    assert evaluate(run, "--output", str(tmp_path / "out")) == 0
    table = pd.read_csv(tmp_path / "out" / "per_image.csv")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    items = json.loads((phantom_root / "manifest.json").read_text())["items"]
    names = dict(enumerate(["none", "cyst", "haze", "solid", "mixed"]))
    expected = {item["stem"]: names[item["category"]] for item in items}
    assert table["category"].to_list() == [expected[stem] for stem in table["stem"]]
    assert {row["name"]: row["images"] for row in summary["per_category"]} == table[
        "category"
    ].value_counts().to_dict()
    assert (
        tmp_path / "out" / "dice_categories.png"
    ).exists() and "by category" in capsys.readouterr().out


def test_tree_without_a_manifest_is_scored_without_categories(run, phantom_root, tmp_path):
    root = shutil.copytree(phantom_root, tmp_path / "plain")
    (root / "manifest.json").unlink()
    assert evaluate(run, "--data", str(root), "--output", str(tmp_path / "out")) == 0
    assert "category" not in pd.read_csv(tmp_path / "out" / "per_image.csv")
    assert "per_category" not in json.loads((tmp_path / "out" / "summary.json").read_text())
    assert not (tmp_path / "out" / "dice_categories.png").exists()


def test_same_evaluation_may_be_repeated_but_another_is_kept(run, tmp_path, capsys, phantom_root):
    folder = shutil.copytree(run, tmp_path / "run")
    assert evaluate(folder) == 0 and evaluate(folder) == 0
    other = shutil.copytree(phantom_root, tmp_path / "other")
    assert (
        evaluate(folder, "--data", str(other)) == 2 and "add --overwrite" in capsys.readouterr().err
    )
    assert evaluate(folder, "--data", str(other), "--overwrite") == 0
    assert (
        evaluate(folder, "--split", "valid") == 0
        and (folder / "evaluation_valid" / "summary.json").exists()
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split", "val"], "Unknown split 'val'"),
        (["--data", "gone"], "There is no dataset folder gone"),
        (["--batch-size", "0"], "--batch-size is 0"),
    ],
)
def test_evaluate_mistakes_are_one_line(run, tmp_path, capsys, arguments, message):
    assert evaluate(run, "--output", str(tmp_path / "out"), *arguments) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_checkpoint_without_a_folder_needs_an_output(run, capsys):
    assert evaluate(run / "checkpoints" / "last.ckpt") == 2
    assert "Add --output" in capsys.readouterr().err


def test_foreign_checkpoint_is_an_error(tmp_path, capsys):
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    assert evaluate(tmp_path / "other.ckpt", "--output", str(tmp_path / "out")) == 2
    assert "is not a whole checkpoint of ovseg" in capsys.readouterr().err


def test_summary_leaves_nan_out_and_counts():
    table = pd.DataFrame(0.5, range(3), ["iou", "sensitivity", "specificity", "precision"])
    summary = summarise(table.assign(dice=[1.0, 0.5, math.nan]))
    assert summary["dice"]["mean"] == 0.75 and summary["dice"]["images"] == 2
    low, high = summary["dice"]["ci95"]
    assert low == pytest.approx(0.5) and high == pytest.approx(1.0)


def test_summary_of_nothing_is_null():
    table = pd.DataFrame(
        math.nan, range(1), ["dice", "iou", "sensitivity", "specificity", "precision"]
    )
    assert summarise(table)["dice"] == {"mean": None, "median": None, "ci95": None, "images": 0}


def test_calibrated_engine_writes_the_masks_of_torch(run, images, tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnxruntime", reason="needs the extra [onnx]")
    pytest.importorskip("onnxscript", reason="needs the extra [onnx]")
    monkeypatch.delitem(ENGINES, "compile")  # half a minute of compilation
    assert infer(run, images, tmp_path / "torch", "--probabilities") == 0
    for engine in ("auto", "onnxruntime"):
        assert (
            infer(
                run,
                images,
                tmp_path / engine,
                "--probabilities",
                "--engine",
                engine,
                "--batch-size",
                "3",
            )
            == 0
        )
        for stem in "abcd":
            ours, theirs = (
                read(tmp_path / n / "probabilities" / f"{stem}.png").astype(int)
                for n in (engine, "torch")
            )
            assert np.abs(ours - theirs).max() <= 7  # of 65,535: 1e-4
    out = capsys.readouterr().out
    assert out.count("chosen") == 1 and "onnxruntime" in out


def test_unknown_engine_stops_before_the_run_is_read(images, tmp_path, capsys):
    assert infer(tmp_path / "no_run", images, tmp_path / "out", "--engine", "steam") == 2
    assert (
        "Unknown engine 'steam'. Choose one of: auto, compile, onnxruntime"
        in capsys.readouterr().err
    )
