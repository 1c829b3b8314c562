"""Metrics: hand-worked numbers, both edges, and the baseline's own values."""

import json
import math

import numpy as np
import pytest
import torch

from ovseg import metrics
from ovseg.core.errors import InputError
from ovseg.metrics import (
    OnlineScores,
    category_scores,
    confusion,
    dice_coef,
    hard_scores,
    iou_coef,
    lesion_probs,
    main_category,
    predict,
)

MASK = torch.tensor([1.0, 1, 0, 0]).view(1, 1, 2, 2)
PROBS = torch.tensor([0.8, 0.6, 0.4, 0.2]).view(1, 1, 2, 2)


def test_soft_dice_by_hand():
    assert dice_coef(PROBS, MASK) == pytest.approx((2 * 1.4 + 1) / (2 + 2.0 + 1))


def test_soft_iou_by_hand():
    assert iou_coef(PROBS, MASK) == pytest.approx(1.4 / 2.6)


def test_soft_scores_of_two_empty_maps():
    empty = torch.zeros(1, 1, 4, 4)
    assert dice_coef(empty, empty) == 1 and iou_coef(empty, empty) == 0


def test_hard_scores_by_hand():
    pred = torch.tensor([[1, 1, 0, 0]], dtype=torch.bool).view(1, 1, 1, 4)
    mask = torch.tensor([[1, 0, 1, 0]], dtype=torch.bool).view(1, 1, 1, 4)
    expected = {"dice": 0.5, "iou": 1 / 3, "sensitivity": 0.5, "specificity": 0.5, "precision": 0.5}
    assert {name: value.item() for name, value in hard_scores(pred, mask).items()} == pytest.approx(
        expected
    )


def test_empty_masks_score_nan_or_zero():
    empty, full = (
        torch.zeros(1, 1, 2, 2, dtype=torch.bool),
        torch.ones(1, 1, 2, 2, dtype=torch.bool),
    )
    both = hard_scores(empty, empty)
    assert math.isnan(both["dice"]) and math.isnan(both["iou"]) and both["specificity"] == 1
    extra = hard_scores(full, empty)
    assert (
        extra["dice"] == 0
        and extra["iou"] == 0
        and math.isnan(extra["sensitivity"])
        and extra["precision"] == 0
    )
    missed = hard_scores(empty, full)
    assert (
        missed["dice"] == 0
        and math.isnan(missed["precision"])
        and math.isnan(missed["specificity"])
    )


def test_shapes_that_differ_are_an_error():
    with pytest.raises(ValueError, match="expected one shape"):
        hard_scores(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 3))


def test_online_scores_average_images_and_leave_nan_out():
    scores = OnlineScores()
    logits = torch.tensor([5.0, 5, -5, -5]).repeat(3, 1).view(3, 1, 2, 2)
    mask = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]], dtype=torch.uint8).view(
        3, 1, 2, 2
    )
    logits[2] = -5
    scores.update(torch.tensor(0.5), logits[:2], mask[:2])
    scores.update(torch.tensor(0.2), logits[2:], mask[2:])
    values = scores.compute()
    assert values["dice"] == pytest.approx((1 + 2 / 3) / 2)
    assert values["iou_pooled"] == pytest.approx(3 / 4)
    assert values["loss"] == pytest.approx((2 * 0.5 + 0.2) / 3)
    soft = [
        dice_coef(logits[part].sigmoid(), mask[part]).item() for part in (slice(0, 2), slice(2, 3))
    ]
    assert values["dice_coef"] == pytest.approx(sum(soft) / 2)


def test_a_loss_that_is_not_a_number_is_shown():
    scores, logits, mask = (
        OnlineScores(),
        torch.zeros(1, 1, 2, 2),
        torch.ones(1, 1, 2, 2, dtype=torch.uint8),
    )
    for loss in (0.5, math.nan):
        scores.update(torch.tensor(loss), logits, mask)
    assert scores.compute()["loss"].isnan()


def test_repeated_pairs_weigh_nothing():
    scores, logits, mask = (
        OnlineScores(),
        torch.ones(1, 1, 2, 2),
        torch.ones(1, 1, 2, 2, dtype=torch.uint8),
    )
    scores.update(torch.tensor(0.5), logits, mask)
    before = {name: float(value) for name, value in scores.compute().items()}
    scores.update(torch.tensor(9.0), -logits, mask, counted=False)
    assert {name: float(value) for name, value in scores.compute().items()} == pytest.approx(
        before, nan_ok=True
    )


def test_online_scores_forget():
    scores = OnlineScores()
    for value in (1.0, -1.0):
        scores.reset()
        scores.update(
            torch.tensor(1.0),
            torch.full((1, 1, 2, 2), value),
            torch.ones(1, 1, 2, 2, dtype=torch.uint8),
        )
    assert scores.compute()["dice"] == 0


