"""Another tool's masks against ours; the training comparison runs where TensorFlow is installed."""

import importlib.util
import json

import numpy as np
import pytest
import torch
import yaml

from ovseg.baseline.compare_training import _settings
from ovseg.baseline.keras_weights import load_keras_weights
from ovseg.cli.main import main
from ovseg.core.errors import InputError
from ovseg.evaluation.compare import compare_masks
from ovseg.models import build_model
from ovseg.training.config import read_experiment


@pytest.fixture
def folders(tmp_path, save_png):
    """Three references of 40 x 40; theirs green, of another size and half of the lesion; ours exact."""
    for stem in "abc":
        mask = np.zeros((40, 40), np.uint8)
        mask[10:30, 10:30] = 255
        half = np.zeros((80, 80, 3), np.uint8)
        half[20:60, 20:40, 1] = 200
        half[20:60, 40:60, 1] = 100
        save_png(tmp_path / "masks" / f"{stem}.png", mask)
        save_png(tmp_path / "ours" / f"{stem}.png", mask)
        save_png(tmp_path / "theirs" / f"{stem}.png", half)
    save_png(tmp_path / "ours" / "more.png", mask)
    return tmp_path


def test_paired_difference_by_hand(folders):
    summary = compare_masks(
        folders / "theirs", folders / "ours", folders / "masks", folders / "out"
    )
    assert (
        summary["images"] == 3
        and summary["ours"] == 1
        and summary["theirs"] == pytest.approx(2 / 3, abs=1e-4)
    )
    assert summary["difference"] == pytest.approx(1 / 3, abs=1e-4)
    assert summary["ci95"] == pytest.approx([1 / 3, 1 / 3], abs=1e-4)
    assert {path.name for path in (folders / "out").iterdir()} == {
        "paired.csv",
        "paired.json",
        "paired.png",
    }


def test_threshold_moves_their_lesion(folders):
    paths = (folders / "theirs", folders / "ours", folders / "masks", folders / "out")
    assert compare_masks(*paths, threshold=50)["theirs"] == 1


def test_prediction_without_partner_is_named(folders, capsys):
    (folders / "ours" / "b.png").unlink()
    where = [
        f"--{name}={folders / folder}"
        for name, folder in {"predictions": "theirs", "ours": "ours"}.items()
    ]
    out = [f"--output={folders / 'out'}"]
    assert main(["compare_baseline", *where, f"--masks={folders / 'masks'}", *out]) == 2
    assert (
        "1 of 3 predictions have no mask in" in capsys.readouterr().err
        and not (folders / "out").exists()
    )
    assert main(["compare_baseline", *where, *out]) == 2
    assert "--predictions needs --ours and --masks" in capsys.readouterr().err


@pytest.fixture
def config(tmp_path, phantom_root):
    model = {
        "arch": "flexible_unet",
        "arch_args": {"base_filters": 2, "num_layers": 3, "dropout_rate": 0.05},
    }
    model |= {"loss": "bce_dice_loss", "optimizer": "keras_adam", "optimizer_args": {"lr": 0.001}}
    data = {"root": str(phantom_root), "batch_size": 2}
    path = tmp_path / "tiny.yaml"
    path.write_text(
        yaml.safe_dump({"model": model, "data": data, "trainer": {"gradient_clip_val": 0.5}})
    )
    return path


def compare(config, output, *more: str) -> int:
    return main(["compare_baseline", "--config", str(config), "--output", str(output), *more])


def test_values_of_the_yaml_can_be_replaced(config):
    settings = read_experiment(config, "elsewhere", ["num_layers=5"], 0.5)
    assert (
        settings["data"]["root"] == "elsewhere"
        and settings["model"]["arch_args"]["num_layers"] == 5
    )
    assert settings["model"]["optimizer_args"] == {"lr": 0.5}


def test_way_of_convolving_is_no_argument_of_keras(config):
    settings = read_experiment(config, None, ["convolution=direct"], None)
    assert "convolution" not in _settings(settings, 3, 128)["network"]


def test_mistakes_are_one_line(config, tmp_path, capsys):
    for more, message in [
        (["--arch-args", "num_layers"], "--arch-args takes KEY=VALUE"),
        (["--image-size", "50"], "--image-size 50 must be a multiple of 4"),
        (["--config", "gone.yaml"], "There is no configuration gone.yaml"),
    ]:
        assert compare(config, tmp_path / "out", *more) == 2
        assert message in capsys.readouterr().err and not (tmp_path / "out").exists()
    with pytest.raises(InputError, match=r"compare needs model\.loss: bce_dice_loss"):
        from ovseg.baseline.compare_training import compare_training

        settings = read_experiment(config, None, [], None)
        settings["model"]["loss"] = "dice_loss"
        compare_training(settings, tmp_path / "out")


@pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is not None, reason="TensorFlow is installed"
)
def test_without_tensorflow_it_says_what_to_install(config, tmp_path, capsys):
    assert compare(config, tmp_path / "out", "--steps", "3", "--image-size", "32") == 2
    assert (
        "pip install 'ovseg[tensorflow]'" in capsys.readouterr().err
        and not (tmp_path / "out").exists()
    )


@pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is None, reason="needs the extra tensorflow"
)
def test_both_trainings_follow_the_same_losses(config, tmp_path):
    assert compare(config, tmp_path / "out", "--epochs", "2", "--image-size", "32") == 0
    assert len((tmp_path / "out" / "epochs.csv").read_text().splitlines()) == 3
    content = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert (
        content["largest_loss_difference"] < 1e-4 and (tmp_path / "out" / "comparison.png").exists()
    )
    test = [row["test loss"] for row in content["table"].values()]
    assert test[0] == pytest.approx(test[1], abs=1e-4)


@pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is None, reason="needs the extra tensorflow"
)
@pytest.mark.parametrize("name", ["model.keras", "model.weights.h5", "model.h5"])
@pytest.mark.filterwarnings("ignore")  # TensorFlow's own
def test_files_that_keras_3_writes_give_its_probabilities(name, tmp_path):
    from ovseg.baseline.keras_unet import build_keras_unet

    settings = {
        "base_filters": 2,
        "base_kernel": 5,
        "num_layers": 3,
        "dilation": 2,
        "activation": "mish",
    }
    settings |= {"normalization": True, "input_scale": 1 / 255}
    keras_model = build_keras_unet(32, **settings)
    (keras_model.save_weights if "weights" in name else keras_model.save)(tmp_path / name)
    network = build_model("flexible_unet", **settings).eval()
    load_keras_weights(network, tmp_path / name)
    image = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3)).astype(np.float32)
    with torch.inference_mode():
        probs = network(torch.from_numpy(image).permute(0, 3, 1, 2)).sigmoid()[0, 0].numpy()
    assert np.abs(probs - np.array(keras_model(image))[0, ..., 0]).max() < 1e-5
