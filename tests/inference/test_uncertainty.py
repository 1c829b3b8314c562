"""Confidence and disagreement, on numbers worked out by hand."""

import cv2
import numpy as np
import pytest
import torch

from ovseg.core.drawing import LINE_HEIGHT, heat_colors, heat_legend
from ovseg.inference.labels import expected_dice
from ovseg.inference.uncertainty import (
    deviation_of_members,
    draw_uncertainty,
    lesion_views,
    map_flips,
)


def test_confidence_of_a_sure_prediction_is_one():
    pred = np.array([[True, False]])
    assert expected_dice(np.array([[1.0, 0.0]]), pred) == 1
    assert expected_dice(np.array([[0.6, 0.4]]), pred) == pytest.approx(2 * 0.6 / (1 + 1))


def test_confidence_of_an_empty_prediction():
    assert expected_dice(np.array([[0.3, 0.1]]), np.zeros((1, 2), bool)) == pytest.approx(0.7)


def test_single_network_without_flips_is_compared_with_the_mirror_image():
    assert map_flips((), 1) == ("horizontal",)
    assert map_flips((), 2) == ()
    assert map_flips(("vertical",), 1) == ("vertical",)


@pytest.mark.parametrize("classes", [1, 2])
def test_views_are_probabilities_of_lesion(classes):
    views = []
    for lesion in (0.2, 0.6):
        logit = np.log(lesion / (1 - lesion))
        # With two classes the first is the background, of logit 0.
        values = [logit] if classes == 1 else [0.0, logit]
        views.append(torch.tensor(values)[None, :, None, None].float())
    found = lesion_views(views)
    assert found.shape == (1, 2, 1, 1)
    assert found.ravel() == pytest.approx([0.2, 0.6])


def test_deviation_is_that_of_all_views_together():
    views = np.random.default_rng(0).random((3, 4, 5, 6)).astype(np.float32)  # members, views
    found = deviation_of_members(views.mean(1), views.var(1))
    assert found.dtype == np.float32
    assert found == pytest.approx(views.reshape(12, 5, 6).std(0), abs=1e-6)


def test_map_shows_the_grey_picture_where_all_agree():
    picture = np.random.default_rng(0).integers(0, 256, (40, 300, 3), dtype=np.uint8)
    uncertainty = np.zeros((40, 300), np.float32)
    uncertainty[10:20, 50:80] = 0.5
    shown = draw_uncertainty(picture, uncertainty)
    assert shown.shape == (40 + 2 * LINE_HEIGHT, 300, 3)
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    agreed = uncertainty == 0
    assert np.array_equal(shown[:40][agreed], grey[agreed][:, None].repeat(3, 1))
    # The highest colour is yellow: red and green above blue.
    marked = shown[10:20, 50:80].astype(int)
    assert (marked[..., 0] > marked[..., 2] + 60).all()
    assert (marked[..., 1] > marked[..., 2] + 60).all()


def test_colours_become_lighter_step_by_step():
    # So the order of colours can be told without colour vision, and in print.
    colors = heat_colors(np.linspace(0, 1, 11)[None])
    light = cv2.cvtColor(colors, cv2.COLOR_RGB2LAB)[0, :, 0].astype(int)
    assert (np.diff(light) > 5).all()


@pytest.mark.parametrize("width", [1, 8, 64, 500])
def test_legend_is_as_wide_as_any_picture(width):
    strip = heat_legend(width, "0", "0.5", "SD of the probability")
    assert strip.shape == (2 * LINE_HEIGHT, width, 3)
