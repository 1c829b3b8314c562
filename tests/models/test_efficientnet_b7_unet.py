"""UNet on EfficientNet-B7: what trains, and where its weights come from."""

import pytest
import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn

from ovseg.core.errors import InputError
from ovseg.models import build_model

SMALL = {"efficientnet": "B0"}


def trained(network: nn.Module) -> set[str]:
    return {name for name, value in network.named_parameters() if value.requires_grad}


def test_size_is_that_of_the_baseline():
    with torch.device("meta"):
        network = build_model("efficientnet_b7_unet")
    learned = [value.numel() for value in network.parameters() if value.requires_grad]
    assert sum(learned) == 15_756_193
    stored = [value.numel() for value in network.parameters()]
    for name, value in network.named_buffers():
        if not name.endswith(("factor", "offset", "num_batches_tracked")):
            stored.append(value.numel())
    assert sum(stored) == 56_725_112


def test_of_a_frozen_encoder_only_the_first_layers_of_block_7a_train():
    network = build_model("efficientnet_b7_unet", **SMALL)
    of_encoder = {name for name in trained(network) if name.startswith("encoder.")}
    layers = {name.split(".")[2] for name in of_encoder}
    assert layers == {"expand_conv", "expand_bn", "dwconv", "bn"}
    free = build_model("efficientnet_b7_unet", **SMALL, freeze_encoder=False)
    assert len(trained(free)) == len(list(free.parameters()))


def test_frozen_norms_keep_their_statistics_in_training_and_drop_connect_stays_on():
    network = build_model("efficientnet_b7_unet", **SMALL).train()
    before = {name: value.clone() for name, value in network.named_buffers()}
    network(torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8))
    changed = set()
    for name, value in network.named_buffers():
        if "running" in name and not torch.equal(before[name], value):
            changed.add(name.rpartition(".")[0])
    in_encoder = {name for name in changed if name.startswith("encoder.")}
    assert in_encoder == {"encoder.bridge.expand_bn", "encoder.bridge.bn"}
    assert any(name.startswith("decoder.") for name in changed)
    drops = [module for name, module in network.named_modules() if name.endswith("drop_path")]
    assert drops and all(module.training for module in drops)


@pytest.fixture
def timm_file(tmp_path):
    """timm's state dict of an EfficientNet-B0, and the network."""
    network = timm.create_model("tf_efficientnet_b0")
    path = tmp_path / "b0.pth"
    torch.save(network.state_dict(), path)
    return path, network


def test_encoder_starts_from_timms_state_dict(timm_file):
    path, theirs = timm_file
    network = build_model("efficientnet_b7_unet", **SMALL, encoder_weights=str(path))
    assert torch.equal(network.encoder.stem_conv.weight, theirs.conv_stem.weight)
    assert torch.equal(network.encoder.bridge["dwconv"].weight, theirs.blocks[6][0].conv_dw.weight)
    # Both scalings of Keras together are the usual normalisation.
    image = torch.full((1, 3, 4, 4), 128.0)
    encoder = network.encoder
    pixels = encoder.imagenet_rescaling(encoder.normalization(encoder.rescaling(image)))
    mean = torch.tensor(IMAGENET_DEFAULT_MEAN)
    expected = (128 / 255 - mean) / torch.tensor(IMAGENET_DEFAULT_STD)
    assert torch.allclose(pixels[0, :, 0, 0], expected, atol=1e-6)


def test_weights_of_another_encoder_are_an_error(timm_file):
    path, _ = timm_file
    message = "b0.pth is not of timm's tf_efficientnet_b1. .*Use a state dict of"
    with pytest.raises(InputError, match=message):
        build_model("efficientnet_b7_unet", efficientnet="B1", encoder_weights=str(path))


def test_weights_that_cannot_be_downloaded_are_one_line(monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(timm, "create_model", refuse)
    with pytest.raises(InputError, match="Cannot download the weights of tf_efficientnet_b0"):
        build_model("efficientnet_b7_unet", **SMALL, encoder_weights="imagenet")


def test_wrong_values_are_errors():
    with pytest.raises(InputError, match="Unknown efficientnet 'B9'"):
        build_model("efficientnet_b7_unet", efficientnet="B9")
    with pytest.raises(InputError, match="drop_connect_rate is 1"):
        build_model("efficientnet_b7_unet", efficientnet="B0", drop_connect_rate=1.0)
