"""TransUNet: its attention, its activations, its size, any image up to it."""

import math

import pytest
import torch

from ovseg.core.errors import InputError
from ovseg.models.transunet import Attention, Snake, TokenPReLU, TransUNet, Upsampling

SMALL = {
    "filter_num": [4, 6],
    "embed_dim": 4,
    "num_mlp": 6,
    "num_heads": 2,
    "num_transformer": 1,
    "image_size": 16,
}


def test_size_is_that_of_the_baseline():
    with torch.device("meta"):
        network = TransUNet()
    assert sum(parameter.numel() for parameter in network.parameters()) == 409_538_241


def test_every_head_is_as_wide_as_a_token_and_divides_by_its_root():
    attention = Attention(channels=4, heads=3)
    assert attention.query.kernel.shape == (4, 3, 4)
    assert attention.attention_output.kernel.shape == (3, 4, 4)
    tokens = torch.randn(1, 5, 4)
    expected = attention.attention_output.bias.repeat(1, 5, 1)
    for head in range(3):
        query = tokens @ attention.query.kernel[:, head]
        key = tokens @ attention.key.kernel[:, head]
        value = tokens @ attention.value.kernel[:, head]
        weights = (query @ key.transpose(1, 2) / math.sqrt(4)).softmax(-1)
        expected = expected + weights @ value @ attention.attention_output.kernel[head]
    assert torch.allclose(attention(tokens), expected, atol=1e-6)


def test_attention_starts_within_the_limits_of_keras():
    attention = Attention(channels=8, heads=2)
    assert 0.9 * math.sqrt(6 / 80) < attention.key.kernel.abs().max() <= math.sqrt(6 / 80)
    assert 0.9 * math.sqrt(3 / 16) < attention.attention_output.kernel.abs().max()
    assert attention.attention_output.kernel.abs().max() <= math.sqrt(3 / 16)


def test_snake_and_prelu():
    features = torch.tensor([[[-2.0, 1.0]]])
    expected = [-2 + math.sin(-1) ** 2 / 0.5, 1 + math.sin(0.5) ** 2 / 0.5]
    assert Snake()(features)[0, 0].tolist() == pytest.approx(expected)
    prelu = TokenPReLU(tokens=1, channels=2)
    assert prelu(features).tolist() == [[[0.0, 1.0]]]
    torch.nn.init.constant_(prelu.alpha, 0.25)
    assert prelu(features).tolist() == [[[-0.5, 1.0]]]


def test_transposed_convolution_doubles_the_size_and_leaves_out_the_last_row():
    upsampling = Upsampling("up", 1, 1, norm=False)
    torch.nn.init.ones_(upsampling.conv.weight)
    torch.nn.init.zeros_(upsampling.conv.bias)
    # In full: 1 1 3 2 2 in a row, of 1 and 2 spread to three pixels each.
    assert upsampling(torch.tensor([[[[1.0, 2.0]]]]))[0, 0].tolist() == [[1, 1, 3, 2]] * 2


def test_smaller_images_are_padded_and_larger_ones_refused():
    network = TransUNet(**SMALL).eval()
    image = torch.rand(1, 3, 16, 16)
    image[..., 10:, :] = 0
    with torch.no_grad():
        assert torch.equal(network(image[..., :10, :]), network(image)[..., :10, :])
    with pytest.raises(InputError, match="transunet: the image is 16 x 17, expected at most 16 x"):
        network(torch.rand(1, 3, 16, 17))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 15}, "image_size is .*expected multiples of 2"),
        ({"image_size": [16, 16, 16]}, "image_size is .*expected one number or"),
        ({"num_heads": 0}, "num_heads is 0"),
        ({"num_transformer": -1}, "num_transformer is -1"),
        ({"filter_num": []}, "filter_num is"),
    ],
)
def test_wrong_values_are_errors(settings, message):
    with pytest.raises(InputError, match=f"transunet: {message}"):
        TransUNet(**{**SMALL, **settings})


def test_unknown_activation_lists_the_names():
    with pytest.raises(InputError, match="mlp_activation 'gelu'. Choose one of: ELU, GELU"):
        TransUNet(**{**SMALL, "mlp_activation": "gelu"})
