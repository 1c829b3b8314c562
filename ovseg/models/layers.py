"""What the architectures share: input scaling, activations by name, padding to a stride, Keras' initialisation."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovseg.errors import choose

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
