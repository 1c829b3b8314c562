"""What every architecture of `list_models()` must do."""

import pickle
from collections import Counter

import pytest
import torch
from torch import nn

from ovseg.baseline.keras_weights import keras_targets
from ovseg.core.errors import InputError
from ovseg.models import build_model, list_models

# Small settings of every architecture; the first of each also stands for its other settings.
SETTINGS = {
    "flexible_unet": [{"base_filters": 2, "num_layers": 4}],
    "attention_unet": [
        {"base_filters": 2, "num_layers": 3},
        {"base_filters": 3, "num_layers": 1},
        {"base_filters": 3, "num_layers": 3, "dropout_rate": 0.2},
    ],
    "multires_unet": [
        {"base_filters": 4, "num_layers": 3},
        {"base_filters": 4, "num_layers": 1},
        {"base_filters": 5, "num_layers": 3},
    ],
    "unet3plus": [
        {"base_filters": 2},
        {"base_filters": 3, "num_layers": 6, "dropout_rate": 0.1},
    ],
    "swin_unet": [
        {
            "filter_num_begin": 8,
            "depth": 2,
            "num_heads": [2, 2],
            "window_size": [4, 2],
            "image_size": 160,
        }
    ],
    "efficient_unet": [
        {"drop_connect_rate": 0.0},
        {"efficientnet": "B1", "drop_connect_rate": 0.0},
    ],
    "deeplabv3plus": [{}],
    "transunet": [
        {
            "filter_num": [4, 6, 8],
            "embed_dim": 8,
            "num_mlp": 16,
            "num_heads": 2,
            "num_transformer": 2,
            "image_size": 160,
        },
        {
            "filter_num": [6, 8],
            "embed_dim": 6,
            "num_mlp": 16,
            "num_heads": 3,
            "num_transformer": 1,
            "mlp_activation": "PReLU",
            "batch_norm": True,
            "pool": False,
            "image_size": [66, 130],
        },
        {
            "filter_num": [4, 6, 8],
            "embed_dim": 4,
            "num_mlp": 6,
            "num_heads": 1,
            "num_transformer": 1,
            "backbone": "ResNet50V2",
            "image_size": [68, 132],
        },
    ],
    "u2net": [
        {"base_filters": 16, "num_layers": 2},
        {"base_filters": 16, "num_layers": 1, "input_scale": 1 / 255},
    ],
    "sharp_unet": [
        {"filters": [6, 8], "max_filter": 10},
        {"filters": [6, 8], "max_filter": 10, "base_ksize": [2, 3], "full_decoder": True},
    ],
    "efficientnet_b7_unet": [
        {"efficientnet": "B0", "drop_connect_rate": 0.0},
        {"efficientnet": "B1", "drop_connect_rate": 0.0, "freeze_encoder": False},
    ],
    "smp": [
        {"encoder_name": "resnet18", "decoder_args": {"decoder_channels": [16, 8, 8, 4, 4]}},
    ],
    "ds2net": [
        {"encoder_name": "resnet18", "output_stride": 16},
        {"encoder_name": "mit_b0", "head": "segformer"},
    ],
}
CASES = [(arch, settings) for arch, cases in SETTINGS.items() for settings in cases]
NAMES = [f"{arch}{number}" for arch, cases in SETTINGS.items() for number in range(len(cases))]
every_case = pytest.mark.parametrize(("arch", "settings"), CASES, ids=NAMES)
every_arch = pytest.mark.parametrize("arch", SETTINGS)
WITH_ENCODERS = ("smp", "ds2net")  # of segmentation-models-pytorch
PORTS = [arch for arch in SETTINGS if arch not in WITH_ENCODERS]


