import numpy as np
import pytest
from PIL import Image

from ovseg.core.errors import InputError
from ovseg.data.pairs import (
    find_pairs,
    list_images,
    mask_problem,
    read_category_map,
    read_image,
    read_mask,
    verify_pairs,
)


@pytest.fixture
def tree(tmp_path, save_png):
    """Three pairs 2, 10, 1 of 40 x 30 pixels."""
    for stem in ("2", "10", "1"):
        mask = np.zeros((30, 40), np.uint8)
        mask[5:20, 10:30] = 255
        save_png(tmp_path / "images" / f"{stem}.png", np.full((30, 40, 3), 90, np.uint8))
        save_png(tmp_path / "masks" / f"{stem}.png", mask)
    return tmp_path


def pairs_of(tree, **options):
    return find_pairs(tree / "images", tree / "masks", **options)


def test_pairs_are_matched_by_stem_in_natural_order(tree):
    assert [(p.stem, p.image_path.stem, p.mask_path.stem) for p in pairs_of(tree)] == [
        (s, s, s) for s in ["1", "2", "10"]
    ]


def test_any_format_is_matched(tree, save_png):
    (tree / "images" / "1.png").unlink()
    save_png(tree / "images" / "1.TIF", np.zeros((30, 40, 3), np.uint8))
    assert pairs_of(tree)[0].image_path.name == "1.TIF"


def test_missing_folder_is_an_error(tmp_path):
    with pytest.raises(InputError, match="There is no folder"):
        list_images(tmp_path / "nowhere")


def test_folder_without_pictures_is_an_error(tmp_path):
    (tmp_path / "notes.txt").touch()
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
    assert [p.stem for p in pairs_of(tree, exclude=["10"])] == ["1", "2"]


def test_excluding_everything_is_an_error(tree):
    with pytest.raises(InputError, match="leaves no pair"):
        pairs_of(tree, exclude=["1", "2", "10"])


def test_truncated_image_is_an_error(tree):
    path = tree / "images" / "cut.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(path)
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
    assert image.shape == (4, 6, 3) and (image == 7).all()


def test_mask_is_binarised_above_the_threshold(tmp_path, save_png):
    path = save_png(tmp_path / "mask.png", np.array([[100, 101]], np.uint8))
    assert read_mask(path, threshold=100).tolist() == [[0, 1]]


def test_jpeg_mask_with_compression_noise_is_read(tmp_path):
    mask = np.zeros((96, 96), np.uint8)
    mask[30:70, 20:60] = 255
    Image.fromarray(mask).save(tmp_path / "mask.jpg", quality=60)
    assert np.mean(read_mask(tmp_path / "mask.jpg") != mask // 255) < 0.002


def test_mask_of_many_values_is_an_error(tmp_path, save_png):
    path = save_png(tmp_path / "mask.png", np.arange(256, dtype=np.uint8).reshape(16, 16))
    with pytest.raises(InputError, match=r"mask\.png holds 256 grey values"):
        read_mask(path)


def test_photograph_as_jpeg_mask_is_an_error():
    grey = np.random.default_rng(0).integers(40, 220, (32, 32)).astype(np.uint8)
    assert "expected a binary mask" in mask_problem(grey, 127, lossy=True)


def test_mask_below_the_threshold_says_which_threshold_to_set(tmp_path, save_png):
    path = save_png(tmp_path / "mask.png", np.array([[0, 1]], np.uint8))
    with pytest.raises(InputError, match=r"Set data\.mask_threshold to 0"):
        read_mask(path)


def test_empty_mask_is_legal_and_named(tree, save_png):
    save_png(tree / "masks" / "2.png", np.zeros((30, 40), np.uint8))
    assert verify_pairs(pairs_of(tree)) == ["2"]


def test_all_bad_pairs_are_told_at_once(tree, save_png):
    save_png(tree / "masks" / "1.png", np.zeros((31, 40), np.uint8))
    (tree / "images" / "10.png").write_bytes(b"no picture")
    with pytest.raises(
        InputError,
        match=r"2 of 3 pairs cannot be used: .*differ in size \(40 x 30 and 40 x 31\).*10\.png",
    ):
        verify_pairs(pairs_of(tree))


def test_category_map_keeps_its_ids(tmp_path, save_png):
    ids = np.array([[0, 1], [8, 3]], np.uint8)
    assert (
        read_category_map(save_png(tmp_path / "map.png", ids), classes=9).tolist() == ids.tolist()
    )


def test_id_out_of_range_is_an_error(tmp_path, save_png):
    path = save_png(tmp_path / "map.png", np.array([[0, 9, 255]], np.uint8))
    with pytest.raises(
        InputError, match=r"map\.png holds the ids 9, 255, expected 0 \(background\) to 8"
    ):
        read_category_map(path, classes=9)


@pytest.mark.parametrize(("name", "shape"), [("map.jpg", (8, 8)), ("map.png", (8, 8, 3))])
def test_category_map_that_cannot_hold_ids_is_an_error(tmp_path, save_png, name, shape):
    with pytest.raises(InputError, match="expected a PNG with one channel of category ids"):
        read_category_map(save_png(tmp_path / name, np.ones(shape, np.uint8)), classes=9)


def test_pairs_are_verified_as_category_maps(tree, save_png):
    for stem, category in (("1", 3), ("2", 0), ("10", 7)):
        save_png(tree / "masks" / f"{stem}.png", np.full((30, 40), category, np.uint8))
    assert verify_pairs(pairs_of(tree), classes=8) == ["2"]
    with pytest.raises(InputError, match=r"10\.png holds the ids 7"):
        verify_pairs(pairs_of(tree), classes=7)
