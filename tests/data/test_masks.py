import cv2
import numpy as np
import pytest
from PIL import Image

from ovseg.core.errors import InputError
from ovseg.data.masks import (
    MaskFacts,
    binarise,
    describe_oddities,
    mask_facts,
    mask_problem,
    read_category_map,
    read_labels,
    read_mask,
    read_mask_with_facts,
    refuse_implausible,
)


def test_mask_is_binarised_above_the_threshold(tmp_path, save_png):
    path = save_png(tmp_path / "mask.png", np.array([[100, 101]], np.uint8))
    assert read_mask(path, threshold=100).tolist() == [[0, 1]]


def test_jpeg_mask_with_compression_noise_is_read(tmp_path):
    mask = np.zeros((96, 96), np.uint8)
    mask[30:70, 20:60] = 255
    Image.fromarray(mask).save(tmp_path / "mask.jpg", quality=60)
    assert np.mean(read_mask(tmp_path / "mask.jpg") != mask // 255) < 0.002


def test_mask_of_many_values_is_an_error(tmp_path, save_png):
    gradient = np.arange(256, dtype=np.uint8).reshape(16, 16)
    path = save_png(tmp_path / "mask.png", gradient)
    with pytest.raises(InputError, match=r"mask\.png holds 256 grey values"):
        read_mask(path)


def test_photograph_as_jpeg_mask_is_an_error():
    grey = np.random.default_rng(0).integers(40, 220, (32, 32)).astype(np.uint8)
    assert "expected a binary mask" in mask_problem(grey, 127, lossy=True)


def test_compression_noise_in_a_black_jpeg_mask_is_no_problem():
    grey = np.array([[0, 3, 32]], np.uint8)
    assert mask_problem(grey, 127, lossy=True) == ""


def test_mask_of_two_values_above_the_threshold_is_an_error():
    grey = np.array([[200, 255]], np.uint8)
    assert "has only values above the threshold 127 (200, 255)" in mask_problem(
        grey, 127, lossy=False
    )


def test_mask_below_the_threshold_says_which_threshold_to_set(tmp_path, save_png):
    path = save_png(tmp_path / "mask.png", np.array([[0, 1]], np.uint8))
    with pytest.raises(InputError, match=r"Set the mask threshold to 0"):
        read_mask(path)


def test_category_map_keeps_its_ids(tmp_path, save_png):
    ids = np.array([[0, 1], [8, 3]], np.uint8)
    path = save_png(tmp_path / "map.png", ids)
    assert read_category_map(path, classes=9).tolist() == ids.tolist()


def test_labels_are_a_mask_for_one_class_and_ids_for_more(tmp_path, save_png):
    path = save_png(tmp_path / "labels.png", np.array([[0, 3]], np.uint8))
    assert read_labels(path, threshold=2, classes=1).tolist() == [[0, 1]]
    assert read_labels(path, threshold=2, classes=4).tolist() == [[0, 3]]


def test_id_out_of_range_is_an_error(tmp_path, save_png):
    path = save_png(tmp_path / "map.png", np.array([[0, 9, 255]], np.uint8))
    message = r"map\.png holds the ids 9, 255, expected 0 \(background\) to 8"
    with pytest.raises(InputError, match=message):
        read_category_map(path, classes=9)


@pytest.mark.parametrize(("name", "shape"), [("map.jpg", (8, 8)), ("map.png", (8, 8, 3))])
def test_category_map_that_cannot_hold_ids_is_an_error(tmp_path, save_png, name, shape):
    path = save_png(tmp_path / name, np.ones(shape, np.uint8))
    with pytest.raises(InputError, match="expected a PNG with one channel of category ids"):
        read_category_map(path, classes=9)


def test_jpeg_mask_of_another_suffix_is_read_as_a_jpeg(tmp_path):
    mask = np.zeros((64, 64), np.uint8)
    mask[20:40, 20:40] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png", format="JPEG")
    assert np.array_equal(read_mask(tmp_path / "mask.png"), mask > 0)


@pytest.fixture
def lesion() -> np.ndarray:
    """A lesion of 40 x 40 pixels in 96 x 96, 0 and 255."""
    mask = np.zeros((96, 96), np.uint8)
    mask[30:70, 20:60] = 255
    return mask


@pytest.mark.parametrize("suffix", [".png", ".webp", ".jp2"])
def test_soft_edges_are_thresholded_and_counted(tmp_path, lesion, suffix):
    soft = cv2.GaussianBlur(lesion, (0, 0), 2)
    path = tmp_path / f"mask{suffix}"
    Image.fromarray(soft).save(path, lossless=True)
    mask, facts = read_mask_with_facts(path, 127)
    assert np.array_equal(mask, soft > 127)
    # Only of a format without loss are values between black and white known to be drawn.
    between = np.count_nonzero((soft > 0) & (soft < 255))
    assert facts.soft == (between if suffix == ".png" else 0)


def test_labels_of_few_values_are_lesion_above_the_threshold(lesion):
    labels = lesion // 255
    labels[:10] = 2
    assert mask_problem(labels, 0, lossy=False) == ""
    assert mask_facts(labels, 0, invert=False, lossy=False).soft == 1600


def test_inverted_mask_is_read_with_the_lesion_in_black(tmp_path, save_png, lesion):
    path = save_png(tmp_path / "mask.png", 255 - lesion)
    assert np.array_equal(read_mask(path, invert=True), lesion // 255)
    assert np.array_equal(read_labels(path, 127, 1, invert=True), lesion // 255)


@pytest.mark.parametrize("colour", [0, 255])
def test_mask_in_the_alpha_channel_is_an_error(tmp_path, lesion, colour):
    grey = np.full_like(lesion, colour)
    Image.fromarray(np.dstack([grey, grey, grey, lesion])).save(tmp_path / "mask.png")
    with pytest.raises(InputError, match=r"has the mask in its alpha channel \(its grey value is "):
        read_mask(tmp_path / "mask.png")


def test_transparency_of_a_mask_in_grey_does_not_matter(tmp_path, lesion):
    alpha = np.full_like(lesion, 255)
    alpha[:5] = 0
    Image.fromarray(np.dstack([lesion, alpha])).save(tmp_path / "mask.png")
    assert np.array_equal(read_mask(tmp_path / "mask.png"), lesion // 255)


def facts_of(*masks: np.ndarray, threshold: int = 127, invert=False, lossy=False) -> list:
    return [mask_facts(mask, threshold, invert, lossy) for mask in masks]


EMPTY = np.zeros((8, 8), np.uint8)
FULL = np.full((8, 8), 255, np.uint8)


def test_facts_of_a_mask(lesion):
    assert facts_of(lesion, 255 - lesion, EMPTY, FULL) == [
        MaskFacts(brightest=255, lesion=True, full=False, white_corners=False, soft=0),
        MaskFacts(brightest=255, lesion=True, full=False, white_corners=True, soft=0),
        MaskFacts(brightest=0, lesion=False, full=False, white_corners=False, soft=0),
        MaskFacts(brightest=255, lesion=True, full=True, white_corners=False, soft=0),
    ]
    assert facts_of(EMPTY, FULL, invert=True) == [
        MaskFacts(brightest=0, lesion=True, full=True, white_corners=False, soft=0),
        MaskFacts(brightest=255, lesion=False, full=False, white_corners=False, soft=0),
    ]


def test_small_values_in_every_lossy_mask_are_lost_lesions(lesion):
    faint = lesion // 255 * 20
    assert mask_problem(faint, 127, lossy=True) == ""
    with pytest.raises(
        InputError, match=r"None of the 2 masks in train has a value above .* to 10"
    ):
        refuse_implausible("train", facts_of(faint, faint, lossy=True), 127, needs_lesion=True)


def test_small_values_beside_a_lesion_are_noise(lesion):
    faint = lesion // 255 * 20
    refuse_implausible("train", facts_of(lesion, faint, faint, lossy=True), 127, needs_lesion=True)


def test_split_without_a_lesion_is_refused_where_it_needs_one():
    with pytest.raises(InputError, match="All 2 masks in train are empty"):
        refuse_implausible("train", facts_of(EMPTY, EMPTY), 127, needs_lesion=True)
    refuse_implausible("test", facts_of(EMPTY, EMPTY), 127, needs_lesion=False)


def test_split_of_full_masks_is_refused(lesion):
    with pytest.raises(InputError, match="All 2 masks in test are lesion everywhere"):
        refuse_implausible("test", facts_of(FULL, FULL), 127, needs_lesion=False)
    refuse_implausible("test", facts_of(FULL, lesion), 127, needs_lesion=False)


def oddities(*masks: np.ndarray, invert: bool = False) -> list[str]:
    stems = [str(number) for number in range(len(masks))]
    return describe_oddities("train", stems, facts_of(*masks, invert=invert), 127, invert)


def test_inverted_masks_are_asked_about(lesion):
    inverted = 255 - lesion
    assert oddities(inverted, inverted) == [
        "2 of 2 masks in train are white at all four corners: is the lesion drawn in black? "
        "Then set data.invert_masks: true."
    ]
    assert oddities(inverted, inverted, invert=True) == []
    assert oddities(inverted, lesion) == []


def test_nearly_all_masks_are_enough_to_ask(lesion):
    inverted = [255 - lesion] * 9
    assert "9 of 10" in oddities(*inverted, lesion)[0]
    assert oddities(*inverted[1:], lesion) == []


def test_empty_and_full_and_soft_masks_are_counted(lesion):
    soft = lesion.copy()
    soft[40, 20:25] = 100
    assert oddities(lesion, EMPTY, FULL, soft) == [
        "1 of 4 masks in train are empty: 1",
        "1 of 4 masks in train are lesion everywhere: 2",
        "1 of 4 masks in train have values between black and white: 5 pixels, which are lesion "
        "above 127.",
    ]


def test_corners_inside_of_a_letterbox_are_judged():
    inverted = np.full((40, 60), 255, np.uint8)
    inverted[10:30, 20:40] = 0
    boxed = np.zeros((60, 60), np.uint8)
    boxed[10:50] = inverted
    for grey in (inverted, boxed, boxed.T):
        assert mask_facts(grey, 127, False, lossy=False).white_corners
    lesion = np.zeros((60, 60), np.uint8)
    lesion[20:40, 20:40] = 255
    for grey in (lesion, np.full((60, 60), 255, np.uint8), np.zeros((60, 60), np.uint8)):
        assert not mask_facts(grey, 127, False, lossy=False).white_corners


@pytest.mark.parametrize("radius", [1, 2, 4])
def test_soft_lesion_of_a_few_pixels_is_a_mask(radius):
    grey = np.zeros((96, 96), np.uint8)
    cv2.circle(grey, (40, 50), radius, 255, -1)
    soft = cv2.GaussianBlur(grey, (0, 0), 2)
    assert mask_problem(soft, int(soft.max()) // 2, lossy=False) == ""


def test_blurred_mask_grows_where_the_mean_is_not_black():
    grey = np.zeros((5, 5), np.uint8)
    grey[2, 2] = 255
    assert binarise(grey, 127, blur=3).sum() == 9
    grey[2, 2] = 4  # 4 / 9 is rounded to 0
    assert binarise(grey, 0, blur=3).sum() == 0
    grey[2, 2] = 5
    assert binarise(grey, 0, blur=3).sum() == 9
    assert binarise(grey, 5, blur=3).sum() == 0
