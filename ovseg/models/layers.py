"""Layers that the architectures share: input scaling, activations, Keras' initialisation."""

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovseg.core.errors import InputError
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
    "leaky_relu": lambda: nn.LeakyReLU(0.2, inplace=True),  # Keras' slope; torch's is 0.01
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus,
    "softsign": nn.Softsign,
    "linear": nn.Identity,
}

# Keras' defaults; torch's are 1e-5 and 0.1. Keras' momentum of 0.99 is torch's 0.01.
KERAS_EPSILON = 1e-3
KERAS_MOMENTUM = 0.01


def build_activation(name: str) -> nn.Module:
    """An activation by its Keras name.

    Raises:
        InputError: unknown name; the message lists the known ones.
    """
    return choose("activation", name, ACTIVATIONS)()


def batch_norm(channels: int, epsilon: float = KERAS_EPSILON) -> nn.BatchNorm2d:
    """Batch normalisation with Keras' constants."""
    return nn.BatchNorm2d(channels, eps=epsilon, momentum=KERAS_MOMENTUM)


class FastDropout(nn.Dropout):
    """Dropout that draws its mask faster on a CPU: 16 bits an element, four elements at a time.

    The probability is rounded to a multiple of 2**-16, and what stays is divided by the rest of it.
    In the baseline's network torch's own mask takes 4 % of a training step, three times as long.
    The numbers come from torch's generator, so the same seed draws the same mask.
    """

    def forward(self, features: Tensor) -> Tensor:
        steps = round(self.p * 2**16)
        is_own = features.device.type == "cpu" and not torch.compiler.is_compiling()
        if not self.training or steps == 0 or not is_own:
            return super().forward(features)

        count = features.numel()
        bits = torch.empty((count + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
        kept = bits.view(torch.int16)[:count] >= steps - 2**15
        # The mask lies in memory as the features do.
        mask = kept.as_strided(features.size(), torch.empty_like(features).stride())
        return (features * mask).mul_(2**16 / (2**16 - steps))


class InputScale(nn.Module):
    """The network's first layer: plain pixels to the range that the weights expect.

    Computes (x * scale - mean) / std. The numbers are buffers, so a checkpoint carries them.

    Args:
        scale: 1 keeps 0..255, 1/255 gives 0..1.
        mean: of each channel, after scaling; one number is for all channels.
        std: of each channel, after scaling; one number is for all channels.
    """

    factor: Tensor
    offset: Tensor

    def __init__(self, scale: float, mean: Sequence[float] = (0.0,), std: Sequence[float] = (1.0,)):
        super().__init__()
        factor = scale / torch.tensor(std, dtype=torch.float32)
        offset = -torch.tensor(mean, dtype=torch.float32) / torch.tensor(std, dtype=torch.float32)
        self.register_buffer("factor", factor.view(1, -1, 1, 1))
        self.register_buffer("offset", offset.view(1, -1, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        """Scale uint8 or float pixels (N, 3, H, W), 0..255, to the buffers' float type."""
        return image.to(self.factor.dtype) * self.factor + self.offset


def pad_to_stride(image: Tensor, stride: int) -> Tensor:
    """Add zeros below and to the right until both sides are multiples of `stride`."""
    height, width = image.shape[-2:]
    return F.pad(image, (0, -width % stride, 0, -height % stride))


def pad_to_size(arch: str, image: Tensor, size: tuple[int, int]) -> Tensor:
    """Add zeros below and to the right up to a height and width, which a network's positions fix.

    Raises:
        InputError: the image is larger; the message names the architecture.
    """
    height, width = image.shape[-2:]
    if height > size[0] or width > size[1]:
        raise InputError(
            f"{arch}: the image is {height} x {width}, expected at most {size[0]} x {size[1]}. "
            "Set image_size to hold it."
        )
    return F.pad(image, (0, size[1] - width, 0, size[0] - height))


def encode(levels: nn.ModuleList, pixels: Tensor) -> tuple[list[Tensor], Tensor]:
    """Run the encoder of a UNet, whose maps are halved by max pooling from level to level.

    Returns:
        The maps of all levels but the deepest, from the top, and the deepest.
    """
    skips: list[Tensor] = []
    features = pixels
    for level in levels[:-1]:
        features = level(features)
        skips.append(features)
        features = F.max_pool2d(features, 2)
    return skips, levels[-1](features)


def crop_to_image(logits: Tensor, image: Tensor) -> Tensor:
    """Remove the rows and columns that were added to the image below and to the right."""
    height, width = image.shape[-2:]
    return logits[..., :height, :width]


class PortedModule(nn.Module):
    """A network, or a part of one, that was ported from the TensorFlow baseline."""

    def keras_layers(self) -> Iterator[tuple[str, nn.Module]]:
        """Pairs of a Keras name and a module, in the order in which Keras creates the layers.

        A name has no running number. `ovseg.baseline.keras_weights` fills the modules by it.
        """
        raise NotImplementedError


class KerasNamed(nn.Module):
    """A module whose attributes have the names of the baseline's weights, after a prefix."""

    prefix = ""

    def keras_parts(self) -> dict[str, nn.Module | Tensor]:
        """The parts with weights by Keras' names, see `ovseg.baseline.keras_weights`."""
        own: dict[str, nn.Module | Tensor] = {}
        own.update(self.named_parameters(recurse=False))
        own.update(self.named_buffers(recurse=False))
        own.update(self.named_children())
        return {self.prefix + name: part for name, part in own.items()}


def keras_layers_of(*parts: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The pairs of `PortedModule.keras_layers` of several parts, one part after the other."""
    for part in parts:
        assert isinstance(part, PortedModule)
        yield from part.keras_layers()


class SameConv2d(nn.Conv2d):
    """Keras' "same" convolution of stride 1 for kernels of any size.

    Zeros are d (k - 1) in all on an axis; where that is odd, the one more is at the end.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel: height and width.
        dilation: down and across.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: tuple[int, int],
        dilation: tuple[int, int] = (1, 1),
    ):
        down = dilation[0] * (kernel[0] - 1)
        across = dilation[1] * (kernel[1] - 1)
        padding = (down // 2, across // 2)
        super().__init__(in_channels, out_channels, kernel, padding=padding, dilation=dilation)
        self.extra = (0, across % 2, 0, down % 2)

    def forward(self, features: Tensor) -> Tensor:
        if any(self.extra):
            features = F.pad(features, self.extra)
        return super().forward(features)


class ConvNorm(PortedModule):
    """A "same" convolution, dropout, batch normalisation and, if asked, ReLU.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel: odd kernel size.
        dropout_rate: probability of zeroing an element of the convolution's output.
        bias: whether the convolution has a bias.
        relu: whether ReLU comes last.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 3,
        dropout_rate: float = 0.0,
        bias: bool = True,
        relu: bool = True,
    ):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=bias)
        self.dropout = FastDropout(dropout_rate)
        self.norm = batch_norm(out_channels)
        self.activation = nn.ReLU(inplace=True) if relu else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        features = self.dropout(self.conv(features))
        return self.activation(self.norm(features))

    def keras_layers(self) -> Iterator[tuple[str, nn.Module]]:
        yield "conv2d", self.conv
        yield "batch_normalization", self.norm


# A normal distribution that is cut at two standard deviations has this standard deviation.
CUT_NORMAL_STD = 0.87962566103423978


def init_he_normal_(weight: Tensor) -> None:
    """Keras' he_normal: a normal of variance 2 / fan_in, cut at two of its standard deviations.

    Keras draws from a wider normal, so that the standard deviation after cutting is as asked.

    Source: K. He et al., Delving deep into rectifiers, ICCV 2015;
        keras.initializers.VarianceScaling.
    """
    fan_in = weight[0].numel()
    std = (2 / fan_in) ** 0.5 / CUT_NORMAL_STD
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)


def init_he_normal(network: nn.Module) -> None:
    """He-normal convolutions, Glorot-uniform transposed convolutions, zero biases."""
    for module in network.modules():
        if isinstance(module, nn.ConvTranspose2d):
            nn.init.xavier_uniform_(module.weight)
        elif isinstance(module, nn.Conv2d):
            init_he_normal_(module.weight)
        zero_bias(module)


def init_glorot(network: nn.Module) -> None:
    """Keras' default: Glorot-uniform convolutions of both kinds and dense layers, zero biases."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            zero_bias(module)


def zero_bias(module: nn.Module) -> None:
    """Keras' start of the bias of a convolution or a dense layer, where it has one."""
    if not isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)
