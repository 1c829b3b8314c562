"""A configuration of the baseline, and its weights, become a run."""

import csv

import pytest
import torch

from keras_files import layers_of, write_keras2
from ovseg.baseline.importer import import_baseline
from ovseg.core.errors import InputError
from ovseg.models import build_model

TINY = """
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
def tiny_file(tmp_path, phantom_root):
    """A configuration of a tiny network on the phantoms."""
    path = tmp_path / "train_eval_infer.config"
    path.write_text(TINY.format(root=phantom_root))
    return path


def write_weights(path, num_layers: int):
    """Write a network of the tiny configuration, but for its depth; returns the network."""
    network = build_model(
        "flexible_unet", base_filters=2, base_kernel=5, num_layers=num_layers, dilation=1
    )
    write_keras2(path, layers_of(network))
    return network


@pytest.fixture
def imported(tiny_file, tmp_path):
    """A run that was imported with weights, and the network of those weights."""
    weights = tmp_path / "best_model.h5"
    network = write_weights(weights, num_layers=3)
    run = tmp_path / "imported"
    import_baseline(tiny_file, weights, run)
    return run, network


def test_every_key_is_in_the_table(imported):
    run, _ = imported
    with open(run / "import.csv", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["key", "value", "becomes"]
    assert ["model.num_layers", "3", "model.arch_args.num_layers"] in rows


def test_checkpoint_has_the_weights(imported):
    run, network = imported
    checkpoint = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    assert torch.equal(checkpoint["state_dict"]["network.head.weight"], network.head.weight)


def test_import_can_be_evaluated(imported, phantom_root, run_command):
    run, _ = imported
    assert run_command("evaluate", "--run", run, "--data", phantom_root, "--device", "cpu") == 0


def test_import_can_infer(imported, phantom_root, tmp_path, run_command):
    run, _ = imported
    given = ("--images", phantom_root / "test" / "images", "--output", tmp_path / "masks")
    assert run_command("infer", "--run", run, *given) == 0


def test_import_can_be_trained(imported, phantom_root, tmp_path, monkeypatch, run_command):
    run, _ = imported
    monkeypatch.chdir(tmp_path)
    resume = ("--config", run / "config.yaml", "--ckpt_path", run / "checkpoints" / "best.ckpt")
    data = ("--data.root", phantom_root, "--data.num_workers", 0)
    assert run_command("train", *resume, *data, "--trainer.accelerator", "cpu") == 0
    trained = tmp_path / "runs" / "imported" / "version_0"
    assert (trained / "checkpoints" / "best.ckpt").exists()


def test_configuration_alone_is_converted(tiny_file, tmp_path, run_command):
    output = tmp_path / "imported"
    assert run_command("import_baseline", "--config", tiny_file, "--output", output) == 0
    names = sorted(path.name for path in output.iterdir())
    assert names == [".ovseg_files", "config.yaml", "import.csv", "train_eval_infer.config"]


def test_weights_of_another_depth_leave_nothing(tiny_file, tmp_path):
    weights = tmp_path / "best_model.h5"
    write_weights(weights, num_layers=4)
    with pytest.raises(InputError, match="in the file, .* in the network"):
        import_baseline(tiny_file, weights, tmp_path / "imported")
    assert not (tmp_path / "imported").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("0.001", "-1.0", "learning_rate is -1.0, expected more than 0"),
        ("epochs = 2", "epochs = -5", "epochs is -5, expected more than 0"),
        ("batch_size = 2", "batch_size = 0", "data.batch_size is 0"),
    ],
)
def test_values_that_cannot_train_leave_nothing(tiny_file, tmp_path, old, new, message):
    tiny_file.write_text(tiny_file.read_text().replace(old, new))
    with pytest.raises(InputError, match=message):
        import_baseline(tiny_file, None, tmp_path / "imported")
    assert not (tmp_path / "imported").exists()


def test_swin_unet_of_another_shape_than_a_square_leaves_nothing(write_experiment, tmp_path):
    path = write_experiment('"TensorflowUNet"', '"TensorflowSwinUNet"')
    text = path.read_text()
    path.write_text(text.replace("image_height   = 512", "image_height = 256"))
    with pytest.raises(InputError, match="are for images of 256 x 512"):
        import_baseline(path, None, tmp_path / "imported")
    assert not (tmp_path / "imported").exists()