def make_pixels(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def names_without_gradient(network: nn.Module) -> list[str]:
    names = []
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue  # frozen
        if parameter.grad is None or not parameter.grad.abs().sum() > 0:
            names.append(name)
    return names


def test_every_architecture_has_small_settings():
    assert set(SETTINGS) == set(list_models())


@every_case
@pytest.mark.parametrize(
    ("classes", "height", "width"), [(1, 64, 64), (9, 65, 91), (2, 33, 130), (1, 1, 17)]
)
def test_logits_have_the_size_of_the_image(arch, settings, classes, height, width):
    network = build_model(arch, classes=classes, **settings).eval()
    with torch.no_grad():
        logits = network(make_pixels(2, 3, height, width))
    assert logits.shape == (2, classes, height, width)
    assert logits.dtype == torch.float32
    assert torch.isfinite(logits).all()


@every_case
def test_float_and_uint8_pixels_agree(arch, settings):
    network = build_model(arch, **settings).eval()
    image = make_pixels(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(network(image), network(image.float()))


@every_case
def test_every_parameter_gets_a_gradient(arch, settings):
    network = build_model(arch, **settings)
    network(make_pixels(2, 3, 64, 64)).square().mean().backward()
    assert names_without_gradient(network) == []


@every_arch
def test_state_dict_round_trip_keeps_the_numbers(arch, tmp_path):
    first = build_model(arch, **SETTINGS[arch][0])
    second = build_model(arch, **SETTINGS[arch][0])
    image = make_pixels(1, 3, 64, 64)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    with torch.no_grad():
        assert torch.equal(first.eval()(image), second.eval()(image))


@every_arch
def test_pickle_round_trip_keeps_the_numbers(arch):
    network = build_model(arch, **SETTINGS[arch][0]).eval()
    image = make_pixels(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(network(image), pickle.loads(pickle.dumps(network))(image))


@every_arch
def test_input_scale_is_the_first_layer(arch):
    if arch in WITH_ENCODERS:
        pytest.skip("its encoder's normalisation is its scale")
    raw = build_model(arch, **SETTINGS[arch][0], input_scale=1.0).eval()
    unit = build_model(arch, **SETTINGS[arch][0], input_scale=1 / 255).eval()
    state = {name: value for name, value in raw.state_dict().items() if "scale." not in name[:6]}
    unit.load_state_dict(state, strict=False)
    image = make_pixels(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(raw(image / 255), unit(image), atol=1e-5)


@every_case
def test_keras_layers_cover_every_weight_once(arch, settings):
    if arch not in PORTS:
        pytest.skip("it has no counterpart in Keras")
    network = build_model(arch, **settings)
    targets = []
    for _, module in network.keras_layers():
        targets += [target.tensor for target in keras_targets(module)]
    # Keras stores buffers too, except the scale of the pixels and torch's counts of batches.
    buffers = []
    for name, buffer in network.named_buffers():
        if not name.endswith((".factor", ".offset", ".num_batches_tracked")):
            buffers.append(buffer)
    assert Counter(map(id, targets)) == Counter(map(id, [*network.parameters(), *buffers]))


@every_arch
@pytest.mark.slow
def test_onnx_file_gives_the_logits_of_torch(arch, tmp_path):
    pytest.importorskip("onnxscript", reason="needs the extra [onnx]")
    pytest.importorskip("onnxruntime", reason="needs the extra [onnx]")
    from ovseg.inference.engines import open_onnx
    from ovseg.inference.onnx import export_onnx

    network = build_model(arch, **SETTINGS[arch][0]).eval()
    images = make_pixels(3, 3, 64, 96)
    export_onnx(network, images, tmp_path / "network.onnx")
    engine = open_onnx(tmp_path / "network.onnx")[0]
    for count in (1, 2, 3):
        with torch.no_grad():
            expected = network(images[:count])
        assert torch.allclose(engine(images[:count]), expected, atol=1e-3)


def test_unknown_architecture_lists_the_names():
    with pytest.raises(InputError, match="Unknown arch 'unet9000'. Choose one of: "):
        build_model("unet9000")


def test_unknown_argument_lists_the_arguments():
    message = "arch flexible_unet does not take filters. Its arguments are: classes, "
    with pytest.raises(InputError, match=message):
        build_model("flexible_unet", filters=3)
