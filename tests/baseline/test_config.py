"""The baseline's INI file to our YAML."""

import pytest
import torch
import yaml

from ovseg.baseline.config import explain_baseline_config, read_baseline_config
from ovseg.core.errors import InputError
from ovseg.models import build_model
from support import REPOSITORY


def test_the_experiment_becomes_unet_yaml(experiment_file):
    ours = yaml.safe_load((REPOSITORY / "configs" / "unet.yaml").read_text())
    theirs = read_baseline_config(experiment_file)
    for key in ("fit", "mask_threshold"):  # which unet.yaml leaves at their defaults
        del theirs["data"][key]
    for section, values in theirs.items():
        for key, value in values.items():
            assert ours[section][key] == value, (section, key)


def test_experiment_network_has_124996849_parameters(experiment_file):
    model = read_baseline_config(experiment_file)["model"]
    with torch.device("meta"):
        network = build_model(model["arch"], **model["arch_args"])
    assert sum(parameter.numel() for parameter in network.parameters()) == 124_996_849


def test_every_key_is_explained(experiment_file):
    rows = {key: becomes for key, _, becomes in explain_baseline_config(experiment_file)}
    lines = experiment_file.read_text().splitlines()
    assert len(rows) == sum("=" in line for line in lines)
    assert all(rows.values())
    assert rows["model.base_kernels"] == "model.arch_args.base_kernel"
    assert rows["augmentor.vflip"].startswith("ignored: ")
    assert rows["mask.blur"].startswith("ignored: ")


def test_input_is_divided_by_default(write_experiment):
    path = write_experiment("input_normalize = False", "")
    arch_args = read_baseline_config(path)["model"]["arch_args"]
    assert arch_args["input_scale"] == pytest.approx(1 / 255)


def test_values_are_never_evaluated(write_experiment, tmp_path):
    path = write_experiment("epochs        = 100", f"epochs = open('{tmp_path}/made', 'w')")
    with pytest.raises(InputError, match=r"\[train\] epochs = open.* is no Python literal"):
        read_baseline_config(path)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[model]", "[network]", r"has no section \[model\]"),
        ("num_layers     = 8", "", r"has no key 'num_layers' in section \[model\]"),
        ("num_layers     = 8", "num_layers = eight", "num_layers = eight is no Python literal"),
        ("num_layers     = 8", 'num_layers = "8"', "num_layers is '8', expected int"),
        ("(9,9)", "(9,7)", "expected two equal numbers"),
        ("(9,9)", "9", "expected two equal numbers"),
        ('"bce_dice_loss"', '"hope"', "Unknown loss 'hope'"),
        ('"bce_dice_loss"', '["bce_dice_loss"]', r"Unknown loss \['bce_dice_loss'\]"),
        (
            "normalization  = False",
            'normalization = "False"',
            "normalization is 'False', expected True or False",
        ),
        (
            '"TensorflowUNet"',
            '"TensorflowWNet"',
            "Unknown model of the baseline 'TensorflowWNet'. Choose one of: ",
        ),
        ("clipvalue      = 0.5", 'activation = "loud"', "Unknown activation 'loud'"),
        ("num_classes    = 1", "num_classes = 4", "only 3 and 1 are ported"),
        ("[mask]", "[mask", "is not an INI file"),
    ],
)
def test_mistakes_that_matter_are_errors(write_experiment, old, new, message):
    with pytest.raises(InputError, match=message):
        read_baseline_config(write_experiment(old, new))


def test_missing_file_is_an_error(tmp_path):
    with pytest.raises(InputError, match="Cannot read"):
        read_baseline_config(tmp_path / "gone.config")
