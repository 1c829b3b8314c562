"""Configurations of the baseline's four newer networks become arguments of ours."""

import pytest

from ovseg.baseline.config import explain_baseline_config, read_baseline_config
from ovseg.baseline.importer import import_baseline
from ovseg.core.errors import InputError
from ovseg.models import build_model


@pytest.fixture
def write_model(write_experiment):
    """A function that writes a configuration of a network with further lines in [model]."""

    def write(name: str, *lines: str, num_classes: int = 1, image_channels: int = 3):
        path = write_experiment('"TensorflowUNet"', f'"{name}"')
        text = path.read_text().replace("[dataset]", "\n".join([*lines, "[dataset]"]), 1)
        text = text.replace("num_classes    = 1", f"num_classes = {num_classes}")
        text = text.replace("image_channels = 3", f"image_channels = {image_channels}")
        path.write_text(text.replace("= 512", "= 64"))
        return path

    return write


def arguments_of(path):
    model = read_baseline_config(path)["model"]
    return model["arch"], model["arch_args"]


def test_transunet(write_model):
    lines = ["filter_num = [4, 6]", "embed_dim = 8", "num_mlp = 10", "num_heads = 3"]
    lines += ["num_transformer = 2", "stack_num_up = 1", "batch_norm = True", "pool = False"]
    path = write_model("TensorflowTransUNet", *lines, 'mlp_activation = "Snake"', num_classes=4)
    arch, arguments = arguments_of(path)
    assert arch == "transunet"
    assert arguments == {
        "filter_num": [4, 6],
        "stack_num_down": 2,
        "stack_num_up": 1,
        "embed_dim": 8,
        "num_mlp": 10,
        "num_heads": 3,
        "num_transformer": 2,
        "batch_norm": True,
        "pool": False,
        "mlp_activation": "Snake",
        "image_size": [64, 64],
        "classes": 4,
    }
    build_model(arch, **arguments)


def test_defaults_of_transunet_are_those_of_the_baseline(write_model):
    _, arguments = arguments_of(write_model("TensorflowTransUNet"))
    assert arguments["filter_num"] == [64, 128, 256, 512]
    numbers = ("embed_dim", "num_mlp", "num_heads", "num_transformer")
    assert [arguments[name] for name in numbers] == [768, 3072, 12, 12]


def test_u2net(write_model):
    path = write_model("TensorflowU2Net", num_classes=2, image_channels=1)
    arch, arguments = arguments_of(path)
    assert arch == "u2net"
    expected = {"base_filters": 16, "num_layers": 8, "classes": 2, "in_channels": 1}
    assert arguments == expected


def test_sharp_unet(write_model):
    path = write_model("TensorflowSharpUNet", "base_ksize = (5,3)", "max_filter = 20")
    arch, arguments = arguments_of(path)
    assert arch == "sharp_unet"
    assert arguments == {
        "filters": [32, 64, 128, 256],
        "max_filter": 20,
        "base_ksize": [5, 3],
        "dilation": [3, 3],
    }


def test_sharp_unet_takes_one_number_for_both_sides(write_model):
    path = write_model("TensorflowSharpUNet", "base_ksize = 5")
    path.write_text(path.read_text().replace("dilation       = (3,3)", "dilation = 2"))
    arch, arguments = arguments_of(path)
    assert (arguments["base_ksize"], arguments["dilation"]) == (5, 2)
    assert build_model(arch, **arguments).encoder[0].conv1.kernel_size == (5, 5)


@pytest.mark.parametrize(
    ("line", "default"),
    [
        ('weights = "imagenet', "'imagenet'"),
        ("freeze_backbone = Flse", "True"),
        ("freeze_batch_norm = Flse", "True"),
    ],
)
def test_malformed_keys_of_a_backbone_take_the_default(write_model, line, default):
    path = write_model("TensorflowTransUNet", line)
    rows = {key: becomes for key, _, becomes in explain_baseline_config(path)}
    assert rows[f"model.{line.partition(' ')[0]}"] == (
        f"ignored: there is no backbone ({default}, the baseline's default for what is no Python)"
    )


def becomes_of(path):
    return {key: becomes for key, _, becomes in explain_baseline_config(path)}


