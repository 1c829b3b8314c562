"""The flexible UNet: the baseline's rule of levels, its start, and what checkpointing saves."""

import pytest
import torch

from ovseg.core.errors import InputError
from ovseg.models import build_model


def count_saved_elements(network, image) -> int:
    """How many elements autograd keeps for the backward pass."""
    sizes = []

    def pack(tensor):
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        network(image)
    return sum(sizes)


def test_experiment_has_124996849_parameters():
    with torch.device("meta"):
        network = build_model("flexible_unet", input_scale=1.0)
    assert sum(parameter.numel() for parameter in network.parameters()) == 124_996_849


def test_levels_follow_the_rule():
    network = build_model(
        "flexible_unet", base_filters=2, base_kernel=9, num_layers=6, dilation=3, dropout_rate=0.05
    )
    shapes = []
    for block in network.encoder:
        conv = block.conv1
        shapes.append((conv.out_channels, conv.kernel_size[0], conv.dilation[0]))
    assert shapes == [(2, 9, 3), (4, 7, 2), (8, 5, 1), (16, 3, 1), (32, 3, 1), (64, 3, 1)]
    encoder_rates = [round(block.dropout.p, 2) for block in network.encoder]
    decoder_rates = [round(block.dropout.p, 2) for block in network.decoder]
    assert encoder_rates == [0, 0.05, 0.1, 0.15, 0.2, 0.25]
    assert decoder_rates == [0, 0.05, 0.1, 0.15, 0.2]


def test_normalisation_follows_the_activation_with_keras_constants():
    network = build_model("flexible_unet", base_filters=2, num_layers=2, normalization=True)
    block = network.encoder[1].train()
    assert (block.norm1.eps, block.norm1.momentum) == (1e-3, 0.01)
    # Batch normalisation comes last; an activation after it would shift the mean.
    assert block(torch.randn(4, 2, 8, 8)).mean().abs() < 1e-5


def test_weights_start_as_in_keras():
    network = build_model("flexible_unet", num_layers=5)
    weight = network.encoder[4].conv2.weight
    std = (2 / weight[0].numel()) ** 0.5
    assert weight.std().item() == pytest.approx(std, rel=0.01)
    assert weight.abs().max() <= 2 * std / 0.8796 + 1e-6

    limit = (6 / (16 + 1)) ** 0.5  # Glorot: fan in 16, fan out 1
    assert network.head.weight.abs().max() <= limit
    assert not network.head.bias.any()

    upsampling = network.upsample[3].weight
    channels = upsampling.shape[0] + upsampling.shape[1]
    limit = (6 / (4 * channels)) ** 0.5
    assert upsampling.abs().max().item() == pytest.approx(limit, rel=0.01)


@pytest.mark.parametrize("normalization", [False, True])
def test_fast_convolutions_give_the_numbers_of_torch(normalization):
    image = torch.randint(0, 256, (2, 3, 50, 71), dtype=torch.uint8)
    results = []
    for convolution in ("direct", "fast"):
        torch.manual_seed(0)
        network = build_model(
            "flexible_unet",
            base_filters=4,
            num_layers=4,
            normalization=normalization,
            dropout_rate=0.0,
            convolution=convolution,
        )
        # In double: batch normalisation after ReLU magnifies float32 rounding 100-fold here.
        network = network.double()
        logits = network(image)
        logits.square().mean().backward()
        gradients = [parameter.grad for parameter in network.parameters()]
        results.append([logits.detach(), *gradients])
    for theirs, ours in zip(*results, strict=True):
        assert (ours - theirs).abs().max() <= 1e-10 * theirs.abs().max()


def test_network_compiles_into_one_graph():
    network = build_model("flexible_unet", base_filters=2, num_layers=3, dropout_rate=0.0)
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    image = torch.randn(1, 3, 32, 32)
    results = []
    for function in (network, compiled):
        network.zero_grad()
        logits = function(image)
        logits.square().mean().backward()
        gradients = [parameter.grad.clone() for parameter in network.parameters()]
        results.append([logits.detach(), *gradients])
    for eager, of_graph in zip(*results, strict=True):
        assert torch.allclose(eager, of_graph, rtol=1e-4, atol=1e-5)


def test_checkpointing_changes_no_number():
    image = torch.arange(3 * 32 * 32).view(1, 3, 32, 32) % 256
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        network = build_model(
            "flexible_unet", base_filters=2, num_layers=3, checkpointing=checkpointing
        )
        torch.manual_seed(1)  # of dropout
        network(image).square().mean().backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    for without, with_checkpointing in zip(*gradients, strict=True):
        assert torch.equal(without, with_checkpointing)


def test_checkpointing_keeps_less_for_the_backward_pass():
    image = torch.zeros(1, 3, 64, 64)
    settings = {"base_filters": 2, "num_layers": 3}
    plain = build_model("flexible_unet", **settings)
    saving = build_model("flexible_unet", **settings, checkpointing=True)
    assert count_saved_elements(saving, image) < 0.6 * count_saved_elements(plain, image)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classes": 0}, "flexible_unet: classes is 0, expected at least 1"),
        ({"base_filters": 0}, "base_filters is 0"),
        ({"num_layers": 0}, "num_layers is 0, expected 1..10"),
        ({"base_kernel": 4}, "base_kernel is 4, expected an odd number"),
        ({"dropout_rate": 0.2}, "makes 1.4 at the bridge"),
        ({"dilation": 0}, "dilation is 0"),
        ({"activation": "loud"}, "Unknown activation 'loud'. Choose one of: elu, "),
        ({"convolution": "slow"}, "Unknown convolution 'slow'. Choose one of: auto, direct, fast"),
        (
            {"checkpointing": True, "normalization": True},
            "checkpointing and normalization can't be used together",
        ),
    ],
)
def test_settings_that_give_no_network_are_errors(settings, message):
    with pytest.raises(InputError, match=message):
        build_model("flexible_unet", **settings)
