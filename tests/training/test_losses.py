"""Losses of every image by hand, at both edges, and against segmentation-models-pytorch where that has the same."""

import math

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch

from ovseg.training.losses import LOSSES, border_distance, build_loss

NEW = ("dice_per_image_loss", "bce_dice_per_image_loss", "tversky_loss", "focal_loss", "lovasz_loss", "boundary_loss",
       "bce_dice_boundary_loss")  # fmt: skip
PROBS = torch.tensor([0.8, 0.6, 0.4, 0.2]).view(1, 1, 2, 2)
MASK = torch.tensor([1.0, 1, 0, 0]).view(1, 1, 2, 2)
EMPTY, FULL = torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2)


def value(name: str, probs: torch.Tensor, mask: torch.Tensor) -> float:
    return build_loss(name)(probs.logit(), mask).item()


def bce(*right: float) -> float:
    """Cross-entropy of the probabilities given to the right answer."""
    return -sum(map(math.log, right)) / len(right)


def test_dice_per_image_by_hand():
    assert value("dice_per_image_loss", PROBS, MASK) == pytest.approx(
        1 - (2 * 1.4 + 1) / (2 + 2 + 1)
    )
    pair = torch.cat([PROBS, PROBS]), torch.cat([MASK, EMPTY])
    assert value("dice_per_image_loss", *pair) == pytest.approx(((1 - 3.8 / 5) + (1 - 1 / 3)) / 2)
    assert value("dice_loss", *pair) == pytest.approx(
        1 - (2 * 1.4 + 1) / (2 + 4 + 1)
    )  # over the batch: another number


def test_dice_per_image_of_an_empty_mask_asks_for_an_empty_prediction():
    loss = build_loss("dice_per_image_loss")
    assert loss(torch.full((1, 1, 2, 2), -100.0), EMPTY) == 0
    assert loss(torch.full((1, 1, 2, 2), 100.0), EMPTY).item() == pytest.approx(1 - 1 / 5)


def test_combined_losses_are_means_of_their_parts():
    dice = value("dice_per_image_loss", PROBS, MASK)
    entropy = bce(0.8, 0.6, 0.6, 0.8)
    assert value("bce_dice_per_image_loss", PROBS, MASK) == pytest.approx((entropy + dice) / 2)
    boundary = value("boundary_loss", PROBS, MASK)
    assert value("bce_dice_boundary_loss", PROBS, MASK) == pytest.approx(
        (entropy + dice + boundary) / 3
    )


def test_tversky_by_hand():
    expected = 1 - (1.4 + 0.5) / (1.4 + 0.3 * 0.6 + 0.7 * 0.6 + 0.5)
    assert value("tversky_loss", PROBS, MASK) == pytest.approx(expected)
    assert value("tversky_loss", PROBS, EMPTY) == pytest.approx(1 - 0.5 / (0.3 * 2 + 0.5))
    missed, false = torch.tensor([0.9, 0.1, 0.1, 0.1]), torch.tensor([0.9, 0.9, 0.9, 0.1])
    missed, false = (
        value("tversky_loss", probs.view(1, 1, 2, 2), MASK) for probs in (missed, false)
    )
    assert missed > false


def test_focal_by_hand():
    terms = [0.2**2 * -math.log(0.8), 0.4**2 * -math.log(0.6)]
    assert value("focal_loss", PROBS, MASK) == pytest.approx(sum(terms) / 2)


def test_lovasz_by_hand():
    """Errors 1 - logit * sign are 3, 1, 0.5 and -1; the sorted masks 1, 0, 1, 0 lose 1/2, 2/3, 1, 1 of the IoU."""
    logits = torch.tensor([-2.0, 0.5, 0.0, -2.0]).view(1, 1, 2, 2)
    loss = build_loss("lovasz_loss")
    assert loss(logits, MASK).item() == pytest.approx(
        3 * 1 / 2 + 1 * (2 / 3 - 1 / 2) + 0.5 * (1 - 2 / 3)
    )
    assert loss(logits, EMPTY).item() == pytest.approx(1.5)  # the largest logit is 0.5


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_lovasz_is_that_of_segmentation_models_pytorch(share):
    logits, mask = 3 * torch.randn(3, 1, 12, 12), (torch.rand(3, 1, 12, 12) < share).float()
    expected = smp.losses.LovaszLoss("binary", per_image=True)(logits[:, 0], mask[:, 0])
    assert torch.allclose(build_loss("lovasz_loss")(logits, mask), expected, atol=1e-5)


