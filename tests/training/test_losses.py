"""Losses on hand-worked numbers, at both edges, and against the baseline and other libraries."""

import json
import math

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from torch.nn.functional import one_hot

from ovseg.core.errors import InputError
from ovseg.training.losses import CATEGORY_LOSSES, LOSSES, border_distance, build_loss

PER_IMAGE_LOSSES = [
    "dice_per_image_loss",
    "bce_dice_per_image_loss",
    "tversky_loss",
    "focal_loss",
    "lovasz_loss",
    "boundary_loss",
    "bce_dice_boundary_loss",
]
PROBS = torch.tensor([0.8, 0.6, 0.4, 0.2]).view(1, 1, 2, 2)
MASK = torch.tensor([1.0, 1, 0, 0]).view(1, 1, 2, 2)
EMPTY = torch.zeros(1, 1, 2, 2)
FULL = torch.ones(1, 1, 2, 2)


def loss_of_probs(name: str, probs: torch.Tensor, mask: torch.Tensor) -> float:
    return build_loss(name)(probs.logit(), mask).item()


def mean_entropy(*probs_of_the_right_class: float) -> float:
    logs = [math.log(probability) for probability in probs_of_the_right_class]
    return -sum(logs) / len(logs)


def random_mask(*shape: int, share: float) -> torch.Tensor:
    return (torch.rand(shape) < share).float()


def ids(*images: list[int]) -> torch.Tensor:
    """Masks of one row each, uint8 (N, 1, 1, W)."""
    return torch.tensor(images, dtype=torch.uint8)[:, None, None]


def test_unknown_loss_lists_the_choices():
    with pytest.raises(InputError, match="Unknown loss 'hope'. Choose one of: basnet_hybrid_loss"):
        build_loss("hope")


@pytest.mark.parametrize(
    ("name", "classes", "message"),
    [
        (
            "bce_dice_loss",
            9,
            "is for one class, .* has 9 .* Choose one of: category_dice",
        ),
        (
            "ce_dice_loss",
            1,
            "is for several classes, .* has 1 .* Choose one of: basnet",
        ),
        ("hope", 9, "Unknown loss 'hope'. Choose one of: category_dice_loss, ce_dice_loss, cross"),
    ],
)
def test_loss_for_another_number_of_classes_is_an_error(name, classes, message):
    with pytest.raises(InputError, match=message):
        build_loss(name, classes)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("size", [0.0, 20.0, 1e4])
@pytest.mark.parametrize("value", [0, 1])
def test_loss_and_gradient_are_finite(name, size, value):
    logits = (torch.randn(2, 1, 16, 16) * size).requires_grad_()
    mask = torch.full((2, 1, 16, 16), value, dtype=torch.uint8)
    loss = build_loss(name)(logits, mask)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("name", LOSSES)
