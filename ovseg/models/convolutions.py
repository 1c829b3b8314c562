"""Convolutions that are faster than torch's on a CPU without AVX-512 and give the same numbers.

Some of torch's convolutions are slow on such a CPU (`ovseg benchmark layers` measures it on yours;
these numbers are of 2 cores with AVX2):

- The backward pass of dilated ones, above all in channels_last, where oneDNN takes its reference
  code: 16 channels, 9 x 9, dilation 3, 512 x 512 took 117 s, about a hundred times too long.
- Those of few pixels by large weights, which oneDNN reorders at every call: 2,048 channels on 4 x 4
  pixels took 300 ms, of which the arithmetic needs 20.
- Transposed ones.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from ovseg.core.registry import choose

FEW_PIXELS = 128  # batch x height x width up to which a matrix product beats oneDNN's convolution
# Whether torch's own convolutions are the fastest on this CPU in training too: with AVX-512 oneDNN
# has kernels for the backward pass of dilated ones (docs/speed.md). It is constant on one machine.
HAS_DIRECT_KERNELS = torch.backends.cpu.get_cpu_capability() == "AVX512"
ALGORITHMS = {
    "auto": "fast on a CPU without AVX-512, direct elsewhere",
    "fast": "see `DilatedConv2d`",
    "direct": "torch's own",
}


class DilatedConv2d(nn.Conv2d):
    """A "same" convolution of stride 1: the numbers of nn.Conv2d up to float rounding.

    Dilated ones run in channels_last. The input gradient is a dilated convolution of the output's
    gradient with the rotated weights, the weight gradient a dense convolution of the interleaved
    sub-grids of input and gradient, see `split_grids`. Dense ones of few pixels are a matrix
    product, other dense ones torch's convolution on contiguous memory.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: odd.
        dilation: distance of the kernel's elements in pixels.
        bias: whether there is one.
        algorithm: a key of `ALGORITHMS`.

    Raises:
        InputError: unknown algorithm.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        dilation: int = 1,
        bias: bool = True,
        algorithm: str = "auto",
    ):
        choose("convolution", algorithm, ALGORITHMS)
        padding = dilation * (kernel_size // 2)
        super().__init__(
            in_channels, out_channels, kernel_size, padding=padding, dilation=dilation, bias=bias
        )
        self.algorithm = algorithm

    def forward(self, features: Tensor) -> Tensor:
        if not is_fast(self.algorithm, features, self.weight):
            return super().forward(features)
        if self.dilation[0] > 1:
            return self._convolve_dilated(features)

        batch, _, height, width = features.shape
        if batch * height * width <= FEW_PIXELS:
            return unfolded_conv(features, self.weight, self.bias)
        return super().forward(features.contiguous())

    def _convolve_dilated(self, features: Tensor) -> Tensor:
        weight: Tensor = self.weight
        bias: Tensor | None = self.bias
        device = features.device.type
        if torch.is_autocast_enabled(device):
            # Autocast does not look inside an autograd function: cast as it does for a convolution.
            dtype = torch.get_autocast_dtype(device)
            features = features.to(dtype)
            weight = weight.to(dtype)
            if bias is not None:
                bias = bias.to(dtype)

        features = features.contiguous(memory_format=torch.channels_last)
        return DilatedConvolution.apply(features, weight, bias, self.dilation[0])


class FastUpsample2d(nn.ConvTranspose2d):
    """A 2 x 2 transposed convolution of stride 2 as one matrix product.

    The numbers are those of nn.ConvTranspose2d up to float rounding.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        algorithm: a key of `ALGORITHMS`.
    """

    bias: nn.Parameter

    def __init__(self, in_channels: int, out_channels: int, algorithm: str = "auto"):
        super().__init__(in_channels, out_channels, kernel_size=2, stride=2)
        self.algorithm = algorithm

    # torch's class also takes an `output_size`, which is always twice the input's here.
    def forward(self, features: Tensor) -> Tensor:  # type: ignore[override]
        if not is_fast(self.algorithm, features, self.weight):
            return super().forward(features)

        batch, _, height, width = features.shape
        pixels = features.permute(0, 2, 3, 1).reshape(-1, self.in_channels)
        bias = self.bias.repeat_interleave(4)
        blocks = torch.addmm(bias, pixels, self.weight.flatten(1))

        # Each pixel has become `out_channels` blocks of 2 x 2 pixels.
        blocks = blocks.view(batch, height, width, self.out_channels, 2, 2)
        rows = blocks.permute(0, 1, 4, 2, 5, 3)
        upsampled = rows.reshape(batch, 2 * height, 2 * width, self.out_channels)
        return upsampled.permute(0, 3, 1, 2)


class DilatedConvolution(torch.autograd.Function):
    """The dilated convolution of `DilatedConv2d`, which can be differentiated twice."""

    @staticmethod
    def forward(
        context: Any, features: Tensor, weight: Tensor, bias: Tensor | None, dilation: int
    ) -> Tensor:
        context.save_for_backward(features, weight)
        context.dilation = dilation
        padding = dilation * (weight.shape[-1] // 2)
        return F.conv2d(features, weight, bias, padding=padding, dilation=dilation)

    @staticmethod
    def backward(
        context: Any, grad: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        features, weight = context.saved_tensors
        dilation = context.dilation
        needs_features, needs_weight, needs_bias, _ = context.needs_input_grad
        grad = grad.contiguous(memory_format=torch.channels_last)

        grad_features = None
        if needs_features:
            rotated = weight.flip(2, 3).transpose(0, 1)
            grad_features = DilatedConvolution.apply(grad, rotated, None, dilation)

        grad_weight = None
        if needs_weight:
            grad_weight = _weight_gradient(features, weight, grad, dilation)

        grad_bias = None
        if needs_bias:
            grad_bias = grad.sum((0, 2, 3))
        return grad_features, grad_weight, grad_bias, None


def _weight_gradient(features: Tensor, weight: Tensor, grad: Tensor, dilation: int) -> Tensor:
    """The gradient of a dilated convolution's weights, by a dense convolution of the sub-grids."""
    return conv2d_weight(
        split_grids(features, dilation),
        weight.shape,
        split_grids(grad, dilation),
        padding=weight.shape[-1] // 2,
    )


def split_grids(features: Tensor, dilation: int) -> Tensor:
    """The d x d interleaved sub-grids of a map.

    Grid (i, j) has every d-th row from i and every d-th column from j.

    Args:
        features: (N, C, H, W).
        dilation: d.

    Returns:
        (N * d * d, C, H / d, W / d), sides rounded up and filled with zeros.
    """
    batch, channels, height, width = features.shape
    features = F.pad(features, (0, -width % dilation, 0, -height % dilation))
    rows = features.shape[2] // dilation
    columns = features.shape[3] // dilation
    grids = features.view(batch, channels, rows, dilation, columns, dilation)
    grids = grids.permute(0, 3, 5, 1, 2, 4)
    return grids.reshape(-1, channels, rows, columns)


def unfolded_conv(features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A dense "same" convolution as one matrix product, which reads the weights once a batch."""
    batch, _, height, width = features.shape
    kernel = weight.shape[-1]
    patches = F.unfold(features, kernel, padding=kernel // 2)
    columns = patches.transpose(0, 1).flatten(1)
    matrix = weight.flatten(1)
    if bias is None:
        product = matrix @ columns
    else:
        product = torch.addmm(bias[:, None], matrix, columns)
    return product.view(-1, batch, height, width).transpose(0, 1)


def is_fast(algorithm: str, features: Tensor, weight: Tensor) -> bool:
    """Whether a layer takes the fast algorithm for this input.

    Never while a graph is exported: it keeps plain convolutions, which every runtime knows.
    `auto` leaves predictions with weights in channels_last to torch: without a backward pass its
    own convolutions are as fast there on every CPU.
    """
    if torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export():
        return False
    if algorithm != "auto":
        return algorithm == "fast"
    if features.device.type != "cpu" or HAS_DIRECT_KERNELS:
        return False
    return torch.is_grad_enabled() or not is_channels_last(weight)


def is_channels_last(weight: Tensor) -> bool:
    """Whether the weights of a convolution are in channels_last and not also contiguous."""
    return not weight.is_contiguous() and weight.is_contiguous(memory_format=torch.channels_last)
