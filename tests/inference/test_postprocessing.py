"""Flips, threshold and clean-up: hand-worked labels, and the file of a run folder."""

import json
import math

import numpy as np
import pytest
import torch

from ovseg.core.checkpoints import checkpoint_digest
from ovseg.core.errors import InputError
from ovseg.inference.labels import Postprocessing, to_dict
from ovseg.inference.postprocessing import average_flips, mean_logits, read_postprocessing
from ovseg.metrics import predict

PICTURE = np.array(  # a ring of 8 with a hole, two pixels that touch at a corner, one alone
    [
        [1, 1, 1, 0, 0, 0],
        [1, 0, 1, 0, 1, 0],
        [1, 1, 1, 0, 0, 1],
        [0, 0, 0, 0, 0, 0],
        [0, 0, 0, 1, 0, 0],
    ]
)


def labels(
    postprocessing: Postprocessing, picture: np.ndarray = PICTURE, pixels: int | None = None
) -> np.ndarray:
    """Lesion of probability 0.6 where the picture is 1, 0.3 elsewhere."""
    return postprocessing.labels(np.where(picture, 0.6, 0.3).astype(np.float32)[None], pixels)


def changed(*cells: tuple[int, int]) -> np.ndarray:
    """The picture with these cells turned over."""
    picture = PICTURE.copy()
    for cell in cells:
        picture[cell] = 1 - picture[cell]
    return picture


HOLE, PAIR, DOT = (1, 1), [(1, 4), (2, 5)], (4, 3)


@pytest.mark.parametrize(
    ("postprocessing", "expected"),
    [
        (Postprocessing(), PICTURE),
        (Postprocessing(threshold=0.25), np.ones_like(PICTURE)),
        (Postprocessing(threshold=0.7), np.zeros_like(PICTURE)),
        (Postprocessing(fill_holes=True), changed(HOLE)),
        (Postprocessing(keep_largest=True), changed(*PAIR, DOT)),
        (Postprocessing(min_area=2 / 30), changed(DOT)),
        (Postprocessing(min_area=2.5 / 30), changed(*PAIR, DOT)),
        (Postprocessing(min_area=8.5 / 30), np.zeros_like(PICTURE)),
        (Postprocessing(min_area=8.5 / 30, fill_holes=True), changed(HOLE, *PAIR, DOT)),
        (Postprocessing(threshold=0.7, keep_largest=True, fill_holes=True), np.zeros_like(PICTURE)),
    ],
)
def test_labels_by_hand(postprocessing, expected):
    found = labels(postprocessing)
    assert found.dtype == np.uint8 and np.array_equal(found, expected)


def test_share_is_of_the_picture_and_not_of_its_square():
    assert np.array_equal(labels(Postprocessing(min_area=0.1), pixels=20), changed(DOT))
    assert np.array_equal(labels(Postprocessing(min_area=0.1)), changed(*PAIR, DOT))


def test_bay_and_diagonal_gap_are_no_holes():
    bay = np.array([[1, 1, 1], [1, 0, 0], [1, 1, 1]])
    assert np.array_equal(labels(Postprocessing(fill_holes=True), bay), bay)
    enclosed = np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]])  # 8 neighbours make a ring of it
    assert labels(Postprocessing(fill_holes=True), enclosed)[1, 1] == 1


def test_hole_in_a_category_gets_the_most_probable_one():
    probs = np.zeros((3, 3, 3), np.float32)
    probs[1] = 0.9
    probs[:, 1, 1] = 0.5, 0.2, 0.3
    assert Postprocessing().labels(probs)[1, 1] == 0
    filled = Postprocessing(fill_holes=True).labels(probs)
    assert filled[1, 1] == 2 and (np.delete(filled, 4) == 1).all()


def test_plain_postprocessing_is_the_prediction_of_the_scores():
    logits = torch.randn(3, 1, 16, 16)
    found = [Postprocessing().labels(probs) for probs in logits.sigmoid().numpy()]
    assert np.array_equal(found, predict(logits)[:, 0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"flips": ["diagonal"]}, "Unknown flip 'diagonal'. Choose one of: horizontal, vertical"),
        ({"threshold": 0}, "threshold of post-processing is 0, expected a number within"),
        ({"threshold": "high"}, "threshold of post-processing is 'high'"),
        ({"min_area": 1.5}, "min_area of post-processing is 1.5, expected a number within 0..1"),
        ({"keep_largest": 1}, "keep_largest of post-processing is 1, expected true or false"),
        (
            {"temperature": 0},
            "temperature of post-processing is 0, expected a number within 0.2..5",
        ),
        ({"flag_confidence": -0.1}, "flag_confidence of post-processing is -0.1, expected a num"),
        ({"failure_dice": 70}, "failure_dice of post-processing is 70, expected a number within"),
    ],
)
def test_bad_postprocessing_is_an_error(arguments, message):
    with pytest.raises(InputError, match=message):
        Postprocessing(**arguments)


def test_postprocessing_says_what_it_changes():
    assert str(Postprocessing()) == "threshold 0.5"
    every = Postprocessing(("horizontal", "vertical"), 0.4, True, 0.002, True)
    expected = (
        "flips horizontal and vertical, threshold 0.4, holes filled, components of 0.2 % and more"
    )
    assert str(every) == f"{expected}, largest component" and len(every.changes) == 5
    assert Postprocessing(**json.loads(json.dumps(to_dict(every)))) == every
    assert str(Postprocessing(temperature=1.5)) == "temperature 1.5"


