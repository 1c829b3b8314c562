"""The baseline's INI file to our YAML, and to a run."""

import csv

import numpy as np
import pytest
import torch
import yaml

from keras_files import layers_of, write_keras2
from ovseg.baseline.config import explain_baseline_config, read_baseline_config
from ovseg.cli.main import main
from ovseg.core.errors import InputError
from ovseg.models import build_model

EXPERIMENT = """
; the author's experiment, its own slips included
[model]
model          = "TensorflowUNet"
generator      = False
image_width    = 512
image_height   = 512
image_channels = 3
input_normalize = False
normalization  = False
num_classes    = 1
base_filters   = 16
base_kernels   = (9,9)
num_layers     = 8
dropout_rate   = 0.05
learning_rate  = 0.00007
clipvalue      = 0.5
dilation       = (3,3)
loss           = "bce_dice_loss"
metrics        = ["dice_coef"]
show_summary   = False
[train]
epochs        = 100
batch_size    = 2
patience      = 10
image_datapath = "../../../dataset/Ovarian-Tumor/train/images/"
mask_datapath  = "../../../dataset/Ovarian-Tumor/train/masks/"
learning_rate_reducer = True
reducer_factor     = 0.4
reducer_patience   = 4
num_infer_images   = 6
[mask]
blur      = True
[augmentor]
vflip     = Fale
angles    = [90. 180, 270,]
"""
SMALL = """
[model]
image_width = 32
image_height = 32
num_classes = 1
base_filters = 2
base_kernels = (5,5)
num_layers = 3
dropout_rate = 0.05
learning_rate = 0.001
loss = "bce_dice_loss"
[train]
batch_size = 2
epochs = 2
image_datapath = "{root}/train/images"
"""


@pytest.fixture
def write(tmp_path):
    def write_config(text: str):
        path = tmp_path / "train_eval_infer.config"
        path.write_text(text)
        return path

    return write_config


def test_the_experiment_becomes_unet_yaml(write):
    from support import REPOSITORY

    ours = yaml.safe_load((REPOSITORY / "configs" / "unet.yaml").read_text())
    theirs = read_baseline_config(write(EXPERIMENT))
    for section, values in theirs.items():
        for key, value in values.items():
            if (section, key) not in {("data", "fit"), ("data", "mask_threshold")}:
                assert ours[section][key] == value, (section, key)


def test_experiment_network_has_124996849_parameters(write):
    model = read_baseline_config(write(EXPERIMENT))["model"]
    with torch.device("meta"):
        network = build_model(model["arch"], **model["arch_args"])
    assert sum(p.numel() for p in network.parameters()) == 124_996_849


def test_every_key_is_explained(write):
    rows = {key: becomes for key, _, becomes in explain_baseline_config(write(EXPERIMENT))}
    keys = [line.split("=")[0].strip() for line in EXPERIMENT.splitlines() if "=" in line]
    assert len(rows) == len(keys) and all(rows.values())
    assert rows["model.base_kernels"] == "model.arch_args.base_kernel"
    assert rows["augmentor.vflip"].startswith("ignored: ") and rows["mask.blur"].startswith(
        "ignored: "
    )


def test_input_is_divided_unless_told_otherwise(write):
    scale = read_baseline_config(write(EXPERIMENT.replace("input_normalize = False", "")))["model"][
        "arch_args"
    ]
    assert scale["input_scale"] == pytest.approx(1 / 255)


def test_values_are_never_evaluated(write, tmp_path):
    text = EXPERIMENT.replace("epochs        = 100", f"epochs = open('{tmp_path}/owned', 'w')")
    with pytest.raises(InputError, match=r"\[train\] epochs = open.* is no Python literal"):
        read_baseline_config(write(text))
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[model]", "[network]", r"has no section \[model\]"),
        ("num_layers     = 8", "", r"has no key 'num_layers' in section \[model\]"),
        ("num_layers     = 8", "num_layers = eight", "num_layers = eight is no Python literal"),
        ("num_layers     = 8", 'num_layers = "8"', "num_layers is '8', expected int"),
        ("(9,9)", "(9,7)", "expected two equal numbers"),
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
def test_mistakes_that_matter_are_errors(write, old, new, message):
    with pytest.raises(InputError, match=message):
        read_baseline_config(write(EXPERIMENT.replace(old, new)))


