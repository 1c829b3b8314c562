"""Runs for four categories end to end on phantoms, and the scores of one class by category."""

import json
import math
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from pytorch_lightning import Trainer

from ovseg.cli.main import main
from ovseg.core.errors import InputError
from ovseg.data.datamodule import OvarianTumorDataModule
from ovseg.data.prepare.dataset import prepare_dataset
from ovseg.data.prepare.otu2d import CATEGORIES
from ovseg.data.prepare.phantoms import make_phantom
from ovseg.evaluation.summary import summarise_categories
from ovseg.inference.predictor import Predictor
from ovseg.models import list_models
from ovseg.training.task import SegmentationTask

NAMES = ["cyst", "haze", "solid", "mixed"]
ARCH_ARGS = {
    "base_filters": 4,
    "base_kernel": 3,
    "num_layers": 3,
    "dilation": 1,
    "normalization": True,
}
SETTINGS = {
    "model": {"arch_args": ARCH_ARGS, "loss": "ce_dice_loss", "optimizer_args": {"lr": 0.01}},
    "data": {"image_size": 32, "batch_size": 4, "num_workers": 0, "drop_last": True, "classes": 5},
    "trainer": {
        "max_epochs": 2,
        "accelerator": "cpu",
        "num_sanity_val_steps": 0,
        "enable_model_summary": False,
    },
    "best_checkpoint": {"monitor": "val_dice_categories"},
}


def write_settings(folder, root) -> str:
    settings = {
        **SETTINGS,
        "data": {**SETTINGS["data"], "root": str(root)},
        "runs_dir": str(folder / "runs"),
    }
    (folder / "many.yaml").write_text(yaml.safe_dump(settings))
    return str(folder / "many.yaml")


def train(config: str, *arguments: str) -> int:
    return main(["train", "--config", config, *arguments])


@pytest.fixture(scope="module")
def run(phantom_root, tmp_path_factory):
    """A run folder of two epochs for the four categories of phantoms. Not to be changed."""
    folder = tmp_path_factory.mktemp("categories")
    assert train(write_settings(folder, phantom_root)) == 0
    return folder / "runs" / "many" / "version_0"


def read(path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.array(picture)


def test_classes_are_said_once_and_stand_in_config_and_checkpoint(run):
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["data"]["classes"] == config["model"]["arch_args"]["classes"] == 5
    task = SegmentationTask.load_from_checkpoint(
        run / "checkpoints" / "best.ckpt", weights_only=True
    )
    assert task.hparams.arch_args == {**ARCH_ARGS, "classes": 5} and task.classes == 5
    assert task(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)).shape == (1, 5, 32, 32)


def test_run_can_be_resumed_from_its_own_config(run):
    last = str(run / "checkpoints" / "last.ckpt")
    assert train(str(run / "config.yaml"), "--ckpt_path", last, "--trainer.max_epochs", "3") == 0
    resumed = run.parent / "version_1"
    assert len(pd.read_csv(resumed / "train_metrics.csv")) == 3
    shutil.rmtree(resumed)


def test_scores_of_categories_are_logged_and_drawn(run):
    assert "val_dice_categories" in pd.read_csv(run / "train_metrics.csv")
    logged = set(pd.read_csv(run / "metrics.csv").columns)
    assert {"val_dice", "val_dice_coef", "val_iou_pooled_categories"} <= logged
    assert {f"val_dice_category_{i}" for i in (1, 2, 3, 4)} <= logged
    sheet, one = (
        read(run / "epoch_change_infer" / f"Epoch_2{name}.png") for name in ("", "_phantom_17")
    )
    assert sheet.shape[0] > 3 * one.shape[0]  # two rows of tiles and the legend


