"""Summaries of tables whose numbers are known."""

import numpy as np
import pandas as pd
import pytest

from ovseg.evaluation.failures import KINDS
from ovseg.evaluation.summary import (
    pooled_miou,
    summarise_categories,
    summarise_confidence,
    summarise_failures,
    summarise_subgroups,
    summarise_values,
)


@pytest.fixture
def table():
    """Four pictures of 100 x 100 with lesions of 0, 200, 500 and 4,000 pixels."""
    return pd.DataFrame(
        {
            "stem": list("abcd"),
            "group": [0, 1, 1, 2],
            "category": ["cyst", "cyst", "teratoma", "teratoma"],
            "dice_original": [np.nan, 0.2, 0.6, 0.9],
            "failure": ["good", "missed", "part of it", "good"],
            "confidence": [0.9, 0.5, 0.7, 0.8],
            "doppler": [False, True, False, False],
            "marked": [False, False, True, True],
            "height": 100,
            "width": [100, 100, 100, 100],
            "lesion_pixels_original": [0, 200, 500, 4000],
            "pred_pixels_original": [0, 0, 300, 4400],
            "hit_pixels_original": [0, 0, 240, 3780],
        }
    )


def test_values_have_spread_and_quartiles():
    found = summarise_values(pd.Series([0.0, 0.5, 1.0, np.nan, 0.5]))
    assert (found["mean"], found["median"], found["q1"], found["q3"]) == (0.5, 0.5, 0.375, 0.625)
    assert found["sd"] == pytest.approx(np.std([0, 0.5, 1, 0.5], ddof=1))
    assert found["images"] == 4


def test_interval_of_one_group_is_none():
    scores = pd.Series([0.2, 0.4, np.nan])
    assert summarise_values(scores, pd.Series([7, 7, 8]))["ci95"] is None
    assert summarise_values(scores)["ci95"] is not None


def test_pooled_miou_is_the_mean_of_lesion_and_background(table):
    hit = 240 + 3780
    lesion = 4700
    pred = 4700
    of_lesion = hit / (lesion + pred - hit)
    of_background = (40_000 - lesion - pred + hit) / (40_000 - hit)
    assert pooled_miou(table) == pytest.approx((of_lesion + of_background) / 2)
    assert pooled_miou(table.head(1)) is None


def test_every_kind_is_counted(table):
    rows = {row["kind"]: row for row in summarise_failures(table)}
    assert list(rows) == list(KINDS)
    assert rows["good"]["images"] == 2
    assert rows["missed"]["share"] == 0.25
    assert sum(row["images"] for row in rows.values()) == 4


def test_empty_maps_count_as_exact_for_confidence(table):
    found = summarise_confidence(table)
    assert found["risk"] == pytest.approx([0, 0.05, 0.5 / 3, 1.3 / 4])


def test_subgroups(table):
    rows = {(row["by"], row["name"]): row for row in summarise_subgroups(table, table["group"])}
    assert rows["lesion", "none"]["images"] == 0  # without a Dice
    assert rows["lesion", "0% to 3% of the picture"]["mean"] == 0.2
    assert rows["lesion", "20% to 100% of the picture"]["failed"] == 0
    assert rows["category", "teratoma"]["mean"] == 0.75
    assert rows["doppler", "colour Doppler"]["failed"] == 1
    assert rows["marked", "yellow mark on the lesion"]["images"] == 2
    assert rows["longer side", "up to 500 pixels"]["images"] == 3
    assert ("lesion", "8% to 20% of the picture") not in rows
    # The two images of one group can't give an interval.
    two = summarise_subgroups(table.iloc[1:3], table["group"].iloc[1:3])
    assert all(row["ci95"] is None for row in two)


def test_categories_are_scored_at_the_original_size_with_intervals_by_group(table):
    table = table.assign(iou_original=table["dice_original"])
    rows = {row["name"]: row for row in summarise_categories(table, groups=table["group"])}
    assert rows["teratoma"]["dice"]["mean"] == 0.75
    assert rows["teratoma"]["iou_pooled"] == pytest.approx(4020 / (4500 + 4700 - 4020))
    assert rows["cyst"]["dice"]["ci95"] is None  # one image of one group has a score
