"""Outlines between ends that a person has marked."""

import numpy as np
import pytest
import torch
from torch import nn

from ovseg import predict_guided
from ovseg.core.errors import InputError
from ovseg.inference.guided import fit_ellipse
from ovseg.inference.postprocessing import Postprocessing
from ovseg.inference.predictor import LoadedNetwork, Predictor

GREY = np.full((64, 64, 3), 90, np.uint8)
LEVEL = ((10, 20), (30, 20))


class RedNetwork(nn.Module):
    """The logit of lesion is 10 where only red shines, else 0; it keeps what it was shown."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen = images
        return 10 * ((images[:, :1] > 200) & (images[:, 1:2] < 50)).float()


def make_predictor(**options) -> Predictor:
    member = LoadedNetwork(RedNetwork(), 64, "letterbox", torch.device("cpu"))
    return Predictor([member], **options)


def measure_distance(*pairs) -> np.ndarray:
    """The distance of each pixel of 64 x 64, float32."""
    rows, columns = np.indices((64, 64), np.float32)
    return fit_ellipse(pairs, 64, 64).measure_distance(columns, rows)


def test_distance_is_0_in_the_middle_and_1_at_the_ends():
    distance = measure_distance(LEVEL)
    assert (distance.shape, distance.dtype) == ((64, 64), np.float32)
    assert distance[20, 20] == 0
    assert distance[20, [10, 30]] == pytest.approx([1, 1])
    assert distance[20, 40] == pytest.approx(2)
    assert distance[27, 20] == pytest.approx(7 / 7.3)  # 0.73 of the half length 10


def test_second_pair_tells_width_and_place():
    distance = measure_distance(LEVEL, ((18, 12), (23, 32)))
    assert distance[22, 20] == pytest.approx(0, abs=1e-6)
    assert distance[[12, 32], 20] == pytest.approx([1, 1])


def test_distance_does_not_depend_on_the_order_of_ends():
    oblique = ((12, 40), (44, 16))
    across = ((20, 22), (35, 40))
    forward = measure_distance(oblique, across)
    backward = measure_distance(oblique[::-1], across[::-1])
    assert np.allclose(forward, backward, atol=1e-5)


def test_where_the_network_knows_nothing_the_ellipse_is_the_lesion():
    prediction = predict_guided(make_predictor(), GREY, [LEVEL])
    inside = measure_distance(LEVEL) < 1
    assert 220 < inside.sum() < 240  # pi * 10 * 7.3 is 229
    assert np.array_equal(prediction.labels, inside)
    assert prediction.probs.dtype == np.float32
    assert prediction.probs[20, 20] == pytest.approx(1 / (1 + np.exp(-12)))


def test_network_decides_near_the_edge_and_the_ends_far_from_it():
    image = GREY.copy()
    image[20, 32:60] = (255, 0, 0)
    prediction = predict_guided(make_predictor(), image, [LEVEL])
    # Its probability counts as at most 0.9999, a logit of 9.21; 12 (r - 1) is that at r = 1.77.
    assert np.flatnonzero(prediction.labels[20, 32:]).tolist() == [0, 1, 2, 3, 4, 5]


def test_network_sees_the_caliper_and_the_callers_picture_stays():
    predictor = make_predictor()
    image = GREY.copy()
    predict_guided(predictor, image, [LEVEL])
    [member] = predictor.members
    seen = member.network.seen[0].permute(1, 2, 0)
    assert (seen == torch.tensor([255, 255, 0])).all(2).any()
    assert np.array_equal(image, GREY)


def test_threshold_and_clean_up_are_those_of_the_run():
    postprocessing = Postprocessing(threshold=0.2, temperature=2.0, keep_largest=True)
    predictor = make_predictor(postprocessing=postprocessing)
    image = GREY.copy()
    image[20, 34:37] = (255, 0, 0)  # beside the ellipse
    prediction = predict_guided(predictor, image, [LEVEL])
    # A logit of -1.386, halved by the temperature, is reached where 12 (r - 1) is 0.693.
    inside = measure_distance(LEVEL) < 1 + 0.693 / 12
    assert np.array_equal(prediction.labels, inside)


def test_second_pair_may_begin_on_the_first():
    """The longest diameter of half a disc is its flat side."""
    distance = measure_distance(LEVEL, ((20, 20), (20, 30)))
    assert distance[[20, 25, 30], 20] == pytest.approx([1, 0, 1])


def test_ends_may_be_fractions_of_unsigned_arrays():
    exact = predict_guided(make_predictor(), GREY, [((30, 20), (10, 40))])
    array = np.array([[[30, 20], [10, 40]]], np.uint16)
    fractions = [((30.2, 19.8), (10.1, 40.4))]
    for calipers in (array, fractions):
        prediction = predict_guided(make_predictor(), GREY, calipers)
        assert np.array_equal(prediction.probs, exact.probs)


@pytest.mark.parametrize(
    ("calipers", "part"),
    [
        ([((5, 5), (64, 5))], "column 64, row 5, which lies outside the picture of 64 x 64"),
        ([((5, -1), (6, 5))], "column 5, row -1"),
        ([], "expected one or two pairs"),
        (LEVEL, "expected one or two pairs"),
        ([LEVEL] * 3, "expected one or two pairs"),
        ([((1, 2, 3), (4, 5, 6))], "expected one or two pairs"),
        ([((1, 2), (3,))], "expected one or two pairs"),
        ([((1, 2), None)], "expected one or two pairs"),
        ([((7, 8), (7, 8))], "are 0 pixels from each other, expected at least 2"),
        ([((7, 8), (8, 8))], "are 1 pixels from each other"),
        ([LEVEL, ((12, 20), (12, 20))], "are 0 pixels from each other"),
        ([LEVEL, ((12, 20), (28, 20))], "doesn't cross the first"),
        ([LEVEL, ((12, 40), (12, 60))], "doesn't cross the first"),
        ([LEVEL, ((36, 12), (36, 28))], "doesn't cross the first"),
    ],
)
def test_wrong_ends_are_refused(calipers, part):
    with pytest.raises(InputError, match=part):
        predict_guided(make_predictor(), GREY, calipers)


def test_categories_are_refused():
    with pytest.raises(InputError, match="categories"):
        predict_guided(make_predictor(categories=("cyst", "teratoma")), GREY, [LEVEL])
