import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ovseg.core.errors import InputError
from ovseg.data.boxes import Box
from ovseg.data.pairs import (
    Pair,
    find_pairs,
    list_images,
    natural_key,
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


def test_facts_of_masks_have_the_order_of_the_pairs(tree, save_png):
    save_png(tree / "masks" / "2.png", np.zeros((30, 40), np.uint8))
    assert [mask.lesion for mask in verify_pairs(pairs_of(tree))] == [True, False, True]


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


def test_pairs_are_verified_as_category_maps(tree, save_png):
    for stem, category in (("1", 3), ("2", 0), ("10", 7)):
        save_png(tree / "masks" / f"{stem}.png", np.full((30, 40), category, np.uint8))
    facts = verify_pairs(pairs_of(tree), classes=8)
    assert [mask.brightest for mask in facts] == [3, 0, 7]
    assert [mask.full for mask in facts] == [True, False, True]
    with pytest.raises(InputError, match=r"10\.png holds the ids 7"):
        verify_pairs(pairs_of(tree), classes=7)


def test_stems_of_one_number_have_an_order(tmp_path, save_png):
    for stem in ("1", "01", "001"):
        save_png(tmp_path / f"{stem}.png", np.zeros((2, 2), np.uint8))
    assert list(list_images(tmp_path)) == ["001", "01", "1"]


def test_stems_of_composed_and_decomposed_letters_are_one(tmp_path, save_png):
    for kind, form in (("images", "NFD"), ("masks", "NFC")):
        name = unicodedata.normalize(form, "Läsion 1.png")
        save_png(tmp_path / kind / name, np.zeros((2, 2), np.uint8))
    for exclude in ([], ["Läsion 2"]):
        [pair] = pairs_of(tmp_path, exclude=exclude)
        assert pair.stem == unicodedata.normalize("NFC", "Läsion 1")
    with pytest.raises(InputError, match="leaves no pair"):
        pairs_of(tmp_path, exclude=[unicodedata.normalize("NFD", "Läsion 1")])


def test_mask_that_fits_only_the_picture_on_its_side_says_so(tree):
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(np.zeros((30, 40, 3), np.uint8))
    image.save(tree / "images" / "2.png", exif=exif)
    with pytest.raises(InputError, match=r"30 x 40 and 40 x 30\). .* EXIF orientation turns it"):
        read_pair(pairs_of(tree)[1])


def test_folder_of_other_files_says_which(tmp_path):
    (tmp_path / "1.dcm").touch()
    with pytest.raises(InputError, match=r"\.avif\)\. .* 1 file was left out: 1 \.dcm"):
        list_images(tmp_path)


def test_folder_without_pictures_names_dicom_where_it_is_taken(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match=r"\.avif, DICOM\)\. .* 1 file was left out: 1 \.txt"):
        list_images(tmp_path, dicom=True)