def test_metrics_equal_the_baseline(shared_file):
    expected = json.loads(shared_file("keras_fixtures/training/losses.json").read_text())
    arrays = np.load(shared_file("keras_fixtures/training/losses.npz"))
    mask = torch.from_numpy(arrays["y_true"]).permute(0, 3, 1, 2)
    probs = torch.from_numpy(arrays["y_pred"]).permute(0, 3, 1, 2)

    names = [name for name in expected if hasattr(metrics, name)]
    assert "dice_coef" in names
    for name in names:
        found = getattr(metrics, name)(probs, mask).item()
        assert found == pytest.approx(expected[name], abs=1e-5), name


def ids(*images: list[int]) -> torch.Tensor:
    """Maps of one row each, uint8 (N, 1, 1, W)."""
    return torch.tensor(images, dtype=torch.uint8)[:, None, None]


def logits_of(pred: torch.Tensor, classes: int) -> torch.Tensor:
    """Logits whose most probable class is `pred`."""
    return 8 * torch.nn.functional.one_hot(pred[:, 0].long(), classes).movedim(-1, 1).float()


def test_prediction_of_one_class_and_of_several():
    one = torch.tensor([-1.0, 0.0, 1.0]).view(1, 1, 1, 3)
    assert predict(one).dtype == torch.bool and predict(one).flatten().tolist() == [
        False,
        False,
        True,
    ]
    several = torch.tensor([[2.0, 1.0, 1.5], [0.0, 1.0, 2.0]]).T.view(1, 3, 1, 2)
    assert predict(several).dtype == torch.uint8 and predict(several).tolist() == [[[[0, 2]]]]


def test_lesion_probability_is_all_but_the_background():
    logits = torch.randn(2, 3, 4, 4)
    assert torch.allclose(
        lesion_probs(logits), logits.softmax(1)[:, 1:].sum(1, keepdim=True), atol=1e-6
    )
    assert torch.equal(lesion_probs(logits[:, :1]), logits[:, :1].sigmoid())


def test_category_scores_by_hand():
    counts = confusion(ids([1, 1, 2, 0], [3, 0, 0, 0]), ids([1, 2, 2, 0], [0, 0, 0, 0]), classes=4)
    assert counts[0].tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    scores = category_scores(counts)
    nan = math.nan
    assert scores["dice"].tolist() == [
        pytest.approx(row, nan_ok=True) for row in [[2 / 3, 2 / 3, nan], [nan, nan, 0]]
    ]
    assert scores["iou"].tolist() == [
        pytest.approx(row, nan_ok=True) for row in [[0.5, 0.5, nan], [nan, nan, 0]]
    ]


def test_main_category_covers_most_pixels_or_is_none():
    assert main_category(torch.tensor([[9, 0, 0], [9, 1, 2], [0, 3, 1]])).tolist() == [0, 2, 1]


def test_online_scores_of_categories_by_hand():
    scores = OnlineScores(classes=4)
    pred, mask = (
        ids([1, 1, 2, 0], [1, 1, 0, 0], [0, 0, 0, 0]),
        ids([1, 2, 2, 0], [1, 1, 0, 0], [0, 0, 0, 2]),
    )
    for part in (slice(0, 2), slice(2, 3)):
        scores.update(torch.tensor(1.0), logits_of(pred[part], 4), mask[part])
    values = {name: float(value) for name, value in scores.compute().items()}
    dice = {1: (2 / 3 + 1) / 2, 2: (2 / 3 + 0) / 2}
    for i in dice:
        assert values[f"dice_category_{i}"] == pytest.approx(dice[i])
    assert math.isnan(values["dice_category_3"])
    assert values["dice_categories"] == pytest.approx((dice[1] + dice[2]) / 2)
    assert values["iou_pooled_categories"] == pytest.approx((3 / 4 + 1 / 3) / 2)
    assert scores.categories.compute()["images"].tolist() == [2, 2, 0]
    assert values["dice"] == pytest.approx((1 + 1 + 0) / 3)  # the lesion, whatever its category
    assert values["iou_pooled"] == pytest.approx(5 / 6)


def test_repeated_pairs_of_categories_weigh_nothing():
    scores, mask = OnlineScores(classes=3), ids([1, 2, 0])
    scores.update(torch.tensor(0.5), logits_of(mask, 3), mask)
    before = {name: float(value) for name, value in scores.compute().items()}
    scores.update(torch.tensor(9.0), logits_of(2 - mask, 3), mask, counted=False)
    assert {name: float(value) for name, value in scores.compute().items()} == pytest.approx(
        before, nan_ok=True
    )


def test_a_logged_loss_is_best_low_and_a_score_high():
    assert metrics.monitor_mode("val_loss") == metrics.monitor_mode("train_loss") == "min"
    assert metrics.monitor_mode("val_dice") == "max"
    with pytest.raises(InputError, match="Unknown monitor 'val_f1'. Choose one of: .*val_dice,"):
        metrics.monitor_mode("val_f1")
