"""The fast convolutions give torch's numbers: forward, backward, twice backward, under autocast."""

import pytest
import torch
from torch import nn

from ovseg.models import convolutions
from ovseg.models.convolutions import (
    FEW_PIXELS,
    DilatedConv2d,
    FastUpsample2d,
    is_fast,
    split_grids,
)

# kernel, dilation, height, width: sizes that the dilation divides and ones it does not, a map
# smaller than the kernel
SHAPES = [
    (9, 3, 27, 27),
    (9, 3, 29, 31),
    (7, 2, 16, 21),
    (3, 4, 5, 6),
    (9, 3, 2, 1),
    (5, 1, 24, 24),
    (3, 1, 4, 5),
]


def twins(kernel: int, dilation: int, dtype=torch.float64) -> tuple[nn.Conv2d, DilatedConv2d]:
    plain = nn.Conv2d(4, 6, kernel, padding=dilation * (kernel // 2), dilation=dilation).to(dtype)
    fast = DilatedConv2d(4, 6, kernel, dilation, algorithm="fast").to(dtype)
    fast.load_state_dict(plain.state_dict())
    return plain, fast


def value_and_gradients(module: nn.Module, features: torch.Tensor) -> list[torch.Tensor]:
    features = features.clone().requires_grad_()
    out = module(features)
    (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
    return [out.detach(), features.grad, module.weight.grad, module.bias.grad]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
@pytest.mark.parametrize("shape", SHAPES)
def test_convolution_and_its_gradients_are_those_of_torch(shape, dtype, tolerance):
    kernel, dilation, height, width = shape
    features = torch.randn(3, 4, height, width, dtype=dtype)
    for ours, theirs in zip(
        *(value_and_gradients(m, features) for m in twins(kernel, dilation, dtype)), strict=True
    ):
        assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max().clamp(min=1)


def test_both_ways_of_a_dense_convolution_were_tested():
    few = [
        3 * height * width <= FEW_PIXELS for _, dilation, height, width in SHAPES if dilation == 1
    ]
    assert set(few) == {True, False}


@pytest.mark.parametrize(("kernel", "dilation", "height", "width"), [(3, 2, 5, 4), (3, 1, 3, 4)])
def test_convolution_passes_gradcheck_twice(kernel, dilation, height, width):
    conv = DilatedConv2d(2, 2, kernel, dilation, algorithm="fast").double()
    features = torch.randn(1, 2, height, width, dtype=torch.float64, requires_grad=True)

    def function(features, weight, bias):
        return torch.func.functional_call(conv, {"weight": weight, "bias": bias}, (features,))

    assert torch.autograd.gradcheck(function, (features, conv.weight, conv.bias))
    assert torch.autograd.gradgradcheck(function, (features, conv.weight, conv.bias))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_upsampling_is_that_of_torch(memory_format):
    plain, fast = nn.ConvTranspose2d(4, 6, 2, 2).double(), FastUpsample2d(4, 6, "fast").double()
    fast.load_state_dict(plain.state_dict())
    features = torch.randn(2, 4, 5, 7, dtype=torch.float64).contiguous(memory_format=memory_format)
    for ours, theirs in zip(
        *(value_and_gradients(m, features) for m in (plain, fast)), strict=True
    ):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)


def test_grids_are_interleaved_and_filled_with_zeros():
    grids = split_grids(torch.arange(1.0, 16).view(1, 1, 3, 5), 2)
    assert grids[:, 0].tolist() == [
        [[1, 3, 5], [11, 13, 15]],
        [[2, 4, 0], [12, 14, 0]],
        [[6, 8, 10], [0, 0, 0]],
        [[7, 9, 0], [0, 0, 0]],
    ]


@pytest.mark.parametrize(("kernel", "dilation", "side"), [(9, 3, 24), (3, 1, 4), (3, 1, 24)])
def test_autocast_gives_what_it_gives_torch(kernel, dilation, side):
    plain, fast = twins(kernel, dilation, torch.float32)
    features = torch.randn(2, 4, side, side)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = (value_and_gradients(m, features) for m in (fast, plain))
    assert [t.dtype for t in ours] == [t.dtype for t in theirs] and ours[0].dtype == torch.bfloat16
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).abs().max() <= 0.03 * b.abs().max()


@pytest.mark.parametrize(("direct", "expected"), [(False, True), (True, False)])
def test_automatic_choice_is_by_device_and_cpu(monkeypatch, direct, expected):
    monkeypatch.setattr(convolutions, "HAS_DIRECT_KERNELS", direct)
    weight = torch.empty(2, 2, 3, 3)
    cpu = torch.empty(1)
    elsewhere = torch.empty(1, device="meta")
    assert is_fast("auto", cpu, weight) == expected
    assert not is_fast("auto", elsewhere, weight)
    for features in (cpu, elsewhere):
        assert is_fast("fast", features, weight)
        assert not is_fast("direct", features, weight)


def test_predictions_in_channels_last_are_left_to_torch(monkeypatch):
    monkeypatch.setattr(convolutions, "HAS_DIRECT_KERNELS", False)
    features = torch.empty(1)
    weight = torch.empty(2, 2, 3, 3)
    channels_last = weight.to(memory_format=torch.channels_last)
    with torch.no_grad():
        assert is_fast("auto", features, weight)
        assert not is_fast("auto", features, channels_last)
    assert is_fast("auto", features, channels_last)


@pytest.mark.parametrize("size", [3, 40])
@pytest.mark.parametrize("dilation", [1, 3])
def test_convolutions_without_bias_equal_torchs(dilation, size):
    fast = DilatedConv2d(3, 5, 3, dilation, bias=False, algorithm="fast")
    plain = nn.Conv2d(3, 5, 3, padding=dilation, dilation=dilation, bias=False)
    plain.load_state_dict(fast.state_dict())
    image = torch.randn(1, 3, size, size)
    assert torch.allclose(fast(image), plain(image), atol=1e-5)
