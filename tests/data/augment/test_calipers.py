import random

import albumentations as A
import cv2
import numpy as np
import pytest

from ovseg.data.augment.calipers import (
    caliper_ends,
    draw_caliper,
    draw_label,
    find_calipers,
    remove_calipers,
)
from ovseg.data.augment.pipelines import DrawCalipers, augment
from ovseg.data.augment.sector import find_sector
from ovseg.data.prepare.phantoms import make_phantom


def distances_to_edge(mask, ends):
    """Distance of each end of the measurements from the lesion's edge, pixels."""
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    found = []
    for pair in ends:
        for end in pair:
            found.append(abs(cv2.pointPolygonTest(contours[0], end, True)))
    return found


def test_calipers_are_on_the_lesions_edge_or_anywhere():
    image, mask = make_phantom(5, 256)
    sector = find_sector(image)
    rng = random.Random(1)
    on_lesion = [caliper_ends(rng, mask, sector, True) for _ in range(50)]
    anywhere = [caliper_ends(rng, mask, sector, False) for _ in range(50)]
    assert np.median(distances_to_edge(mask, on_lesion)) < 4
    assert np.median(distances_to_edge(mask, anywhere)) > 15


def test_calipers_are_anywhere_where_there_is_no_lesion():
    image, mask = make_phantom(5, 256)
    no_lesion = np.zeros_like(mask)
    sector = find_sector(image)
    expected = caliper_ends(random.Random(1), no_lesion, sector, False)
    assert caliper_ends(random.Random(1), no_lesion, sector, True) == expected


def test_calipers_have_a_place_in_an_empty_sector():
    black = np.zeros((64, 64, 3), np.uint8)
    first, last = caliper_ends(random.Random(1), black[..., 0], find_sector(black), False)
    assert first != last


@pytest.mark.parametrize("style", ["plus", "x"])
def test_caliper_beyond_the_picture_is_cut_off(style):
    black = np.zeros((64, 64, 3), np.uint8)
    picture = draw_caliper(black, ((-20, 30), (40, 90)), (255, 255, 0), style)
    assert picture.any()
    assert not black.any()  # the image itself is not changed


@pytest.mark.parametrize("on_lesion", [0, 1])
@pytest.mark.parametrize("seed", range(5))
def test_drawn_calipers_are_found_and_removed(on_lesion, seed):
    image, mask = make_phantom(5, 256)
    transform = A.Compose([DrawCalipers(on_lesion=on_lesion, p=1)])
    marked, _ = augment(transform, image, mask, seed)

    marks = np.any(marked != image, 2)
    clearly_yellow = marks & (np.ptp(marked, 2) > 60)
    assert marks.any()
    assert find_calipers(marked)[clearly_yellow].all()

    remaining = np.ptp(remove_calipers(marked).astype(int), 2)
    assert (remaining > 16).sum() < 0.1 * marks.sum()


def test_removal_keeps_pictures_without_marks_and_tinted_ones():
    image = make_phantom(5, 256)[0]
    assert np.array_equal(remove_calipers(image), image)
    sepia = (image * np.array([1, 0.9, 0.6])).astype(np.uint8)
    assert np.mean(remove_calipers(sepia) != sepia) < 0.2


def test_label_is_drawn_in_its_color():
    black = np.zeros((64, 64, 3), np.uint8)
    labelled = draw_label(black, "R-OV", (4, 40), (255, 255, 0))
    assert labelled[..., 0].max() > 200
    assert not labelled[..., 2].any()
