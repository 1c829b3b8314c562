"""Losses between a network and discriminators, which tell the two domains apart.

A label of 1 is the domain that a discriminator is named after.
"""

import torch.nn.functional as F
from torch import Tensor


def softmax_over_positions(maps: Tensor) -> Tensor:
    """Each channel of maps, (N, C, H, W), as shares that add up to 1 over its H * W positions."""
    return maps.float().flatten(2).softmax(dim=-1).view_as(maps)


def domain_loss(logits: Tensor, label: float) -> Tensor:
    """Mean binary cross-entropy of a discriminator's logits with one label for all of them.

    Args:
        logits: any shape.
        label: 1 for "of the domain that the discriminator is named after", 0 for "of the other".

    Returns:
        float32, 0 dimensions; log 2 where all logits are 0.
    """
    logits = logits.float()
    return F.binary_cross_entropy_with_logits(logits, logits.new_full(logits.shape, label))
