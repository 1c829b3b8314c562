"""What the architectures share: input scaling, activations by name, fast convolutions, Keras' initialisation.

What is slow of torch's convolutions, on 2 cores (`scripts/benchmark.py layers` repeats it on yours): the backward pass
of dilated ones, a hundredfold so in channels_last, where oneDNN falls back to its reference code (16 channels, 9 x 9,
dilation 3, 512 x 512: 117 s); those of a few pixels by large weights, which oneDNN reorders at every call (2,048
channels on 4 x 4 pixels: 300 ms where the arithmetic takes 20); and transposed ones.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovseg.core.registry import choose

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": lambda: nn.ReLU(inplace=True),
    "relu6": lambda: nn.ReLU6(inplace=True),
    "mish": lambda: nn.Mish(inplace=True),
    "elu": lambda: nn.ELU(inplace=True),
    "selu": lambda: nn.SELU(inplace=True),
    "gelu": nn.GELU,
    "silu": lambda: nn.SiLU(inplace=True),
    "swish": lambda: nn.SiLU(inplace=True),
    "leaky_relu": lambda: nn.LeakyReLU(0.2, inplace=True),  # Keras' slope; torch's default is 0.01
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus,
    "softsign": nn.Softsign,
    "linear": nn.Identity,
}


def build_activation(name: str) -> nn.Module:
    """An activation by its Keras name.

    Raises:
        InputError: unknown name; the message lists the known ones.
    """
    return choose("activation", name, ACTIVATIONS)()


class InputScale(nn.Module):
    """The network's first layer: plain pixels to the range that the weights expect, (x * scale - mean) / std.

    The numbers are buffers, so a checkpoint carries them.

    Args:
        scale: 1 keeps 0..255, 1/255 gives 0..1.
        mean: of each channel, after scaling.
        std: of each channel, after scaling.
    """

    def __init__(self, scale: float, mean: Sequence[float] = (0.0,), std: Sequence[float] = (1.0,)):
        super().__init__()
        factor = scale / torch.tensor(std, dtype=torch.float32)
        offset = -torch.tensor(mean, dtype=torch.float32) / torch.tensor(std, dtype=torch.float32)
        self.register_buffer("factor", factor.view(1, -1, 1, 1))
        self.register_buffer("offset", offset.view(1, -1, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        """uint8 or float (N, 3, H, W), 0..255, to the buffers' float type, same shape."""
        return image.to(self.factor.dtype) * self.factor + self.offset


def pad_to_stride(image: Tensor, stride: int) -> Tensor:
    """Black rows below and columns to the right until both sides are multiples of `stride`, (N, C, H, W)."""
    height, width = image.shape[-2:]
    return F.pad(image, (0, -width % stride, 0, -height % stride))


def init_he_normal_(weight: Tensor) -> None:
    """Keras' he_normal: a normal of variance 2 / fan_in, cut at two of its own standard deviations.

    Cutting shrinks a normal's deviation by 0.8796, which Keras makes up for before it draws.

    Source: K. He et al., Delving deep into rectifiers, ICCV 2015; keras.initializers.VarianceScaling.
    """
    fan_in = weight[0].numel()
    std = (2 / fan_in) ** 0.5 / 0.87962566103423978
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)


def init_as_keras(network: nn.Module) -> None:
    """He-normal convolutions, Glorot-uniform transposed convolutions, zero biases."""
    for module in network.modules():
        if isinstance(module, nn.ConvTranspose2d):
            nn.init.xavier_uniform_(module.weight)
        elif isinstance(module, nn.Conv2d):
            init_he_normal_(module.weight)
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and module.bias is not None:
            nn.init.zeros_(module.bias)


FEW_PIXELS = 128  # batch x height x width up to which a matrix product beats oneDNN's convolution
ALGORITHMS = {
    "auto": "fast on the CPU, direct elsewhere",
    "fast": "see `DilatedConv2d`",
    "direct": "torch's own",
}


class DilatedConv2d(nn.Conv2d):
    """A "same" convolution of stride 1: nn.Conv2d's numbers to float rounding.

    Dilated: forward and input gradient are dilated convolutions in channels_last (the input gradient is the convolution
    of the output's gradient with the turned weights); the weight gradient is a dense one on the d x d interleaved
    sub-grids of input and gradient. Few pixels: a matrix product with the unfolded input. Else torch's, contiguous.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        kernel_size: odd.
        dilation: spacing of the kernel's taps.
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
        if not is_fast(self.algorithm, features):
            return super().forward(features)
        dilation = self.dilation[0]
        if dilation == 1:
            few = features.shape[0] * features.shape[2] * features.shape[3] <= FEW_PIXELS
            return (
                unfolded_conv(features, self.weight, self.bias)
                if few
                else super().forward(features.contiguous())
            )
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
        blocks = blocks.view(count, height, width, self.out_channels, 2, 2).permute(
            0, 1, 4, 2, 5, 3
        )
        return blocks.reshape(count, 2 * height, 2 * width, self.out_channels).permute(0, 3, 1, 2)


class DilatedConvolution(torch.autograd.Function):
    """The dilated convolution of `DilatedConv2d`; its backward can be differentiated again."""

    @staticmethod
    def forward(
        context: Any, features: Tensor, weight: Tensor, bias: Tensor | None, dilation: int
    ) -> Tensor:
        context.save_for_backward(features, weight)
        context.dilation = dilation
        return F.conv2d(
            features, weight, bias, padding=dilation * (weight.shape[-1] // 2), dilation=dilation
        )

    @staticmethod
    def backward(
        context: Any, grad: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
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
    grids = features.view(count, channels, height, dilation, width, dilation).permute(
        0, 3, 5, 1, 2, 4
    )
    return grids.reshape(-1, channels, height, width)


def unfolded_conv(features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A dense "same" convolution as one matrix product, which reads the weights once for the whole batch."""
    count, _, height, width = features.shape
    columns = (
        F.unfold(features, weight.shape[-1], padding=weight.shape[-1] // 2)
        .transpose(0, 1)
        .flatten(1)
    )
    weight = weight.flatten(1)
    out = weight @ columns if bias is None else torch.addmm(bias[:, None], weight, columns)
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
