"""Intervals contain the truth as often as they say."""

import numpy as np
import pytest

from ovseg.core.statistics import mean_interval, ratio_interval


def test_too_few_values_have_no_interval():
    assert mean_interval(np.array([])) is None
    assert mean_interval(np.array([0.5])) is None
    assert mean_interval(np.array([0.5, 0.6]), np.array(["a", "a"])) is None


def test_equal_values_have_an_interval_without_width():
    assert mean_interval(np.full(10, 0.5), np.arange(10) // 2) == [0.5, 0.5]


def test_groups_of_one_are_values():
    values = np.random.default_rng(0).random(40)
    of_values = mean_interval(values)
    of_groups = mean_interval(values, np.arange(40))
    assert of_groups == pytest.approx(of_values, abs=0.01)


def test_members_of_a_group_that_agree_widen_the_interval():
    values = np.random.default_rng(0).random(20)
    alone = mean_interval(values)
    repeated = mean_interval(np.repeat(values, 5))
    by_group = mean_interval(np.repeat(values, 5), np.repeat(np.arange(20), 5))
    assert by_group == pytest.approx(alone, abs=0.01)
    assert repeated[1] - repeated[0] < 0.6 * (by_group[1] - by_group[0])


def test_units_without_a_denominator_are_left_out():
    found = ratio_interval(np.array([1.0, 1.0, 5.0]), np.array([2.0, 2.0, 0.0]))
    assert found == [0.5, 0.5]


@pytest.mark.slow
def test_intervals_by_group_contain_the_true_mean():
    """95 % intervals of 1,000 samples: 100 examinations of 1 to 4 images with a common effect."""
    generator = np.random.default_rng(0)
    truth = 0.8
    inside = {"groups": 0, "images": 0}
    for _ in range(1000):
        sizes = generator.integers(1, 5, 100)
        groups = np.repeat(np.arange(100), sizes)
        effect = generator.normal(0, 0.1, 100)[groups]
        values = truth + effect + generator.normal(0, 0.05, len(groups))
        for name, unit in (("groups", groups), ("images", np.arange(len(groups)))):
            low, high = mean_interval(values, unit)
            inside[name] += low <= truth <= high
    assert 930 <= inside["groups"] <= 970
    # Resampling images as if they were independent promises too much.
    assert inside["images"] < 900
