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

    if not any(isinstance(layer, Conv2dSame) for layer in network.modules()):
        return network
    fixed = copy.deepcopy(network)
    for name, layer in list(fixed.named_modules()):
        if isinstance(layer, Conv2dSame):
            parent, _, child = name.rpartition(".")
            setattr(fixed.get_submodule(parent), child, _pad_evenly(layer))
    return fixed


def _pad_evenly(layer: nn.Conv2d) -> nn.Sequential:
    """Padding and a plain convolution for even sizes; it shares the layer's weights."""
    before = []
    after = []
    sides = zip(layer.kernel_size, layer.stride, layer.dilation, strict=True)
    for kernel, stride, dilation in sides:
        total = max(0, (kernel - 1) * dilation + 1 - stride)
        before.append(total // 2)
        after.append(total - total // 2)
    padding = nn.ZeroPad2d((before[1], after[1], before[0], after[0]))
    # A plain layer with the settings and weights of this one, which pads nothing itself.
    convolution = copy.copy(layer)
    convolution.__class__ = nn.Conv2d
    return nn.Sequential(padding, convolution)
