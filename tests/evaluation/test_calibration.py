"""Calibration and confidence, on numbers worked out by hand."""

import numpy as np
import pytest

from ovseg.evaluation.calibration import (
    LogitCounts,
    Reliability,
    expected_dice,
    flag_threshold,
    risk_coverage,
)


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
def test_temperature_is_found(temperature):
    generator = np.random.default_rng(0)
    true_logits = generator.normal(0, 3, 200_000)
    lesion = generator.random(200_000) < 1 / (1 + np.exp(-true_logits))
    counts = LogitCounts()
    counts.add(temperature * true_logits[:1000], lesion[:1000])
    counts.add(temperature * true_logits[1000:], lesion[1000:])
    assert counts.fit_temperature() == pytest.approx(temperature, rel=0.03)
    assert counts.loss(counts.fit_temperature()) <= counts.loss(1.0)


def test_confidence_of_a_sure_prediction_is_one():
    pred = np.array([[True, False]])
    assert expected_dice(np.array([[1.0, 0.0]]), pred) == 1
    assert expected_dice(np.array([[0.6, 0.4]]), pred) == pytest.approx(2 * 0.6 / (1 + 1))


def test_confidence_of_an_empty_prediction():
    assert expected_dice(np.array([[0.3, 0.1]]), np.zeros((1, 2), bool)) == pytest.approx(0.7)


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