def test_loss_is_float32_under_autocast(name):
    logits = (torch.randn(2, 1, 32, 32) * 4).bfloat16()
    mask = random_mask(2, 1, 32, 32, share=0.5).to(torch.uint8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = build_loss(name)(logits, mask)
    assert loss.dtype == torch.float32
    assert loss == build_loss(name)(logits.float(), mask)


def test_losses_equal_the_baseline(shared_file):
    expected = json.loads(shared_file("keras_fixtures/training/losses.json").read_text())
    arrays = np.load(shared_file("keras_fixtures/training/losses.npz"))
    mask = torch.from_numpy(arrays["y_true"]).permute(0, 3, 1, 2)
    probs = torch.from_numpy(arrays["y_pred"]).permute(0, 3, 1, 2)

    names = [name for name in expected if name in LOSSES]
    assert "bce_dice_loss" in names
    for name in names:
        assert loss_of_probs(name, probs, mask) == pytest.approx(expected[name], abs=1e-5), name


def test_value_of_cross_entropy_is_clipped_but_not_its_gradient():
    logits = torch.full((1, 1, 2, 2), -500.0, requires_grad=True)
    loss = build_loss("binary_crossentropy")(logits, FULL)
    loss.backward()
    assert loss.item() == pytest.approx(-math.log(1e-7), rel=1e-6)
    assert (logits.grad < 0).all()


def test_dice_per_image_by_hand():
    dice_of_one = (2 * 1.4 + 1) / (2 + 2 + 1)
    assert loss_of_probs("dice_per_image_loss", PROBS, MASK) == pytest.approx(1 - dice_of_one)

    two_probs = torch.cat([PROBS, PROBS])
    two_masks = torch.cat([MASK, EMPTY])
    dice_of_empty = 1 / 3
    mean = (1 - dice_of_one + 1 - dice_of_empty) / 2
    assert loss_of_probs("dice_per_image_loss", two_probs, two_masks) == pytest.approx(mean)
    dice_of_batch = (2 * 1.4 + 1) / (2 + 4 + 1)
    assert loss_of_probs("dice_loss", two_probs, two_masks) == pytest.approx(1 - dice_of_batch)


def test_dice_per_image_of_an_empty_mask_asks_for_an_empty_prediction():
    loss = build_loss("dice_per_image_loss")
    assert loss(torch.full((1, 1, 2, 2), -100.0), EMPTY) == 0
    assert loss(torch.full((1, 1, 2, 2), 100.0), EMPTY).item() == pytest.approx(1 - 1 / 5)


def test_combined_losses_are_means_of_their_parts():
    entropy = mean_entropy(0.8, 0.6, 0.6, 0.8)
    dice = loss_of_probs("dice_per_image_loss", PROBS, MASK)
    boundary = loss_of_probs("boundary_loss", PROBS, MASK)

    entropy_and_dice = loss_of_probs("bce_dice_per_image_loss", PROBS, MASK)
    all_three = loss_of_probs("bce_dice_boundary_loss", PROBS, MASK)
    assert entropy_and_dice == pytest.approx((entropy + dice) / 2)
    assert all_three == pytest.approx((entropy + dice + boundary) / 3)


def test_tversky_by_hand():
    expected = 1 - (1.4 + 0.5) / (1.4 + 0.3 * 0.6 + 0.7 * 0.6 + 0.5)
    assert loss_of_probs("tversky_loss", PROBS, MASK) == pytest.approx(expected)
    expected_of_empty = 1 - 0.5 / (0.3 * 2 + 0.5)
    assert loss_of_probs("tversky_loss", PROBS, EMPTY) == pytest.approx(expected_of_empty)


def test_tversky_punishes_a_missed_pixel_more_than_a_false_one():
    one_missed = torch.tensor([0.9, 0.1, 0.1, 0.1]).view(1, 1, 2, 2)
    one_false = torch.tensor([0.9, 0.9, 0.9, 0.1]).view(1, 1, 2, 2)
    missed = loss_of_probs("tversky_loss", one_missed, MASK)
    false = loss_of_probs("tversky_loss", one_false, MASK)
    assert missed > false


def test_focal_by_hand():
    sure = 0.2**2 * -math.log(0.8)
    unsure = 0.4**2 * -math.log(0.6)
    assert loss_of_probs("focal_loss", PROBS, MASK) == pytest.approx((sure + unsure) / 2)


def test_focal_equals_segmentation_models_pytorch():
    logits = 3 * torch.randn(3, 1, 12, 12)
    mask = random_mask(3, 1, 12, 12, share=0.3)
    expected = smp.losses.FocalLoss("binary")(logits, mask)
    assert torch.allclose(build_loss("focal_loss")(logits, mask), expected, atol=1e-6)


def test_lovasz_by_hand():
    """Errors 1 - logit * sign are 3, 1, 0.5 and -1, of pixels whose masks are 1, 0, 1, 0.

    With the first 1, 2, 3 and 4 of them wrong, 1/2, 2/3, 1 and 1 of the IoU are lost.
    """
    logits = torch.tensor([-2.0, 0.5, 0.0, -2.0]).view(1, 1, 2, 2)
    loss = build_loss("lovasz_loss")
    expected = 3 * 1 / 2 + 1 * (2 / 3 - 1 / 2) + 0.5 * (1 - 2 / 3)
    assert loss(logits, MASK).item() == pytest.approx(expected)
    largest_logit = 0.5
    assert loss(logits, EMPTY).item() == pytest.approx(1 + largest_logit)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_lovasz_equals_segmentation_models_pytorch(share):
    logits = 3 * torch.randn(3, 1, 12, 12)
    mask = random_mask(3, 1, 12, 12, share=share)
    expected = smp.losses.LovaszLoss("binary", per_image=True)(logits[:, 0], mask[:, 0])
    assert torch.allclose(build_loss("lovasz_loss")(logits, mask), expected, atol=1e-5)


def test_border_distance_by_hand():
    """A mask of two columns of five: the border lies between the second and the third."""
    mask = np.zeros((3, 5), bool)
    mask[:, :2] = True
    row = np.array([1.5, 0.5, 0.5, 1.5, 2.5]) / 2.5
    assert border_distance(mask) == pytest.approx(np.tile(row, (3, 1)))


@pytest.mark.parametrize("value", [False, True])
def test_border_distance_without_border_is_zero(value):
    assert not border_distance(np.full((3, 5), value)).any()


def test_boundary_by_hand():
    mask = torch.tensor([1.0, 1, 0, 0, 0]).view(1, 1, 1, 5)
    probs = torch.tensor([0.9, 0.8, 0.4, 0.2, 0.1]).view(1, 1, 1, 5)
    expected = (1.5 * 0.1 + 0.5 * 0.2 + 0.5 * 0.4 + 1.5 * 0.2 + 2.5 * 0.1) / 2.5 / 5
    assert loss_of_probs("boundary_loss", probs, mask) == pytest.approx(expected)
    right = 100 * (2 * mask - 1)
    assert build_loss("boundary_loss")(right, mask) == 0


def test_boundary_has_the_gradient_of_its_source():
    """The source's loss is the mean of signed distance times probability."""
    mask = random_mask(2, 1, 9, 9, share=0.4)
    ours = torch.randn(2, 1, 9, 9).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    build_loss("boundary_loss")(ours, mask).backward()

    lesions = mask[:, 0].numpy() > 0.5
    signed = np.stack([border_distance(lesion) * np.where(lesion, -1, 1) for lesion in lesions])
    signed_distance = torch.from_numpy(signed).float()[:, None]
    (signed_distance * theirs.sigmoid()).mean().backward()
    assert torch.allclose(ours.grad, theirs.grad, atol=1e-7)


@pytest.mark.parametrize("mask", [EMPTY, FULL])
def test_boundary_of_a_mask_without_border_is_zero(mask):
    logits = torch.randn(1, 1, 2, 2).requires_grad_()
    loss = build_loss("boundary_loss")(logits, mask)
    loss.backward()
    assert loss == 0
    assert not logits.grad.any()


@pytest.mark.parametrize("name", PER_IMAGE_LOSSES)
def test_loss_per_image_does_not_depend_on_the_batch(name):
    logits = torch.randn(3, 1, 16, 16)
    mask = torch.stack([random_mask(1, 16, 16, share=share) for share in (0.0, 0.2, 0.7)])
    loss = build_loss(name)
    single = [loss(logits[i : i + 1], mask[i : i + 1]) for i in range(3)]
    assert torch.allclose(loss(logits, mask), torch.stack(single).mean(), atol=1e-6)


@pytest.mark.parametrize("name", PER_IMAGE_LOSSES)
def test_loss_at_logits_of_100_is_small_where_they_are_right(name):
    mask = torch.zeros(2, 1, 8, 8)
    mask[:, :, 2:5, 3:7] = 1
    right = 100 * (2 * mask - 1)
    loss = build_loss(name)
    assert loss(right, mask) < 1e-6 < loss(-right, mask)


@pytest.mark.parametrize("name", PER_IMAGE_LOSSES)
@pytest.mark.parametrize("sign", [1, -1])
def test_gradient_at_logits_of_100_is_finite(name, sign):
    mask = torch.zeros(2, 1, 8, 8)
    mask[:, :, 2:5, 3:7] = 1
    logits = (sign * 100 * (2 * mask - 1)).requires_grad_()
    build_loss(name)(logits, mask).backward()
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("name", PER_IMAGE_LOSSES)
def test_gradient_descent_finds_the_mask(name):
    mask = torch.zeros(2, 1, 16, 16)
    mask[:, :, 4:12, 5:11] = 1
    logits = torch.zeros_like(mask).requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.2)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = build_loss(name)(logits, mask)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.35 * losses[0]
    assert ((logits > 0) == (mask > 0)).all()


