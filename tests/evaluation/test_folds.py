"""Checkpoints of a fold: they are scored on what the fold held out, and on no other images."""

import json
import shutil
from pathlib import Path

import pytest
from pytorch_lightning import Trainer

from ovseg.core.errors import InputError
from ovseg.data.datamodule import OvarianTumorDataModule
from ovseg.evaluation.evaluate import Evaluation
from ovseg.training.task import SegmentationTask


@pytest.fixture
def own_root(fold_root, tmp_path) -> Path:
    """A copy of the phantoms with three folds, without a cache, that the test may change."""
    without_cache = shutil.ignore_patterns(".cache")
    return shutil.copytree(fold_root, tmp_path / "own", ignore=without_cache)


@pytest.fixture
def checkpoint(own_root, tmp_path) -> Path:
    """A checkpoint for fold 1 of `own_root`, after one step of training."""
    data = OvarianTumorDataModule(str(own_root), image_size=48, batch_size=4, num_workers=0, fold=1)
    task = SegmentationTask(
        arch_args={"base_filters": 2, "num_layers": 3}, optimizer_args={"lr": 1e-3}
    )
    trainer = Trainer(
        accelerator="cpu",
        default_root_dir=tmp_path,
        enable_model_summary=False,
        enable_progress_bar=False,
        limit_train_batches=1,
        logger=False,
        max_epochs=1,
    )
    trainer.fit(task, data)
    trainer.save_checkpoint(tmp_path / "fold.ckpt")
    return tmp_path / "fold.ckpt"


def test_evaluation_of_valid_scores_the_fold_with_its_categories(checkpoint):
    table, summary = Evaluation(checkpoint, "valid", device="cpu").run()
    assert table["stem"].tolist() == [f"phantom_{number}" for number in range(1, 17, 3)]
    assert summary["images"] == 6
    assert "unknown" not in set(table["category"])


def test_evaluation_says_that_the_dataset_has_changed_since_training(checkpoint, own_root, capsys):
    assert not Evaluation(checkpoint, "test", device="cpu").dataset_changed
    stem = next((own_root / "train" / "images").iterdir()).name
    for kind in ("images", "masks", "categories"):
        (own_root / "train" / kind / stem).rename(own_root / "test" / kind / stem)
    changed = Evaluation(checkpoint, "test", device="cpu")
    assert changed.dataset_changed
    assert changed.describe()["dataset_changed"] is True


def test_evaluation_knows_the_trained_images_in_a_copy_of_the_dataset(checkpoint, own_root):
    copy = shutil.copytree(own_root, own_root.parent / "copy")
    evaluation = Evaluation(checkpoint, "train", copy, device="cpu")
    assert evaluation.trained_on
    assert not evaluation.dataset_changed


def test_evaluation_refuses_a_fold_of_other_images(checkpoint, own_root):
    path = own_root / "manifest.json"
    manifest = json.loads(path.read_text())
    for item in manifest["items"]:
        if item["fold"] is not None:
            item["fold"] = (item["fold"] + 1) % 3
    path.write_text(json.dumps(manifest))

    message = "Fold 1 of .* holds other images than when the checkpoint was trained"
    with pytest.raises(InputError, match=message):
        Evaluation(checkpoint, "valid", device="cpu")
    assert Evaluation(checkpoint, "test", device="cpu").describe()["images"] == 3


def test_resume_refuses_another_fold(checkpoint, own_root, run_command, capsys):
    options = ["--ckpt_path", checkpoint, "--data.root", own_root, "--trainer.max_epochs", 2]
    options += ["--model.arch_args", '{"base_filters": 2, "num_layers": 3}']
    options += ["--model.optimizer_args.lr", 0.001, "--data.image_size", 48]
    assert run_command("train", *options, "--data.fold", 0) == 2
    assert "data.fold 1, not 0" in capsys.readouterr().err
