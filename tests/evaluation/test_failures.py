"""Each kind of failure on a drawn example."""

import numpy as np
import pytest

from ovseg.evaluation.distances import surface_distances
from ovseg.evaluation.failures import KINDS, count_components, describe_kinds, failure_kind

SIZE = 200


def box(top, left, bottom, right):
    mask = np.zeros((SIZE, SIZE), bool)
    mask[top:bottom, left:right] = True
    return mask


EMPTY = np.zeros((SIZE, SIZE), bool)
LESION = box(50, 50, 110, 110)

EXAMPLES = {
    "good": (LESION, box(52, 50, 110, 110)),
    "false alarm": (EMPTY, LESION),
    "missed": (LESION, EMPTY),
    "wrong structure": (LESION, box(100, 100, 160, 160)),
    "boundary only": (box(50, 50, 60, 60), box(48, 48, 62, 62)),
    "extra components": (LESION, LESION | box(130, 130, 180, 180)),
    "split": (LESION, box(50, 50, 65, 110) | box(95, 50, 110, 110)),
    "part of it": (LESION, box(50, 50, 110, 75)),
    "too much": (LESION, box(30, 30, 150, 150)),
    "other": (LESION, box(50, 80, 110, 140)),
}


def kind_of(mask, pred, tolerance=3):
    return failure_kind(pred, mask, surface_distances(pred, mask, tolerance))


@pytest.mark.parametrize("kind", list(KINDS))
def test_drawn_example_of_each_kind(kind):
    mask, pred = EXAMPLES[kind]
    assert kind_of(mask, pred) == kind


def test_two_empty_masks_are_good():
    assert kind_of(EMPTY, EMPTY) == "good"


def test_two_lesions_in_two_components_are_not_split():
    lesions = box(20, 20, 60, 60) | box(120, 120, 160, 160)
    parts = box(20, 20, 60, 42) | box(120, 120, 160, 142)
    assert kind_of(lesions, parts) == "part of it"


def test_small_speck_beside_a_poor_prediction_is_not_the_failure():
    pred = box(50, 50, 110, 75) | box(150, 150, 152, 152)
    assert kind_of(LESION, pred) == "part of it"


def test_components_have_eight_neighbours():
    mask = np.eye(4, dtype=bool)
    assert count_components(mask) == 1
    mask[1] = False
    assert count_components(mask) == 2
    assert count_components(np.zeros((3, 3), bool)) == 0


def test_every_kind_is_described():
    described = describe_kinds("5 pixels")
    assert list(described) == list(KINDS)
    assert described["boundary only"] == (
        "80% or more of both outlines are within 5 pixels of each other"
    )
