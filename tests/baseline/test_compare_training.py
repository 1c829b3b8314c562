"""What the comparison refuses; both trainings run where TensorFlow is installed."""

import importlib.util
import json
from importlib.machinery import ModuleSpec

import pytest
import yaml

from ovseg.baseline.compare_training import compare_training
from ovseg.core.errors import InputError
from ovseg.training.settings import read_experiment

HAS_TENSORFLOW = importlib.util.find_spec("tensorflow") is not None


@pytest.fixture
def config(tmp_path, phantom_root):
    """A YAML of the smallest network on the phantoms."""
    content = {
        "model": {
            "arch": "flexible_unet",
            "arch_args": {"base_filters": 2, "num_layers": 3, "dropout_rate": 0.05},
            "loss": "bce_dice_loss",
            "optimizer": "keras_adam",
            "optimizer_args": {"lr": 0.001},
        },
        "data": {"root": str(phantom_root), "batch_size": 2},
        "trainer": {"gradient_clip_val": 0.5},
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture
def experiment(config):
    return read_experiment(config, None, [], None)


def test_values_of_the_yaml_can_be_replaced(config):
    replaced = read_experiment(config, "elsewhere", ["num_layers=5"], 0.5)
    assert replaced["data"]["root"] == "elsewhere"
    assert replaced["model"]["arch_args"]["num_layers"] == 5
    assert replaced["model"]["optimizer_args"] == {"lr": 0.5}


def test_other_loss_is_an_error(experiment, tmp_path):
    experiment["model"]["loss"] = "dice_loss"
    message = r"compare_baseline needs model\.loss: bce_dice_loss, found 'dice_loss'"
    with pytest.raises(InputError, match=message):
        compare_training(experiment, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 50}, "--image_size 50 must be a multiple of 4"),
        ({"steps": 2}, "--steps is 2, expected at least 3"),
        ({"epochs": 0}, "--epochs is 0, expected at least 1"),
    ],
)
def test_numbers_that_cannot_be_compared_are_errors(experiment, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        compare_training(experiment, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_epochs_of_too_few_steps_are_an_error(experiment, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: ModuleSpec(name, None))
    experiment["data"]["batch_size"] = 14
    message = "--epochs 2 is 2 steps on .*, expected at least 3. Raise --epochs"
    with pytest.raises(InputError, match=message):
        compare_training(experiment, tmp_path / "out", epochs=2, image_size=32)


def test_mistake_on_the_command_line_is_one_line(config, tmp_path, capsys, run_command):
    output = tmp_path / "out"
    given = ("--config", config, "--output", output, "--arch_args", "num_layers")
    assert run_command("compare_baseline", *given) == 2
    assert "takes KEY=VALUE" in capsys.readouterr().err
    assert not output.exists()


def test_missing_configuration_is_an_error(tmp_path, capsys, run_command):
    given = ("--config", "gone.yaml", "--output", tmp_path / "out")
    assert run_command("compare_baseline", *given) == 2
    assert "gone.yaml" in capsys.readouterr().err


@pytest.mark.skipif(HAS_TENSORFLOW, reason="TensorFlow is installed")
def test_without_tensorflow_it_says_what_to_install(config, tmp_path, capsys, run_command):
    output = tmp_path / "out"
    assert run_command("compare_baseline", "--config", config, "--output", output) == 2
    assert "pip install 'ovseg[tensorflow]'" in capsys.readouterr().err
    assert not output.exists()


@pytest.mark.skipif(not HAS_TENSORFLOW, reason="needs the extra [tensorflow]")
def test_both_trainings_follow_the_same_losses(experiment, tmp_path):
    output = tmp_path / "out"
    compare_training(experiment, output, epochs=2, image_size=32)
    assert len((output / "epochs.csv").read_text().splitlines()) == 3
    content = json.loads((output / "comparison.json").read_text())
    assert content["largest_loss_difference"] < 1e-4
    assert (output / "comparison.png").exists()
    theirs = content["table"]["TensorFlow"]["test loss"]
    ours = content["table"]["ovseg"]["test loss"]
    assert ours == pytest.approx(theirs, abs=1e-4)