def test_evaluation_has_a_row_for_each_category(run, capsys):
    summary = json.loads((run / "evaluation" / "summary.json").read_text())
    table = pd.read_csv(run / "evaluation" / "per_image.csv", keep_default_na=False, na_values=[""])
    rows = {row["name"]: row for row in summary["per_category"]}
    assert (
        list(rows)[:4] == NAMES and sum(row["images"] for row in rows.values()) == len(table) == 3
    )
    assert set(table["category"]) <= {*NAMES, "none"} and set(table["pred_category"]) <= {
        *NAMES,
        "none",
    }
    for i, name in enumerate(NAMES, 1):
        part = table[table["category"] == name]
        assert rows[name]["recognised"] == (part["pred_category"] == name).sum()
        assert rows[name]["category_dice"]["images"] == table[f"dice_{i}"].count()
        if len(part):
            assert rows[name]["dice"]["mean"] == pytest.approx(part["dice_original"].mean())
            assert rows[name]["category_dice"]["mean"] == pytest.approx(table[f"dice_{i}"].mean())
    means = [
        row["category_dice"]["mean"]
        for row in rows.values()
        if row.get("category_dice", {}).get("images")
    ]
    assert summary["scores"]["dice_categories"] == pytest.approx(np.mean(means), abs=1e-6)
    pooled = [
        row["category_iou_pooled"]
        for row in rows.values()
        if row.get("category_iou_pooled") is not None
    ]
    assert summary["scores"]["iou_pooled_categories"] == pytest.approx(np.mean(pooled), abs=1e-6)
    assert summary["classes"] == 5 and summary["threshold"] is None
    assert "NaN" not in (run / "evaluation" / "summary.json").read_text()
    for name in ("dice_categories.png", "confusion.png", "cases.png"):
        assert read(run / "evaluation" / name).size


def test_validation_score_of_categories_is_the_evaluated_one(run, tmp_path, capsys):
    last = run / "checkpoints" / "last.ckpt"
    arguments = [
        "--run",
        str(last),
        "--split",
        "valid",
        "--device",
        "cpu",
        "--output",
        str(tmp_path / "out"),
    ]
    assert main(["evaluate", *arguments]) == 0
    scores = json.loads((tmp_path / "out" / "summary.json").read_text())["scores"]
    shown = pd.read_csv(run / "train_metrics.csv").iloc[-1]
    assert scores["dice_categories"] == pytest.approx(shown["val_dice_categories"], abs=1e-6)
    assert scores["dice"]["mean"] == pytest.approx(shown["val_dice"], abs=1e-6)
    printed = capsys.readouterr().out
    assert "category Dice" in printed and "recognised" in printed and "mixed" in printed


def test_infer_writes_ids_at_the_pictures_size(run, tmp_path, save_png, capsys):
    image = make_phantom(9, 64)[0]
    save_png(tmp_path / "in" / "a.png", image)
    save_png(tmp_path / "in" / "b.png", image[:50, :37])
    where = ["--run", str(run), "--images", str(tmp_path / "in"), "--output", str(tmp_path / "out")]
    assert main(["infer", *where, "--device", "cpu", "--overlays", "--probabilities"]) == 0
    assert "ids" in capsys.readouterr().out
    names = json.loads((tmp_path / "out" / "categories.json").read_text())
    assert names == {"0": "background", **{str(i): name for i, name in enumerate(NAMES, 1)}}
    for name, size in (("a.png", (64, 64)), ("b.png", (50, 37))):
        ids, probs = (read(tmp_path / "out" / folder / name) for folder in (".", "probabilities"))
        assert ids.shape == probs.shape == size and ids.dtype == np.uint8 and ids.max() <= 4
        assert (
            probs[ids > 0] / 65535 > 0.2
        ).all()  # a category beats the background, so that has less than 0.8
        assert (probs[ids == 0] / 65535 <= 0.8 + 1e-4).all()
        overlay = read(tmp_path / "out" / "overlays" / name)
        assert overlay.shape[0] > size[0] and overlay.shape[1] == size[1]


def test_labels_come_from_interpolated_probabilities(run):
    predictor = Predictor.load(run, "cpu")
    image = make_phantom(9, 64)[0]
    prediction = predictor.predict(image)
    assert predictor.categories == NAMES
    square = torch.from_numpy(read_square(image)).permute(2, 0, 1)[None]
    with torch.inference_mode():
        probs = predictor.members[0].network(square).softmax(1)
    enlarged = torch.nn.functional.interpolate(
        probs, (64, 64), mode="bilinear", align_corners=False
    )[0]
    assert np.mean(enlarged.argmax(0).numpy() == prediction.labels) > 0.999
    assert np.allclose(1 - enlarged[0].numpy(), prediction.probs, atol=1e-3)


def read_square(image: np.ndarray) -> np.ndarray:
    from ovseg.data.geometry import place

    return place(image, 32, "letterbox")


