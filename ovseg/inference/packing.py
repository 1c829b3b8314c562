"""A network whose convolutions hold their weights as oneDNN wants them.

oneDNN computes in a layout of its own and brings the weights into it at every call. That takes
longest where the weights are larger than the picture: in the baseline's network, whose 125 million
parameters stand for 500 MB, a tenth of a prediction.
"""

import copy
from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from ovseg.models.convolutions import DilatedConv2d

# Layers that compute a plain convolution in a prediction; others, such as those of timm that pad by
# the picture's size, are left as they are.
PLAIN_CONVOLUTIONS = (nn.Conv2d, DilatedConv2d)


class PackedConv2d(nn.Module):
    """A convolution in a prediction on a CPU: the numbers of the layer to float rounding.

    Args:
        layer: one of `PLAIN_CONVOLUTIONS`, padded by zeros.
        size: shape of its input, (N, C, H, W), for which the layout is chosen. It computes inputs
            of any size.
    """

    def __init__(self, layer: nn.Conv2d, size: list[int]):
        super().__init__()
        self.arguments = (
            list(layer.padding),
            list(layer.stride),
            list(layer.dilation),
            layer.groups,
        )
        self.bias = layer.bias
        # torch has these two functions for its compiler; `torch.utils.mkldnn` knows no input size.
        reorder: Callable[..., Tensor] = torch._C._nn.mkldnn_reorder_conv2d_weight
        self.weight = reorder(layer.weight.detach().to_mkldnn(), *self.arguments, size)

    def forward(self, features: Tensor) -> Tensor:
        return torch.ops.mkldnn._convolution_pointwise(
            features, self.weight, self.bias, *self.arguments, "none", [], ""
        )


def pack_weights(network: nn.Module, image: Tensor) -> nn.Module:
    """A copy of a network for predictions, whose convolutions are `PackedConv2d`.

    It shares all other weights with the network, gives its outputs to float rounding, and must not
    be trained or saved. The network itself is returned where nothing would be gained: on another
    device than a CPU, under autocast, and in a torch without oneDNN.

    Args:
        network: in evaluation mode.
        image: pictures of the size to come, uint8 (N, 3, H, W), on the network's device.
    """
    on_cpu = image.device.type == "cpu"
    if not on_cpu or torch.is_autocast_enabled("cpu") or not torch.backends.mkldnn.is_available():
        return network
    sizes = _input_sizes(network, image)
    shared: dict[int, Any] = {}
    for tensor in chain(network.parameters(), network.buffers()):
        shared[id(tensor)] = tensor
    packed = copy.deepcopy(network, shared)
    for name, size in sizes.items():
        layer = packed.get_submodule(name)
        assert isinstance(layer, nn.Conv2d)
        packed.set_submodule(name, PackedConv2d(layer, size))
    return packed


def _input_sizes(network: nn.Module, image: Tensor) -> dict[str, list[int]]:
    """Shape of the input of every plain convolution, by its name."""
    sizes: dict[str, list[int]] = {}
    hooks = []
    for name, layer in network.named_modules():
        if type(layer) not in PLAIN_CONVOLUTIONS or layer.padding_mode != "zeros":
            continue
        if layer.weight.dtype != torch.float32 or isinstance(layer.padding, str):
            continue

        def record(_: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
            sizes[name] = list(inputs[0].shape)

        hooks.append(layer.register_forward_pre_hook(record))
    with torch.inference_mode():
        network(image)
    for hook in hooks:
        hook.remove()
    return sizes
