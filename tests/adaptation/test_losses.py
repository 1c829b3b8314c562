import math

import pytest
import torch

from ovseg.adaptation.losses import domain_loss, softmax_over_positions


def test_shares_of_a_channel_add_up_to_one_over_its_positions():
    maps = torch.tensor([[[[0.0, math.log(3)]], [[5.0, 5.0]]]])  # two channels of 1 x 2
    shares = softmax_over_positions(maps)
    assert shares.flatten().tolist() == pytest.approx([0.25, 0.75, 0.5, 0.5])


@pytest.mark.parametrize(
    ("logit", "label", "loss"),
    [
        (0.0, 1, math.log(2)),
        (math.log(3), 1, math.log(4 / 3)),  # a probability of 3/4
        (math.log(3), 0, math.log(4)),
    ],
)
def test_domain_loss_is_the_cross_entropy_with_one_label(logit, label, loss):
    assert domain_loss(torch.full((2, 1, 3, 3), logit), label).item() == pytest.approx(loss)


def test_domain_loss_is_the_mean_over_positions():
    logits = torch.tensor([0.0, math.log(3)])
    expected = (math.log(2) + math.log(4 / 3)) / 2
    assert domain_loss(logits, 1).item() == pytest.approx(expected)


def test_half_precision_logits_give_a_loss_in_full_precision():
    loss = domain_loss(torch.full((4,), -20.0, dtype=torch.bfloat16), 1)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(20.0, rel=1e-3)