def test_missing_file_is_an_error(tmp_path):
    with pytest.raises(InputError, match="Cannot read"):
        read_baseline_config(tmp_path / "gone.config")


def run_import(config, output, *more: str) -> int:
    return main(
        ["import_baseline", "--config", str(config), "--output", str(output), *map(str, more)],
    )


def test_import_with_weights_is_a_run(write, tmp_path, phantom_root, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    source = build_model("flexible_unet", base_filters=2, base_kernel=5, num_layers=3, dilation=1)
    weights = write_keras2(tmp_path / "best_model.h5", layers_of(source))
    run = tmp_path / "imported"
    assert run_import(write(SMALL.format(root=phantom_root)), run, "--weights", weights) == 0
    with open(run / "import.csv", encoding="utf-8") as file:
        assert next(csv.reader(file)) == ["key", "value", "becomes"]
    root = ["--data", str(phantom_root)]
    assert main(["evaluate", "--run", str(run), *root, "--device", "cpu"]) == 0
    images = phantom_root / "test" / "images"
    assert (
        main(
            ["infer", "--run", str(run), "--images", str(images), "--output", str(tmp_path / "m")],
        )
        == 0
    )
    monkeypatch.setattr("sys.argv", ["train"])
    more = [
        "--data.root",
        str(phantom_root),
        "--trainer.accelerator",
        "cpu",
        "--data.num_workers",
        "0",
    ]
    resume = [
        "--config",
        str(run / "config.yaml"),
        "--ckpt_path",
        str(run / "checkpoints" / "best.ckpt"),
    ]
    assert main(["train", *resume, *more]) == 0
    assert (tmp_path / "runs" / "imported" / "version_0" / "checkpoints" / "best.ckpt").exists()
    checkpoint = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    assert np.array_equal(
        checkpoint["state_dict"]["network.head.weight"], source.head.weight.detach()
    )
    capsys.readouterr()


def test_weights_of_another_depth_leave_nothing(write, tmp_path, capsys):
    source = build_model("flexible_unet", base_filters=2, base_kernel=5, num_layers=4, dilation=1)
    weights = write_keras2(tmp_path / "best_model.h5", layers_of(source))
    assert (
        run_import(write(SMALL.format(root="x")), tmp_path / "imported", "--weights", weights) == 2
    )
    assert "in the file" in capsys.readouterr().err and not (tmp_path / "imported").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "learning_rate  = 0.00007",
            "learning_rate = -1.0",
            "learning_rate is -1.0, expected more than 0",
        ),
        ("epochs        = 100", "epochs = -5", "epochs is -5, expected more than 0"),
        ("batch_size    = 2", "batch_size = 0", "data.batch_size is 0"),
        (
            '"TensorflowUNet"',
            '"TensorflowSwinUNet"\nimage_height = 256',
            "are for images of 256 x 512",
        ),
    ],
)
def test_values_that_cannot_train_leave_nothing(write, tmp_path, capsys, old, new, message):
    text = EXPERIMENT.replace("num_layers     = 8", "num_layers = 3").replace(old, new)
    text = text.replace("image_height   = 512\n", "") if "image_height = 256" in new else text
    assert run_import(write(text), tmp_path / "imported") == 2
    assert message in capsys.readouterr().err and not (tmp_path / "imported").exists()


def test_configuration_alone_is_converted(write, tmp_path):
    assert run_import(write(EXPERIMENT), tmp_path / "imported") == 0
    assert sorted(path.name for path in (tmp_path / "imported").iterdir()) == [
        "config.yaml",
        "import.csv",
    ]