def test_focal_is_that_of_segmentation_models_pytorch():
    logits, mask = 3 * torch.randn(3, 1, 12, 12), (torch.rand(3, 1, 12, 12) < 0.3).float()
    assert torch.allclose(
        build_loss("focal_loss")(logits, mask),
        smp.losses.FocalLoss("binary")(logits, mask),
        atol=1e-6,
    )


def test_border_distance_by_hand():
    """A mask of two columns of five: the border lies between the second and the third."""
    mask = np.zeros((3, 5), bool)
    mask[:, :2] = True
    assert border_distance(mask) == pytest.approx(np.tile([1.5, 0.5, 0.5, 1.5, 2.5], (3, 1)) / 2.5)
    assert (
        not border_distance(np.zeros((3, 5), bool)).any()
        and not border_distance(np.ones((3, 5), bool)).any()
    )


def test_boundary_by_hand():
    mask = torch.tensor([1.0, 1, 0, 0, 0]).view(1, 1, 1, 5)
    probs = torch.tensor([0.9, 0.8, 0.4, 0.2, 0.1]).view(1, 1, 1, 5)
    expected = (1.5 * 0.1 + 0.5 * 0.2 + 0.5 * 0.4 + 1.5 * 0.2 + 2.5 * 0.1) / 2.5 / 5
    assert value("boundary_loss", probs, mask) == pytest.approx(expected)
    assert build_loss("boundary_loss")(100 * (2 * mask - 1), mask) == 0


def test_boundary_differs_from_its_source_by_a_constant():
    """The source's mean of signed distance times probability has the same gradient."""
    mask = (torch.rand(2, 1, 9, 9) < 0.4).float()
    signed = np.stack([border_distance(m) * np.where(m, -1, 1) for m in mask[:, 0].numpy() > 0.5])
    first, second = torch.randn(2, 1, 9, 9).requires_grad_(), None
    build_loss("boundary_loss")(first, mask).backward()
    second = first.detach().clone().requires_grad_()
    (torch.from_numpy(signed).float()[:, None] * second.sigmoid()).mean().backward()
    assert torch.allclose(first.grad, second.grad, atol=1e-7)


@pytest.mark.parametrize("name", ["boundary_loss"])
@pytest.mark.parametrize("mask", [EMPTY, FULL])
def test_mask_without_border_costs_nothing(name, mask):
    logits = torch.randn(1, 1, 2, 2).requires_grad_()
    loss = build_loss(name)(logits, mask)
    loss.backward()
    assert loss == 0 and not logits.grad.any()


@pytest.mark.parametrize("name", NEW)
def test_loss_does_not_depend_on_the_batch(name):
    logits, mask = (
        torch.randn(3, 1, 16, 16),
        torch.stack([(torch.rand(1, 16, 16) < s).float() for s in (0.0, 0.2, 0.7)]),
    )
    single = [build_loss(name)(logits[i : i + 1], mask[i : i + 1]) for i in range(3)]
    assert torch.allclose(build_loss(name)(logits, mask), torch.stack(single).mean(), atol=1e-6)


@pytest.mark.parametrize("name", NEW)
@pytest.mark.parametrize("size", [100.0, -100.0])
def test_loss_at_logits_of_100_is_finite_and_right_is_less_than_wrong(name, size):
    mask = torch.zeros(2, 1, 8, 8)
    mask[:, :, 2:5, 3:7] = 1
    losses = []
    for logits in (size * (2 * mask - 1), -size * (2 * mask - 1)):
        logits.requires_grad_()
        losses.append(build_loss(name)(logits, mask))
        losses[-1].backward()
        assert torch.isfinite(losses[-1]) and torch.isfinite(logits.grad).all()
    right, wrong = losses if size > 0 else losses[::-1]
    assert right < 1e-6 < wrong


@pytest.mark.parametrize("name", NEW)
def test_loss_falls_when_it_is_followed(name):
    mask = torch.zeros(2, 1, 16, 16)
    mask[:, :, 4:12, 5:11] = 1
    logits = torch.zeros_like(mask).requires_grad_()
    optimizer, losses = torch.optim.Adam([logits], lr=0.2), []
    for _ in range(40):
        optimizer.zero_grad()
        losses.append(build_loss(name)(logits, mask))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.35 * losses[0] and ((logits > 0) == (mask > 0)).all()


def test_new_losses_are_listed():
    assert set(NEW) <= set(LOSSES)