def test_backbone_of_transunet(write_model):
    lines = ['backbone = "ResNet50"', "freeze_batch_norm = False", "filter_num = [4, 6, 8]"]
    path = write_model("TensorflowTransUNet", *lines, "weights = None")
    _, arguments = arguments_of(path)
    assert arguments["backbone"] == "ResNet50"
    assert (arguments["freeze_backbone"], arguments["freeze_batch_norm"]) == (True, False)
    assert "imagenet_rescaling" not in arguments
    rows = becomes_of(path)
    assert rows["model.weights"].startswith("not downloaded: the weights come with")
    assert rows["model.freeze_backbone"].startswith("model.arch_args.freeze_backbone; set it to")


@pytest.mark.parametrize(
    ("lines", "rescales"),
    [([], True), (['weights = "imagenet"'], True), (["weights = None"], False)],
)
def test_an_efficientnet_divides_by_imagenets_deviations_with_its_weights(
    write_model, lines, rescales
):
    path = write_model("TensorflowTransUNet", 'backbone = "EfficientNetB0"', *lines)
    _, arguments = arguments_of(path)
    assert arguments["imagenet_rescaling"] is rescales


FIXED_RELU = ["TensorflowU2Net", "TensorflowSharpUNet", "TensorflowEfficientNetB7UNet"]


@pytest.mark.parametrize("name", FIXED_RELU)
def test_activation_that_the_network_ignores_is_explained(write_model, name):
    path = write_model(name, 'activation = "mish"')
    rows = {key: becomes for key, _, becomes in explain_baseline_config(path)}
    assert rows["model.activation"] == "ignored: this network always has ReLU"


@pytest.mark.parametrize("value", ['"ReLU"', '["relu"]'])
@pytest.mark.parametrize("name", FIXED_RELU)
def test_activation_that_stops_the_base_class_is_refused(write_model, name, value):
    with pytest.raises(InputError, match="expected the name of a function such as 'relu'"):
        read_baseline_config(write_model(name, f"activation = {value}"))


@pytest.mark.parametrize("name", ["TensorflowTransUNet", *FIXED_RELU])
def test_malformed_activation_takes_the_default(write_model, name):
    path = write_model(name, "activation = relu")
    rows = {key: becomes for key, _, becomes in explain_baseline_config(path)}
    assert rows["model.activation"].startswith("ignored: this network always has ReLU (")
    assert rows["model.activation"].endswith("the baseline's default for what is no Python)")


def test_efficientnet_b7_unet_reads_nothing(write_model):
    path = write_model("TensorflowEfficientNetB7UNet")
    assert arguments_of(path) == ("efficientnet_b7_unet", {})
    becomes = {key: text for key, _, text in explain_baseline_config(path)}
    assert becomes["model.dropout_rate"].startswith("ignored")


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        ("TensorflowTransUNet", ['activation = "ReLU"'], "activation stops the baseline's"),
        ("TensorflowTransUNet", ['backbone = "VGG"'], "Unknown backbone 'VGG'. Choose .*VGG16"),
        ("TensorflowTransUNet", ['pool = "max"'], "pool is 'max', expected True or False"),
        ("TensorflowTransUNet", ['mlp_activation = "gelu"'], "Unknown mlp_activation 'gelu'"),
        ("TensorflowSharpUNet", ["filters = 3"], "filters is 3, expected a list of ints"),
    ],
)
def test_what_the_baseline_does_not_build_is_refused(write_model, name, lines, message):
    with pytest.raises(InputError, match=message):
        read_baseline_config(write_model(name, *lines))


def test_transunet_is_for_squares(write_model):
    path = write_model("TensorflowTransUNet")
    path.write_text(path.read_text().replace("image_height   = 64", "image_height = 32"))
    with pytest.raises(InputError, match="pictures are 32 x 64, but .* for squares"):
        read_baseline_config(path)


def test_b7_has_one_class_and_three_channels(write_model):
    path = write_model("TensorflowEfficientNetB7UNet", num_classes=3)
    with pytest.raises(InputError, match="only 3 and 1 are ported of TensorflowEfficientNetB7UNet"):
        read_baseline_config(path)


def test_other_channels_are_for_the_library_only(write_model, tmp_path):
    path = write_model("TensorflowU2Net", image_channels=1)
    with pytest.raises(InputError, match="image_channels is 1, but training and infer"):
        import_baseline(path, None, tmp_path / "imported")