def test_cross_entropy_of_categories_by_hand():
    logits = torch.randn(2, 4, 5, 5)
    mask = torch.randint(0, 4, (2, 1, 5, 5), dtype=torch.uint8)
    loss = build_loss("cross_entropy", 4)
    expected = -logits.log_softmax(1).gather(1, mask.long()).mean()
    assert torch.allclose(loss(logits, mask), expected)
    assert loss(torch.zeros_like(logits), mask).item() == pytest.approx(math.log(4))


def test_dice_of_categories_by_hand():
    logits = torch.zeros(1, 3, 1, 4)  # every probability is 1/3
    mask = ids([1, 1, 2, 0])
    dice = build_loss("category_dice_loss", 3)(logits, mask)
    assert dice.item() == pytest.approx(1 - (7 / 13 + 1 / 2) / 2)
    both = build_loss("ce_dice_loss", 3)(logits, mask)
    assert both.item() == pytest.approx((dice.item() + math.log(3)) / 2)


def test_dice_of_categories_averages_those_present_in_each_image():
    logits = torch.randn(2, 4, 1, 6)
    mask = ids([1, 1, 2, 0, 0, 0], [3, 0, 0, 0, 0, 0])
    loss = build_loss("category_dice_loss", 4)
    two_categories = loss(logits[:1], mask[:1])
    one_category = loss(logits[1:], mask[1:])
    assert torch.allclose(loss(logits, mask), (2 * two_categories + one_category) / 3)
    assert loss(logits, torch.zeros_like(mask)) == 0


def test_dice_of_categories_is_zero_for_a_sure_and_right_prediction():
    mask = ids([1, 2, 0])
    logits = 100.0 * one_hot(mask[:, 0].long(), 3).movedim(-1, 1)
    assert build_loss("category_dice_loss", 3)(logits, mask).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", CATEGORY_LOSSES)
@pytest.mark.parametrize("size", [0.0, 20.0, 1e4])
@pytest.mark.parametrize("value", [0, 3])
def test_loss_of_categories_under_autocast_is_float32_and_finite(name, size, value):
    logits = (torch.randn(2, 5, 8, 8) * size).bfloat16().requires_grad_()
    mask = torch.full((2, 1, 8, 8), value, dtype=torch.uint8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = build_loss(name, 5)(logits, mask)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss == build_loss(name, 5)(logits.float(), mask)
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


def test_similarity_of_images_below_its_window_is_an_error():
    small = torch.zeros(1, 1, 10, 12)
    with pytest.raises(InputError, match="at least 11 x 11 pixels, found 10 x 12"):
        build_loss("ssim_loss")(small, small)
