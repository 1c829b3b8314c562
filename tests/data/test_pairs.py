from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ovseg.core.errors import InputError
from ovseg.data.geometry import Box
from ovseg.data.pairs import (
    Pair,
    find_pairs,
    list_images,
    mask_problem,
    natural_key,
    read_category_map,
    read_image,
    read_labels,
    read_mask,
    read_pair,
    verify_pairs,
)


@pytest.fixture
def tree(tmp_path, save_png) -> Path:
    """Three pairs 2, 10, 1, each 40 pixels wide and 30 high."""
    image = np.full((30, 40, 3), 90, np.uint8)
    mask = np.zeros((30, 40), np.uint8)
    mask[5:20, 10:30] = 255
    for stem in ("2", "10", "1"):
        save_png(tmp_path / "images" / f"{stem}.png", image)
        save_png(tmp_path / "masks" / f"{stem}.png", mask)
    return tmp_path


def pairs_of(tree: Path, **options) -> list[Pair]:
    return find_pairs(tree / "images", tree / "masks", **options)


def test_natural_order_puts_2_before_10_and_numbers_before_letters():
    assert sorted(["b10", "b2", "10", "2"], key=natural_key) == ["2", "10", "b2", "b10"]


def test_pairs_are_matched_by_stem_in_natural_order(tree):
    pairs = pairs_of(tree)
    assert [pair.stem for pair in pairs] == ["1", "2", "10"]
    assert [pair.image_path.stem for pair in pairs] == ["1", "2", "10"]
    assert [pair.mask_path.stem for pair in pairs] == ["1", "2", "10"]


def test_any_format_is_matched(tree, save_png):
    (tree / "images" / "1.png").unlink()
    save_png(tree / "images" / "1.TIF", np.zeros((30, 40, 3), np.uint8))
    assert pairs_of(tree)[0].image_path.name == "1.TIF"


def test_missing_folder_is_an_error(tmp_path):
    with pytest.raises(InputError, match="There is no folder"):
        list_images(tmp_path / "nowhere")


def test_folder_without_pictures_is_an_error(tmp_path):
    (tmp_path / "notes.txt").touch()
    (tmp_path / ".hidden.png").touch()
    with pytest.raises(InputError, match="holds no picture"):
        list_images(tmp_path)


def test_two_pictures_of_one_stem_are_an_error(tree, save_png):
    save_png(tree / "images" / "2.bmp", np.zeros((30, 40, 3), np.uint8))
    with pytest.raises(InputError, match=r"1 stems stand for two pictures .*: 2\."):
        list_images(tree / "images")


@pytest.mark.parametrize(("kind", "other"), [("masks", "mask"), ("images", "image")])
def test_picture_without_partner_is_named(tree, kind, other):
    (tree / kind / "10.png").unlink()
    with pytest.raises(InputError, match=rf"1 of 3 .* have no {other} of the same stem .*: 10\."):
        pairs_of(tree)


def test_excluded_stem_needs_no_partner(tree):
    (tree / "masks" / "10.png").unlink()
    assert [pair.stem for pair in pairs_of(tree, exclude=["10"])] == ["1", "2"]


def test_excluding_everything_is_an_error(tree):
    with pytest.raises(InputError, match="leaves no pair"):
        pairs_of(tree, exclude=["1", "2", "10"])


def test_truncated_image_is_an_error(tree):
    path = tree / "images" / "cut.jpg"
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(InputError, match=r"cut\.jpg cannot be read"):
        read_image(path)


def test_several_frames_are_an_error(tmp_path):
    frame = Image.fromarray(np.zeros((8, 8), np.uint8))
    frame.save(tmp_path / "film.tif", save_all=True, append_images=[frame])
    with pytest.raises(InputError, match="has 2 frames"):
        read_image(tmp_path / "film.tif")


def test_sixteen_bits_are_an_error(tmp_path, save_png):
    path = save_png(tmp_path / "deep.png", np.full((8, 8), 4000, np.uint16))
    with pytest.raises(InputError, match="expected 8 bits"):
        read_image(path)


def test_grey_image_becomes_rgb(tmp_path, save_png):
    image = read_image(save_png(tmp_path / "grey.png", np.full((4, 6), 7, np.uint8)))
    assert image.shape == (4, 6, 3)
    assert (image == 7).all()


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
    assert "has two values above the threshold 127" in mask_problem(grey, 127, lossy=False)


def test_mask_below_the_threshold_says_which_threshold_to_set(tmp_path, save_png):
    path = save_png(tmp_path / "mask.png", np.array([[0, 1]], np.uint8))
    with pytest.raises(InputError, match=r"Set the mask threshold to 0"):
        read_mask(path)


def test_empty_mask_is_legal_and_named(tree, save_png):
    save_png(tree / "masks" / "2.png", np.zeros((30, 40), np.uint8))
    assert verify_pairs(pairs_of(tree)) == ["2"]


def test_a_single_bad_pair_is_named_with_its_reason(tree):
    (tree / "images" / "10.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"^[^:]*10\.png cannot be read"):
        verify_pairs(pairs_of(tree))


def test_all_bad_pairs_are_named_at_once(tree, save_png):
    save_png(tree / "masks" / "1.png", np.zeros((31, 40), np.uint8))
    (tree / "images" / "10.png").write_bytes(b"no picture")
    message = r"2 of 3 pairs cannot be used: .*differ in size \(40 x 30 and 40 x 31\).*10\.png"
    with pytest.raises(InputError, match=message):
        verify_pairs(pairs_of(tree))


def test_good_pairs_are_handed_over_while_they_are_verified(tree):
    shapes = {}

    def keep(index: int, image: np.ndarray, mask: np.ndarray) -> None:
        shapes[index] = (image.shape, mask.shape)

    verify_pairs(pairs_of(tree), keep=keep)
    assert shapes == dict.fromkeys(range(3), ((30, 40, 3), (30, 40)))


def test_pair_is_cut_to_its_box(tree):
    files = pairs_of(tree)[0]
    pair = Pair("1", files.image_path, files.mask_path, Box(top=5, left=10, height=15, width=20))
    image, mask = read_pair(pair)
    assert image.shape == (15, 20, 3)
    assert mask.all()
    assert mask.shape == (15, 20)


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


def test_pairs_are_verified_as_category_maps(tree, save_png):
    for stem, category in (("1", 3), ("2", 0), ("10", 7)):
        save_png(tree / "masks" / f"{stem}.png", np.full((30, 40), category, np.uint8))
    assert verify_pairs(pairs_of(tree), classes=8) == ["2"]
    with pytest.raises(InputError, match=r"10\.png holds the ids 7"):
        verify_pairs(pairs_of(tree), classes=7)


def test_jpeg_mask_of_another_suffix_is_read_as_a_jpeg(tmp_path):
    mask = np.zeros((64, 64), np.uint8)
    mask[20:40, 20:40] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png", format="JPEG")
    assert np.array_equal(read_mask(tmp_path / "mask.png"), mask > 0)


def test_stems_of_one_number_have_an_order(tmp_path, save_png):
    for stem in ("1", "01", "001"):
        save_png(tmp_path / f"{stem}.png", np.zeros((2, 2), np.uint8))
    assert list(list_images(tmp_path)) == ["001", "01", "1"]
