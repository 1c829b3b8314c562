"""Convolutions with the numbers, parameters and state-dict keys of torch's, computed faster where there is a way.

What is slow, on 2 cores (`scripts/benchmark.py layers` repeats it on yours): the backward pass of dilated convolutions,
a hundredfold so in channels_last, where oneDNN falls back to its reference code (16 channels, 9 x 9, dilation 3,
512 x 512: 117 s); convolutions of a few pixels by large weights, which oneDNN reorders at every call (2,048 channels on
4 x 4 pixels: 300 ms where the arithmetic takes 20); and transposed convolutions.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovseg.errors import choose

FEW_PIXELS = 128  # batch x height x width up to which a matrix product beats oneDNN's convolution
ALGORITHMS = {"auto": "fast on the CPU, direct elsewhere", "fast": "see `FastConv2d`", "direct": "torch's own"}


class FastConv2d(nn.Conv2d):
    """A "same" convolution of stride 1: nn.Conv2d's numbers to float rounding.

    Dilated: forward and input gradient are dilated convolutions in channels_last (the input gradient is the convolution
    of the output's gradient with the turned weights); the weight gradient is a dense one on the d x d interleaved
    sub-grids of input and gradient. Few pixels: a matrix product with the unfolded input. Else torch's, contiguous.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        kernel: odd kernel size.
        dilation: spacing of the kernel's taps.
        algorithm: a key of `ALGORITHMS`.

    Raises:
        InputError: unknown algorithm.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, dilation: int = 1, algorithm: str = "auto"):
        choose("convolution", algorithm, ALGORITHMS)
        super().__init__(in_channels, out_channels, kernel, padding=dilation * (kernel // 2), dilation=dilation)
        self.algorithm = algorithm

    def forward(self, features: Tensor) -> Tensor:
        if not is_fast(self.algorithm, features):
            return super().forward(features)
        dilation = self.dilation[0]
        if dilation == 1:
            few = features.shape[0] * features.shape[2] * features.shape[3] <= FEW_PIXELS
            return unfolded_conv(features, self.weight, self.bias) if few else super().forward(features.contiguous())
        features, weight, bias = _autocast(features, self.weight, self.bias)
        features = features.contiguous(memory_format=torch.channels_last)
        return DilatedConvolution.apply(features, weight, bias, dilation)


class FastUpsample2d(nn.ConvTranspose2d):
    """A 2 x 2 transposed convolution of stride 2 as one matrix product: nn.ConvTranspose2d's numbers."""

    def __init__(self, in_channels: int, out_channels: int, algorithm: str = "auto"):
        super().__init__(in_channels, out_channels, 2, 2)
        self.algorithm = algorithm

    def forward(self, features: Tensor) -> Tensor:
        if not is_fast(self.algorithm, features):
            return super().forward(features)
        count, _, height, width = features.shape
        pixels = features.permute(0, 2, 3, 1).reshape(-1, self.in_channels)
        blocks = torch.addmm(self.bias.repeat_interleave(4), pixels, self.weight.flatten(1))
        blocks = blocks.view(count, height, width, self.out_channels, 2, 2).permute(0, 1, 4, 2, 5, 3)
        return blocks.reshape(count, 2 * height, 2 * width, self.out_channels).permute(0, 3, 1, 2)


class DilatedConvolution(torch.autograd.Function):
    """The dilated convolution of `FastConv2d`; its backward can be differentiated again."""

    @staticmethod
    def forward(context: Any, features: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
        context.save_for_backward(features, weight)
        context.dilation = dilation
        return F.conv2d(features, weight, bias, padding=dilation * (weight.shape[-1] // 2), dilation=dilation)

    @staticmethod
    def backward(context: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        (features, weight), dilation = context.saved_tensors, context.dilation
        needs_features, needs_weight, needs_bias, _ = context.needs_input_grad
        grad = grad.contiguous(memory_format=torch.channels_last)
        grad_features = grad_weight = None
        if needs_features:
            turned = weight.flip(2, 3).transpose(0, 1)
            grad_features = DilatedConvolution.apply(grad, turned, None, dilation)
        if needs_weight:
            grad_weight = _weight_gradient(features, weight, grad, dilation)
        return grad_features, grad_weight, grad.sum((0, 2, 3)) if needs_bias else None, None


def _weight_gradient(features: Tensor, weight: Tensor, grad: Tensor, dilation: int) -> Tensor:
    half = weight.shape[-1] // 2
    grids, grad_grids = split_grids(features, dilation), split_grids(grad, dilation)
    options = (None, [1, 1], [half, half], [1, 1], False, [0, 0], 1, [False, True, False])
    return torch.ops.aten.convolution_backward(grad_grids, grids, weight, *options)[1]


def split_grids(features: Tensor, dilation: int) -> Tensor:
    """The d x d interleaved sub-grids of a map, each (H/d, W/d), sides rounded up with zeros: (N d d, C, H/d, W/d)."""
    count, channels, height, width = features.shape
    features = F.pad(features, (0, -width % dilation, 0, -height % dilation))
    height, width = features.shape[2] // dilation, features.shape[3] // dilation
    grids = features.view(count, channels, height, dilation, width, dilation).permute(0, 3, 5, 1, 2, 4)
    return grids.reshape(-1, channels, height, width)


def unfolded_conv(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A dense "same" convolution as one matrix product, which reads the weights once for the whole batch."""
    count, _, height, width = features.shape
    columns = F.unfold(features, weight.shape[-1], padding=weight.shape[-1] // 2).transpose(0, 1).flatten(1)
    out = torch.addmm(bias[:, None], weight.flatten(1), columns)
    return out.view(-1, count, height, width).transpose(0, 1)


def is_fast(algorithm: str, features: Tensor) -> bool:
    """Whether the own ways are taken; an exported graph keeps plain convolutions, which every runtime knows."""
    if torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export():
        return False
    return algorithm == "fast" or (algorithm == "auto" and features.device.type == "cpu")


def _autocast(*tensors: Tensor | None) -> list[Tensor | None]:
    """What autocast does to a convolution's arguments; it does not look inside an autograd function."""
    kind = tensors[0].device.type
    if not torch.is_autocast_enabled(kind):
        return list(tensors)
    return [t if t is None else t.to(torch.get_autocast_dtype(kind)) for t in tensors]
