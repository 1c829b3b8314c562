"""Calibration and confidence, on numbers worked out by hand."""

import numpy as np
import pytest

from ovseg.evaluation.calibration import (
    Reliability,
    TemperatureFit,
    count_flags,
    describe_flags,
    flag_threshold,
    risk_coverage,
)
from ovseg.inference.labels import Postprocessing


def test_error_and_brier_of_four_pixels():
    reliability = Reliability(bins=2)
    probs = np.array([[0.1, 0.3], [0.8, 1.0]])
    reliability.add(probs, np.array([[False, True], [True, True]]))
    # Below 0.5: mean 0.2, half of them lesion. Above: mean 0.9, all lesion.
    assert reliability.error == pytest.approx((2 * 0.3 + 2 * 0.1) / 4)
    assert reliability.brier == pytest.approx((0.01 + 0.49 + 0.04 + 0) / 4)
    table = reliability.table()
    assert table["pixels"] == [0.5, 0.5]
    assert table["probability"] == pytest.approx([0.2, 0.9])
    assert table["lesion"] == [0.5, 1.0]


def test_images_are_pooled():
    generator = np.random.default_rng(0)
    probs = generator.random((2, 8, 8))
    mask = generator.random((2, 8, 8)) < probs
    together = Reliability()
    together.add(probs.reshape(16, 8), mask.reshape(16, 8))
    one_by_one = Reliability()
    for image in range(2):
        one_by_one.add(probs[image], mask[image])
    assert one_by_one.error == pytest.approx(together.error)
    assert one_by_one.brier == pytest.approx(together.brier)


def test_empty_bins_have_no_value():
    reliability = Reliability(bins=3)
    reliability.add(np.array([[0.0, 1.0]]), np.array([[False, True]]))
    assert reliability.table() == {
        "pixels": [0.5, 0.0, 0.5],
        "probability": [0.0, None, 1.0],
        "lesion": [0.0, None, 1.0],
    }
    assert reliability.error == 0


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
@pytest.mark.parametrize("classes", [1, 3])
def test_temperature_is_found(temperature, classes):
    generator = np.random.default_rng(0)
    fit = TemperatureFit()
    for _ in range(10):
        # Of one class the other logit is 0.
        logits = generator.normal(0, 2, (max(classes, 2), 100, 100))
        if classes == 1:
            logits[0] = 0
        probs = softmax(logits)
        labels = (generator.random((100, 100)) > np.cumsum(probs, axis=0)).sum(0)
        too_sure = softmax(temperature * logits)
        if classes == 1:
            too_sure = too_sure[1:]
        fit.add(too_sure.astype(np.float32), labels.astype(np.uint8))
    assert fit.temperature == pytest.approx(temperature, rel=0.04)


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits)
    return powers / powers.sum(0)


def test_temperature_makes_four_pixels_as_sure_as_they_are_right():
    # Of four pixels of 0.9 three are lesion: the best probability is 3/4, of logit log 3.
    probs = np.full((1, 2, 2), 0.9, np.float32)
    labels = np.array([[1, 1], [1, 0]], np.uint8)
    fit = TemperatureFit()
    fit.add(probs, labels)
    assert fit.temperature == pytest.approx(np.log(9) / np.log(3), rel=0.02)
    calibrated = Postprocessing(temperature=fit.temperature).calibrate(probs)
    assert calibrated == pytest.approx(0.75, abs=0.005)


def test_risk_coverage_by_hand():
    found = risk_coverage(np.array([0.9, 0.1, 0.5]), np.array([0.8, 0.9, 0.7]))
    # The surest image has the risk 0.9, the next 0.1, the last 0.5.
    assert found.coverage == pytest.approx([1 / 3, 2 / 3, 1])
    assert found.risk == pytest.approx([0.9, 0.5, 0.5])
    assert found.area == pytest.approx(1.9 / 3)
    assert found.random == pytest.approx(0.5)
    assert found.perfect == pytest.approx((0.1 + 0.3 + 0.5) / 3)


def test_perfect_confidence_has_the_perfect_area():
    scores = np.random.default_rng(0).random(50)
    found = risk_coverage(scores, scores)
    assert found.area == found.perfect < found.random


def test_no_image_has_no_curve():
    with pytest.raises(ValueError, match="no image"):
        risk_coverage(np.array([]), np.array([]))


@pytest.mark.parametrize(("recall", "threshold"), [(1.0, 0.8), (0.5, 0.3), (0.7, 0.8), (0.0, 0.2)])
def test_flags_reach_the_recall(recall, threshold):
    scores = np.array([0.1, 0.2, 0.5, 0.6, 0.9, 0.95])
    confidence = np.array([0.2, 0.8, 0.3, 0.85, 0.9, 0.25])
    # With failures below 0.6 their confidences are 0.2, 0.3 and 0.8.
    found = flag_threshold(scores, confidence, bad=0.6, recall=recall)
    assert found == threshold
    failed = scores < 0.6
    assert (confidence[failed] <= found).mean() >= recall


def test_no_failure_flags_nothing():
    found = flag_threshold(np.array([0.9]), np.array([0.1]), bad=0.5, recall=0.9)
    assert found == -np.inf


def test_flags_are_counted():
    scores = np.array([0.1, 0.6, 0.65, 0.9, 0.95])
    confidence = np.array([0.3, 0.8, 0.9, 0.8, 0.95])
    found = count_flags(scores, confidence, threshold=0.8, bad=0.7)
    assert found == {
        "confidence": 0.8,
        "failure_dice": 0.7,
        "images": 5,
        "failures": 3,
        "flagged": 3,
        "flagged_failures": 2,
        "flagged_share": 0.6,
        "recall": 2 / 3,
    }
    assert describe_flags(found) == (
        "3 of 5 images (60%) have a confidence of 0.8 or less and are flagged, among them 2 of the "
        "3 with a Dice below 0.7, for which flags were chosen, (67%)."
    )


def test_flags_without_failures_have_no_recall():
    found = count_flags(np.array([0.9]), np.array([0.5]), threshold=0.6, bad=0.7)
    assert (found["flagged"], found["failures"], found["recall"]) == (1, 0, None)
    assert describe_flags(found).endswith(
        "are flagged; there are no images with a Dice below 0.7, for which flags were chosen."
    )