def test_evaluating_on_other_categories_is_an_error(run, phantom_root, tmp_path, capsys):
    other = shutil.copytree(phantom_root, tmp_path / "other")
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(
        json.dumps({**manifest, "categories": ["a", "b", "c", "d"]})
    )
    arguments = ["--run", str(run), "--data", str(other), "--output", str(tmp_path / "out")]
    assert main(["evaluate", *arguments]) == 2
    assert (
        "was trained for cyst, haze, solid, mixed, but the categories of" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--model.loss", "bce_dice_loss"],
            "The loss bce_dice_loss is for one class, but the network has 5",
        ),
        (
            ["--data.classes", "1"],
            "val_dice_categories, which is logged only where data.classes is above 1",
        ),
        (
            ["--data.classes", "1", "--best_checkpoint.monitor", "val_loss"],
            "ce_dice_loss is for several classes",
        ),
        (["--data.classes", "9"], "has 4 categories. Set data.classes: 5"),
        (
            ["--model.arch_args.classes", "9"],
            "model.arch_args.classes is 9, but data.classes is 5. Set only data.classes",
        ),
        (["--data.root", "gone"], "There is no dataset folder gone"),
    ],
)
def test_mistake_is_one_line_and_leaves_nothing(
    phantom_root, tmp_path, monkeypatch, capsys, arguments, message
):
    monkeypatch.chdir(tmp_path)
    assert train(write_settings(tmp_path, phantom_root), *arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and message in error and not (tmp_path / "runs").exists()


@pytest.mark.parametrize("arch", list_models())
def test_network_without_classes_is_an_error(arch):
    with pytest.raises(InputError, match=f"{arch}: classes is 0, expected at least 1"):
        SegmentationTask(arch, arch_args={"classes": 0})


def test_tree_that_prepare_data_wrote_has_nine_classes(tmp_path, save_png):
    rng = np.random.default_rng(0)
    for number in range(32):
        annotation = np.zeros((48, 48, 3), np.uint8)
        annotation[10:30, 10:30] = list(CATEGORIES)[number % 8]
        (tmp_path / "OTU" / "images").mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (48, 48, 3), np.uint8)).save(
            tmp_path / "OTU" / "images" / f"{number}.JPG"
        )
        save_png(tmp_path / "OTU" / "annotations" / f"{number}.PNG", annotation)
    prepare_dataset(tmp_path / "OTU", tmp_path / "tree", size=32)
    data = OvarianTumorDataModule(str(tmp_path / "tree"), image_size=32, num_workers=0, classes=9)
    data.prepare_data()
    assert data.categories == list(CATEGORIES.values())
    loaders = (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())
    found = {int(mask.max()) for loader in loaders for batch in loader for mask in batch["mask"]}
    assert found == set(range(1, 9))


def test_library_use_with_another_number_of_classes_is_an_error(phantom_root, tmp_path):
    data = OvarianTumorDataModule(str(phantom_root), image_size=32, num_workers=0, classes=5)
    task = SegmentationTask(arch_args={"base_filters": 2, "num_layers": 2})
    options = {
        "accelerator": "cpu",
        "enable_progress_bar": False,
        "logger": False,
        "default_root_dir": tmp_path,
    }
    with pytest.raises(
        InputError, match="model.arch_args.classes is 1, but data.classes is 5. Set both"
    ):
        Trainer(fast_dev_run=True, **options).fit(task, data)


def table_of(*rows: tuple) -> pd.DataFrame:
    scores = ["dice", "iou", "lesion_pixels", "pred_pixels", "hit_pixels"]
    names = ["category", *[f"{name}_original" for name in scores]]
    return pd.DataFrame(rows, columns=names)


def test_lesion_scores_by_category_of_the_image():
    nothing = ("none", math.nan, math.nan, 0, 0, 0)
    table = table_of(
        ("b", 0.5, 1 / 3, 10, 10, 5), ("a", 1.0, 1.0, 4, 4, 4), ("b", 0.0, 0.0, 6, 0, 0), nothing
    )
    rows = {row["name"]: row for row in summarise_categories(table)}
    assert list(rows) == ["a", "b", "none"] and [row["images"] for row in rows.values()] == [
        1,
        2,
        1,
    ]
    assert rows["b"]["dice"]["mean"] == 0.25 and rows["b"]["dice"]["images"] == 2
    assert (
        rows["b"]["iou_pooled"] == pytest.approx(5 / (20 + 6 - 5)) and rows["a"]["iou_pooled"] == 1
    )
    assert rows["none"]["dice"]["mean"] is None and rows["none"]["iou_pooled"] is None
    assert "recognised" not in rows["a"]
