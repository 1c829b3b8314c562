"""TensorFlow's "same" padding without a look at the size, for graphs of any size."""

import copy

from torch import nn


def fix_same_padding(network: nn.Module) -> nn.Module:
    """A copy of a network in which "same" convolutions of stride 2 pad by fixed numbers.

    timm computes the padding of such a layer from the size of its input, which no exporter can
    follow for a free size. The networks of ovseg pad pictures to a multiple of their stride, so
    these layers see even sizes only, for which the padding is always the same: one row and column
    fewer in front than behind. All numbers stay equal to the bit.

    Args:
        network: any; it is returned itself where it has no such layer.
    """
    from timm.layers import Conv2dSame

    names = [name for name, layer in network.named_modules() if isinstance(layer, Conv2dSame)]
    if not names:
        return network
    fixed = copy.deepcopy(network)
    for name in names:
        parent, _, child = name.rpartition(".")
        holder = fixed.get_submodule(parent)
        setattr(holder, child, _pad_evenly(fixed.get_submodule(name)))
    return fixed


def _pad_evenly(layer: nn.Module) -> nn.Sequential:
    """Padding and a plain convolution for even sizes; it shares the layer's weights."""
    assert isinstance(layer, nn.Conv2d)
    before = []
    after = []
    for kernel, stride, dilation in zip(
        layer.kernel_size, layer.stride, layer.dilation, strict=True
    ):
        total = max(0, (kernel - 1) * dilation + 1 - stride)
        before.append(total // 2)
        after.append(total - total // 2)
    convolution = nn.Conv2d(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,
        layer.stride,
        dilation=layer.dilation,
        groups=layer.groups,
        bias=layer.bias is not None,
    )
    convolution.weight = layer.weight
    convolution.bias = layer.bias
    padding = nn.ZeroPad2d((before[1], after[1], before[0], after[0]))
    return nn.Sequential(padding, convolution).train(layer.training)
