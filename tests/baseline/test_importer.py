"""A configuration of the baseline, and its weights, become a run."""

import csv

import numpy as np
import pytest
import torch
from torch import nn

from keras_files import layers_of, write_keras2
from ovseg.baseline.importer import exchange_input_channels, import_baseline
from ovseg.baseline.keras_weights import KerasPort
from ovseg.core.errors import InputError
from ovseg.inference.predictor import Predictor
from ovseg.models import build_model, find_architecture, list_models
from ovseg.models.efficientnet import PixelNormalization

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
        ("0.001", "1e999", "learning_rate is inf, expected a finite float"),
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


FIXTURES = [
    "unet9",
    "unet_mish_bn",
    "attention",
    "multires",
    "unet3plus",
    "swin",
    "efficient",
    "deeplab",
    "transunet",
    "u2net",
    "sharpunet",
    pytest.param("efficientnetb7", marks=pytest.mark.slow),  # half a minute; it is in PORTS too
]


@pytest.mark.parametrize("name", FIXTURES)
def test_import_of_the_baselines_own_files_predicts_as_it_does(name, keras_fixture, tmp_path):
    folder, weights = keras_fixture(name)
    import_baseline(folder / "train_eval_infer.config", weights, tmp_path / "run")
    arrays = np.load(folder / "io.npz")
    predictor = Predictor.load(tmp_path / "run", "cpu", postprocessing=False)
    # By default the baseline trains on BGR; the run takes RGB.
    rgb = np.ascontiguousarray(arrays["x"][0, ..., ::-1])
    probs = predictor.predict(rgb).probs
    assert np.abs(probs - arrays["y"][0, ..., 0]).max() <= 1e-4
    as_bgr = predictor.predict(arrays["x"][0]).probs
    assert np.abs(as_bgr - probs).max() > 1e-3


OF_BACKBONE = {
    "filter_num": [3, 4, 3],
    "embed_dim": 3,
    "num_mlp": 5,
    "num_heads": 1,
    "num_transformer": 1,
    "image_size": 16,
}
# Also widths of 3 in the middle, and sides that the networks pad.
PORTS = [
    ("flexible_unet", {"base_filters": 3, "num_layers": 4, "normalization": True}, 36),
    ("attention_unet", {"base_filters": 3, "num_layers": 3}, 36),
    ("multires_unet", {"base_filters": 4, "num_layers": 5}, 36),
    ("multires_unet", {"base_filters": 6, "num_layers": 3}, 32),
    ("unet3plus", {"base_filters": 3, "num_layers": 5}, 36),
    (
        "swin_unet",
        {
            "filter_num_begin": 3,
            "depth": 2,
            "patch_size": 3,
            "num_heads": [1, 1],
            "window_size": [2, 2],
            "num_mlp": 3,
            "image_size": 24,
        },
        24,
    ),
    ("efficient_unet", {}, 36),
    ("deeplabv3plus", {}, 36),
    (
        "transunet",
        {
            "filter_num": [3, 4, 3],
            "embed_dim": 3,
            "num_mlp": 5,
            "num_heads": 1,
            "num_transformer": 1,
            "batch_norm": True,
            "image_size": 32,
        },
        30,
    ),
    ("transunet", {**OF_BACKBONE, "backbone": "VGG16"}, 14),
    ("transunet", {**OF_BACKBONE, "backbone": "DenseNet121"}, 16),
    ("transunet", {**OF_BACKBONE, "backbone": "EfficientNetB0", "imagenet_rescaling": True}, 16),
    ("u2net", {"base_filters": 12, "num_layers": 1}, 18),
    ("sharp_unet", {"filters": [3, 4, 3], "max_filter": 3}, 36),
    ("efficientnet_b7_unet", {}, 32),
]


def test_every_port_is_among_those_whose_channels_are_exchanged():
    ports = [arch for arch in list_models() if issubclass(find_architecture(arch), KerasPort)]
    assert {arch for arch, _, _ in PORTS} == set(ports)


@pytest.mark.parametrize(("arch", "arguments", "side"), PORTS)
@torch.inference_mode()
def test_network_of_bgr_predicts_the_same_for_rgb(arch, arguments, side):
    network = build_model(arch, **arguments).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 1.5)
        elif isinstance(module, PixelNormalization):  # as a Keras file has it
            module.mean.copy_(torch.tensor([0.4, 0.5, 0.6]))
            module.variance.copy_(torch.tensor([0.2, 0.3, 0.4]))
    bgr = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8)
    expected = network(bgr)
    rgb = bgr.flip(1)
    tolerance = 1e-4 * float(expected.abs().max())
    assert (network(rgb) - expected).abs().max() > 10 * tolerance  # the order matters
    exchange_input_channels(network, side, side)
    assert (network(rgb) - expected).abs().max() < tolerance


def test_other_first_layers_are_refused():
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 1)).double()

    class Pixels(nn.Module):
        def forward(self, image):
            return network(image.double())

    with pytest.raises(InputError, match="channels can't be exchanged"):
        exchange_input_channels(Pixels())


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            '[segmentation]\ncolorize = True\nwhite = "grn"\n',
            r"\[segmentation\] white is 'grn', expected a colour such as 'green'",
        ),
        (
            '[dataset]\ndatasetclass = "BaseImageMaskDataset"\ncolor_converter = "cv2.imread"\n',
            r"\[dataset\] color_converter is 'cv2.imread', expected a name such as",
        ),
    ],
)
def test_names_that_only_inference_takes_are_checked(tiny_file, tmp_path, section, message):
    tiny_file.write_text(tiny_file.read_text() + section)
    with pytest.raises(InputError, match=message):
        import_baseline(tiny_file, None, tmp_path / "imported")
    assert not (tmp_path / "imported").exists()
