import pytest
import torch
from torch import nn

from ovseg.adaptation.discriminator import Discriminator, check_side
from ovseg.core.errors import InputError


def test_layers_are_the_papers():
    """4 x 4, padding 1; strides of 2 but for the last two; leaky ReLUs of 0.2; no norms."""
    layers = list(Discriminator(2048, [64, 128, 256, 512]).layers)
    convolutions = layers[::2]
    shapes = [(layer.in_channels, layer.out_channels) for layer in convolutions]
    assert shapes == [(2048, 64), (64, 128), (128, 256), (256, 512), (512, 1)]
    assert [layer.stride[0] for layer in convolutions] == [2, 2, 2, 1, 1]
    assert {(layer.kernel_size, layer.padding) for layer in convolutions} == {((4, 4), (1, 1))}
    activations = layers[1::2]
    assert len(activations) == 4
    assert all(isinstance(layer, nn.LeakyReLU) for layer in activations)
    assert {layer.negative_slope for layer in activations} == {0.2}


def test_logits_have_the_size_of_the_image():
    logits = Discriminator(8, [4, 4])(torch.rand(2, 8, 12, 10), (96, 80))
    assert logits.shape == (2, 1, 96, 80)


def test_judging_gives_the_same_logits_but_its_weights_no_gradient():
    discriminator = Discriminator(3, [4, 4])
    maps = torch.rand(1, 3, 12, 12, requires_grad=True)
    judged = discriminator.judge(maps, (24, 24))
    assert torch.equal(judged, discriminator(maps, (24, 24)))
    judged.sum().backward()
    assert maps.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in discriminator.parameters())


@pytest.mark.parametrize(("side", "channels"), [(3, [4]), (6, [4, 4]), (48, [64, 128, 256, 512])])
def test_smallest_side_is_what_the_convolutions_take(side, channels):
    """Each stride of 2 halves the side, rounded down; the last two convolutions take 1 each."""
    check_side(side, channels)
    maps = torch.rand(1, 2, side, side)
    assert Discriminator(2, channels)(maps, (8, 8)).shape == (1, 1, 8, 8)


@pytest.mark.parametrize(("side", "channels"), [(2, [4]), (5, [4, 4]), (23, [64, 128, 256, 512])])
def test_smaller_sides_are_refused(side, channels):
    with pytest.raises(InputError, match=f"leave nothing of maps of {side} x {side}"):
        check_side(side, channels)
