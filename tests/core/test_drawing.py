import os

import numpy as np
import pytest

from ovseg.core.drawing import PALETTE, PRED, TRUTH, caption, case_row, contact_sheet, legend, paint


def test_each_category_is_painted_in_its_own_colour():
    image, labels = np.zeros((40, 40, 3), np.uint8), np.zeros((40, 40), np.uint8)
    labels[5:15, 5:15], labels[20:30, 20:30] = 2, 8
    picture = paint(image, labels, PALETTE, tint=0.5)
    for place, color in ((5, PALETTE[1]), (20, PALETTE[7])):
        assert tuple(picture[place, place]) == color  # outline
        assert tuple(picture[place + 5, place + 5]) == tuple(c // 2 for c in color)  # tint
    assert not picture[labels == 0].any() and not image.any()


def test_a_lesion_is_a_map_of_one_label():
    image = np.zeros((20, 20, 3), np.uint8)
    mask = np.zeros((20, 20), bool)
    mask[5:9, 5:9] = True
    assert tuple(paint(image, mask, (PRED,))[5, 5]) == PRED


def test_colours_of_eight_categories_are_far_apart():
    colors = np.array(PALETTE, float)
    distances = np.linalg.norm(colors[:, None] - colors[None], axis=2)[
        np.triu_indices(len(colors), 1)
    ]
    assert len(colors) == 8 and distances.min() > 80


def test_legend_names_all_or_those_shown_and_wraps():
    names = [f"category with a long name {i}" for i in range(1, 9)]
    wide, narrow, some = legend(names, 4000), legend(names, 250), legend(names, 4000, shown=[0, 3])
    assert wide.shape == (18, 4000, 3) and narrow.shape == (8 * 18, 250, 3)
    for color in PALETTE:
        assert (wide == color).all(2).any() and (narrow == color).all(2).any()
    assert (some == PALETTE[2]).all(2).any() and not (some == PALETTE[0]).all(2).any()


def test_cases_of_one_class_and_of_several_differ_in_colour():
    image, labels = np.zeros((32, 32, 3), np.uint8), np.full((32, 32), 3, np.uint8)
    one = case_row(image, labels > 0, labels > 0, "a", side=32)
    several = case_row(image, labels, labels, "a", side=32, classes=9)
    assert (one == TRUTH).all(2).any() and (one == PRED).all(2).any()
    assert (several == PALETTE[2]).all(2).any() and not (several == PRED).all(2).any()
    plain, named = contact_sheet([several], 1), contact_sheet([several], 1, ["x", "y", "z"])
    assert named.shape[0] > plain.shape[0] and np.array_equal(named[: len(plain)], plain)


@pytest.mark.parametrize("name", [os.fsdecode(b"\xc2\xd1"), "卵巢", "\x1b[31m", "a" * 500, ""])
def test_any_name_is_drawn(name):
    picture = caption(np.zeros((20, 60, 3), np.uint8), name)
    assert picture.shape == (38, 60, 3)
    assert picture[:18].any() == bool(name)
    assert legend([name], 100).shape[1] == 100