def test_temperature_divides_the_logit_of_one_class():
    # 0.8 has the logit log 4; half of it is log 2, which is 2/3.
    probs = np.array([[[0.8, 0.5, 0.2, 0.0, 1.0, 1.0000001]]], np.float32)
    found = Postprocessing(temperature=2.0).calibrate(probs)
    assert found.dtype == np.float32 and found.shape == probs.shape
    assert found.ravel() == pytest.approx([2 / 3, 0.5, 1 / 3, 0, 1, 1])
    # Twice the logit is log 16.
    assert Postprocessing(temperature=0.5).calibrate(probs)[0, 0, 0] == pytest.approx(16 / 17)


def test_temperature_of_categories_is_that_of_the_softmax():
    # Of 4/9, 4/9 and 1/9 the roots are 2/3, 2/3 and 1/3.
    probs = np.array([4 / 9, 4 / 9, 1 / 9], np.float32)[:, None, None]
    found = Postprocessing(temperature=2.0).calibrate(probs)
    assert found.ravel() == pytest.approx([0.4, 0.4, 0.2])
    logits = torch.randn(1, 5, 4, 6)
    expected = (logits / 1.7).softmax(1)[0].numpy()
    assert Postprocessing(temperature=1.7).calibrate(logits.softmax(1)[0].numpy()) == (
        pytest.approx(expected, abs=1e-6)
    )


def test_flags_begin_at_the_threshold():
    postprocessing = Postprocessing(flag_confidence=0.8)
    assert [postprocessing.is_flagged(value) for value in (0.7, 0.8, 0.81)] == [True, True, False]
    assert Postprocessing().is_flagged(0.1) is None


@pytest.mark.parametrize("classes", [1, 3])
def test_mean_of_logits_has_the_mean_of_probabilities(classes):
    logits = [torch.randn(2, classes, 4, 5) for _ in range(3)]
    activate = torch.sigmoid if classes == 1 else lambda x: x.softmax(1)
    expected = torch.stack([activate(entry) for entry in logits]).mean(0)
    assert torch.allclose(activate(mean_logits(logits)), expected, atol=1e-6)
    assert mean_logits(logits[:1]) is logits[0]


def test_mean_of_logits_is_exact_where_probabilities_are_one():
    ends = mean_logits([torch.full((1, 1, 1, 1), 60.0), torch.full((1, 1, 1, 1), 70.0)])
    assert ends.item() == pytest.approx(60 + math.log(2), abs=1e-3)


def test_flips_are_those_made_by_hand():
    weight = torch.rand(1, 3, 3, 3)

    def network(image):
        return torch.nn.functional.conv2d(image.float() / 255, weight - 0.5, padding=1)

    image = torch.randint(0, 256, (2, 3, 6, 8), dtype=torch.uint8)
    plain, mirrored = network(image).sigmoid(), network(image.flip(3)).sigmoid().flip(3)
    upside_down, turned = (
        network(image.flip(2)).sigmoid().flip(2),
        network(image.flip(2, 3)).sigmoid().flip(2, 3),
    )
    assert not torch.allclose(plain, mirrored, atol=1e-3)
    for flips, views in [
        ((), [plain]),
        (("horizontal",), [plain, mirrored]),
        (("vertical",), [plain, upside_down]),
        (("horizontal", "vertical"), [plain, mirrored, upside_down, turned]),
    ]:
        found = average_flips(network, image, flips).sigmoid()
        assert torch.allclose(found, torch.stack(views).mean(0), atol=1e-6)


def test_checkpoint_alone_has_no_postprocessing(run):
    checkpoint = run / "checkpoints" / "last.ckpt"
    assert read_postprocessing(checkpoint, checkpoint_digest(checkpoint), 1) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not what ovseg postprocess writes .Expecting property name"),
        ("[]", r"is not what ovseg postprocess writes \(Expected `object`, got `array`\)"),
        (
            '{"postprocessing": {"speed": 1}, "checkpoint_sha256": "1"}',
            "Object contains unknown field `speed`",
        ),
        (
            '{"postprocessing": {"min_area": 2}, "checkpoint_sha256": "1"}',
            "postprocessing.json .* writes .min_area of post-processing is 2",
        ),
        (
            json.dumps({"postprocessing": {"flips": ["vertical"] * 30}, "checkpoint_sha256": "1"}),
            "flips of post-processing are .* and 25 more, expected each once",
        ),
        (
            '{"postprocessing": {"threshold": true}, "checkpoint_sha256": "1"}',
            "Expected `float`, got `bool`",
        ),
        (
            '{"postprocessing": {"temperature": NaN}, "checkpoint_sha256": "1"}',
            "temperature of post-processing is nan, expected a number within 0.2..5",
        ),
        ("[" * 100_000, "it is nested too deeply"),
    ],
)
def test_damaged_postprocessing_is_an_error(tmp_path, text, message):
    (tmp_path / "postprocessing.json").write_text(text)
    with pytest.raises(InputError, match=message):
        read_postprocessing(tmp_path, "1", 1)


def test_threshold_for_categories_is_an_error(tmp_path):
    (tmp_path / "postprocessing.json").write_text(
        '{"postprocessing": {"threshold": 0.4}, "checkpoint_sha256": "1"}'
    )
    assert read_postprocessing(tmp_path, "1", 1) == Postprocessing(threshold=0.4)
    with pytest.raises(InputError, match="has threshold 0.4, but 5 classes have none"):
        read_postprocessing(tmp_path, "1", 5)
